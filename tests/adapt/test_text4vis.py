"""Text4Vis: the equations, what frames and their order do, frozen classifiers, and videos on the command line."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from ostension.adapt._classifiers import lda_rows, of_width, orthonormal_rows, random_rows, rows_of_names
from ostension.adapt._examples import Examples, Labelled
from ostension.adapt._frames import Clips
from ostension.adapt._temporal import Temporal
from ostension.adapt.base import METHODS
from ostension.data.pairs import Pair, Summary
from ostension.errors import ConfigError, DataError
from ostension.image.augment import CropConfig
from ostension.image.clips import ClipConfig
from ostension.model.clip import CLIP
from ostension.model.predictor import Predictor
from ostension.model.presets import preset
from ostension.store import Store

NAMES = ("juggling", "swimming", "waving")
TEMPLATE = "a video of a person {}."


@pytest.fixture(scope="module")
def method():
    return METHODS.load("text4vis")


@pytest.fixture(scope="module")
def model():
    return CLIP(preset("tiny-vit"), seed=0).eval()


def encoded(frames):
    buffer = io.BytesIO()
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures[0].save(buffer, "PNG", save_all=True, append_images=pictures[1:])  # APNG keeps every pixel
    return buffer.getvalue()


class Videos:
    """Random moving pictures in memory."""

    def __init__(self, count, frames=6):
        generator = np.random.default_rng(0)
        self.data = [encoded(generator.integers(0, 255, (frames, 32, 32, 3), dtype=np.uint8)) for _ in range(count)]

    def __len__(self):
        return len(self.data)

    def key(self, index):
        return str(index)

    def read(self, index):
        return Pair(key=str(index), image=self.data[index], texts=(), meta={})

    def fingerprint(self):
        return f"random videos {len(self.data)}"

    def summary(self):
        return Summary(num_pairs=len(self.data), num_bytes=0, rejects={})


def examples(each=2, store=None):
    targets = np.repeat(np.arange(3), each)
    return Examples(
        class_names=NAMES, train=Labelled(source=Videos(len(targets)), targets=targets, name="train", store=store)
    )


def settings(method, *, views=0, **changes):
    clip = changes.pop("clip", ClipConfig(frames=4))
    made = method.Config(**{"layers": 2, "heads": 2, "tower": "frozen", "clip": clip, **changes})
    recipe = dataclasses.replace(
        made.recipe, epochs=3, batch_size=4, lr=0.01, views=views, crop=CropConfig(kind="resized", scale=(0.3, 1.0))
    )
    return dataclasses.replace(made, recipe=recipe)


def frames_of(count=3, length=4, seed=1):
    return torch.randn(count, length, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def stirred(module, seed=3):
    """Other values than the first ones, which are nearly nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3)


def test_the_transformer_over_frames_is_the_published_one():
    """Written out with torch's attention, in float64."""
    made = Temporal(16, 5, 2, 4, seed=0).double()
    stirred(made)
    frames = torch.randn(3, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = frames + made.positions
    for block in made.blocks:
        heads = nn.MultiheadAttention(16, 4, batch_first=True, dtype=torch.float64)
        heads.load_state_dict(block.attn.state_dict())
        normed = F.layer_norm(found, (16,), block.ln_1.weight, block.ln_1.bias, 1e-12)
        found = found + heads(normed, normed, normed, need_weights=False)[0]
        normed = F.layer_norm(found, (16,), block.ln_2.weight, block.ln_2.bias, 1e-12)
        hidden = normed @ block.mlp.c_fc.weight.T + block.mlp.c_fc.bias
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        found = found + hidden @ block.mlp.c_proj.weight.T + block.mlp.c_proj.bias
    torch.testing.assert_close(made(frames), found, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("pooling", ["none", "transformer"])
def test_logits_are_the_published_equation(method, model, pooling):
    made = kind(method)(model, settings(method, pooling=pooling), NAMES, seed=1).eval()
    if pooling == "transformer":
        stirred(made.temporal)
    frames = frames_of()
    rows = model.encode_image(frames.flatten(0, 1)).view(3, 4, -1)
    mixed = rows if pooling == "none" else made.temporal(rows) + rows
    video = F.normalize(mixed.mean(dim=1), dim=-1)
    words = F.normalize(model.embed_texts([TEMPLATE.format(name) for name in NAMES]), dim=-1)
    wanted = made.logit_scale.exp() * video @ words.T
    torch.testing.assert_close(made.predictor().forward(frames), wanted, rtol=1e-4, atol=1e-4)


def test_one_frame_without_a_transformer_is_the_pictures_zero_shot(method, model):
    for tower in ("frozen", "trained"):
        config = settings(method, clip=ClipConfig(frames=1), tower=tower)
        predictor = kind(method)(model, config, NAMES).predictor()
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 40, 3), dtype=np.uint8))
        wanted = model.classifier(NAMES, [TEMPLATE]).predict([picture])
        torch.testing.assert_close(predictor.predict([picture]), wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(predictor.predict([[picture]]), wanted, rtol=1e-5, atol=1e-6)


def test_the_order_of_frames_counts_with_the_transformer_alone(method, model):
    frames = frames_of()
    for pooling, same in (("none", True), ("transformer", False)):
        made = kind(method)(model, settings(method, pooling=pooling), NAMES).eval()
        if made.temporal is not None:
            stirred(made.temporal)
        first, second = made.image(frames), made.image(frames.flip(1))
        assert torch.allclose(first, second, atol=1e-5) is same


def test_zero_weights_of_the_transformer_leave_the_mean_over_frames(method, model):
    made = kind(method)(model, settings(method, pooling="transformer"), NAMES).eval()
    for value in made.temporal.parameters():
        nn.init.zeros_(value)
    plain = kind(method)(model, settings(method), NAMES).eval()
    torch.testing.assert_close(made.image(frames_of()), plain.image(frames_of()), rtol=1e-5, atol=1e-6)


def test_views_are_averaged_before_the_row_is_made_unit(method, model):
    frames = frames_of(length=12)
    made = kind(method)(model, settings(method, pooling="transformer"), NAMES).eval()
    clips = [model.encode_image(frames[:, start : start + 4].flatten(0, 1)).view(3, 4, -1) for start in (0, 4, 8)]
    parts = torch.stack([(clip + made.temporal(clip)).mean(dim=1) for clip in clips])
    torch.testing.assert_close(made.image(frames), F.normalize(parts.mean(dim=0), dim=-1), rtol=1e-5, atol=1e-5)
    with pytest.raises(DataError, match="6 frames.*whole clips of 4"):
        made.image(frames[:, :6])


def test_four_clips_in_three_crops_are_seen_at_test_and_one_in_training(method, model):
    config = settings(method, clip=ClipConfig(frames=2, clips=4, crops=3))
    predictor = method.fit(model, examples(), config)
    assert predictor.pixels([Videos(1).data[0]]).shape == (1, 24, 3, 32, 32)
    assert Clips.of(examples().train, config.clip).pixels(model, np.arange(2), epoch=0).shape == (2, 2, 3, 32, 32)


@pytest.mark.parametrize("views", [0, 2])
def test_kept_frames_are_what_the_tower_gives_for_live_ones(model, views, tmp_path):
    crop = CropConfig(kind="resized", scale=(0.2, 1.0), mirror=True)
    for store in (None, Store(tmp_path)):
        clips = Clips.of(examples(store=store).train, ClipConfig(frames=3))
        kept = clips.features(model, views, crop=crop)
        assert kept.shape[:3] == (max(1, views), 6, 3)
        for number, rows in enumerate(kept, 1):
            live = clips.pixels(model, np.arange(6), epoch=number if views else None, crop=crop)
            wanted = model.encode_image(live.flatten(0, 1)).view(6, 3, -1)
            close = {"rtol": 1e-4, "atol": 1e-5} if store is None else {"rtol": 5e-3, "atol": 5e-3}
            torch.testing.assert_close(rows, wanted, **close)


def test_training_on_kept_frames_equals_training_on_videos_step_for_step(method, model, monkeypatch):
    config, kept, live = settings(method, pooling="transformer"), [], []
    method.fit(model, examples(), config, seed=2, progress=kept.append)
    fill = kind(method).fill

    def filled(addition, data, seed):
        addition.needs_images = True  # the frozen tower again in every step
        fill(addition, data, seed)

    monkeypatch.setattr(kind(method), "fill", filled)
    method.fit(model, examples(), config, seed=2, progress=live.append)
    assert [row["loss"] for row in live] == pytest.approx([row["loss"] for row in kept], rel=1e-4)


@pytest.mark.parametrize("classifier", ["text", "random", "orthonormal", "lda"])
@pytest.mark.parametrize("tower", ["frozen", "trained"])
def test_training_leaves_the_classifier_and_saving_keeps_it(method, model, classifier, tower, tmp_path):
    config = settings(method, classifier=classifier, tower=tower, pooling="transformer")
    data = examples(each=3)
    start = kind(method)(model, config, NAMES, seed=4)
    start.fill(Clips.of(data.train, config.clip), 4)
    predictor = method.fit(model, data, config, seed=4)
    assert torch.equal(predictor.module.rows, start.rows)
    torch.testing.assert_close(predictor.module.rows.norm(dim=-1), torch.ones(3))
    changed = [not torch.equal(value, start.state_dict()[name]) for name, value in predictor.module.state_dict().items()]
    assert sum(changed) >= len(changed) - 2  # all but W and what gets no gradient, such as the bias of the keys
    predictor.save(tmp_path)
    loaded = Predictor.load(tmp_path, model)
    assert torch.equal(loaded.forward(frames_of()), predictor.forward(frames_of()))
    if classifier == "text":
        assert loaded.bind(("a", "b")).forward(frames_of()).shape == (3, 2)
    else:
        with pytest.raises(ConfigError, match="belongs to its 3 classes"):
            loaded.bind(("a", "b"))


def test_batch_norm_of_a_trained_tower_keeps_its_statistics(method):
    model = CLIP(preset("tiny-resnet"), seed=0).eval()
    config = dataclasses.replace(settings(method, tower="trained"))
    predictor = method.fit(model, examples(each=1), config)
    before = {name: value for name, value in model.visual.named_buffers() if "running" in name}
    found = dict(predictor.module.visual.named_buffers())
    assert before and all(torch.equal(found[name], value) for name, value in before.items())


def test_orthonormal_rows_are_at_right_angles_and_random_ones_differ_by_seed():
    rows = orthonormal_rows(5, 8, seed=1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(5), rtol=0, atol=1e-6)
    assert torch.equal(rows, orthonormal_rows(5, 8, seed=1)) and not torch.equal(rows, orthonormal_rows(5, 8, seed=2))
    assert not torch.equal(random_rows(5, 8, 1), random_rows(5, 8, 2))
    with pytest.raises(ConfigError, match="9 classes cannot be at right angles in 8 dimensions"):
        orthonormal_rows(9, 8, seed=1)


@pytest.mark.parametrize("shrinkage", [0.0, 0.3])
def test_lda_rows_point_where_scikit_learns_coefficients_do(shrinkage):
    analysis = pytest.importorskip("sklearn.discriminant_analysis").LinearDiscriminantAnalysis
    generator = np.random.default_rng(0)
    targets = generator.permutation(np.repeat([0, 1, 2, 3], [9, 14, 20, 7]))
    rows = generator.normal(size=(50, 6)) @ generator.normal(size=(6, 6)) + generator.normal(size=(4, 6))[targets]
    made = analysis() if not shrinkage else analysis(solver="lsqr", shrinkage=shrinkage)
    wanted = made.fit(rows, targets).coef_
    # That solver leaves out the mean of all, which is the same for all classes and no matter but for cosines.
    wanted = wanted - (made.priors_ @ wanted if shrinkage else 0)
    wanted = torch.from_numpy(wanted / np.linalg.norm(wanted, axis=1, keepdims=True)).float()
    found = lda_rows(torch.from_numpy(rows), torch.from_numpy(targets), 4, shrinkage)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_lda_says_what_it_lacks():
    rows = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(DataError, match="class 2 has no video"):
        lda_rows(rows, torch.tensor([0, 0, 1, 1]), 3)
    with pytest.raises(DataError, match="say nothing of how a class varies"):
        lda_rows(rows[:2], torch.tensor([0, 1]), 2)


def test_rows_of_another_language_model_come_from_a_file_by_name(tmp_path):
    rows = torch.randn(4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    known = ["waving", "juggling", "sleeping", "swimming"]
    np.save(tmp_path / "rows.npy", rows.numpy())
    (tmp_path / "rows.txt").write_text("\n".join(known) + "\n")
    facts = {"class_names": json.dumps(known)}
    safetensors.torch.save_file({"embeddings": rows}, tmp_path / "rows.safetensors", facts)
    for name in ("rows.npy", "rows.safetensors"):
        found = rows_of_names(str(tmp_path / name), NAMES, 8, seed=0)
        torch.testing.assert_close(found, F.normalize(rows[[1, 3, 0]], dim=-1).float())
    with pytest.raises(DataError, match="no row of the class 'flying'"):
        rows_of_names(str(tmp_path / "rows.npy"), ("flying",), 8, seed=0)
    with pytest.raises(DataError, match="cannot be read"):
        rows_of_names(str(tmp_path / "none.npy"), NAMES, 8, seed=0)


def test_rows_of_another_width_keep_their_cosines():
    rows = F.normalize(torch.randn(5, 12, generator=torch.Generator().manual_seed(0)), dim=-1)
    for width in (7, 40):
        found = of_width(rows, width, seed=0)
        torch.testing.assert_close(found @ found.T, rows @ rows.T, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_rows_of_a_model_of_transformers_are_means_over_tokens(tmp_path):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *NAMES]))
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    made = transformers.BertConfig(
        vocab_size=7, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    torch.manual_seed(0)
    transformers.BertModel(made).save_pretrained(tmp_path)
    found = rows_of_names(str(tmp_path), NAMES, 16, seed=0)
    assert found.shape == (3, 16) and not torch.allclose(found[0], found[1], atol=1e-3)


def test_settings_that_do_nothing_are_refused(method):
    with pytest.raises(ConfigError, match="language_model"):
        method.Config(classifier="language-model")
    with pytest.raises(ConfigError, match="language_model"):
        method.Config(language_model="rows.npy")
    with pytest.raises(ConfigError, match="shrinkage 0.1 with classifier text"):
        method.Config(shrinkage=0.1)
    with pytest.raises(ConfigError, match="warmup_epochs"):
        method.Config(recipe=dataclasses.replace(method.Config().recipe, schedule="constant"))


def moving(direction, colour, seed):
    """A square that goes left or right: the same pictures in the other order."""
    generator = np.random.default_rng(seed)
    frames = np.zeros((6, 32, 32, 3), np.uint8) + generator.integers(0, 60, 3, dtype=np.uint8)
    top = int(generator.integers(4, 20))
    for step in range(6):
        left = 4 * step + 1
        frames[step if direction == "right" else 5 - step, top : top + 8, left : left + 8] = colour
    return encoded(frames)


def written_task(root, count=6):
    for direction in ("left", "right"):
        for split, first in (("train", 0), ("test", 100)):
            folder = root / "moves" / split / direction
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.png").write_bytes(moving(direction, (250, 240, 30), first + number))
    (root / "moves.toml").write_text(
        'title = "Moves"\nversion = 1\nkind = "video"\nmetric = "accuracy"\ntemplates = ["a video of {}."]\n'
        'licence = "none"\ncitation = "none"\n[classes]\nleft = ["moving left"]\nright = ["moving right"]\n'
        f"[splits.train]\ncount = {2 * count}\n[splits.test]\ncount = {2 * count}\n"
        '[[sources]]\nkind = "folder"\npath = "moves"\n'
    )
    return root / "moves.toml"


@pytest.mark.slow
def test_directions_are_told_by_the_transformer_and_not_by_the_mean(tmp_path, method, model):
    """Through `adapt compare`: training, the store, and the measuring of videos."""
    from ostension.evals.adaptation import Plan, run_plan
    from ostension.evals.store_inputs import Embedder
    from ostension.evals.task_splits import TaskSplits

    splits, embedder, found = TaskSplits(written_task(tmp_path, 16)), Embedder(model, Store(tmp_path / "store")), {}
    for pooling in ("none", "transformer"):
        config = settings(method, pooling=pooling, clip=ClipConfig(frames=6, grey=0.0))
        recipe = dataclasses.replace(config.recipe, epochs=100, lr=5e-3, batch_size=16)
        plan = Plan(method="text4vis", config=dataclasses.replace(config, recipe=recipe), shots=0, seed=1)
        record, _ = run_plan(plan, splits, embedder)
        assert record.counts["test_samples"] == 32
        found[pooling] = record.metrics["accuracy"].value
    assert found["transformer"] >= 0.9 and 0.3 <= found["none"] <= 0.7


@pytest.mark.slow
def test_videos_are_adapted_to_and_classified_on_the_command_line(tmp_path, model):
    from ostension.formats.load import save

    save(model, tmp_path / "model")
    written_task(tmp_path)
    frames = tmp_path / "clips" / "frames"
    frames.mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (32, 32), (9 * number, 0, 0)).save(frames / f"{number}.jpg")
    (tmp_path / "clips" / "one.png").write_bytes(moving("left", (250, 0, 0), 1))
    words = ["--model", "model", "--task", "moves.toml", "--store", "store", "-o", "found", "--shots", "2"]
    sets = [part for text in ("tower=frozen", "recipe.epochs=1", "recipe.views=0", "clip.frames=4") for part in ("--set", text)]
    run(tmp_path, "adapt", "text4vis", *words, *sets)
    lines = run(tmp_path, "classify", "clips/frames", "clips/one.png", "--predictor", "found", "--format", "jsonl").splitlines()
    assert [json.loads(line)["image"] for line in lines] == ["clips/frames", "clips/one.png"]
    assert {json.loads(line)["label"] for line in lines} <= {"moving left", "moving right"}


def run(folder, *words):
    command = [sys.executable, "-m", "ostension", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def kind(method):
    return method.Text4Vis
