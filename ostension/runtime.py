"""The machine and the clock of a run: cores, instruction sets, dtype, threads, seeded generators, versions.

torch is imported inside the functions that need it, so that commands that do not compute start at once.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from ostension.errors import ConfigError

if TYPE_CHECKING:
    import numpy
    import torch

DTYPES = ("float32", "bfloat16", "float16", "float64")
PACKAGES = ("torch", "numpy", "pillow", "safetensors", "regex", "ftfy", "tyro", "tqdm")


def seed_for(*keys: int | str) -> int:
    """A 63-bit seed that depends on every key and on nothing else (not on `PYTHONHASHSEED`, not on the platform)."""
    text = "\x1f".join(f"{type(key).__name__}:{key}" for key in keys)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little") >> 1


def numpy_generator(*keys: int | str) -> numpy.random.Generator:
    """A numpy generator for one purpose, e.g. `numpy_generator(seed, "bootstrap", name)`."""
    import numpy

    return numpy.random.Generator(numpy.random.PCG64(seed_for(*keys)))


def torch_generator(*keys: int | str) -> torch.Generator:
    """A CPU torch generator for one purpose, e.g. `torch_generator(seed, "augment", step)`."""
    import torch

    return torch.Generator().manual_seed(seed_for(*keys))


def available_cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def cpu_features() -> frozenset[str]:
    """Instruction sets that matter here: of avx2, avx512f, avx512_bf16, amx_bf16, amx_int8, neon (asimd), bf16 (Arm)."""
    wanted = {"avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_tile", "amx_int8", "asimd", "bf16", "sve"}
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.lower().startswith(("flags", "features")):
            return frozenset(wanted & set(line.split(":", 1)[1].split()))
    return frozenset()


@functools.cache
def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def pick_device(name: str = "auto") -> torch.device:
    """The device to compute on: a named one, or the first GPU if there is one, else the processor.

    Raises:
        ConfigError: for a device that this machine or this build of torch lacks.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device is {name!r}", expected="'auto', 'cpu', 'cuda' or 'cuda:N'") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device is {name!r}, but no GPU can be used here", fix="use --device cpu")
    return device


def has_bfloat16_units(device: torch.device | str = "cpu") -> bool:
    """Whether bfloat16 products run on matrix or vector units of their own, so that bf16 weights pay."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(cpu_features() & {"amx_bf16", "avx512_bf16", "bf16"})


def pick_dtype(name: str = "auto", device: torch.device | str = "cpu") -> torch.dtype:
    """The dtype of weights: a named one, or bfloat16 where the device has units for it, else float32.

    Raises:
        ConfigError: for an unknown dtype.
    """
    import torch

    if name == "auto":
        return torch.bfloat16 if has_bfloat16_units(device) else torch.float32
    if name not in DTYPES:
        raise ConfigError(f"dtype is {name!r}", expected=f"'auto' or one of {', '.join(DTYPES)}")
    return getattr(torch, name)


def set_threads(count: int | None = None) -> int:
    """Set torch's threads to `count`, else to OMP_NUM_THREADS, else to the available cores; gives the number set."""
    import torch

    asked = os.environ.get("OMP_NUM_THREADS", "")
    count = count or (int(asked) if asked.isdecimal() else 0) or available_cores()
    torch.set_num_threads(count)
    return count


def versions() -> dict[str, str]:
    """Versions of Ostension, Python and the core packages ('missing' where not installed)."""
    found = {"python": platform.python_version()}
    for package in ("ostension", *PACKAGES):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def git_state(folder: Path | None = None) -> dict[str, str | bool] | None:
    """The commit of the checkout that holds `folder` and whether it has changes; None outside a checkout."""
    folder = folder or Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout

    try:
        return {"commit": git("rev-parse", "HEAD").strip(), "changed": bool(git("status", "--porcelain", "-uno").strip())}
    except (OSError, subprocess.SubprocessError):
        return None


def peak_memory_bytes() -> int:
    """The largest resident size of this process so far, in bytes."""
    import resource

    scale = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
