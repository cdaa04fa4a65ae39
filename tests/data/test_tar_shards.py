from __future__ import annotations

import json
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from shard_making import members, picture, write_tar

from ostension.data.tar_index import INDEX_SUFFIX, build_index, load_index, save_index
from ostension.data.tar_shards import MAX_OPEN_SHARDS, TarShards
from ostension.errors import DataError, LimitError


def test_pairs_are_read_by_position_over_several_shards(tmp_path):
    shards = TarShards([write_tar(tmp_path / "a.tar", members(3)), write_tar(tmp_path / "b.tar", members(2, start=3))])
    assert len(shards) == 5
    for number in (4, 0, 3, 2, 1):
        pair = shards.read(number)
        assert (pair.texts, pair.image, pair.meta) == ((f"picture {number}",), picture(number), {"number": number})
    assert [shards.key(number) for number in (0, 3)] == ["a/00000", "b/00003"]
    assert shards.shard_of(4) == (tmp_path / "b.tar", "00004")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_are_read_in_every_tar_form(tmp_path, form):
    folder = "/".join(["x" * 40] * 5) if form != tarfile.USTAR_FORMAT else "x" * 120
    key = f"{folder}/größe"
    path = write_tar(tmp_path / "a.tar", [(f"{key}.png", picture(1)), (f"{key}.txt", b"one")], form)
    assert TarShards([path]).key(0) == f"a/{key}"


def test_shards_as_webdataset_writes_them_are_read(tmp_path):
    # Its writer streams: sizes are known, modes and owners are set, and "./" may lead.
    with tarfile.open(tmp_path / "a.tar", "w|") as archive:
        for name, data in [("./a/0.JPG", picture(0)), ("./a/0.txt", b"zero"), ("./a/0.cls", b"7"), ("./a", None)]:
            member = tarfile.TarInfo(name)
            member.mode, member.uname = 0o444, "bigdata"
            if data is None:
                member.type = tarfile.DIRTYPE
                archive.addfile(member)
            else:
                import io

                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    shards = TarShards([tmp_path / "a.tar"])
    assert shards.read(0).texts == ("zero",) and shards.key(0) == "a/a/0"
    assert shards.summary().rejects == {"member of another kind": 1}


def test_a_sample_without_metadata_has_none(tmp_path):
    assert TarShards([write_tar(tmp_path / "a.tar", members(1)[:2])]).read(0).meta == {}


def test_the_index_is_kept_beside_the_shard_and_used_again(tmp_path):
    path = write_tar(tmp_path / "a.tar", members(4))
    TarShards([path])
    index = tmp_path / f"a.tar{INDEX_SUFFIX}"
    before = index.stat().st_mtime_ns
    assert TarShards([path]).read(3).texts == ("picture 3",)
    assert index.stat().st_mtime_ns == before


def test_the_index_goes_to_the_cache_where_the_folder_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("OSTENSION_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    path = write_tar(tmp_path / "data" / "a.tar", members(2))
    import ostension.data.tar_index as tar_index

    real = tar_index.save_index

    def only_in_the_cache(index, place):
        if place.parent == path.parent:
            raise PermissionError("read-only")
        real(index, place)

    monkeypatch.setattr(tar_index, "save_index", only_in_the_cache)
    assert len(TarShards([path])) == 2
    assert [entry.name for entry in path.parent.iterdir()] == ["a.tar"]
    assert len(list((tmp_path / "cache" / "index").iterdir())) == 1
    monkeypatch.setattr(tar_index, "build_index", lambda path: pytest.fail("indexed twice"))
    assert len(TarShards([path])) == 2


def test_an_index_survives_writing_and_reading(tmp_path):
    index = build_index(write_tar(tmp_path / "a.tar", [*members(3), ("lonely.png", b"")]))
    save_index(index, tmp_path / "one.idx")
    save_index(index, tmp_path / "two.idx")
    assert (tmp_path / "one.idx").read_bytes() == (tmp_path / "two.idx").read_bytes()
    again = load_index(tmp_path / "one.idx")
    assert [again.key(row) for row in range(3)] == ["00000", "00001", "00002"]
    assert again.rejects == {"image without text": 1} and again.tar_sha256 == index.tar_sha256
    assert np.array_equal(again.image, index.image) and isinstance(again.image, np.memmap)


def test_a_source_travels_to_another_process_without_its_index(tmp_path):
    shards = TarShards([write_tar(tmp_path / "a.tar", members(200))])
    shards.read(0)
    message = pickle.dumps(shards)
    assert len(message) < 1500
    assert pickle.loads(message).read(150).texts == ("picture 150",)


def test_threads_share_one_source_with_more_shards_than_open_files(tmp_path):
    count = MAX_OPEN_SHARDS + 40
    paths = [write_tar(tmp_path / f"{shard:03}.tar", members(1, start=shard)) for shard in range(count)]
    shards = TarShards(paths)
    order = np.random.default_rng(0).integers(0, count, 1500)
    with ThreadPoolExecutor(8) as pool:
        assert [pair.meta["number"] for pair in pool.map(shards.read, order.tolist())] == order.tolist()
    assert len(os.listdir("/proc/self/fd")) < 2 * MAX_OPEN_SHARDS + 60


def test_the_fingerprint_tells_content_and_order_but_not_the_place(tmp_path):
    one, two = (write_tar(tmp_path / name, members(2, start)) for name, start in (("a.tar", 0), ("b.tar", 2)))
    (tmp_path / "copy").mkdir()
    copy = write_tar(tmp_path / "copy" / "other.tar", members(2))
    assert TarShards([one]).fingerprint() == TarShards([copy]).fingerprint()
    assert len({TarShards(shards).fingerprint() for shards in ([one], [two], [one, two], [two, one])}) == 4


@pytest.mark.parametrize(
    ("text", "reason"),
    [(b"\xff\xfe", "not UTF-8 at byte 0"), (b" \n\t", "is empty"), (b"", "is empty"), (b"x" * 2_000_001, "text of 2000001")],
)
def test_texts_that_cannot_be_used_are_refused_when_read(tmp_path, text, reason):
    shards = TarShards([write_tar(tmp_path / "a.tar", [("1.png", picture(1)), ("1.txt", text), *members(1)])])
    with pytest.raises((DataError, LimitError), match=reason) as caught:
        shards.read(0)
    assert "a.tar (1)" in str(caught.value)
    assert shards.read(1).texts == ("picture 0",)


@pytest.mark.parametrize("metadata", [b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_metadata_that_is_no_object_is_refused_when_read(tmp_path, metadata):
    shards = TarShards([write_tar(tmp_path / "a.tar", [*members(1)[:2], ("00000.json", metadata)])])
    with pytest.raises(DataError, match="metadata is not"):
        shards.read(0)


def test_an_image_past_the_limit_is_refused_before_it_is_read(tmp_path):
    shards = TarShards([write_tar(tmp_path / "a.tar", members(1))], max_image_bytes=20)
    with pytest.raises(LimitError, match="expected at most 20"):
        shards.read(0)


def test_the_metadata_of_the_index_is_readable_by_others(tmp_path):
    from safetensors import safe_open

    TarShards([write_tar(tmp_path / "a.tar", members(1))])
    with safe_open(tmp_path / "a.tar.idx", framework="np") as handle:
        assert json.loads(handle.metadata()["ostension_arrays"])["kind"] == "tar 2"
