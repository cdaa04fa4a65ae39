"""Small labelled sets on disk, in every form, with the same pictures."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
from PIL import Image


def picture(seed: int, form: str = "PNG", side: int = 8) -> bytes:
    """An encoded picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def write_folder(root, layout: dict[str, int]) -> None:
    """Folders such as "train/cat" with as many pictures as the numbers say, all different."""
    seed = 0
    for folder, count in layout.items():
        (root / folder).mkdir(parents=True)
        for index in range(count):
            (root / folder / f"{index}.png").write_bytes(picture(seed))
            seed += 1


def write_record(path, **changes: str):
    """A record of cats and dogs; keyword arguments replace or add lines."""
    lines = {
        "title": '"Pets"', "version": "1", "templates": '["a photo of a {}."]', "metric": '"accuracy"', "licence": '"mine"',
        "citation": '"nobody"', "splits": "{ test = { count = 4 } }", "classes": '{ cat = "cat", dog = ["dog", "hound"] }',
    }  # fmt: skip
    lines |= changes
    path.write_text("".join(f"{key} = {value}\n" for key, value in lines.items()), encoding="utf-8")
    return path


def write_shard(path, samples) -> None:
    """A tar shard of (key, {suffix: bytes})."""
    with tarfile.open(path, "w") as archive:
        for key, members in samples:
            for suffix, data in members.items():
                entry = tarfile.TarInfo(f"{key}.{suffix}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))


def write_saved(folder, splits: dict[str, list[tuple[bytes, int]]], names: list[str]) -> None:
    """A folder as the Hugging Face library's `save_to_disk` writes it: Arrow streams, features and state in JSON."""
    import pyarrow

    (folder).mkdir()
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    for split, rows in splits.items():
        (folder / split).mkdir()
        table = pyarrow.table({
            "image": [{"bytes": data, "path": None} for data, _ in rows], "label": pyarrow.array([label for _, label in rows]),
        })  # fmt: skip
        name = "data-00000-of-00001.arrow"
        with pyarrow.OSFile(str(folder / split / name), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        (folder / split / "dataset_info.json").write_text(json.dumps({"features": features}))
        (folder / split / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
