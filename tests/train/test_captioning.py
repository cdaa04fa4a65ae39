"""Captioning: the loss against its plain form, batches in pieces, a run that overfits, saves and says what it learned."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F

from ostension.errors import CheckpointError, ConfigError
from ostension.formats.load import load
from ostension.formats.parts import load_captioner
from ostension.losses import LossConfig
from ostension.model import decoder as decoders
from ostension.model.captioner import Captioner, Sampling, beam_search, sample
from ostension.model.clip import CLIP
from ostension.model.decoder import DecoderConfig, next_token_loss
from ostension.model.presets import preset
from ostension.runlog import read_records
from ostension.runtime import torch_generator
from ostension.train.batches import Batch, pad_tokens, token_rows
from ostension.train.captioning import Captioning, CaptioningConfig
from ostension.train.loop import train
from ostension.train.optim import OptimConfig
from ostension.train.schedule import ScheduleConfig
from ostension.train.step import backward
from ostension.train.train_config import TrainConfig

NAMES = ("red", "green dot", "blue!", "a yellow car", "pink", "teal sky")
COLOURS = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]]).float()


class Colours:
    """Pictures of six colours, each with its name."""

    worker_kind = "threads"
    batch_size, num_samples = 12, 48

    def __init__(self, model):
        self.model = model

    def identity(self):
        return {"fingerprint": "colours"}

    def batch(self, step, rank=0, world_size=1):
        kinds = torch.arange(12) % 6
        size = self.model.config.vision.image_size
        noise = torch.randn(12, 3, size, size, generator=torch_generator("colours", step))
        rows, _ = token_rows(self.model.tokenizer, [NAMES[kind] for kind in kinds])
        return Batch(
            images=0.1 * noise + COLOURS[kinds][:, :, None, None],
            tokens=pad_tokens(rows, self.model.tokenizer.pad_id, self.model.config.text),
            keys=[f"pair-{index}" for index in range(12)],
            groups=kinds,
        )


def objective(name="tiny-vit", **settings):
    model = CLIP(preset(name), seed=3)
    config = CaptioningConfig(loss=LossConfig(duplicates="share"), decoder=DecoderConfig(head_width=16), **settings)
    return Captioning(model, config)


def test_each_row_is_the_mean_of_its_tokens_cross_entropies_and_padding_is_left_out_by_position():
    made = objective()
    tokenizer, captioner = made.model.tokenizer, made.captioner.double()
    rows, _ = token_rows(tokenizer, ["blue!%", "a"])
    tokens = pad_tokens(rows, tokenizer.pad_id, made.model.config.text)
    assert tokenizer.pad_id in rows[0]  # a target that a rule by id would leave out
    states = torch.randn(2, tokens.shape[1], made.model.config.text.width, generator=torch_generator("x"), dtype=torch.float64)
    found = next_token_loss(captioner.decoder, states, tokens, made.model.text.ends(tokens))
    for row, ids in enumerate(rows):
        logits = captioner.decoder.logits(states[row, : len(ids) - 1])
        assert found[row].item() == pytest.approx(F.cross_entropy(logits, torch.tensor(ids[1:])).item(), abs=1e-12)


def test_the_decoder_sees_no_later_token_and_reads_the_picture():
    made = objective()
    decoder = made.captioner.decoder
    features, width = decoder.image_proj.in_features, decoder.image_proj.out_features
    x = torch.randn(1, 6, width, generator=torch_generator("x"))
    places = torch.randn(1, 4, features, generator=torch_generator("y"))
    plain = decoder(x, places)
    other = x.clone()
    other[:, 4:] += 1.0
    assert torch.allclose(decoder(other, places)[:, :4], plain[:, :4], atol=1e-6)
    assert not torch.allclose(decoder(x, places.flip(2))[:, 0], plain[:, 0], atol=1e-3)


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-resnet"])
def test_the_gradients_are_those_of_the_plain_form_in_float64(name, monkeypatch):
    made = objective(name)
    made.module.double().eval()
    batch = Colours(made.model).batch(0)
    batch = dataclasses.replace(batch, images=batch.images.double())
    model, settings = made.model, made.settings
    text = model.text_features(batch.tokens, ("tokens", "embedding"))
    image = model.image_features(batch.images, ("patches", "embedding"))
    x, y = F.normalize(image["embedding"], dim=-1), F.normalize(text["embedding"], dim=-1)
    logits = model.scale() * x @ y.T
    target = (batch.groups[:, None] == batch.groups).double()
    target /= target.sum(1, keepdim=True)
    contrast = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    caption = 0
    for row in range(12):
        end = int(model.text.ends(batch.tokens)[row])
        out = made.captioner.decoder(text["tokens"][row : row + 1], image["patches"][row : row + 1])
        logits = out[0, :end] @ made.captioner.decoder.head.T
        caption = caption + F.cross_entropy(logits, batch.tokens[row, 1 : end + 1]) / 12
    (settings.contrastive_weight * contrast + settings.caption_weight * caption).backward()
    expected = {key: value.grad.clone() for key, value in made.module.named_parameters() if value.grad is not None}
    for limit, micro in ((decoders.LOGITS, None), (3 * 1024, None), (decoders.LOGITS, 4)):
        monkeypatch.setattr(decoders, "LOGITS", limit)  # three rows of logits at a time
        made.module.zero_grad()
        found = backward(made, batch, micro)
        assert float(found.loss) == pytest.approx((contrast + 2 * caption).item(), abs=1e-10)
        assert float(found.measured["caption_loss"]) == pytest.approx(caption.item(), abs=1e-10)
        for key, value in made.module.named_parameters():
            if key in expected:
                assert torch.allclose(value.grad, expected[key], atol=1e-10), key


def test_the_weights_keep_their_names_and_the_captioners_come_besides():
    made = objective()
    plain = set(CLIP(preset("tiny-vit")).state_dict())
    names = {name for name, _ in made.module.named_parameters()}
    assert plain <= set(made.module.state_dict()) and {name.split(".")[0] for name in names - plain} == {"captioner"}


def test_a_captioner_needs_a_text_tower_that_looks_back_only():
    with pytest.raises(ConfigError, match="captioner cannot stand"):
        Captioner(DecoderConfig(head_width=16), CLIP(preset("tiny-siglip")))


@pytest.mark.slow
def test_a_run_learns_to_say_what_it_sees_and_its_folder_loads_with_and_without_the_captioner(tmp_path):
    made = objective()
    config = TrainConfig(
        steps=100, precision="fp32", optim=OptimConfig(lr=3e-3, weight_decay=0.0), schedule=ScheduleConfig(warmup_steps=5)
    )
    source = Colours(made.model)
    result = train(made, source, config, tmp_path / "run")
    last = read_records(tmp_path / "run", ["step"])[-1]
    assert last["caption_loss"] < 0.05 and last["loss"] == pytest.approx(last["contrastive_loss"] + 2 * last["caption_loss"])
    batch = source.batch(999)
    plain = load(result.model_folder, device="cpu", dtype="float32")
    assert torch.equal(plain.encode_image(batch.images), made.model.encode_image(batch.images))
    loaded = load_captioner(result.model_folder, device="cpu", dtype="float32")
    said = [plain.tokenizer.decode(plain.tokenizer.encode(name)) for name in NAMES]
    for beams in (1, 3):
        assert loaded.caption(batch.images, beams=beams, batch_size=5) == 2 * said
    assert "captioner.safetensors" in json.loads((result.model_folder / "manifest.json").read_text())["files"]
    (result.model_folder / "captioner.json").unlink()
    with pytest.raises(CheckpointError, match="has no captioner.json"):
        load_captioner(result.model_folder)


def test_beams_find_the_likelier_row_that_a_greedy_choice_misses():
    # From the start (0): 1 with .6, 2 with .4; after 1 everything is even, after 2 the end (3) is sure.
    table = torch.tensor([[0, 0.6, 0.4, 0], [0.25, 0.25, 0.25, 0.25], [0, 0, 0, 1.0], [0, 0, 0, 1.0]]).log()

    def following(tokens, which):
        return table[tokens[:, -1]].clone()

    starts = torch.zeros(2, 1, dtype=torch.long)
    found = {beams: beam_search(following, starts, beams=beams, end_id=3, length=5)[1] for beams in (1, 2)}
    assert found[1][0] == 1 and found[2] == [2]
    behind = beam_search(following, torch.tensor([[0, 2], [0, 2]]), beams=2, end_id=3, length=5)
    assert behind == [[], []]  # behind 2 comes the end


def test_tokens_are_drawn_by_their_share_within_the_likeliest():
    table = torch.tensor([[0, 0.6, 0.3, 0.1]]).log().repeat(4, 1)
    starts, numbers = torch.zeros(3, 1, dtype=torch.long), torch.tensor([[0.5, 0.66], [0.5, 0.67], [0.5, 0.999]])

    def following(tokens, which):
        return table[tokens[:, -1]].clone()

    # Of 1 and 2, which have nine tenths together, 1 has two thirds.
    assert [row[0] for row in sample(following, starts, Sampling(top_p=0.9), numbers, end_id=3)] == [1, 2, 2]
    assert [row[:1] for row in sample(following, starts, Sampling(top_p=1.0), numbers, end_id=3)] == [[2], [2], []]
    assert [row[0] for row in sample(following, starts, Sampling(top_p=0.01), numbers, end_id=3)] == [1, 1, 1]


def test_drawn_captions_depend_on_their_key_and_seed_and_on_no_other_picture():
    made = objective()
    model = made.caption_model()
    images = Colours(made.model).batch(0).images[:4]
    prompts = [[made.model.tokenizer.start_id, *range(20, 20 + length)] for length in (0, 2, 0, 1)]
    settings = {"sampling": Sampling(seed=3), "keys": list("abcd"), "prompts": prompts}
    said = model.caption(images, **settings)
    assert said == model.caption(images, **settings, batch_size=4) and len(set(said)) > 1
    assert said != model.caption(images, **{**settings, "sampling": Sampling(seed=4)})
    alone = model.caption(images[2:3], sampling=Sampling(seed=3), keys=["c"], prompts=prompts[2:3])
    assert alone[0][:10] == said[2][:10]
    with pytest.raises(ConfigError, match="where tokens are drawn"):
        model.caption(images, beams=2, sampling=Sampling())
