"""What is frozen: which weights, in which mode, and with which bits at the end."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ostension.errors import ConfigError
from ostension.image.transforms import PreprocessConfig
from ostension.model.clip import CLIP
from ostension.model.config import ModelConfig
from ostension.model.presets import preset, preset_names
from ostension.model.towers.config import BertConfig, EfficientNetConfig, Stage
from ostension.runtime import torch_generator
from ostension.text.tokenizer import WordPieceConfig
from ostension.train.batches import Batch
from ostension.train.freeze import FreezeConfig, TowerLock, frozen_names, letters_of, lit_settings
from ostension.train.loop import identity, train
from ostension.train.objective import Contrastive
from ostension.train.optim import OptimConfig
from ostension.train.precision import Masters
from ostension.train.schedule import ScheduleConfig
from ostension.train.state import TrainState
from ostension.train.step import backward
from ostension.train.train_config import TrainConfig

FOREIGN = ModelConfig(
    name="foreign",
    embed_dim=24,
    vision=EfficientNetConfig(
        image_size=32, stem=8, width=48, stages=(Stage(blocks=2, kernel=3, stride=2, expansion=2, channels=8),)
    ),
    text=BertConfig(context_length=16, vocab_size=40, width=32, layers=2, head_width=16, pool="mean"),
    preprocess=PreprocessConfig(image_size=32),
    tokenizer=WordPieceConfig(context_length=16, vocab_size=40, start_id=2, end_id=3, pad_id=0, unknown_id=1),
)
MODELS = {"vit": preset("tiny-vit"), "resnet": preset("tiny-resnet"), "foreign": FOREIGN}
LOCKED = TowerLock(locked=True)


class Pairs:
    """Random pictures and captions for any of the models."""

    worker_kind = "threads"
    batch_size, num_samples = 6, 24

    def __init__(self, config):
        self.config = config

    def identity(self):
        return {"fingerprint": "pairs"}

    def batch(self, step, rank=0, world_size=1):
        generator = torch_generator("pairs", step)
        size, last = self.config.vision.image_size, self.config.text.vocab_size - 1
        tokens = torch.randint(4, 30, (6, 7), generator=generator)
        tokens[:, -1] = 3 if self.config.text.kind == "bert" else last
        return Batch(
            images=torch.randn(6, 3, size, size, generator=generator), tokens=tokens, keys=[f"{step}-{i}" for i in range(6)]
        )


def made(name, freeze=None):
    model = CLIP(MODELS[name], seed=4)
    if freeze is not None:
        freeze.apply(model)
    return model


def run(folder, model, **settings):
    config = TrainConfig(
        **{"steps": 2, "precision": "fp32", **settings}, optim=OptimConfig(lr=1e-2), schedule=ScheduleConfig(warmup_steps=0)
    )
    return train(Contrastive(model), Pairs(model.config), config, folder)


def bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", preset_names())
def test_the_groups_of_a_tower_are_all_of_its_weights_once(name):
    with torch.device("meta"):
        model = CLIP(preset(name))
    for tower in (model.visual, model.text):
        groups = tower.groups()
        for weight, _ in tower.named_parameters():
            assert sum(any(weight.startswith(start) for start in group) for group in groups) == 1, weight


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_a_locked_tower_leaves_a_run_with_the_bits_it_came_with(name, precision, tmp_path):
    model = made(name, FreezeConfig(image=LOCKED))
    before = bits(model)
    run(tmp_path / "run", model, precision=precision, average=0.5)
    moved = {weight for weight, value in model.state_dict().items() if not torch.equal(value, before[weight])}
    assert moved and not any(weight.startswith("visual.") for weight in moved)


@pytest.mark.parametrize("name", MODELS)
def test_frozen_weights_have_neither_gradients_nor_moments(name, tmp_path):
    model = made(name, FreezeConfig(text=LOCKED))
    objective = Contrastive(model)
    state = TrainState(objective, tmp_path, optim=OptimConfig(), dtype=torch.float32, average=None, non_finite="stop")
    backward(objective, Pairs(model.config).batch(0))
    assert all((weight.grad is None) == name.startswith("text.") for name, weight in model.named_parameters())
    moments = state.optimizer.state()
    assert moments and not any(".text." in name for name in moments)
    assert set(dict(Masters(model, torch.bfloat16).trainable())) == {n for n, _ in model.named_parameters() if n[:5] != "text."}


@pytest.mark.parametrize("name", MODELS)
def test_a_tower_locked_up_to_its_projection_trains_the_projection_with_the_same_gradient(name):
    free, locked = made(name), made(name, FreezeConfig(image=TowerLock(locked=True, unlocked_groups=1), text=LOCKED))
    assert (locked.frozen.image, locked.frozen.text) == (name != "resnet", True)  # an attention pool is not only a projection
    for module in free.visual.modules():  # batch norm by its stored statistics, as in the locked one
        module.training = False
    batch = Pairs(free.config).batch(0)
    for model in (free, locked):
        backward(Contrastive(model), batch)
    trained = {weight for weight, value in locked.named_parameters() if value.requires_grad} - {"logit_scale"}
    assert all(weight.startswith("visual.attnpool.") if name == "resnet" else weight == "visual.proj" for weight in trained)
    gradients = dict(free.named_parameters())
    for weight in trained:
        torch.testing.assert_close(locked.get_parameter(weight).grad, gradients[weight].grad, rtol=1e-4, atol=1e-6)


def test_the_last_groups_are_open_clip_s():
    names = {}
    for count in (0, 1, 2, 3):
        model = made("vit", FreezeConfig(image=TowerLock(locked=True, unlocked_groups=count)))
        names[count] = {name for name, weight in model.visual.named_parameters() if weight.requires_grad}
    last = MODELS["vit"].vision.layers - 1
    assert names[0] == set()
    assert names[1] == {"proj"}
    assert all(name.startswith(("proj", "ln_post.", f"transformer.resblocks.{last}.")) for name in names[2])
    assert {"ln_post.weight", f"transformer.resblocks.{last}.ln_1.weight"} <= names[2]
    assert all(name.startswith(f"transformer.resblocks.{last - 1}.") for name in names[3] - names[2])


def test_norms_of_a_locked_tower_can_be_trained_as_open_clip_does(tmp_path):
    model = made("vit", FreezeConfig(text=TowerLock(locked=True, norms="trained")))
    trained = {name for name, weight in model.text.named_parameters() if weight.requires_grad}
    assert trained and all(".ln_" in f".{name}" for name in trained)
    before = bits(model)
    run(tmp_path / "run", model)
    moved = {name for name, value in model.text.state_dict().items() if not torch.equal(value, before[f"text.{name}"])}
    assert moved and moved <= trained


@pytest.mark.parametrize("name", ["resnet", "foreign"])
def test_the_statistics_of_a_locked_tower_stand_still_unless_they_are_to_move(name, tmp_path):
    for statistics in ("locked", "moving"):
        model = made(name, FreezeConfig(image=TowerLock(locked=True, statistics=statistics)))
        before = bits(model)
        run(tmp_path / statistics, model)
        for buffer, value in model.visual.named_buffers():
            if "num_batches" not in buffer:
                assert torch.equal(value, before[f"visual.{buffer}"]) == (statistics == "locked")
        assert all(torch.equal(value, before[f"visual.{weight}"]) for weight, value in model.visual.named_parameters())


def test_statistics_stand_still_where_only_the_gains_are_trained():
    model = made("foreign", FreezeConfig(image=TowerLock(locked=True, norms="trained"))).train()
    assert not any(module.training for module in model.visual.modules() if isinstance(module, torch.nn.BatchNorm2d))
    assert not model.frozen.image


def test_what_is_frozen_computes_in_evaluation_mode_whatever_is_asked():
    model = made("foreign", FreezeConfig(image=TowerLock(locked=True, unlocked_groups=3)))
    model.eval().train()
    assert model.training and model.text.training and model.visual.training
    modes = {name: module.training for name, module in model.visual.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    assert modes == {name: name.startswith(("blocks.1.", "last.")) for name in modes}
    FreezeConfig().apply(model)
    assert all(module.training for module in model.modules())
    assert all(weight.requires_grad for weight in model.parameters())


def test_names_win_over_locks_and_the_longest_wins():
    names = {"visual.ln_post": True, "visual.ln_post.bias": False, "logit_scale": False}
    model = made("vit", FreezeConfig(image=LOCKED, names=names))
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad and name[:5] != "text."}
    assert trained == {"visual.ln_post.weight"}
    assert not model.frozen.image
    with pytest.raises(ConfigError, match=r"unknown beginning of a weight's name 'visual.ln_pst'.*nearest: 'visual.ln_p"):
        made("vit", FreezeConfig(names={"visual.ln_pst": False}))


def test_settings_that_cannot_be_meant_are_refused():
    with pytest.raises(ConfigError, match="nothing would be trained: both towers are locked"):
        made("vit", FreezeConfig(image=LOCKED, text=LOCKED))
    groups = len(made("vit").visual.groups())
    with pytest.raises(ConfigError, match=rf"freeze.image.unlocked_groups is {groups}; expected less than {groups}"):
        made("vit", FreezeConfig(image=TowerLock(locked=True, unlocked_groups=groups)))
    with pytest.raises(ConfigError, match="the text tower has no batch norm"):
        made("vit", FreezeConfig(text=TowerLock(locked=True, statistics="moving")))
    with pytest.raises(ConfigError, match="not locked has settings of a lock"):
        TowerLock(unlocked_groups=1)


@pytest.mark.parametrize("letters", ["Lu", "LU", "UU", "Uu", "uU", "uu", "LL", "uL", "UL"])
def test_every_two_letters_are_settings(letters):
    sources = {side: "somewhere" for side, letter in zip(("image", "text"), letters, strict=True) if letter != "u"}
    towers, freeze = lit_settings(letters, **sources, new_image_head=letters == "LL")
    assert letters_of(towers, freeze) == letters
    assert (towers.image, towers.text) == (sources.get("image"), sources.get("text"))
    model = made("foreign", freeze)
    for side, letter in (("visual", letters[0]), ("text", letters[1])):
        heads = ("proj", "text_projection")
        trunk = [weight for name, weight in getattr(model, side).named_parameters() if name not in heads]
        assert all(weight.requires_grad == (letter != "L") for weight in trunk)
    with pytest.raises(ConfigError, match="expected L or U with, u without"):
        lit_settings(letters, image=None if sources.get("image") else "x", text=sources.get("text"))


def test_frozen_names_are_short_and_part_of_a_run_s_identity():
    model = made("vit", FreezeConfig(image=LOCKED, names={"text.ln_final": False}))
    assert frozen_names(model) == ["visual.", "text.ln_final."]
    config = TrainConfig(steps=1, precision="fp32", device="cpu")
    assert identity(Contrastive(model), Pairs(model.config), config)["frozen"] == ["visual.", "text.ln_final."]
    assert "frozen" not in identity(Contrastive(made("vit")), Pairs(model.config), config)


def test_a_locked_tower_runs_without_a_graph_and_gives_the_same():
    model = made("vit", FreezeConfig(image=TowerLock(locked=True, unlocked_groups=1)))
    batch = Pairs(model.config).batch(0)
    fast = model.encode_image(batch.images)
    assert fast.requires_grad
    model.frozen = dataclasses.replace(model.frozen, image=False)
    torch.testing.assert_close(fast, model.encode_image(batch.images), rtol=1e-4, atol=1e-5)
