"""What a worker that reads pairs costs in memory, and how long the model waits for data with none, one and two of them.

Memory is what is a worker's own (anonymous pages), after it was sent a source of a million pairs and has looked up 3,000 of
them; the index that all share is beside it. The waiting is the idle share of a run's log, over JPEG shards made here; the
machine should be free otherwise.

    python benchmarks/data.py --record benchmarks/records/data.json
"""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from _measure import arguments, table, write_record
from PIL import Image

from ostension.data.arrays import joined_texts
from ostension.data.open import open_pairs
from ostension.data.tables import Table
from ostension.data.tar_index import ShardIndex, save_index
from ostension.model.presets import preset
from ostension.runlog import read_records
from ostension.runtime import numpy_generator
from ostension.train.pairs import PairBatchesConfig
from ostension.train.pretraining import Pretraining
from ostension.train.train_config import TrainConfig

WORKER = """
import pickle, sys
import numpy as np
import ostension.train.pairs

def memory(kind):
    with open("/proc/self/smaps_rollup") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(kind + ":"))

own, resident = memory("Anonymous"), memory("Rss")
with open(sys.argv[1], "rb") as handle:
    source = pickle.load(handle)
for index in np.random.default_rng(0).integers(0, len(source), 3000).tolist():
    source.key(index)
print(memory("Anonymous") - own, memory("Rss") - resident)
"""


def main() -> None:
    parsed = arguments(
        __doc__ or "", pairs=(1_000_000, "pairs of the sources whose memory is measured"),
        model=("small-64", "what is trained while the data is waited for"), batch_size=(128, "pairs in a batch"),
        side=(256, "pixels of a picture's short side"), steps=(24, "steps of each run"),
    )  # fmt: skip
    figures = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["OSTENSION_CACHE"] = str(folder / "cache")
        figures["memory of a worker"] = {
            "tar shards of 10,000": worker_memory(open_pairs(fake_shards(folder / "fake", parsed.pairs)), folder),
            "one table": worker_memory(Table(fake_table(folder / "pairs.csv", parsed.pairs)), folder),
        }
        shards = jpeg_shards(folder / "jpeg", parsed.batch_size * 4, parsed.side)
        figures["idle share"] = {
            f"{workers} workers": run(shards, folder / f"run{workers}", parsed, workers) for workers in (0, 1, 2)
        }
    for title, rows in figures.items():
        table(title, rows)
    settings = {key: getattr(parsed, key) for key in ("pairs", "model", "batch_size", "side", "steps")}
    write_record(parsed.record, "data", settings, figures)


def worker_memory(source, folder: Path) -> dict[str, float]:
    """Megabytes that a fresh process adds for a source, and what was sent to it."""
    message = folder / "message"
    message.write_bytes(pickle.dumps(source))
    found = subprocess.run([sys.executable, "-c", WORKER, str(message)], capture_output=True, text=True, check=True).stdout
    own, resident = (int(number) / 1e3 for number in found.split())
    return {"sent, kB": message.stat().st_size / 1e3, "own, MB": own, "shared index, MB": resident - own}


def fake_shards(folder: Path, num_pairs: int, in_shard: int = 10_000) -> Path:
    """Shards of holes with whole indexes: enough to look pairs up."""
    folder.mkdir()
    for number in range(num_pairs // in_shard):
        path = folder / f"{number:05}.tar"
        path.touch()
        os.truncate(path, in_shard * 4096)
        keys, key_ends = joined_texts([f"{number:05}{row:04}" for row in range(in_shard)])
        starts = np.arange(in_shard) * 4096
        spans = {
            part: np.stack([starts + offset, np.full(in_shard, size)], 1)
            for part, offset, size in (("image", 512, 2000), ("text", 3000, 40), ("json", 3100, 100))
        }
        index = ShardIndex(
            keys=keys, key_ends=key_ends, digest=starts.astype(np.uint64), tar_size=in_shard * 4096, tar_sha256=f"{number:064}",
            tar_mtime_ns=path.stat().st_mtime_ns, rejects={}, torn=None, **spans,
        )  # fmt: skip
        save_index(index, path.with_name(path.name + ".idx"))
    return folder


def fake_table(path: Path, num_pairs: int) -> Path:
    """A table of pictures that are not there."""
    with open(path, "w", encoding="utf-8") as handle:
        handle.write("filepath,title\n")
        handle.writelines(f"images/{row:08}.jpg,photograph number {row} of many\n" for row in range(num_pairs))
    return path


def jpeg_shards(folder: Path, count: int, side: int) -> Path:
    """One shard of smooth random pictures with long captions."""
    folder.mkdir()
    random = numpy_generator("jpeg shards")
    with tarfile.open(folder / "0.tar", "w") as archive:
        for number in range(count):
            coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            stream = io.BytesIO()
            coarse.resize((side * 4 // 3, side), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
            caption = " ".join(f"word{word}" for word in random.integers(0, 500, 20))
            for suffix, content in (("jpg", stream.getvalue()), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{number:05}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return folder


def run(shards: Path, folder: Path, parsed, workers: int) -> dict[str, float]:
    """The log of a short run after its first half, in which workers start and memory is found."""
    half = parsed.steps // 2
    train = TrainConfig(steps=parsed.steps, workers=workers, log_every=half)
    batches = PairBatchesConfig(data=str(shards), batch_size=parsed.batch_size)
    Pretraining(model=preset(parsed.model), batches=batches, train=train).run(folder)
    last = read_records(folder, ["step"])[-1]
    return {"idle share": last["idle_share"], "waited, s a step": last["data_s"], "step, s": last["step_s"]}


if __name__ == "__main__":
    main()
