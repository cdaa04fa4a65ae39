"""What the processes of `process_harness` do, by name. Results are JSON."""

from __future__ import annotations


def import_everything():
    """Import what the jobs need, once, before the processes are forked."""
    import torch.distributed.fsdp  # noqa: F401

    import ostension.train.loop  # noqa: F401


def pairs(batch, width=5):
    """Unit rows of two sides and groups of two to three pairs, the same in every process."""
    import torch
    import torch.nn.functional as F

    from ostension.runtime import torch_generator

    generator = torch_generator("parallel pairs", batch)
    image, text = (F.normalize(torch.randn(batch, width, generator=generator, dtype=torch.float64), dim=1) for _ in range(2))
    groups = torch.randint(0, batch // 2, (batch,), generator=generator)
    return image, text, groups


def loss_and_gradients(kind, duplicates, chunk_rows, batch=12):
    """A batch loss and the gradients of rows through a layer of weights, of scale and bias, averaged as in training."""
    import torch
    import torch.nn.functional as F

    from ostension import world as worlds
    from ostension.losses import LossConfig, batch_loss
    from ostension.runtime import torch_generator

    with worlds.joined(timeout_s=30) as world:
        image, text, groups = pairs(batch)
        local = slice(world.rank * batch // world.size, (world.rank + 1) * batch // world.size)
        generator = torch_generator("parallel weights")
        weights = [torch.randn(5, 4, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        bias = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
        rows = [F.normalize(side[local] @ weight, dim=1) for side, weight in zip((image, text), weights, strict=True)]
        config = LossConfig(kind=kind, duplicates=duplicates, chunk_rows=chunk_rows)
        found = batch_loss(*rows, scale.exp(), config=config, bias=bias, groups=groups[local])
        found.loss.backward()
        learned = [*weights, scale, *([bias] if kind == "sigmoid" else [])]
        gradients = torch.cat([world.mean(value.grad).flatten() for value in learned])
        return {
            "loss": found.loss.item(),
            "accuracies": [found.image_accuracy.item(), found.text_accuracy.item()],
            "gradients": gradients.tolist(),
        }


def exchanges():
    """What comes of each collective."""
    import torch

    from ostension import world as worlds

    with worlds.joined(timeout_s=30) as world:
        mine = torch.arange(2.0) + 10 * world.rank
        everything = torch.arange(2.0 * world.size) * (world.rank + 1)
        first = torch.full((2,), float(world.rank + 7))
        world.from_first(first)
        with worlds.alone():
            inside = worlds.current().size
        return {
            "rows": world.rows(mine).tolist(),
            "sum_to_rows": world.sum_to_rows(everything).tolist(),
            "sum": world.sum(mine).tolist(),
            "mean": world.mean(mine).tolist(),
            "most": [world.minimum(mine).tolist(), world.maximum(mine).tolist()],
            "first": first.tolist(),
            "facts": world.all_facts({"rank": world.rank, "name": "é" * world.rank}),
            "by_first": world.by_first(lambda: ["only", world.rank]),
            "current": [worlds.current() is world, inside],
            "rank": [world.rank, world.local_rank, world.size, world.local_size],
        }


def one_has_a_problem():
    """Process 1 cannot go on."""
    from ostension import world as worlds
    from ostension.errors import UsageError

    def work():
        if world.rank == 1:
            raise UsageError("this cannot be")
        return 3

    with worlds.joined(timeout_s=30) as world:
        world.together(work)


def one_is_lost(how, timeout_s):
    """Process 1 is killed or stopped; the others wait for it in a collective."""
    import os
    import signal

    import torch

    from ostension import world as worlds

    with worlds.joined(timeout_s=timeout_s) as world:
        world.sum(torch.ones(3))
        if world.rank == 1:
            os.kill(os.getpid(), getattr(signal, how))
        world.sum(torch.ones(3))


def one_never_comes(timeout_s):
    """Process 1 does not join."""
    import os
    import time

    from ostension import world as worlds

    if os.environ["RANK"] == "1":
        time.sleep(timeout_s + 2)
        return
    with worlds.joined(timeout_s=timeout_s):
        pass
