"""What the processes of `process_harness` do, by name. Results are JSON."""

from __future__ import annotations

import os
import signal
import time


def import_everything():
    """Import what the jobs need, once, before the processes are forked."""
    import importlib

    # FSDP and gradient checkpointing ask for torch's compiler, which takes two seconds to import.
    for name in ("torch._dynamo", "torch.distributed.tensor", "torch.distributed.fsdp", "ostension.train.loop"):
        importlib.import_module(name)


def pairs(batch, width=5):
    """Unit rows of two sides and groups of two to three pairs, the same in every process."""
    import torch
    import torch.nn.functional as F

    from ostension.runtime import torch_generator

    generator = torch_generator("parallel pairs", batch)
    image, text = (F.normalize(torch.randn(batch, width, generator=generator, dtype=torch.float64), dim=1) for _ in range(2))
    groups = torch.randint(0, batch // 2, (batch,), generator=generator)
    return image, text, groups


def loss_and_gradients(kind, duplicates, chunk_rows, batch=12, noisy=False):
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
        noise = torch.rand(batch, generator=torch_generator("parallel noise"), dtype=torch.float64)[local] if noisy else None
        found = batch_loss(*rows, scale.exp(), config=config, bias=bias, groups=groups[local], noise=noise)
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


def again_and_again():
    """Join three times in one program."""
    import torch

    from ostension import world as worlds

    found = []
    for _ in range(3):
        with worlds.joined(timeout_s=20) as world:
            found.append(world.sum(torch.tensor(float(world.rank))).item())
    return found


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
    import torch

    from ostension import world as worlds

    with worlds.joined(timeout_s=timeout_s) as world:
        world.sum(torch.ones(3))
        if world.rank == 1:
            os.kill(os.getpid(), getattr(signal, how))
        world.sum(torch.ones(3))


def one_never_comes(timeout_s):
    """Process 1 does not join."""
    from ostension import world as worlds

    if os.environ["RANK"] == "1":
        time.sleep(timeout_s + 2)
        return
    with worlds.joined(timeout_s=timeout_s):
        pass


class Parts:
    """Pairs of six kinds, in the order of the real sampler, with faults at chosen steps of one process."""

    worker_kind = "processes"

    def __init__(self, size=32, batch_size=12, groups=False, note=None, rank=1, **faults):
        self.size, self.batch_size, self.groups, self.note = size, batch_size, groups, note
        self.rank, self.faults = rank, faults

    @property
    def sampler(self):
        from ostension.data.sampler import Sampler

        return Sampler(50, self.batch_size, 3)

    @property
    def num_samples(self):
        return self.sampler.steps_per_epoch * self.batch_size

    def identity(self):
        return {"fingerprint": "parts", "other": self.faults.get("other", False) and os.environ.get("RANK")}

    def batch(self, step, rank=0, world_size=1):
        import torch

        from ostension.errors import DataError
        from ostension.runtime import torch_generator
        from ostension.train.batches import Batch

        mine = rank == self.rank
        ids = self.sampler.batch(step, rank=rank, world_size=world_size).tolist()
        if self.note is not None:
            with open(f"{self.note}.{rank}", "a") as handle:
                handle.write(f"{step}: {ids}\n")
        at = {name: mine and value == step for name, value in self.faults.items()}
        if at.get("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if at.get("freeze"):
            os.kill(os.getpid(), signal.SIGSTOP)
        if at.get("term"):
            os.kill(os.getpid(), signal.SIGTERM)
        if at.get("data_error"):
            raise DataError("the shard is gone", source="shard-7")
        if at.get("crash"):
            raise RuntimeError("this fell over")
        time.sleep(self.faults.get("sleep_s", 0.0))
        kinds = torch.tensor([index % 6 for index in ids])
        noise = [torch.randn(3, self.size, self.size, generator=torch_generator("pixels", index)) for index in ids]
        images = torch.stack(noise) + 0.5 * kinds[:, None, None, None]
        if at.get("nan"):
            images[1, 0, 0, 0] = float("nan")
        # One process has longer captions than another.
        tokens = torch.zeros(len(ids), 4 + rank, dtype=torch.long)
        tokens[:, 0], tokens[:, 1], tokens[:, 2] = 1022, 5 + kinds, 1023
        rejects = (("bad-1", "no image"),) if at.get("reject") else ()
        groups = kinds if self.groups else None
        return Batch(images=images, tokens=tokens, keys=[f"pair-{index}" for index in ids], groups=groups, rejects=rejects)


def trained(
    folder,
    preset="tiny-vit",
    steps=6,
    every=3,
    precision="fp32",
    batches=None,
    loss=None,
    evaluate=False,
    kill=None,
    **settings,
):
    """Train in `folder`; the status and the step.

    `kill` is (name, step, rank): this process dies by SIGKILL on entering that function of a save of that step.
    """
    from ostension.losses import LossConfig
    from ostension.model.clip import CLIP
    from ostension.model.presets import preset as find_preset
    from ostension.train.checkpoint import CheckpointConfig
    from ostension.train.loop import train
    from ostension.train.objective import Contrastive
    from ostension.train.optim import OptimConfig
    from ostension.train.schedule import ScheduleConfig
    from ostension.train.train_config import TrainConfig

    if kill is not None and os.environ["RANK"] == str(kill[2]):
        from ostension.train import checkpoint

        function = getattr(checkpoint, kill[0])

        def dying(path, *rest):
            if f"{kill[1]:08d}" in str(path):
                os.kill(os.getpid(), signal.SIGKILL)
            return function(path, *rest)

        setattr(checkpoint, kill[0], dying)
    resume, captioning = settings.pop("resume", "auto"), settings.pop("captioning", False)
    unlocked = settings.pop("unlocked", None)
    model = CLIP(find_preset(preset), seed=5)
    config = TrainConfig(
        steps=steps,
        precision=precision,
        optim=OptimConfig(lr=1e-3, **settings.pop("optim", {})),
        schedule=ScheduleConfig(warmup_steps=2),
        checkpoint=CheckpointConfig(every=every, keep=100),
        log_every=1,
        timeout_s=settings.pop("timeout_s", 60.0),
        evaluate_every=2 if evaluate else 0,
        **settings,
    )
    calls = []

    def measure(model, step):
        import torch

        calls.append(step)
        return {"mean": float(model.encode_image(torch.ones(2, 3, 32, 32), normalize=True).sum()), "calls": len(calls)}

    if unlocked is not None:
        from ostension.train.freeze import FreezeConfig, TowerLock

        FreezeConfig(image=TowerLock(locked=True, unlocked_groups=unlocked)).apply(model)
    objective = Contrastive(model, LossConfig(**(loss or {})))
    if captioning:
        from ostension.model.decoder import DecoderConfig
        from ostension.train.captioning import CaptioningConfig

        objective = CaptioningConfig(decoder=DecoderConfig(layers=1, head_width=32)).build(model)
    result = train(objective, Parts(**(batches or {})), config, folder, resume=resume, evaluate=measure if evaluate else None)
    return {"status": result.status, "step": result.step}


def resaved(source, target, parallel="ddp", precision="fp32", average=None, optim=None):
    """Load the newest checkpoint of one run folder, as a resumed run does, and save the state in another."""
    from pathlib import Path

    from ostension import world as worlds
    from ostension.model.clip import CLIP
    from ostension.model.presets import preset
    from ostension.train.checkpoint import CheckpointStore, read_checkpoint
    from ostension.train.loop import PRECISIONS
    from ostension.train.objective import Contrastive
    from ostension.train.optim import OptimConfig
    from ostension.train.state import TrainState

    with worlds.joined(timeout_s=30) as world:
        Path(target).mkdir(exist_ok=True)
        state = TrainState(
            Contrastive(CLIP(preset("tiny-vit"), seed=77)), Path(target), optim=OptimConfig(lr=1e-3, **(optim or {})),
            dtype=PRECISIONS[precision], average=average, non_finite="stop", world=world, parallel=parallel,
        )  # fmt: skip
        path = world.by_first(lambda: str(CheckpointStore(source).newest_path()))
        state.load(read_checkpoint(Path(path), state.rows()))
        saved = CheckpointStore(target, world).save(state.step, state.tensors(), {"config": {}, **state.facts()}, state.rows())
        held = sum(tensor.numel() for group in state.tensors().values() for tensor in group.values())
        return {"step": state.step, "files": sorted(path.name for path in saved.iterdir()), "held": held}


def fills_the_disk(folder):
    """Process 1 cannot write its part of a checkpoint."""
    import resource

    import torch

    from ostension import world as worlds
    from ostension.errors import CheckpointError
    from ostension.train.checkpoint import CheckpointStore

    with worlds.joined(timeout_s=30) as world:
        store = CheckpointStore(folder, world)
        tensors = {"weights": {"matrix": torch.ones(4, 10_000)}}
        store.save(1, tensors, {})
        if world.rank == 1:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        try:
            store.save(2, tensors, {})
        except CheckpointError as problem:
            return str(problem)


def own_gradients(kind, batch=4):
    """The loss of an objective with a loss of single pairs, and some of its gradients, averaged as in training."""
    import torch

    from ostension import world as worlds
    from ostension.model.clip import CLIP
    from ostension.model.decoder import DecoderConfig
    from ostension.model.presets import preset
    from ostension.model.word_models import LanguageModelConfig
    from ostension.runtime import torch_generator
    from ostension.train.batches import Batch
    from ostension.train.captioning import CaptioningConfig
    from ostension.train.prediction import BagPredictionConfig, NextTokenConfig
    from ostension.train.step import backward

    decoder = DecoderConfig(layers=1, head_width=16)
    configs = {
        "captioning": CaptioningConfig(decoder=decoder),
        "language-model": NextTokenConfig(head=LanguageModelConfig(width=32, decoder=decoder)),
        "bag-prediction": BagPredictionConfig(),
    }
    with worlds.joined(timeout_s=30) as world:
        model = CLIP(preset("tiny-vit"), seed=5)
        made = configs[kind].build(model)
        made.module.double()
        images = torch.randn(batch, 3, 32, 32, generator=torch_generator("own"), dtype=torch.float64)
        tokens = model.tokenizer(["red", "a green dot", "blue", "two words"][:batch])
        local = slice(world.rank * batch // world.size, (world.rank + 1) * batch // world.size)
        found = backward(made, Batch(images=images, tokens=tokens, keys=[str(index) for index in range(batch)]).part(local))
        learned = [value for name, value in made.module.named_parameters() if value.grad is not None and value.ndim == 1]
        gradients = torch.cat([world.mean(value.grad).flatten() for value in learned])
        return {"loss": found.loss.item(), "gradients": gradients.tolist()}
