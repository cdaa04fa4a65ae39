"""Parquet files in the forms that are met, and those that are no pairs."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from shard_making import picture

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from ostension.data import parquet_groups  # noqa: E402
from ostension.data.layout import Layout  # noqa: E402
from ostension.data.open import open_pairs  # noqa: E402
from ostension.data.pairs import image_digest  # noqa: E402
from ostension.errors import ConfigError, DataError, MissingExtraError  # noqa: E402


def write(path, columns, **options):
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=options.pop("row_group_size", 3), **options)
    return path


def plain(path, count=10, start=0):
    pictures = [picture(number) for number in range(start, start + count)]
    return write(
        path, {"image": pictures, "caption": [f"picture {start + number}" for number in range(count)], "n": [7] * count}
    )


def texts(source):
    return [source.read(index).texts for index in range(len(source))]


def test_any_row_can_be_read_in_any_order(tmp_path):
    source = open_pairs(plain(tmp_path / "a.parquet"))
    for index in np.random.default_rng(0).permutation(10).tolist():
        pair = source.read(index)
        assert (pair.key, pair.image, pair.texts) == (f"a.parquet:{index}", picture(index), (f"picture {index}",))
        assert pair.meta == {"n": 7}
    assert source.summary().num_pairs == len(source) == 10 and source.text_counts() is None
    assert source.image_digests().tolist() == [image_digest(picture(number)) for number in range(10)]


def test_the_hubs_images_are_bytes_or_paths_beside_the_file(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(picture(1))
    images = [{"bytes": picture(0), "path": "x.png"}, {"bytes": None, "path": "images/1.png"}]
    source = open_pairs(write(tmp_path / "a.parquet", {"image": images, "text": ["zero", "one"]}))
    assert [source.read(index).image for index in range(2)] == [picture(0), picture(1)]


def test_an_image_column_of_paths_is_read_from_beside_the_file(tmp_path):
    (tmp_path / "0.png").write_bytes(picture(0))
    source = open_pairs(write(tmp_path / "a.parquet", {"image_path": ["0.png", "1.png"], "title": ["zero", "one"]}))
    assert source.read(0).image == picture(0)
    with pytest.raises(DataError, match=r"a\.parquet row 1: image '1\.png' cannot be read"):
        source.read(1)


def test_captions_are_lists_or_several_columns(tmp_path):
    columns = {"image": [picture(0), picture(1)], "captions": [["a", " ", "b"], ["c"]], "alt": ["d", None]}
    path = write(tmp_path / "a.parquet", columns)
    source = open_pairs(path)
    assert texts(source) == [("a", "b"), ("c",)] and source.text_counts().tolist() == [2, 1]
    source = open_pairs(path, layout=Layout(texts=("alt", "captions"), shares=(3, 1)))
    assert texts(source) == [("d", "a", "b"), ("c",)]
    assert source.read(0).weights == (3, 0.5, 0.5) and source.text_counts().tolist() == [3, 1]
    assert source.fingerprint() != open_pairs(path).fingerprint()


def test_rows_without_an_image_or_a_text_are_left_out_and_counted(tmp_path):
    columns = {
        "image": [{"bytes": picture(0), "path": None}, {"bytes": None, "path": None}, None, {"bytes": picture(3), "path": "x"}],
        "text": ["zero", "one", "two", " "],
    }
    source = open_pairs(write(tmp_path / "a.parquet", columns))
    assert texts(source) == [("zero",)] and source.summary().rejects == {"no image": 2, "no text": 1}
    with pytest.raises(DataError, match="no row with an image and a text"):
        open_pairs(write(tmp_path / "b.parquet", {"image": [picture(0)], "text": [""]}))


def test_a_folder_of_parquet_files_is_one_source(tmp_path):
    plain(tmp_path / "data" / "train-1.parquet", 3, start=4)
    plain(tmp_path / "data" / "train-0.parquet", 4)
    assert texts(open_pairs(tmp_path / "data")) == [(f"picture {number}",) for number in range(7)]
    assert len(open_pairs(f"{tmp_path}/data/train-*.parquet")) == 7


def test_an_unknown_layout_is_one_line_that_lists_the_columns(tmp_path):
    path = write(tmp_path / "a.parquet", {"pic": [picture(0)], "words": ["x"], "n": [1]})
    with pytest.raises(
        ConfigError, match=r"no image column among 'pic' \(binary\), 'words' \(string\), 'n' \(int64\)"
    ) as caught:
        open_pairs(path)
    assert "batches.layout.image" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="no text column among"):
        open_pairs(path, layout=Layout(image="pic"))
    with pytest.raises(ConfigError, match=r"the column 'n' holds no texts \(int64\)"):
        open_pairs(path, layout=Layout(image="pic", texts=("n",)))
    with pytest.raises(ConfigError, match="unknown text column 'wrds'.*'words'"):
        open_pairs(path, layout=Layout(image="pic", texts=("wrds",)))
    assert texts(open_pairs(path, layout=Layout(image="pic", texts=("words",)))) == [("x",)]


def test_the_list_that_img2dataset_writes_is_told_from_pairs(tmp_path):
    columns = {name: ["x"] for name in ("url", "caption", "key", "status", "error_message", "sha256")}
    with pytest.raises(ConfigError, match="img2dataset's list .* holds no images; the pairs are in the tar of the same name"):
        open_pairs(write(tmp_path / "00000.parquet", columns))


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_what_is_not_parquet_is_refused_on_opening(tmp_path, damage):
    path = plain(tmp_path / "a.parquet")
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "text": b"PAR1 no", "empty": b""}[damage])
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read as Parquet"):
        open_pairs(path)


def test_a_broken_row_group_is_an_error_of_its_rows_only(tmp_path):
    path = write(tmp_path / "a.parquet", {"image": [picture(n) for n in range(6)], "text": list("abcdef")}, compression="zstd")
    offset = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    source = open_pairs(path)
    content = bytearray(path.read_bytes())
    content[offset : offset + 40] = bytes(40)
    path.write_bytes(content)
    source = pickle.loads(pickle.dumps(source))
    assert source.read(0).texts == ("a",)
    with pytest.raises(DataError, match=r"a\.parquet: row group 1 cannot be read"):
        source.read(4)


def test_another_process_reads_the_same_and_refuses_another_file(tmp_path):
    path = plain(tmp_path / "a.parquet", 1000)
    message = pickle.dumps(open_pairs(path))
    assert len(message) < 5000
    assert pickle.loads(message).read(999).texts == ("picture 999",)
    plain(path, 900)
    with pytest.raises(DataError, match="changed while in use"):
        pickle.loads(message).read(0)


def test_the_fingerprint_tells_content_but_not_the_place(tmp_path):
    starts = {"a": 0, "b": 0, "c": 1}
    one, same, other = (open_pairs(plain(tmp_path / name / "a.parquet", 4, starts[name])).fingerprint() for name in starts)
    assert one == same != other


def test_row_groups_last_used_are_kept_within_their_limit(tmp_path, monkeypatch):
    source = open_pairs(plain(tmp_path / "a.parquet", 30))
    for index in range(30):
        source.read(index)
    assert len(source._groups._kept) == 10
    monkeypatch.setattr(parquet_groups, "CACHE_BYTES", 1)
    source.read(0)
    assert list(source._groups._kept) == [0]


def test_large_row_groups_are_unpacked_once_and_give_the_same(tmp_path, monkeypatch, cache_folder, caplog):
    images = [{"bytes": picture(number) if number % 7 else None, "path": None} for number in range(300)]
    columns = {"image": images, "captions": [[f"a {number}", f"b {number}"] for number in range(300)], "n": list(range(300))}
    path = write(tmp_path / "a.parquet", columns, row_group_size=200)
    plainly = open_pairs(path)
    before = [plainly.read(index) for index in range(len(plainly))]
    monkeypatch.setattr(parquet_groups, "UNPACK_BYTES", 1000)
    source = open_pairs(path)
    assert "a copy for random access is kept in" in caplog.text
    assert len(source) == 257 and source.summary() == plainly.summary() and source.fingerprint() == plainly.fingerprint()
    again = pickle.loads(pickle.dumps(source))
    for index in np.random.default_rng(0).permutation(len(source)).tolist():
        assert again.read(index) == before[index]
    (copy,) = cache_folder.rglob("rows.arrow")
    made = copy.stat().st_mtime_ns
    assert open_pairs(path).read(5) == before[5] and copy.stat().st_mtime_ns == made
    plain(path, 900)
    with pytest.raises(DataError, match="changed while in use"):
        pickle.loads(pickle.dumps(source)).read(0)


def test_a_broken_file_with_large_row_groups_is_refused_on_opening(tmp_path, monkeypatch, cache_folder):
    monkeypatch.setattr(parquet_groups, "UNPACK_BYTES", 10)
    path = write(tmp_path / "a.parquet", {"image": [picture(n) for n in range(6)], "text": list("abcdef")}, compression="zstd")
    offset = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 40] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read: "):
        open_pairs(path)
    assert not list(cache_folder.rglob("*.arrow*"))


def test_without_pyarrow_the_line_says_what_to_install(tmp_path, monkeypatch):
    path = plain(tmp_path / "a.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ostension\[data\]'"):
        open_pairs(path)
