"""Runs of training in processes of their own, to be killed: one process imports torch once and forks a child a run.

Used by `test_training_*.py` through the fixture `harness`; run as a script it is the process that forks.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import pytest

from ostension.errors import DataError, OstensionError

PRESET = "tiny-vit"


class Harness:
    """Starts runs; each is described by the keywords of `run_training`."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def start(self, folder, **spec) -> Run:
        """Start a run in `folder`."""
        handle, name = tempfile.mkstemp(suffix=".stderr")
        os.close(handle)
        errors = Path(name)
        pid = self._ask({"folder": str(folder), "stderr": str(errors), "spec": spec})
        return Run(self, pid, Path(folder), errors)

    def run(self, folder, *, expect=0, **spec) -> Run:
        """Start a run and wait for its exit code."""
        run = self.start(folder, **spec)
        code = run.wait()
        assert code == expect, f"exit code {code}:\n{run.stderr()}"
        return run

    def close(self):
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()

    def _ask(self, request):
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@pytest.fixture(scope="module")
def harness():
    """A harness for the module's tests."""
    made = Harness()
    yield made
    made.close()


class Run:
    """One process that trains."""

    def __init__(self, harness: Harness, pid: int, folder: Path, errors: Path):
        self.harness, self.pid, self.folder, self._errors = harness, pid, folder, errors

    def wait(self) -> int:
        """The exit code; minus the signal's number where one ended it."""
        return self.harness._ask({"wait": self.pid})

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def stderr(self) -> str:
        return self._errors.read_text()

    def steps(self) -> int:
        """Steps done, by the log, over all sittings."""
        try:
            lines = (self.folder / "log.jsonl").read_bytes().splitlines()
        except FileNotFoundError:
            return 0
        return sum(b'"kind": "step"' in line for line in lines)

    def until(self, steps: int, seconds: float = 240) -> None:
        """Wait until the log has so many steps."""
        deadline = time.monotonic() + seconds
        while self.steps() < steps:
            assert time.monotonic() < deadline, f"no step {steps} in {seconds} s:\n{self.stderr()}"
            time.sleep(0.005)


def final_bytes(folder) -> dict[str, bytes]:
    """What must be equal, bit for bit, between two runs: the model, and the newest checkpoint's tensors."""
    folder = Path(folder)
    newest = folder / "checkpoints" / (folder / "checkpoints" / "LATEST").read_text().strip()
    files = [folder / "model" / "model.safetensors", *sorted(newest.glob("*.safetensors"))]
    return {path.name: path.read_bytes() for path in files}


class FakeBatches:
    """A small stream of pairs of six kinds, in the order of the real sampler, with faults at chosen steps."""

    worker_kind = "processes"

    def __init__(self, num_samples=44, batch_size=8, size=32, **faults):
        self.num_pairs, self.batch_size, self.size, self.faults = num_samples, batch_size, size, faults

    @property
    def sampler(self):
        from ostension.data.sampler import Sampler

        return Sampler(self.num_pairs, self.batch_size, 3)

    @property
    def num_samples(self):
        return self.sampler.steps_per_epoch * self.batch_size

    def identity(self):
        if self.faults.get("term_before_step_0"):
            os.kill(os.getpid(), signal.SIGTERM)
        return {"fingerprint": self.faults.get("fingerprint", "fake"), "num_samples": self.num_pairs}

    def batch(self, step):
        import torch

        from ostension.runtime import torch_generator
        from ostension.train.batches import Batch

        at = self.faults
        if step in at.get("term_at", ()):
            os.kill(os.getpid(), signal.SIGTERM)
        if step == at.get("group_term_at"):  # a signal to the whole process group, which ends the workers as well
            os.kill(os.getpid(), signal.SIGTERM)
            raise DataError("data worker 0 ended with signal SIGTERM")
        if step == at.get("disk_full_from"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        if step == at.get("disk_full_until"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        if step == at.get("raise_at"):
            raise RuntimeError("the batch source fell over")
        if step == at.get("exit_at"):
            os._exit(9)
        time.sleep(at.get("sleep_s", 0.0))
        ids = self.sampler.batch(step).tolist()
        visit = self.sampler.epoch(step)
        noise = [torch.randn(3, self.size, self.size, generator=torch_generator("pixels", index, visit)) for index in ids]
        kinds = torch.tensor([index % 6 for index in ids])
        images = torch.stack(noise) + 0.5 * kinds[:, None, None, None]
        if step in at.get("nan_at", ()):
            images[1, 0, 0, 0] = float("nan")
        tokens = torch.zeros(len(ids), 4, dtype=torch.long)
        tokens[:, 0], tokens[:, 1], tokens[:, 2] = 1022, 5 + kinds, 1023
        return Batch(images=images, tokens=tokens, keys=[f"pair-{index}" for index in ids])


def run_training(
    folder, *, steps=12, every=4, keep=2, preset=PRESET, batches=None, resume="auto", allow_change=(), kill=None,
    inf_gradient_at=(), threads=1, lr=1e-3, user=None, **settings,
):
    """Train the tiny model; `kill` is (name, step): die by SIGKILL on entering that function of a save of that step."""
    import torch

    from ostension.model.clip import CLIP
    from ostension.model.presets import preset as find_preset
    from ostension.train import checkpoint
    from ostension.train.loop import train
    from ostension.train.objective import Contrastive
    from ostension.train.optim import OptimConfig
    from ostension.train.schedule import ScheduleConfig
    from ostension.train.train_config import TrainConfig

    torch.set_num_threads(threads)
    if kill is not None:
        name, at_step = kill
        function = getattr(checkpoint, name)

        def dying(path, *rest):
            if f"{at_step:08d}" in path.name:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(path, *rest)

        setattr(checkpoint, name, dying)
    source = FakeBatches(**(batches or {}))
    model = CLIP(find_preset(preset), seed=5)
    if inf_gradient_at:
        drawn = []
        draw = source.batch
        source.batch = lambda step: drawn.append(step) or draw(step)
        model.logit_scale.register_hook(lambda grad: grad * float("inf") if drawn[-1] in inf_gradient_at else grad)
    config = TrainConfig(
        steps=steps,
        precision=settings.pop("precision", "fp32"),
        optim=OptimConfig(lr=lr, **settings.pop("optim", {})),
        schedule=ScheduleConfig(warmup_steps=2),
        checkpoint=checkpoint.CheckpointConfig(every=every, keep=keep),
        log_every=settings.pop("log_every", 1),
        **settings,
    )
    if user is not None:
        os.setuid(user)
    return train(Contrastive(model), source, config, folder, resume=resume, allow_change=allow_change)


def _child(request) -> int:
    null = os.open(os.devnull, os.O_RDWR)
    errors = os.open(request["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(null, 0), os.dup2(null, 1), os.dup2(errors, 2)
    try:
        run_training(request["folder"], **request["spec"])
    except OstensionError as error:
        print(f"ostension: error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        return 70
    return 0


def _serve() -> None:
    import ostension.formats.load
    import ostension.train.loop  # noqa: F401  imported once, for all the children

    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if answer == 0:
                os._exit(_child(request))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    # Workers unpickle `training_harness.FakeBatches`, not `__main__.FakeBatches`.
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import training_harness

    training_harness._serve()
