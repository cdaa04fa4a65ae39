"""Bytes found on fake tensors against those of real ones, of torch's saved tensors, of checkpoints and of hand counts."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from ostension.losses import contrastive_loss
from ostension.model.clip import CLIP
from ostension.model.prefix_tree import _plan
from ostension.model.presets import preset
from ostension.train.batches import Batch
from ostension.train.freeze import FreezeConfig, TowerLock
from ostension.train.loop import PRECISIONS
from ostension.train.memory import Carried, LiveBytes, activations, caption_tokens, loss_bytes, measured
from ostension.train.objective import Contrastive
from ostension.train.optim import MasterAdamW, OptimConfig
from ostension.train.pairs import PairBatchesConfig
from ostension.train.precision import Masters
from ostension.train.pretraining import Pretraining
from ostension.train.step import backward
from ostension.train.train_config import TrainConfig


def real(name: str, pairs: int, dtype=torch.float32) -> tuple[CLIP, Batch]:
    config = preset(name)
    model = CLIP(config, seed=0).train()
    Masters(model, dtype)
    side = config.vision.image_size
    tokens = caption_tokens(config, pairs, None)
    return model, Batch(images=torch.zeros(pairs, 3, side, side), tokens=tokens, keys=["x"] * pairs)


def test_live_bytes_count_what_is_alive_and_the_most_that_was():
    known = torch.zeros(1000)
    with LiveBytes([known]) as counter:
        one = torch.zeros(100)
        view = one[10:]
        assert counter.live == 400
        two = known + 1
        known.view(10, 100).sum()
        assert counter.live == 4400
        del two
        assert counter.live == 400
        del one
        assert counter.live == 400  # the view still holds it
        del view
    assert counter.live == 0
    assert counter.peak == 4404


@pytest.mark.parametrize(
    ("name", "precision", "checkpointing"),
    [
        ("tiny-vit", "fp32", "none"), ("tiny-vit", "bf16", "both"), ("tiny-resnet", "fp32", "both"),
        ("tiny-resnet", "bf16", "none"), ("tiny-siglip", "bf16", "none"),
    ],
)  # fmt: skip
def test_fake_tensors_take_what_real_ones_take(name, precision, checkpointing):
    dtype = PRECISIONS[precision]
    model, batch = real(name, 6, dtype)
    again = checkpointing == "both"
    model.set_checkpointing(image=again, text=again)
    _plan.cache_clear()  # what is kept of the captions' layout counts once for each
    found = activations(preset(name), pairs=6, dtype=dtype, checkpointing=checkpointing)
    _plan.cache_clear()
    taken = measured(model, batch)
    # torch's fake batch norm keeps its statistics, a number a channel, in the pictures' precision; the real one in float32.
    rel = 3e-3 if (name, precision) == ("tiny-resnet", "bf16") else 0
    assert found.kept == pytest.approx(taken.kept, rel=rel, abs=0)
    assert found.peak == pytest.approx(taken.peak, rel=rel, abs=0)


@pytest.mark.parametrize(("name", "precision"), [("tiny-vit", "fp32"), ("tiny-resnet", "bf16"), ("tiny-siglip", "bf16")])
def test_what_is_kept_is_what_autograd_saves(name, precision):
    dtype = PRECISIONS[precision]
    model, batch = real(name, 6, dtype)
    own = {weight.untyped_storage().data_ptr() for weight in (*model.parameters(), *model.buffers(), batch.images)}
    saved: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        rows = model.encode_image(batch.images, normalize=True), model.encode_text(batch.tokens, normalize=True)
    found = activations(preset(name), pairs=6, dtype=dtype)
    # Beside them the results themselves are alive, and index tensors of the text tower.
    assert 0.997 * sum(saved.values()) <= found.kept <= 1.03 * sum(saved.values())
    assert len(rows) == 2 and found.peak >= found.kept


def test_many_pairs_take_as_much_each():
    config = preset("tiny-vit")
    many, few = (activations(config, pairs=pairs, dtype=torch.float32) for pairs in (512, 256))
    model, batch = real("tiny-vit", 512)
    assert many.peak == 2 * few.peak
    assert measured(model, batch).peak == pytest.approx(many.peak, rel=0.01)


def test_half_precision_takes_less_with_the_kernel_of_a_gpu_than_written_out():
    config = preset("tiny-vit")
    written, fused = (activations(config, pairs=6, dtype=torch.bfloat16, fused=fused) for fused in (False, True))
    assert fused.kept != written.kept
    full = activations(config, pairs=6, dtype=torch.float32)
    assert fused.kept < 0.6 * full.kept


def test_short_captions_take_less():
    config = preset("tiny-vit")
    short, long = (activations(config, pairs=6, dtype=torch.float32, num_tokens=tokens) for tokens in (8, None))
    assert short.kept < long.kept
    assert caption_tokens(config, 3, 8).shape == (3, 8)
    assert caption_tokens(preset("tiny-siglip"), 3, 8).shape == (3, 24)  # without a causal mask padding is computed too


@pytest.mark.parametrize("name", ["ViT-H-14", "RN50x64"])
def test_the_largest_models_take_no_memory_to_be_counted(name):
    carried = Carried(preset(name), TrainConfig(steps=1), torch.bfloat16)
    assert all(weight.is_meta for weight in carried.model.parameters())
    assert all(value.is_meta for value in carried.optimizer.state().values())
    assert carried.whole(averaging=False).moments >= 8 * sum(weight.numel() for weight in carried.model.parameters())


def whole(name: str, dtype, averaging=False, **settings):
    return Carried(preset(name), TrainConfig(steps=1, **settings), dtype).whole(averaging=averaging)


def test_a_small_models_state_counted_by_hand():
    config = preset("tiny-vit")
    weights = CLIP(config, seed=None).state_dict()
    number, scalars = sum(value.numel() for value in weights.values()), 1
    counts = 4 * len(weights)  # a count of updates a weight
    found = whole("tiny-vit", torch.float32)
    assert (found.weights, found.masters, found.gradients) == (4 * number, 0, 4 * number)
    assert found.moments == 8 * number + counts
    half = whole("tiny-vit", torch.bfloat16)
    assert half.weights == 2 * (number - scalars) + 4 * scalars
    assert half.masters == 4 * (number - scalars)
    assert half.gradients == half.weights
    assert whole("tiny-vit", torch.bfloat16, averaging=True).gradients == 4 * number
    assert whole("tiny-vit", torch.float32, average=0.99).average == 4 * number
    assert half.total == half.weights + half.masters + half.gradients + half.moments


def test_memory_options_take_what_they_say():
    config = preset("tiny-vit")
    model = CLIP(config, seed=None)
    number = sum(weight.numel() for weight in model.parameters())
    small = whole("tiny-vit", torch.bfloat16, optim=OptimConfig(moments="fp16"))
    assert small.moments == 4 * number + (4 + 8) * len(model.state_dict())  # a count and two scales a weight
    matrices = sum(weight.numel() for weight in model.text.parameters() if weight.ndim > 1)
    before, after = (whole("tiny-vit", torch.bfloat16, stochastic_rounding=towers) for towers in ("none", "text"))
    assert before.masters - after.masters == 4 * matrices


def test_batch_norm_stays_whole_and_in_float32():
    model = CLIP(preset("tiny-resnet"), seed=None)
    norms = sum(weight.numel() for name, weight in model.named_parameters() if "bn" in name or "downsample.1" in name)
    found = whole("tiny-resnet", torch.bfloat16)
    number = sum(weight.numel() for weight in model.parameters())
    assert found.masters == 4 * (number - norms - 1)
    assert found.buffers == sum(buffer.nbytes for buffer in model.buffers())


def test_slices_of_many_processes_are_a_share_of_all():
    carried = Carried(preset("ViT-B-32"), TrainConfig(steps=1), torch.float32)
    one, eight = carried.whole(averaging=True), carried.sliced(8)
    assert eight.weights == pytest.approx(one.weights / 8, rel=1e-3)
    assert eight.gradients == pytest.approx(one.gradients / 8, rel=1e-3)
    assert eight.moments == pytest.approx(one.moments / 8, rel=1e-3)
    block = sum(weight.numel() for weight in carried.model.visual.transformer.resblocks[0].parameters())
    assert eight.gathered > 2 * 4 * block


@pytest.mark.parametrize(("average", "moments"), [(None, "fp32"), (0.9, "fp16")])
def test_a_checkpoint_on_the_disk_is_as_large_as_planned(tmp_path, average, moments):
    train = TrainConfig(steps=1, precision="bf16", average=average, optim=OptimConfig(moments=moments))
    batches = PairBatchesConfig(data="emoji:new-style-new-names", batch_size=2)
    Pretraining(model=preset("tiny-vit"), batches=batches, train=train).run(tmp_path / "run")
    (folder,) = (tmp_path / "run" / "checkpoints").glob("step_*")
    written = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    planned = Carried(preset("tiny-vit"), train, torch.bfloat16).checkpoint()
    headers = 250 * 4 * len(CLIP(preset("tiny-vit"), seed=None).state_dict())
    assert planned < written < planned + headers


@pytest.mark.parametrize(("pairs", "chunk_rows"), [(512, None), (1024, None), (1024, 128), (1024, 256)])
def test_the_losss_bytes_are_those_of_its_code(pairs, chunk_rows):
    rows = [torch.nn.functional.normalize(torch.randn(pairs, 16), dim=1).requires_grad_() for _ in range(2)]
    scale = torch.tensor(14.0, requires_grad=True)
    with LiveBytes([*rows, scale]) as counter:
        contrastive_loss(*rows, scale, chunk_rows=chunk_rows).loss.backward()
    planned = loss_bytes(pairs, pairs, 16, chunk_rows).peak
    assert math.isclose(planned, counter.peak, rel_tol=0.2)


def test_a_process_of_many_holds_its_rows_of_the_similarities():
    one = loss_bytes(128, 32_768, 512, None)
    assert (one.rows, one.columns) == (128, 32_768)
    assert dataclasses.replace(one, embeddings=0).peak == 2 * 4 * 128 * 32_768
    assert loss_bytes(4096, 32_768, 512, 256).rows == 256


def test_a_locked_tower_keeps_nothing_and_has_no_moments():
    config, lock = preset("tiny-resnet"), FreezeConfig(image=TowerLock(locked=True))
    free, locked = (activations(config, pairs=6, dtype=torch.float32, freeze=freeze) for freeze in (FreezeConfig(), lock))
    assert locked.kept < 0.5 * free.kept
    state = Carried(config, TrainConfig(steps=1), torch.float32, lock).whole(averaging=False)
    trained = [weight for name, weight in CLIP(config, seed=None).named_parameters() if not name.startswith("visual.")]
    assert state.gradients == 4 * sum(weight.numel() for weight in trained)
    assert state.moments == 8 * sum(weight.numel() for weight in trained) + 4 * len(trained)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_whole_step_stays_below_the_sum_of_its_parts(precision):
    dtype, pairs = PRECISIONS[precision], 64
    config = preset("tiny-vit")
    model = CLIP(config, seed=0).train()
    masters = Masters(model, dtype)
    optimizer = MasterAdamW(masters, OptimConfig())
    side = config.vision.image_size
    tokens = caption_tokens(config, pairs, None)
    batch = Batch(images=torch.zeros(pairs, 3, side, side), tokens=tokens, keys=["x"] * pairs)
    carried = [*model.parameters(), *masters.masters.values(), *optimizer.state().values()]
    with LiveBytes([*carried, batch.images, batch.tokens]) as counter:
        backward(Contrastive(model), batch)
        most = counter.peak
        optimizer.step(1.0, float(optimizer.gradient_norm()))
    planned = (
        activations(config, pairs=pairs, dtype=dtype).peak
        + loss_bytes(pairs, pairs, config.embed_dim, None).peak
        + Carried(config, TrainConfig(steps=1), dtype).whole(averaging=False).gradients
    )
    assert 0.7 * planned < most <= planned
    # What the optimiser's step takes besides lies where the activations were.
    assert counter.peak <= planned
