"""Labelled sets: the same samples in every form, and each form's own faults."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import pickle
import threading

import numpy as np
import pytest
from labelled_making import picture, write_folder, write_saved, write_shard
from PIL import Image

from ostension.data.labelled import LABEL, label_of, open_labelled
from ostension.data.sets.fetch import fetch
from ostension.data.sets.open import open_set
from ostension.data.task_parts import Source
from ostension.errors import ConfigError, DataError

PICTURES = [picture(seed) for seed in range(4)]
LABELS = ["cat", "dog", "dog", "cat"]
SPLITS = ["train", "train", "test", "test"]


def make_folder(root):
    for index, (label, split) in enumerate(zip(LABELS, SPLITS, strict=True)):
        (root / split / label).mkdir(parents=True, exist_ok=True)
        (root / split / label / f"{index}.png").write_bytes(PICTURES[index])
    return root


def make_csv(root):
    (root / "images").mkdir(parents=True)
    rows = ["image,label,split,place"]
    for index, (label, split) in enumerate(zip(LABELS, SPLITS, strict=True)):
        (root / f"images/{index}.png").write_bytes(PICTURES[index])
        rows.append(f"images/{index}.png,{label},{split},{index % 2}")
    (root / "labels.csv").write_text("\n".join(rows))
    return root


def make_parquet(root):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    root.mkdir()
    table = arrow.table({"image": PICTURES, "label": LABELS, "split": SPLITS, "place": [0, 1, 0, 1]})
    parquet.write_table(table, root / "all.parquet", row_group_size=3)
    return root / "all.parquet"


def make_hub_parquet(root):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (root / "data").mkdir(parents=True)
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    for split in ("train", "test"):
        rows = [index for index, name in enumerate(SPLITS) if name == split]
        images = [{"bytes": PICTURES[index], "path": None} for index in rows]
        table = arrow.table({"image": images, "label": [["cat", "dog"].index(LABELS[index]) for index in rows]})
        table = table.replace_schema_metadata({b"huggingface": json.dumps({"info": {"features": features}}).encode()})
        parquet.write_table(table, root / f"data/{split}-00000-of-00001.parquet")
    return root


def make_saved(root):
    pytest.importorskip("pyarrow")
    rows = [(image, ["cat", "dog"].index(label)) for image, label in zip(PICTURES, LABELS, strict=True)]
    write_saved(root, {"train": rows[:2], "test": rows[2:]}, ["cat", "dog"])
    return root


def make_shards(root):
    root.mkdir()
    for split in ("train", "test"):
        samples = [
            (f"{index:03d}", {"png": PICTURES[index], "cls": LABELS[index].encode(), "json": b'{"place": "%d"}' % (index % 2)})
            for index, name in enumerate(SPLITS)
            if name == split
        ]
        write_shard(root / f"{split}-000.tar", samples)
    return root


def make_npz(root):
    root.mkdir()
    pixels = [np.asarray(Image.open(io.BytesIO(data))) for data in PICTURES]
    np.savez(
        root / "all.npz", train_images=np.stack(pixels[:2]), train_labels=np.array(LABELS[:2]),
        test_images=np.stack(pixels[2:]), test_labels=np.array(LABELS[2:]),
    )  # fmt: skip
    return root / "all.npz"


MAKERS = [make_folder, make_csv, make_parquet, make_hub_parquet, make_saved, make_shards, make_npz]


@pytest.mark.parametrize("make", MAKERS)
def test_every_form_gives_the_same_pictures_labels_and_splits(tmp_path, make):
    found = open_set(make(tmp_path / "set"))
    assert len(found) == 4 and len(set(found.ids)) == 4
    labels = [label for (label,) in found.labels]
    assert sorted(zip(found.splits, labels, strict=True)) == sorted(zip(SPLITS, LABELS, strict=True))
    pairs = [found.read(index) for index in range(4)]
    pixels = {np.asarray(Image.open(io.BytesIO(pair.image))).tobytes(): pair.meta["label"] for pair in pairs}
    assert pixels == {
        np.asarray(Image.open(io.BytesIO(data))).tobytes(): label for data, label in zip(PICTURES, LABELS, strict=True)
    }
    assert found.fingerprint() == open_set(found.location if make is not make_shards else tmp_path / "set").fingerprint()
    again = pickle.loads(pickle.dumps(found))
    assert again.image(3) == found.image(3) and again.labels == found.labels
    assert found.summary().num_pairs == 4 and len(set(found.image_digests())) == 4


@pytest.mark.parametrize("make", [make_saved, make_npz])
def test_evaluation_during_training_opens_them_too(tmp_path, make):
    found = open_labelled(str(make(tmp_path / "set")))
    assert [label_of(found.read(index), LABEL) for index in range(4)] == LABELS


@pytest.mark.parametrize("make", [make_csv, make_parquet, make_shards])
def test_other_columns_are_fields(tmp_path, make):
    found = open_set(make(tmp_path / "set"))
    assert sorted(found.fields["place"]) == ["0", "0", "1", "1"]


def test_folders_of_domains_are_a_field(tmp_path):
    write_folder(tmp_path / "set", {"photo/cat": 1, "photo/dog": 1, "sketch/cat/more": 2})
    found = open_set(tmp_path / "set", Source(kind="folder", path="set", levels=("domain", "label")))
    assert found.splits is None and found.fields["domain"] == ["photo", "photo", "sketch", "sketch"]
    assert found.labels == [("cat",), ("dog",), ("cat",), ("cat",)]


def test_embeddings_stand_in_for_pictures(tmp_path):
    np.savez(tmp_path / "e.npz", features=np.eye(3, dtype=np.float32), labels=np.array([0, 1, 1]))
    found = open_set(tmp_path / "e.npz")
    assert found.embeddings.shape == (3, 3) and found.labels == [("0",), ("1",), ("1",)]
    with pytest.raises(DataError, match="no pictures"):
        found.image(0)


def test_numbers_are_names_where_an_npz_has_names(tmp_path):
    pixels, names = np.zeros((2, 4, 4), np.uint8), np.array(["cat", "dog"])
    np.savez(tmp_path / "a.npz", images=pixels, labels=np.array([1, 0]), names=names)
    assert open_set(tmp_path / "a.npz").labels == [("dog",), ("cat",)]
    np.savez(tmp_path / "b.npz", images=pixels, labels=np.array([1, 2]), names=names)
    with pytest.raises(DataError, match="labels from 1 to 2, and 2 names"):
        open_set(tmp_path / "b.npz")


def test_sentences_are_drawn_in_black_on_white_and_all_of_them_fits(tmp_path):
    long = "word " * 300
    (tmp_path / "test.tsv").write_text(f"a fine film\t1\n{long}\t0\n")
    found = open_set(tmp_path, Source(kind="text"))
    assert found.labels == [("1",), ("0",)] and found.splits == ["test", "test"]
    for index in range(2):
        pixels = np.asarray(Image.open(io.BytesIO(found.image(index))))
        assert pixels.shape == (448, 448) and pixels.min() < 64 and (pixels[:, -8:] == 255).all() and (pixels[-8:] == 255).all()
    assert found.image(0) == found.image(0)


def test_a_karpathy_file_gives_pictures_splits_and_captions(tmp_path):
    (tmp_path / "pictures/val").mkdir(parents=True)
    (tmp_path / "pictures/val/a.png").write_bytes(PICTURES[0])
    entry = {"filepath": "val", "filename": "a.png", "split": "test", "sentences": [{"raw": " A cat. "}, {"raw": "It."}]}
    (tmp_path / "d.json").write_text(json.dumps({"images": [entry, {**entry, "filename": "b.png", "split": "train"}]}))
    source = Source(kind="karpathy", path="d.json", images="pictures")
    found = open_set(tmp_path / "d.json", source)
    assert found.texts[0] == ("A cat.", "It.") and found.splits == ["test", "train"] and found.image(0) == PICTURES[0]
    assert found.ids == ["val/a.png", "val/b.png"]
    with pytest.raises(DataError, match=r"b\.png: cannot be read"):
        found.image(1)
    for change, message in (({"filepath": "../.."}, "outside"), ({"sentences": []}, "no captions"), ({"split": 3}, "no split")):
        (tmp_path / "d.json").write_text(json.dumps({"images": [{**entry, **change}]}))
        with pytest.raises(DataError, match=rf"d\.json \(image 0\): .*{message}"):
            open_set(tmp_path / "d.json", source)
    (tmp_path / "d.json").write_text('{"images": [3]}')
    with pytest.raises(DataError, match="is no image of a Karpathy file"):
        open_set(tmp_path / "d.json", source)


def test_rows_with_captions_of_one_picture_are_one_sample(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(PICTURES[0] if name == "a" else PICTURES[1])
    (tmp_path / "c.csv").write_text("image,caption,split\na.png,one,test\nb.png,two,train\na.png,three,test\n")
    found = open_set(tmp_path / "c.csv", Source(kind="csv", path="c.csv", texts="caption"))
    assert found.ids == ["a.png", "b.png"] and found.texts == [("one", "three"), ("two",)]
    assert found.splits == ["test", "train"] and found.image(1) == PICTURES[1] and found.labels == [(), ()]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "image,label\n../../etc/passwd,cat\n", "line 2.*outside"),
        ("a.csv", "image,label\n/etc/passwd,cat\n", "line 2.*outside"),
        ("a.csv", "image,label\na.png,\n", "line 2: the label is ''"),
        ("a.csv", "image,label\na.png\n", "line 2 has 1 fields"),
        ("a.csv", "image,caption\na.png,x\n", "no label column"),
        ("a.csv", "", "an empty table"),
        ("a.csv", "image,label\n", "no samples"),
        ("a.parquet", "PAR1 is not enough", "not a Parquet file"),
        ("a.npz", "PK no", "not an npz"),
        ("a.tar", "x" * 2000, "breaks off at byte 0"),
        ("a.doc", "x", "a file of no known form"),
    ],
)
def test_a_fault_is_one_line_that_names_the_place(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises((DataError, ConfigError), match=message) as caught:
        open_set(tmp_path / name)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_a_picture_outside_the_class_folders_is_an_error_and_other_files_are_counted(tmp_path):
    write_folder(tmp_path / "set", {"cat": 1, "dog": 1})
    (tmp_path / "set/cat/notes.txt").write_text("x")
    assert open_set(tmp_path / "set").rejects == {"no picture by its name": 1}
    (tmp_path / "set/stray.png").write_bytes(PICTURES[0])
    with pytest.raises(DataError, match=r"stray\.png: a picture outside the folders of classes; expected LABEL/picture"):
        open_set(tmp_path / "set")


def test_a_shard_sample_without_picture_or_label_is_an_error(tmp_path):
    write_shard(tmp_path / "a.tar", [("000", {"cls": b"1"})])
    with pytest.raises(DataError, match=r"a\.tar \(000\): no picture"):
        open_set(tmp_path / "a.tar")
    write_shard(tmp_path / "b.tar", [("000", {"png": PICTURES[0]})])
    with pytest.raises(DataError, match=r"b\.tar \(000\): the label is None"):
        open_set(tmp_path / "b.tar")


def test_arrays_of_objects_are_never_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4), np.uint8), labels=np.array([{"a": 1}, "b"], dtype=object))
    with pytest.raises(DataError, match="not an npz of plain arrays"):
        open_set(tmp_path / "a.npz")


@pytest.fixture
def server():
    body = b"0123456789" * 100

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/set.bin" else 404)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", body
        running.shutdown()


def source_of(address, body, **changes):
    facts = {"url": f"{address}/set.bin", "sha256": hashlib.sha256(body).hexdigest(), "num_bytes": len(body)} | changes
    return Source(kind="npz", path="set.npz", **facts)


def test_a_file_is_fetched_only_if_allowed_and_only_once(tmp_path, server):
    body = server[1]
    with pytest.raises(ConfigError, match=r"set\.npz: is not here, and fetching 0\.0 MB from .* is not allowed; .*--download"):
        fetch(source_of(*server), tmp_path, allowed=False)
    assert fetch(source_of(*server), tmp_path, allowed=True).read_bytes() == body
    assert fetch(source_of("http://127.0.0.1:1", body), tmp_path, allowed=False).read_bytes() == body


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_bytes": 999}, "has more than 999 bytes; expected 999"),
        ({"num_bytes": 1001}, "has 1,000 bytes; expected 1,001"),
        ({"sha256": "0" * 64}, "has the SHA-256 [0-9a-f]{64}; expected 0{64}"),
        ({"url": "http://127.0.0.1:1/set.bin"}, "cannot be fetched"),
    ],
)
def test_another_file_than_the_records_is_refused_and_not_kept(tmp_path, server, changes, message):
    with pytest.raises(DataError, match=message):
        fetch(source_of(*server, **changes), tmp_path, allowed=True)
    assert not list(tmp_path.iterdir())
