from __future__ import annotations

import pytest
from shard_making import members, picture, write_tar

from ostension.data.folders import CaptionFolder
from ostension.data.layout import Layout
from ostension.data.open import expand, open_pairs
from ostension.data.pairs import Joined, Subset
from ostension.data.tables import Table
from ostension.data.tar_shards import TarShards
from ostension.errors import ConfigError, DataError


@pytest.fixture
def shards(tmp_path):
    for number in range(12):
        write_tar(tmp_path / f"s-{number:02}.tar", members(1, number))
    return tmp_path


def texts(source):
    return [source.read(index).texts[0] for index in range(len(source))]


def test_braces_keep_their_order_and_their_width(shards):
    assert [path.name for path in expand(f"{shards}/s-{{08..11}}.tar")] == ["s-08.tar", "s-09.tar", "s-10.tar", "s-11.tar"]
    assert [path.name for path in expand(f"{shards}/s-{{11,03}}.tar")] == ["s-11.tar", "s-03.tar"]
    assert [path.name for path in expand(f"{shards}/s-{{0,1}}{{0..1}}.tar")] == ["s-00.tar", "s-01.tar", "s-10.tar", "s-11.tar"]


def test_patterns_and_folders_give_sorted_files(shards):
    assert texts(open_pairs(f"{shards}/s-0?.tar")) == [f"picture {number}" for number in range(10)]
    assert texts(open_pairs(shards)) == [f"picture {number}" for number in range(12)]
    assert isinstance(open_pairs(shards), TarShards)


def test_several_sources_are_one_after_the_other(shards):
    (shards / "table.csv").write_text("filepath,title\npic.png,from a table\n")
    (shards / "pic.png").write_bytes(picture(1))
    source = open_pairs(f"{shards}/s-03.tar::{shards}/table.csv::{shards}/s-{{01..02}}.tar")
    assert isinstance(source, Joined)
    assert texts(source) == ["picture 3", "from a table", "picture 1", "picture 2"]
    assert [source.key(index) for index in range(4)] == ["s-03/00003", "table.csv:2", "s-01/00001", "s-02/00002"]
    assert texts(open_pairs([shards / "s-03.tar", f"{shards}/s-04.tar"])) == ["picture 3", "picture 4"]
    assert len(source.image_digests()) == 4 and source.summary().num_pairs == 4
    with pytest.raises(IndexError):
        source.read(4)


def test_the_embedded_set_and_its_splits_open_by_name():
    assert len(open_pairs("emoji")) == 8143
    assert [len(open_pairs(f"emoji:{split}")) for split in ("train", "new-style-seen-names", "new-style-new-names")] == [
        5530,
        1391,
        245,
    ]
    assert len(open_pairs("emoji:train::emoji:new-style-new-names")) == 5775
    with pytest.raises(ConfigError, match="unknown split of the emoji set 'trian'.*'train'"):
        open_pairs("emoji:trian")


@pytest.mark.parametrize(
    ("pattern", "error", "message"),
    [
        ("nothing.tar", DataError, "nothing.tar: no such file or folder"),
        ("*.webp", DataError, "no such file"),
        ("s-{00..20}.tar", DataError, r"s-12\.tar: no such file or folder; 9 of 21 are missing"),
        ("s-{05..02}.tar", ConfigError, r"the range \{05\.\.02\}"),
        ("s-{1}.tar", ConfigError, r"the braces \{1\}"),
        ("s-{00..01.tar", ConfigError, "braces that do not match"),
        ("s-{0..99999999999}.tar", ConfigError, "at most a million"),
        ("s-00.tar::", ConfigError, "the source of pairs is"),
        ("s-00.tar::s-{00..01}.tar", ConfigError, r"s-00\.tar: listed twice"),
    ],
)
def test_sources_that_cannot_be_meant_are_refused(shards, monkeypatch, pattern, error, message):
    monkeypatch.chdir(shards)
    with pytest.raises(error, match=message):
        open_pairs(pattern)


def test_other_formats_are_refused_by_name(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(ConfigError, match=r"a source ending in '\.zip'; expected a folder, \.tar, \.csv, \.tsv or \.parquet"):
        open_pairs(tmp_path / "a.zip")
    with pytest.raises(ConfigError, match="the source of pairs is"):
        open_pairs([])


def test_a_subset_reads_its_ids_in_order_and_has_its_own_fingerprint(shards):
    source = open_pairs(shards)
    subset = Subset(source, [5, 2])
    assert texts(subset) == ["picture 5", "picture 2"] and subset.key(1) == "s-02/00002"
    assert subset.image_digests().tolist() == source.image_digests()[[5, 2]].tolist()
    assert len({subset.fingerprint(), source.fingerprint(), Subset(source, [2, 5]).fingerprint()}) == 3
    with pytest.raises(ConfigError, match="lie outside its source"):
        Subset(source, [12])


def test_a_table_gives_one_pair_a_row_and_keeps_its_other_columns(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(2):
        (tmp_path / "images" / f"{number}.png").write_bytes(picture(number))
    (tmp_path / "pairs.tsv").write_text('caption\timage\turl\na "quoted" one\timages/0.png\tu0\n\nzwei\timages/1.png\tu1\n')
    table = Table(tmp_path / "pairs.tsv")
    assert table.read(0).texts == ('a "quoted" one',) and table.read(0).image == picture(0)
    assert table.read(1).meta == {"url": "u1"} and table.key(1) == "pairs.tsv:4"
    (tmp_path / "pairs.csv").write_text('\ufefffilepath,title\nimages/0.png,"one, two\nlines"\n', encoding="utf-8")
    assert open_pairs(tmp_path / "pairs.csv").read(0).texts == ("one, two\nlines",)


def test_columns_of_a_table_can_be_named(tmp_path):
    (tmp_path / "0.png").write_bytes(picture(0))
    (tmp_path / "a.csv").write_text("title,alt,where\nx,the alt text,0.png\n")
    assert Table(tmp_path / "a.csv", layout=Layout(image="where", texts=("alt",))).read(0).texts == ("the alt text",)
    with pytest.raises(ConfigError, match="unknown text column 'al'.*'alt'"):
        Table(tmp_path / "a.csv", layout=Layout(image="where", texts=("al",)))
    with pytest.raises(ConfigError, match="no image column among 'title', 'alt', 'where'"):
        Table(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty table"),
        (b"filepath,title\n", "no row with an image and a text"),
        (b"filepath,title\na.png,x,y\n", "line 2 has 3 fields; expected 2"),
        (b"filepath,title\na.png,\xff\n", "not UTF-8 at byte"),
        (b'filepath,title\n"a.png,x\n', "not a table"),
    ],
)
def test_tables_that_cannot_be_read_are_refused_on_opening(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        Table(tmp_path / "a.csv")


def test_rows_without_image_or_text_are_counted_and_missing_images_are_errors_of_their_row(tmp_path):
    (tmp_path / "a.csv").write_text("filepath,title\n,x\na.png, \nmissing.png,y\n")
    table = Table(tmp_path / "a.csv")
    assert table.summary().rejects == {"no image": 1, "no text": 1}
    with pytest.raises(DataError, match=r"a\.csv line 4: image 'missing\.png' cannot be read"):
        table.read(0)


def test_a_folder_pairs_images_with_the_captions_beside_them(tmp_path):
    (tmp_path / "b").mkdir()
    for name, content in [
        ("b/one.JPG", picture(1)),
        ("b/one.txt", b"first\n\n second \n"),
        ("two.png", picture(2)),
        ("two.txt", b"two"),
        ("alone.png", picture(3)),
        ("alone2.txt", b"x"),
        (".hidden.png", b""),
    ]:
        (tmp_path / name).write_bytes(content)
    source = open_pairs(tmp_path)
    assert isinstance(source, CaptionFolder)
    assert [source.key(index) for index in range(2)] == ["b/one.JPG", "two.png"]
    assert source.read(0).texts == ("first", "second")
    assert source.summary().rejects == {"image without text": 1, "text without image": 1}
    before = source.fingerprint()
    (tmp_path / "two.txt").write_bytes(b"2")
    assert CaptionFolder(tmp_path).fingerprint() != before
    (tmp_path / "two.txt").write_bytes(b" ")
    with pytest.raises(DataError, match="two.txt: text is empty"):
        source.read(1)


def test_a_folder_without_pairs_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(picture(0))
    with pytest.raises(DataError, match="no image with a caption beside it .1 images, 0 texts"):
        open_pairs(tmp_path)
