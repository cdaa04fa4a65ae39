"""A model trained by several processes: its gradients averaged, or its weights, gradients and moments spread over them.

"ddp": every process has the whole model. While the backward pass runs, gradients that are complete travel in buckets, in
float32, and each process makes the same step. "fsdp" (torch's FSDP2): every process keeps a slice of each weight's rows, in
float32; a block's weights come together, in the run's precision, when the block runs and go again after it. With W
processes the state takes 1 / W of the memory.

Both are `Masters` (see `precision`), so that the optimiser, the average and the checkpoints do not know. One process
trains with plain `Masters`, and nothing here is called.

Why not torch's DistributedDataParallel, see docs/decisions/processes.md: it averages bfloat16 gradients in bfloat16, and it
wants the whole step inside one `forward`, which a step in pieces (see `step`) is not.
"""

from __future__ import annotations

import contextlib
import datetime
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ostension.errors import ConfigError
from ostension.model.clip import CLIP
from ostension.model.layers import Block
from ostension.model.resnet import Bottleneck
from ostension.model.towers.bert import PostBlock
from ostension.train.precision import Masters, copy_exactly, global_norm, kept_in_float32
from ostension.train.rows import Rows
from ostension.train.whole_norm import synchronise
from ostension.world import World

Parallel = Literal["ddp", "fsdp"]
# Large enough that a transfer's fixed cost is small, small enough that the first leaves early (as in torch's own).
BUCKET_BYTES = 25 * 2**20


def masters_for(
    module: nn.Module, dtype: torch.dtype, world: World, parallel: Parallel, unmastered: Iterable[nn.Module] = ()
) -> Masters:
    """The masters of a model that this process trains, alone or with others (`unmastered`: see `Masters`).

    With others, the weights of process 0 are given to all, and batch norm sees the whole batch from here on.

    Raises:
        ConfigError: for modules without masters in "fsdp", whose slices are masters.
    """
    if world.size == 1:
        return Masters(module, dtype, unmastered)
    for value in (*module.parameters(), *module.buffers()):
        world.from_first(value.data)
    synchronise(module)
    if parallel == "ddp":
        return Replicated(module, dtype, world, unmastered)
    if list(unmastered):
        raise ConfigError(
            "train.parallel is 'fsdp', where every weight is a slice of a float32 master, but some are to have no master",
            fix="use one of the two: slices save more memory",
        )
    return Sharded(module, dtype, world)


class Replicated(Masters):
    """The whole model in every process, its gradients averaged over them."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, world: World, unmastered: Iterable[nn.Module] = ()):
        super().__init__(model, dtype, unmastered)
        self._reducer = _Reducer({name: self.weights[name] for name, _ in self.trainable()}, world)

    def hold(self) -> contextlib.AbstractContextManager[None]:
        """While entered, backward passes only add to this process's gradients."""
        return self._reducer.hold()

    def collect_gradients(self) -> None:
        """Wait for the averages, in float32."""
        self.gradients = self._reducer.finish()

    def release(self) -> None:
        """Leave the model as one process has it."""
        self._reducer.close()


class Sharded(Masters):
    """Slices of the weights in every process, by FSDP2 on the blocks and towers of the CLIP models inside.

    What stays whole in every process, its gradients averaged: scalars (`logit_scale`), batch norm, what belongs to no tower,
    and a block (or what a tower has outside of its blocks) of which a part is frozen and a part is not.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, world: World):
        super().__init__(model, torch.float64 if dtype == torch.float64 else torch.float32)
        self.world = world
        shapes = {name: weight.shape for name, weight in self.weights.items()}
        self._undo = _shard(model, dtype, world)
        self.weights = dict(model.named_parameters())
        self.masters, self._rows = {}, {}
        for name, weight in self.weights.items():
            self.masters[name] = weight
            if hasattr(weight, "to_local"):
                with torch.no_grad():
                    self.masters[name] = weight.detach().to_local()  # type: ignore[attr-defined]
                self._rows[name] = Rows.of(shapes[name][0], world.rank, world.size)
                assert len(self.masters[name]) == len(self._rows[name])
        whole = {name: self.weights[name] for name, _ in self.trainable() if name not in self._rows}
        self._reducer = _Reducer(whole, world)

    def hold(self) -> contextlib.AbstractContextManager[None]:
        """While entered, whole gradients are only added up; those of slices are summed at once, for they would not fit."""
        return self._reducer.hold()

    def rows(self) -> dict[str, Rows]:
        """Which rows of the whole tensors the masters of these names are."""
        return dict(self._rows)

    def collect_gradients(self) -> None:
        """Take the averages: of the slices from FSDP, and of what is whole."""
        self.gradients = self._reducer.finish()
        for name in self._rows:
            weight = self.weights[name]
            if weight.grad is not None:
                self.gradients[name], weight.grad = weight.grad.to_local(), None  # type: ignore[attr-defined]

    def norm(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The global norm of tensors shaped as the masters of these names."""
        slices = [tensor for name, tensor in tensors.items() if name in self._rows]
        whole = [tensor for name, tensor in tensors.items() if name not in self._rows]
        square, rest = (global_norm(part).double().square().to(self.world.device) for part in (slices, whole))
        return (self.world.sum(square) + rest).sqrt()

    def largest(self, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The largest of what the processes found for their slices."""
        names = [name for name in values if name in self._rows]
        if not names:
            return values
        tops = self.world.maximum(torch.stack([values[name] for name in names]))
        return {**values, **dict(zip(names, tops, strict=True))}

    @contextlib.contextmanager
    def lent(self, state: Mapping[str, Tensor]) -> Iterator[None]:
        """The model computes with the values of `state` and gets its own back afterwards."""
        live = self.state()
        own = {name: live[name].clone() for name in state}

        def give(values: Mapping[str, Tensor]) -> None:
            with torch.no_grad():
                copy_exactly({name: live[name] for name in values}, values, None)
            self._let_go()

        try:
            give(state)
            yield
        finally:
            give(own)

    @torch.no_grad()
    def restore_float32(self, state: Mapping[str, Tensor] | None = None) -> None:
        """Put the whole weights (or those of `state`, an average) back into the model, in every process."""
        values = {name: self.masters[name] if state is None else state[name] for name in self.weights}
        whole = {name: self._whole(name, value).clone() for name, value in values.items()}
        wanted = {name: weight.requires_grad for name, weight in self.weights.items()}
        self._let_go()
        self._undo()
        for name, value in whole.items():
            path, _, last = name.rpartition(".")
            setattr(self.model.get_submodule(path), last, nn.Parameter(value, requires_grad=wanted[name]))
        for name, buffer in self.model.named_buffers():
            if state is not None and name in state:
                buffer.copy_(state[name])

    def release(self) -> None:
        """Take the hooks off; a run that did not come to its end leaves slices in the model."""
        self._reducer.close()

    def _let_go(self) -> None:
        """Give up what is still together, which was brought together from values that may be others now."""
        for module in self.model.modules():
            if hasattr(module, "reshard"):
                module.reshard()  # type: ignore[operator]

    def _whole(self, name: str, local: Tensor) -> Tensor:
        if name not in self._rows:
            return local
        rows = self._rows[name]
        padded = local.new_zeros((rows.most, *local.shape[1:]))
        padded[: len(local)] = local
        return self.world.rows(padded)[: rows.total]


class _Reducer:
    """Averages the gradients of whole weights over the processes while the backward pass is still running.

    Weights are put into buckets from the last to the first, about the order in which their gradients are complete. A bucket
    leaves when it is full and those before it have left, so that all processes send them in the same order. They have
    connections of their own, apart from those that the model's collectives use.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], world: World):
        import torch.distributed as dist

        self.world, self._weights = world, dict(weights)
        self._group = dist.new_group(timeout=datetime.timedelta(seconds=world.timeout_s))
        self._held = False
        self._buckets = [_Bucket(part) for part in _parts(self._weights)]
        self._hooks = [
            self._weights[name].register_post_accumulate_grad_hook(self._complete(bucket, name))
            for bucket in self._buckets
            for name in bucket.views
        ]

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        before, self._held = self._held, True
        try:
            yield
        finally:
            self._held = before

    def finish(self) -> dict[str, Tensor]:
        """The averages of all weights that have a gradient in some process; to be called after each last backward pass.

        They stay until the next step's backward pass.
        """
        used = torch.tensor([name in bucket.ready or self._weights[name].grad is not None
                             for bucket in self._buckets for name in bucket.views])  # fmt: skip
        for bucket in self._buckets:
            for name in bucket.views.keys() - bucket.ready:  # what was only added to while held, and what had no part
                self._take(bucket, name)
        self._send()
        counts = self.world.sum(used.to(self.world.device, torch.int32)).tolist() if len(used) else []
        found: dict[str, Tensor] = {}
        with self.world.watched():
            for bucket in self._buckets:
                assert bucket.work is not None
                bucket.work.wait()
                bucket.buffer /= self.world.size
                found |= bucket.views
                bucket.ready, bucket.work = set(), None
        used_names = {name for name, count in zip(found, counts, strict=True) if count}
        return {name: found[name] for name in self._weights if name in used_names}

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _complete(self, bucket: _Bucket, name: str) -> Callable[[Tensor], None]:
        def note(weight: Tensor) -> None:
            if not self._held:
                self._take(bucket, name)
                self._send()

        return note

    def _take(self, bucket: _Bucket, name: str) -> None:
        """Move a gradient into its place in the bucket."""
        assert name not in bucket.ready, f"two backward passes reached {name}; all but the last are to be held"
        weight = self._weights[name]
        if weight.grad is None:
            bucket.views[name].zero_()
        else:
            bucket.views[name].copy_(weight.grad)
            weight.grad = None
        bucket.ready.add(name)

    def _send(self) -> None:
        import torch.distributed as dist

        for bucket in self._buckets:
            if len(bucket.ready) < len(bucket.views):
                return
            if bucket.work is None:
                bucket.work = dist.all_reduce(bucket.buffer, group=self._group, async_op=True)


class _Bucket:
    """Gradients that travel together: one buffer, in float32 or wider, and each weight's place in it."""

    def __init__(self, weights: Mapping[str, nn.Parameter]):
        first = next(iter(weights.values()))
        self.buffer = torch.zeros(sum(weight.numel() for weight in weights.values()), dtype=_wide(first), device=first.device)
        parts = self.buffer.split([weight.numel() for weight in weights.values()])
        self.views = {name: part.view(weight.shape) for (name, weight), part in zip(weights.items(), parts, strict=True)}
        self.ready: set[str] = set()
        self.work: Any = None


def _wide(weight: Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def _parts(weights: Mapping[str, nn.Parameter]) -> list[dict[str, nn.Parameter]]:
    """The weights from the last to the first, cut where a part has `BUCKET_BYTES`."""
    parts: list[dict[str, nn.Parameter]] = []
    size = BUCKET_BYTES
    for name, weight in reversed(list(weights.items())):
        if size >= BUCKET_BYTES:
            parts.append({})
            size = 0
        parts[-1][name] = weight
        size += weight.numel() * _wide(weight).itemsize
    return parts


def _shard(model: nn.Module, dtype: torch.dtype, world: World) -> Callable[[], None]:
    """Spread the weights of every block and tower; gives what takes FSDP off again (the weights stay slices)."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    towers = [tower for module in model.modules() if isinstance(module, CLIP) for tower in (module.visual, module.text)]
    if not towers:
        what = "train.parallel is 'fsdp', but what is trained has no image and text tower whose weights could be spread"
        raise ConfigError(what, fix="use 'ddp'")
    blocks = [block for tower in towers for block in tower.modules() if isinstance(block, (Block, Bottleneck, PostBlock))]
    names = kept_in_float32(model)
    whole = {weight for name, weight in model.named_parameters() if name in names or weight.ndim == 0}
    mesh = init_device_mesh(torch.device(world.device).type, (world.size,))
    narrow = dtype in (torch.bfloat16, torch.float16)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32) if narrow else MixedPrecisionPolicy()
    before = [(module, _look(module)) for tower in towers for module in tower.modules()]  # FSDP hooks into layers too
    # What is changed in place while gradients are recorded would be a danger; nothing here is.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module \(.*\) returned a view", category=UserWarning)
    blocks = [block for block in blocks if not _mixed(list(block.parameters()))]
    in_blocks = {weight for block in blocks for weight in block.parameters()}
    towers = [tower for tower in towers if not _mixed([weight for weight in tower.parameters() if weight not in in_blocks])]
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=whole)
        for method in ("single", "through"):
            if hasattr(block, method):
                register_fsdp_forward_method(block, method)
    for tower in towers:
        # What is outside of the blocks is little, and stays together until the way back is done: FSDP sees only what a
        # tower returns, while taps hand out hidden states by a side door.
        fully_shard(tower, mesh=mesh, mp_policy=policy, reshard_after_forward=False, ignored_params=whole)

    def undo() -> None:
        for module, look in before:
            look(module)

    return undo


def _mixed(weights: Sequence[nn.Parameter]) -> bool:
    """Whether some of the weights are frozen and some are not: FSDP2 would lose gradients of such a group (seen in 2.13)."""
    return len({weight.requires_grad for weight in weights}) > 1


def _look(module: nn.Module) -> Callable[[nn.Module], None]:
    """What gives a module back the class, the hooks and the attributes that it has now."""
    kind, names = type(module), set(vars(module))
    hooks = {name: dict(value) for name, value in vars(module).items() if "_hooks" in name and isinstance(value, dict)}

    def restore(module: nn.Module) -> None:
        module.__class__ = kind
        for name, value in hooks.items():
            vars(module)[name].clear()
            vars(module)[name].update(value)
        for name in set(vars(module)) - names:
            del vars(module)[name]

    return restore
