"""The bytes that training takes, found without taking them.

What a run carries (weights, masters, moments, gradients) is counted on the model's real modules on the meta device, with
the same `Masters` and the same optimiser as in a run. What a step needs on top, the activations, is found by running the
real towers forward and backward on fake tensors, which have shapes and no memory, while every block of memory that torch
would take and give back is added up. Both follow whatever the modules and the settings are; nothing is written down twice.

Not seen: what libraries take inside one call (packed weights, workspaces), the allocator's rounding and fragments, the
Python process and torch itself (about 0.3 GB, more with CUDA).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import weakref
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ostension.config import config_hash
from ostension.model.clip import CLIP
from ostension.model.config import ModelConfig
from ostension.model.layers import Block, fused_attention
from ostension.model.resnet import Bottleneck
from ostension.runtime import numpy_generator
from ostension.train.batches import Batch
from ostension.train.freeze import FreezeConfig
from ostension.train.objective import Contrastive
from ostension.train.optim import MasterAdamW
from ostension.train.precision import Average, Masters
from ostension.train.train_config import Towers, TrainConfig

# Pairs that are run on fake tensors; more of them take as much each (the test says within which share).
PAIRS_AT_MOST = 256
NOTHING = FreezeConfig()


class LiveBytes(TorchDispatchMode):
    """While entered, counts the bytes of all tensors that are made: those alive now, and the most at any moment.

    Views count with what they look at. `known` tensors and what shares their memory do not count.
    """

    def __init__(self, known: Iterable[Tensor] = ()):
        super().__init__()
        self.live = self.peak = 0
        self._held = [tensor.untyped_storage() for tensor in known]
        self._seen = {storage._cdata for storage in self._held}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


@dataclasses.dataclass(frozen=True)
class Activations:
    """Bytes that embedding some pairs takes beside the weights and their gradients.

    Attributes:
        kept: between the forward and the backward pass.
        peak: the most at any moment of both.
    """

    kept: int
    peak: int


def activations(
    config: ModelConfig,
    *,
    pairs: int,
    dtype: torch.dtype,
    checkpointing: Towers = "none",
    freeze: FreezeConfig = NOTHING,
    fused: bool = False,
    num_tokens: int | None = None,
) -> Activations:
    """What both towers take for `pairs` pairs that are embedded together, on fake tensors.

    Args:
        freeze: what is not trained, and so keeps less or nothing.
        fused: with torch's attention kernel in half precision, as on a GPU; else as on a processor.
        num_tokens: of every caption, with its start and end; None is the context length, which is the most there can be.
    """
    pairs_run = min(pairs, PAIRS_AT_MOST)
    fused = fused and dtype in (torch.bfloat16, torch.float16)  # else it is in any case
    key = (dataclasses.replace(config, name=""), pairs_run, dtype, checkpointing, config_hash(freeze), fused, num_tokens)
    if key not in _found:
        model = fake_model(config, dtype, freeze)
        model.set_checkpointing(image=checkpointing in ("image", "both"), text=checkpointing in ("text", "both"))
        side = config.vision.image_size
        with model.logit_scale.fake_mode:  # type: ignore[attr-defined]
            images = torch.empty(pairs_run, 3, side, side)
        tokens = caption_tokens(config, pairs_run, num_tokens)
        with fused_attention() if fused else contextlib.nullcontext():
            _found[key] = measured(model, Batch(images=images, tokens=tokens, keys=["pair"] * pairs_run))
    found = _found[key]
    return Activations(kept=found.kept * pairs // pairs_run, peak=found.peak * pairs // pairs_run)


_found: dict[tuple, Activations] = {}


def measured(model: CLIP, batch: Batch) -> Activations:
    """What embedding a batch and going back takes; real tensors and fake ones give the same. Gradients are dropped."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    hooks = [weight.register_post_accumulate_grad_hook(_drop_gradient) for weight in weights]
    try:
        with LiveBytes([*model.parameters(), *model.buffers(), batch.images, batch.tokens]) as counter:
            rows = Contrastive(model).embed(batch).rows
            kept = counter.live
            ends = [row for row in rows.values() if row.requires_grad]
            torch.autograd.backward(ends, [torch.ones_like(row) for row in ends])
        return Activations(kept=kept, peak=counter.peak)
    finally:
        for hook in hooks:
            hook.remove()


def _drop_gradient(weight: Tensor) -> None:
    weight.grad = None


def meta_model(config: ModelConfig, freeze: FreezeConfig = NOTHING) -> CLIP:
    """The model without memory, in training mode, frozen as the run has it."""
    with torch.device("meta"):
        model = CLIP(config).train()
    freeze.apply(model)
    return model


def fake_model(config: ModelConfig, dtype: torch.dtype, freeze: FreezeConfig = NOTHING) -> CLIP:
    """The model on fake tensors, each weight in the dtype in which a run of this precision computes with it."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = meta_model(config, freeze)
    Masters(model, dtype)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    made = torch.empty(weight.shape, dtype=weight.dtype, device="cpu")
                    module._parameters[name] = nn.Parameter(made, weight.requires_grad)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")
    return model


def caption_tokens(config: ModelConfig, pairs: int, num_tokens: int | None) -> Tensor:
    """Rows of random ids that have next to no prefix in common, so that nothing is shared (pairs, T)."""
    text = config.text
    causal = getattr(text, "causal", False)
    length = min(num_tokens or text.context_length, text.context_length) if causal else text.context_length
    end = getattr(text, "eos_id", None)
    end = text.vocab_size - 1 if end is None else end
    ids = numpy_generator("caption tokens").integers(0, text.vocab_size - 1, (pairs, length))
    ids[ids == end] -= 1
    ids[:, -1] = end
    return torch.from_numpy(ids)


@dataclasses.dataclass(frozen=True)
class LossBytes:
    """Bytes of the similarity matrix and its like, at the most.

    Attributes:
        blocks: blocks of `rows` x `columns` float32 numbers held at once.
    """

    rows: int
    columns: int
    blocks: int
    embeddings: int

    @property
    def peak(self) -> int:
        return 4 * self.rows * self.columns * self.blocks + self.embeddings


# Blocks of logits alive at once, counted on the code by the test: the whole matrix with what autograd keeps of it and the
# gradients on the way back; a block, which is made over in place, and once more of it for the time of a product.
WHOLE_BLOCKS, CHUNK_BLOCKS = 6, 2


def loss_bytes(local_batch: int, batch_size: int, embed_dim: int, chunk_rows: int | None) -> LossBytes:
    """What the contrastive loss takes in one of the processes that share a batch.

    Each process has its own rows against all columns; the texts of all, and their gradients, are in each of them.
    """
    whole = chunk_rows is None and local_batch == batch_size
    rows = local_batch if chunk_rows is None else min(chunk_rows, local_batch)
    # Rows of images and texts and their gradients, those of all texts and theirs.
    embeddings = 4 * embed_dim * (4 * local_batch + (0 if local_batch == batch_size else 2 * batch_size))
    return LossBytes(rows, batch_size, WHOLE_BLOCKS if whole else CHUNK_BLOCKS, embeddings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateBytes:
    """Bytes that one process carries from step to step, by what they are.

    Attributes:
        weights: what the towers compute with; with "fsdp" its slices, which are the masters at once.
        masters: float32 weights beside those of lower precision.
        buffers: running statistics.
        gradients: at the end of a backward pass.
        moments: of the optimiser.
        average: of the weights, where the run has one.
        gathered: with "fsdp", whole weights that are together at a time: two blocks and what else its tower has.
    """

    weights: int
    masters: int
    buffers: int
    gradients: int
    moments: int
    average: int
    gathered: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in dataclasses.fields(self))


class Carried:
    """What a run carries, on the meta device: the model's modules, `Masters` and the optimiser as the run makes them."""

    def __init__(self, config: ModelConfig, train: TrainConfig, dtype: torch.dtype, freeze: FreezeConfig = NOTHING):
        self.model = meta_model(config, freeze)
        self.dtype = dtype
        rounded = {"none": [], "image": [self.model.visual], "text": [self.model.text], "both": [self.model]}
        self.masters = Masters(self.model, dtype, rounded[train.stochastic_rounding])
        self.optimizer = MasterAdamW(self.masters, train.optim)
        self.averaged = [] if train.average is None else list(Average(self.masters, train.average).tensors.values())

    def checkpoint(self) -> int:
        """Bytes of a checkpoint's tensors."""
        return sum(value.nbytes for value in (*self.masters.state().values(), *self.optimizer.state().values(), *self.averaged))

    def whole(self, *, averaging: bool) -> StateBytes:
        """With everything in each process.

        Args:
            averaging: gradients are averaged over processes, in float32; else they stay in the dtype of their weights.
        """
        weights, masters = self.masters.weights, self.masters.masters
        wide = {name: _wide(weights[name].dtype) if averaging else weights[name].dtype for name, _ in self.masters.trainable()}
        return StateBytes(
            weights=sum(weight.nbytes for weight in weights.values()),
            masters=sum(master.nbytes for name, master in masters.items() if master is not weights[name]),
            buffers=sum(buffer.nbytes for buffer in self.model.buffers()),
            gradients=sum(weights[name].numel() * dtype.itemsize for name, dtype in wide.items()),
            moments=sum(value.nbytes for value in self.optimizer.state().values()),
            average=sum(value.nbytes for value in self.averaged),
        )

    def sliced(self, processes: int) -> StateBytes:
        """With the rows of all weights spread over the processes; scalars and batch norm stay whole."""
        norms = [module for module in self.model.modules() if isinstance(module, _BatchNorm)]
        kept = {weight for norm in norms for weight in norm.parameters()}
        parts = {
            name: 1.0 if weight in kept or not weight.ndim else math.ceil(len(weight) / processes) / len(weight)
            for name, weight in self.masters.weights.items()
        }
        numbers = {name: round(part * self.masters.weights[name].numel()) for name, part in parts.items()}
        full = _wide(self.dtype).itemsize
        trained = [name for name, _ in self.masters.trainable()]
        moments = sum(parts[key.partition(".")[2]] * value.nbytes for key, value in self.optimizer.state().items())
        return StateBytes(
            weights=full * sum(numbers.values()),
            masters=0,
            buffers=sum(buffer.nbytes for buffer in self.model.buffers()),
            gradients=full * sum(numbers[name] for name in trained),
            moments=round(moments),
            average=full * sum(numbers.values()) if self.averaged else 0,
            gathered=self._gathered(),
        )

    def _gathered(self) -> int:
        most = 0
        for tower in (self.model.visual, self.model.text):
            blocks = [sum(weight.numel() for weight in module.parameters()) for module in tower.modules() if _is_block(module)]
            rest = sum(weight.numel() for weight in tower.parameters()) - sum(blocks)
            most = max(most, rest + 2 * max(blocks, default=0))
        return most * self.dtype.itemsize


def _is_block(module: nn.Module) -> bool:
    return isinstance(module, (Block, Bottleneck))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
