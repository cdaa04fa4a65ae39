"""Engines against open_clip: both towers in torch, onnxruntime and OpenVINO, in float32, bfloat16 and int8, random weights.

Each row: milliseconds of processor time for an item, how many times faster than open_clip's eager float32 in the same run,
the share of this machine's measured matmul peak in that type, and 1 - the least cosine to open_clip's float32 embeddings.
int8 is calibrated with what it encodes, noise, and its cosine is that of a random model.

    python benchmarks/engines.py [--models ViT-B-32,RN50] [--record FILE]

A record is written after each tower. Where there is one with the same settings and versions, its towers are not measured
again: delete it to begin anew.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import _measure
import torch
from _peers import load_open_clip

from ostension import runtime
from ostension.export.engines import open_tower
from ostension.export.folder import ExportFolder, GraphFile
from ostension.export.graphs import free_length, tower_graph
from ostension.export.onnx import example_input, write_onnx
from ostension.export.quantize import quantise
from ostension.export.sessions import precisions
from ostension.model.clip import CLIP
from ostension.model.flops import forward_gflops
from ostension.model.presets import preset

BATCH = {"ViT-B-32": 16, "ViT-B-16": 4, "RN50": 8}
TEXTS, LENGTH = 64, 10  # the mean length of a prompt (specs: 9.6 tokens)


def towers(open_clip, name: str, ours: CLIP):
    """open_clip's model with the weights of `ours`."""
    from open_clip.model import CLIP as OpenClip

    theirs = OpenClip(**open_clip.get_model_config(f"{name}-quickgelu")).eval()
    theirs.load_state_dict({key.removeprefix("text."): value for key, value in ours.state_dict().items()}, strict=False)
    return theirs


def exported(model: CLIP, side: str, folder: Path, batch: torch.Tensor) -> ExportFolder:
    """One tower in float32 and in int8."""
    free = side == "text" and free_length(model)
    path = folder / f"{side}.onnx"
    length = model.config.text.context_length
    if not path.is_file():
        write_onnx(tower_graph(model, side), side, example_input(model, side), path, free_length=free, context_length=length)
    if not (folder / f"{side}.int8.onnx").is_file():
        quantise(path, folder / f"{side}.int8.onnx", folder, calibration=batch[:8].split(4))
    graphs = tuple(
        GraphFile(side=side, file=file, precision=precision, free_length=free, difference={})
        for file, precision in ((path.name, "float32"), (f"{side}.int8.onnx", "int8"))
    )
    return ExportFolder(folder, model.config, "", 0.0, None, graphs, {})


def measure(open_clip, name: str, side: str, rounds: int, peaks: dict[str, float], graphs: Path) -> dict[str, dict[str, float]]:
    """The rows of one tower."""
    torch.manual_seed(0)
    ours = CLIP(preset(name)).eval()
    with torch.no_grad():
        for key, parameter in ours.named_parameters():
            if key.endswith("bn3.weight"):
                parameter.fill_(0.3)  # zero at the start, which would hide the bottlenecks
    theirs = towers(open_clip, name, ours)
    half = CLIP(preset(name), seed=None).eval()
    half.load_state_dict(ours.state_dict())
    half = half.bfloat16()
    image_gflop, text_gflop = forward_gflops(ours.config)
    if side == "image":
        batch = torch.randn(BATCH.get(name, 8), 3, 224, 224)
        cases = {
            "open_clip float32": lambda: theirs.encode_image(batch),
            "torch-float32": lambda: ours.encode_image(batch),
            "torch-bfloat16": lambda: half.encode_image(batch),
        }
        gflop = image_gflop
    else:
        batch = torch.randint(1, 49000, (TEXTS, 77))
        batch[:, LENGTH - 1], batch[:, LENGTH:] = 49407, 0
        cases = {
            "open_clip float32": lambda: theirs.encode_text(batch),
            "torch-float32": lambda: ours.encode_text(batch),
            "torch-bfloat16": lambda: half.encode_text(batch),
        }
        gflop = text_gflop * LENGTH / 77  # products with weights; those between tokens are less, by the square
    folder = graphs / name
    folder.mkdir(exist_ok=True)
    opened = exported(ours, side, folder, batch)
    with torch.no_grad():
        for engine in ("onnx", "openvino"):
            for precision in (*reversed(precisions(engine)), "int8"):
                tower = open_tower(opened, side, engine, precision)
                cases[tower.computed] = lambda tower=tower: tower(batch)
        latest: dict[str, torch.Tensor] = {}  # what each gave last, so that nothing runs once more to be compared
        kept = {case: functools.partial(keep, latest, case, call) for case, call in cases.items()}
        seconds = _measure.interleaved(kept, rounds)
        reference = latest["open_clip float32"].double()
        rows = {}
        for case in cases:
            kind = "float32" if "float32" in case else "bfloat16"
            cosine = torch.cosine_similarity(latest[case].double(), reference).min()
            row = {"ms/item": 1000 * seconds[case] / len(batch), "x open_clip": seconds["open_clip float32"] / seconds[case]}
            if side == "image" or "open_clip" not in case:
                row["of peak"] = gflop * 1e9 * len(batch) / seconds[case] / peaks[kind]
            rows[case] = {**row, "1 - cosine": max(0.0, 1 - float(cosine))}
    return rows


def keep(latest: dict[str, torch.Tensor], case: str, call: Callable[[], torch.Tensor]) -> None:
    """Call, and keep what it gave."""
    latest[case] = call()


def known(record: Path | None, settings: dict) -> dict[str, dict]:
    """The towers that a run with these settings has measured before it was cut short."""
    if record is None or not record.is_file():
        return {}
    tree = json.loads(record.read_text(encoding="utf-8"))
    return dict(tree["figures"]) if tree["settings"] == settings and tree["versions"] == runtime.versions() else {}


def main() -> None:
    options = _measure.arguments(
        __doc__, models=("ViT-B-32,RN50", "presets, with commas"),
        sides=("image,text", "towers; texts of the first model only"),
        graphs=("", "a folder in which exported graphs are kept between runs"),
    )  # fmt: skip
    open_clip = load_open_clip()
    peaks = {str(dtype)[6:]: _measure.matmul_peak(dtype) for dtype in (torch.float32, torch.bfloat16)}
    print("matmul peak: " + ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in peaks.items()))
    settings = {"models": options.models, "rounds": options.rounds, "batch": BATCH, "texts": TEXTS, "length": LENGTH}
    figures = {**known(options.record, settings), "matmul peak": peaks}
    names = options.models.split(",")
    with tempfile.TemporaryDirectory() as scratch:
        graphs = Path(options.graphs or scratch)
        for side in options.sides.split(","):
            for name in names if side == "image" else names[:1]:
                tower = f"{name} {side}"
                if tower not in figures:
                    figures[tower] = measure(open_clip, name, side, options.rounds, peaks, graphs)
                    _measure.write_record(options.record, "engines", settings, figures)
                _measure.table(f"{name}, {side} tower", figures[tower])


if __name__ == "__main__":
    main()
