"""Seeds depend on their keys alone; the machine is described as it is."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from ostension import runtime
from ostension.errors import ConfigError


def test_a_seed_depends_on_every_key_and_its_type():
    keys = [(1, "a"), (1, "b"), ("1", "a"), (1, "a", 0)]
    assert len({runtime.seed_for(*each) for each in keys}) == len(keys)
    assert 0 <= runtime.seed_for("x") < 2**63


def test_a_seed_does_not_depend_on_the_hash_seed():
    code = "from ostension.runtime import seed_for; print(seed_for(3, 'epoch', 7))"
    environments = [{**os.environ, "PYTHONHASHSEED": value} for value in ("0", "1", "77")]
    runs = [subprocess.run([sys.executable, "-c", code], env=each, capture_output=True, check=True) for each in environments]
    seeds = {run.stdout for run in runs}
    assert seeds == {f"{runtime.seed_for(3, 'epoch', 7)}\n".encode()}


def test_generators_repeat_themselves():
    draws = [torch.rand(3, generator=runtime.torch_generator(1, "augment", 5)) for _ in range(2)]
    assert torch.equal(*draws)
    assert runtime.numpy_generator(1, "x").integers(1000) == runtime.numpy_generator(1, "x").integers(1000)


def test_unknown_dtypes_and_devices_are_refused():
    with pytest.raises(ConfigError, match="dtype is 'int3'"):
        runtime.pick_dtype("int3")
    with pytest.raises(ConfigError, match="device is 'tpu9'"):
        runtime.pick_device("tpu9")


def test_the_dtype_follows_the_instruction_sets(monkeypatch):
    monkeypatch.setattr(runtime, "cpu_features", lambda: frozenset({"avx2"}))
    assert runtime.pick_dtype("auto") == torch.float32
    monkeypatch.setattr(runtime, "cpu_features", lambda: frozenset({"avx2", "amx_bf16"}))
    assert runtime.pick_dtype("auto") == torch.bfloat16
