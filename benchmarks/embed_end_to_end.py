"""Pictures in a folder into a store on the disk, end to end, against open_clip with a DataLoader and against clip-retrieval.

Every case reads the same files, decodes, preprocesses, encodes, normalises and writes: open_clip with its own transforms in a
torch DataLoader, float32 as it comes and with bfloat16 weights, into one .npy; clip-retrieval's own reader, mapper, writer and
runner around the same open_clip model (its loader of models is replaced by that model, its logger by none); and
`ostension.store.add`, which also hashes, looks for copies, keeps what is known of each picture, and flushes to the disk.
All have the same random weights and the same number of decoders and threads.

Each row: pictures a second by the clock and by processor time (of all processes), how many times that of open_clip in
float32, the share of the time that this machine's measured matmul peak would need for the tower alone, and the least cosine
to open_clip's float32 rows. Cases take turns; the best of the rounds counts.

The peers' packages, without what they require:

    pip install --no-deps --target FOLDER torchvision==0.28.0 open_clip_torch==3.3.0 clip-retrieval==2.45.0 pandas fsspec

    python benchmarks/embed_end_to_end.py --peers FOLDER --pictures SOURCE [--models ViT-B-32:1000] [--record FILE]

Models that were measured before with the same settings stay in the record.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import resource
import shutil
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path

import _measure
import numpy as np
import torch
from PIL import Image
from preprocess import load_peer

from ostension.data.picture_lists import PictureTree
from ostension.data.pictures import open_pictures
from ostension.export.calibration import read_calibration
from ostension.export.engines import engine_encoder, open_tower
from ostension.export.folder import open_export
from ostension.export.write import Options, write_export
from ostension.image.decode import open_image
from ostension.model.clip import CLIP
from ostension.model.config import ModelConfig
from ostension.model.flops import forward_gflops
from ostension.model.presets import preset
from ostension.store import Store, add

Case = Callable[[Path], np.ndarray]
FIRST = "open_clip float32"  # what the others are compared with


def write_files(source: str, count: int, side: int, folder: Path) -> int:
    """The first pictures of a source as JPEG files whose long side is `side`; gives the bytes of all."""
    pictures = open_pictures(source)
    step, total = max(1, len(pictures) // count), 0
    for number in range(count):
        image = open_image(pictures.read(number * step % len(pictures)).image)
        scale = side / max(image.size)
        image = image.resize([max(1, round(length * scale)) for length in image.size], Image.Resampling.BICUBIC)
        path = folder / f"{number % 10}" / f"{number:06d}.jpg"
        path.parent.mkdir(exist_ok=True)
        image.save(path, "JPEG", quality=90)
        total += path.stat().st_size
    return total


class Files(torch.utils.data.Dataset):
    """Pictures through open_clip's transform, as its own scripts read them."""

    def __init__(self, folder: Path, transform: Callable):
        self.paths, self.transform = sorted(folder.rglob("*.jpg")), transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.open(self.paths[index]))


def with_open_clip(model, transform: Callable, folder: Path, batch: int, workers: int) -> Case:
    """open_clip in a DataLoader, rows into one .npy."""
    dtype = next(model.parameters()).dtype

    def run(out: Path) -> np.ndarray:
        loader = torch.utils.data.DataLoader(Files(folder, transform), batch_size=batch, num_workers=workers)
        rows = []
        with torch.no_grad():
            for images in loader:
                found = model.encode_image(images.to(dtype), normalize=True)
                rows.append(found.float().to(torch.float16).numpy())
        np.save(out / "rows.npy", np.concatenate(rows))
        return np.concatenate(rows)

    return run


def with_clip_retrieval(model, transform: Callable, folder: Path, batch: int, workers: int) -> Case:
    """clip-retrieval's reader, mapper, writer and runner."""
    package = types.ModuleType("clip_retrieval")
    spec = importlib.util.find_spec("clip_retrieval")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("this benchmark compares with clip-retrieval: see the head of the file")
    package.__path__ = list(spec.submodule_search_locations)
    inner = types.ModuleType("clip_retrieval.clip_inference")
    inner.__path__ = [str(Path(package.__path__[0]) / "clip_inference")]
    loader, sentences = types.ModuleType("all_clip"), types.ModuleType("sentence_transformers")
    loader.load_clip = lambda **_: (model, transform, None)  # type: ignore[attr-defined]
    sentences.SentenceTransformer = None  # type: ignore[attr-defined]
    found = {"clip_retrieval": package, "clip_retrieval.clip_inference": inner}
    sys.modules |= {**found, "all_clip": loader, "sentence_transformers": sentences}
    reader, mapper, writer, runner = (
        importlib.import_module(f"clip_retrieval.clip_inference.{name}") for name in ("reader", "mapper", "writer", "runner")
    )
    parts = {"enable_text": False, "enable_image": True, "enable_metadata": False}

    class NoLogger:
        start = end = lambda self: None

        def __call__(self, facts: dict) -> None:
            pass

    def run(out: Path) -> np.ndarray:
        work = runner.Runner(
            lambda sampler: reader.FilesReader(sampler, transform, None, str(folder), batch, workers, **parts),
            lambda: mapper.ClipMapper(
                **parts, use_mclip=False, clip_model="", use_jit=False, mclip_model="", warmup_batch_size=1
            ),
            lambda part: writer.NumpyWriter(part, str(out), **parts, output_partition_count=1),
            lambda part: NoLogger(),
            1,
        )
        work(0)
        return np.load(out / "img_emb" / "img_emb_0.npy")

    return run


def with_ostension(model: CLIP, folder: Path, batch: int, workers: int, processes: int = 1) -> Case:
    """Our own, into a store; the rows come back in the order of the names."""

    def run(out: Path) -> np.ndarray:
        store = Store(out)
        options = {"processes": processes, "workers": 0 if processes > 1 else workers}
        added = add(store, model, PictureTree(folder), batch_size=batch, **options)
        assert added.rows == added.samples, added
        opened = store.find()
        return np.asarray(opened.rows)

    return run


def open_clip_config(config: ModelConfig) -> dict:
    """The same architecture in open_clip's words."""
    image, text = config.vision, config.text
    vision = {"image_size": image.image_size, "layers": image.layers, "width": image.width}
    if image.kind == "vit":
        vision |= {"patch_size": image.patch_size, "head_width": image.head_width}
    texts = {"context_length": text.context_length, "vocab_size": text.vocab_size, "width": text.width, "layers": text.layers}
    texts["heads"] = text.width // text.head_width
    return {
        "embed_dim": config.embed_dim, "quick_gelu": text.activation == "quick_gelu", "vision_cfg": vision, "text_cfg": texts,
    }  # fmt: skip


def spent() -> float:
    """Seconds of processor time of this process and of those that it started and that have ended."""
    return sum(
        used.ru_utime + used.ru_stime for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def measure(name: str, folder: Path, options, peaks: dict[torch.dtype, float]) -> dict:
    """The rows of one model."""
    from open_clip.model import CLIP as OpenClip
    from open_clip.transform import image_transform

    ours = CLIP(preset(name)).eval()
    with torch.no_grad():
        for key, parameter in ours.named_parameters():
            if key.endswith("bn3.weight"):
                parameter.fill_(0.3)  # zero at the start, which would hide the bottlenecks
    state = {key.removeprefix("text."): value for key, value in ours.state_dict().items()}
    half = CLIP(preset(name), seed=None).eval()
    half.load_state_dict(ours.state_dict())
    half = half.bfloat16()
    theirs, theirs_half = (OpenClip(**open_clip_config(ours.config)).eval() for _ in range(2))
    for model in (theirs, theirs_half):
        model.load_state_dict(state, strict=False)
    theirs_half.bfloat16()
    transform = image_transform(ours.config.vision.image_size, is_train=False)
    same = (folder, options.batch, options.workers)
    cases: dict[str, Case] = {
        "open_clip float32": with_open_clip(theirs, transform, *same),
        "open_clip bfloat16 weights": with_open_clip(theirs_half, transform, *same),
        "clip-retrieval": with_clip_retrieval(theirs, transform, *same),
        "ostension float32": with_ostension(ours, *same),
        "ostension bfloat16 weights": with_ostension(half, *same),
        "ostension bfloat16, OpenVINO": with_ostension(engine_encoder(ours, "openvino", threads=options.threads), *same),
    }
    if options.int8:
        encoder = engine_encoder(ours, "openvino", threads=options.threads)
        with tempfile.TemporaryDirectory(prefix="export-") as exported:
            found = read_calibration(ours, options.pictures, options.int8)
            write_export(ours, exported, Options(sides=("image",), int8=True, calibration=found), overwrite=True)
            encoder.visual = open_tower(open_export(exported), "image", "openvino", "int8", options.threads)
        cases["ostension int8, OpenVINO"] = with_ostension(encoder, *same)
    cases = {case: run for case, run in cases.items() if not options.only or case in (*options.only.split(","), FIRST)}
    count = sum(1 for _ in folder.rglob("*.jpg"))
    clock, used = dict.fromkeys(cases, float("inf")), dict.fromkeys(cases, float("inf"))
    found: dict[str, np.ndarray] = {}
    for _ in range(options.rounds):
        for case, run in cases.items():
            out = Path(tempfile.mkdtemp(prefix="embed-"))
            began, before = time.perf_counter(), spent()
            found[case] = run(out).astype(np.float64)
            clock[case] = min(clock[case], time.perf_counter() - began)
            used[case] = min(used[case], spent() - before)
            shutil.rmtree(out)
            print(f"  {case}: {count / clock[case]:.2f} a second", flush=True)
    rows: dict[str, dict[str, float]] = {}
    flops = forward_gflops(ours.config)[0] * 1e9
    for case in cases:
        dtype = torch.bfloat16 if "bfloat16" in case else torch.float32
        unit = found[case] / np.linalg.norm(found[case], axis=1, keepdims=True)
        reference = found[FIRST] / np.linalg.norm(found[FIRST], axis=1, keepdims=True)
        rows[case] = {
            "pictures/s": count / clock[case],
            "x by the clock": clock[FIRST] / clock[case],
            "x by processor": used[FIRST] / used[case],
            "least cosine": float((unit * reference).sum(axis=1).min()),
        }
        if "int8" not in case:  # whose peak is not measured
            rows[case]["of peak"] = flops * count / peaks[dtype] / used[case]
    return rows


def main() -> None:
    options = _measure.arguments(
        __doc__,
        models=("small-64:2000,ViT-B-32:200,RN50:200", "presets and how many pictures each, with commas"),
        batch=(32, "pictures"),
        workers=(1, "processes of a DataLoader, threads of ours, that decode"),
        side=(500, "their long side"),
        int8=(0, "pictures that calibrate int8; 0 leaves it out"),
        only=("", "cases beside the first one, with commas; all by default"),
        pictures=("", "what they are made from: any source of pictures"),
        peers=("", "the folder of the peers' packages"),
    )
    load_peer(options.peers)
    sys.modules["transformers"] = None  # type: ignore[assignment]  # open_clip does without; it asks for all of torchvision
    peaks = {dtype: _measure.matmul_peak(dtype) for dtype in (torch.float32, torch.bfloat16)}
    print("matmul peak: " + ", ".join(f"{str(dtype)[6:]} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in peaks.items()))
    settings = {key: getattr(options, key) for key in ("batch", "workers", "side", "rounds")}
    figures: dict = {}
    if options.record is not None and options.record.is_file():  # models that were measured before with the same settings
        before = json.loads(options.record.read_text(encoding="utf-8"))
        if before["settings"] == settings:
            figures = before["figures"]
    for entry in options.models.split(","):
        name, _, count = entry.partition(":")
        with tempfile.TemporaryDirectory(prefix="pictures-") as folder:
            size = write_files(options.pictures, int(count), options.side, Path(folder))
            title = f"{name}: {int(count):,} pictures of {size // int(count):,} bytes"
            figures = {key: rows for key, rows in figures.items() if not key.startswith(f"{name}:")}
            figures[title] = measure(name, Path(folder), options, peaks)
            _measure.table(f"{title}, batch {options.batch}", figures[title])
    figures["matmul peak"] = {str(dtype)[6:]: rate for dtype, rate in peaks.items()}
    _measure.write_record(options.record, "embed_end_to_end", settings, figures)


if __name__ == "__main__":
    main()
