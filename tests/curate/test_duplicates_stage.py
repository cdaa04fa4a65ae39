"""The stage `dedup`: what goes and why, what stays, blank and broken pictures, evaluation sets, decisions, the page."""

from __future__ import annotations

import io
import re
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.append(str(Path(__file__).parent))
from curating import lines_of, parts_of

from ostension.curate import duplicates_pictures, duplicates_search
from ostension.curate.candidates import describe
from ostension.curate.captions_rules import Captions
from ostension.curate.duplicates_page import review_page
from ostension.curate.duplicates_review import decide, decision_of
from ostension.curate.run import begin, run_stage
from ostension.curate.stages import filter as filter_stage
from ostension.curate.stages.dedup import Config
from ostension.curate.work import read_part
from ostension.errors import ConfigError, DataError
from ostension.formats.duplicate_detector import save_detector
from ostension.image.transforms import PreprocessConfig
from ostension.model.duplicate_detector import DetectorConfig, DuplicateDetector
from ostension.runtime import numpy_generator


def drawing(number, side=64):
    pixels = numpy_generator("drawing", number).integers(0, 255, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)


def encoded(picture, kind="PNG", **options):
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def shard(path, samples):
    """A tar of samples (name, encoded picture, caption)."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, image, caption in samples:
            for ending, data in (("png", image), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def samples():
    """Ten drawings, and of the first one: its bytes, its pixels in another format, two copies; two blank, one broken."""
    first = drawing(0)
    return [
        *((f"{number}", encoded(drawing(number)), f"drawing {number}") for number in range(10)),
        ("bytes", encoded(first), "the same"),
        ("pixels", encoded(first, "BMP"), "the same"),
        ("jpeg", encoded(first, "JPEG", quality=60), "nearly the same"),
        ("large", encoded(first.resize((90, 90), Image.Resampling.BICUBIC)), "larger"),
        ("black", encoded(Image.new("RGB", (40, 40))), "black"),
        ("white", encoded(Image.new("RGB", (41, 40), (250, 250, 250))), "white"),
        ("grey", encoded(Image.new("RGB", (42, 40), (120, 120, 120))), "grey"),
        ("broken", encoded(drawing(50))[:-200], "broken"),
    ]


def dedup(tmp_path, source, name="work", part_size=5, workers=0, **settings):
    work = begin(tmp_path / name, describe([str(source)], part_size=part_size))
    return work, run_stage(work, "dedup", Config(**settings), workers=workers)


def outcome(work, entry):
    """{sample: its row of the stage}, with ids as names."""
    names, rows = {}, {}
    for number in range(work.num_parts):
        keys = read_part(work.entries[0].part(number), ["key"])["key"].to_pylist()
        for row in read_part(entry.part(number)).to_pylist():
            name = keys[row["row"]].rpartition("/")[2]
            names[number * work.facts.part_size + row["row"]], rows[name] = name, row
    for row in rows.values():
        row["kept"] = names.get(row["kept"])
    return rows


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return shard(tmp_path_factory.mktemp("duplicates") / "a.tar", samples())


def test_copies_go_with_the_surest_reason_and_the_largest_picture_stays(tmp_path, source):
    rows = outcome(*dedup(tmp_path, source))
    dropped = {name: row["dropped"] for name, row in rows.items() if row["dropped"]}
    assert dropped == dict.fromkeys(("0", "bytes", "pixels", "jpeg"), "near picture (hash)")
    assert {name for name, row in rows.items() if row["kept"] == "large"} == {"0", "bytes", "pixels", "jpeg", "large"}
    assert rows["large"]["size"] == 5 and rows["large"]["bits"] is None and rows["large"]["group"] == rows["0"]["group"] == 0
    assert all(0 <= rows[name]["bits"] <= 4 for name in dropped)


def test_where_the_first_stays_reasons_tell_bytes_from_pixels_from_near(tmp_path, source):
    work, entry = dedup(tmp_path, source, keep="first")
    dropped = {name: row["dropped"] for name, row in outcome(work, entry).items() if row["dropped"]}
    near = "near picture (hash)"
    assert dropped == {"bytes": "same bytes", "pixels": "same pixels", "jpeg": near, "large": near}
    assert entry.counts()["reasons"] == {near: 2, "same bytes": 1, "same pixels": 1}
    rules = entry.counts()["facts"]["rules"]
    assert {name: rule["dropped"] for name, rule in rules.items()} == {"bytes": 1, "pixels": 2, "hash": 4}


@pytest.mark.parametrize(("rules", "gone"), [(("bytes",), {"bytes"}), (("bytes", "pixels"), {"bytes", "pixels"})])
def test_rules_are_taken_in_any_combination(tmp_path, source, rules, gone):
    rows = outcome(*dedup(tmp_path, source, rules=rules))
    assert {name for name, row in rows.items() if row["dropped"]} == gone


def test_blank_pictures_are_not_one_picture_unless_that_is_asked_for(tmp_path, source, caplog):
    _, entry = dedup(tmp_path, source)
    assert entry.counts()["facts"]["blank"] == 3
    assert "3 pictures are nearly black or of one colour: not compared by hash or detector" in caplog.text
    rows = outcome(*dedup(tmp_path, source, "joined", join_blank=True))
    assert {name for name in ("black", "white", "grey") if rows[name]["dropped"]} == {"black", "white"}


def test_flags_of_one_shape_are_not_one_picture_by_a_hash_that_sees_too_little(tmp_path):
    flags = []
    for number, colours in enumerate([("red", "blue"), ("green", "black"), ("purple", "orange")]):
        flag = Image.new("RGB", (60, 60), colours[0])
        flag.paste(Image.new("RGB", (60, 30), colours[1]), (0, 30))
        flags.append((f"{number}", encoded(flag), f"flag {number}"))
    path = shard(tmp_path / "flags.tar", flags)
    _, entry = dedup(tmp_path, path)
    assert entry.counts()["kept"] == 3 and entry.counts()["facts"]["plain"] == 3
    assert dedup(tmp_path, path, "joined", join_blank=True)[1].counts()["kept"] < 3


@pytest.mark.parametrize("corrupt", ["keep", "drop"])
def test_a_picture_that_cannot_be_read_is_counted_and_kept_or_dropped_as_said(tmp_path, source, corrupt, caplog):
    work, entry = dedup(tmp_path, source, corrupt=corrupt)
    row = outcome(work, entry)["broken"]
    assert row["unreadable"] and row["dropped"] == (None if corrupt == "keep" else "picture cannot be read")
    assert sum(entry.counts()["facts"]["unreadable"].values()) == 1
    assert "1 pictures cannot be read" in caplog.text


def test_broken_files_with_the_same_bytes_are_the_same(tmp_path):
    broken = encoded(drawing(1))[:-100]
    path = shard(tmp_path / "b.tar", [("a", broken, "one"), ("b", broken, "two"), ("c", b"no picture", "three")])
    rows = outcome(*dedup(tmp_path, path))
    assert [rows[name]["dropped"] for name in "abc"] == [None, "same bytes", None]


def test_captions_alone_are_compared_by_caption_and_by_nothing_that_needs_pictures(tmp_path):
    path = lines_of(tmp_path / "a.txt", ["A cat.", "a dog", "a  CAT", "...", "!!!", "a cat on a mat"])
    work, entry = dedup(tmp_path, path, rules=("caption",))
    assert entry.counts()["reasons"] == {"same caption": 1}
    work = begin(tmp_path / "other", describe([str(path)]))
    with pytest.raises(ConfigError, match="the rules bytes, pixels, hash need pictures, and there are captions alone"):
        run_stage(work, "dedup", Config())


def test_addresses_are_the_same_whatever_scheme_and_fragment(tmp_path):
    path = tmp_path / "a.csv"
    urls = ["https://Host/a.jpg", "http://host/a.jpg#x", "https://host/A.jpg", "", ""]
    path.write_text("url,caption\n" + "".join(f"{url},caption {number}\n" for number, url in enumerate(urls)))
    _, entry = dedup(tmp_path, path, rules=("url",))
    table = read_part(entry.part(0))
    assert table["dropped"].to_pylist() == [None, "same address", None, None, None]


def test_with_same_caption_a_copy_under_other_words_stays(tmp_path):
    first = drawing(0)
    path = shard(tmp_path / "c.tar", [
        ("a", encoded(first), "a cat"), ("b", encoded(first, "JPEG", quality=70), "A cat!"), ("c", encoded(first), "a dog"),
        ("d", encoded(drawing(1)), "a cat"),
    ])  # fmt: skip
    rows = outcome(*dedup(tmp_path, path, same_caption=True, keep="first"))
    assert {name for name, row in rows.items() if row["dropped"]} == {"b"}


def test_captions_of_copies_are_merged_up_to_the_limit_across_parts(tmp_path, source):
    work, _ = dedup(tmp_path, source, keep="first", merge_captions=4, part_size=3)
    texts = {key.rpartition("/")[2]: found for part in work.parts() for key, found in zip(part.keys, part.texts, strict=True)}
    assert texts["0"] == ("drawing 0", "the same", "nearly the same", "larger")
    assert texts["1"] == ("drawing 1",)
    work, _ = dedup(tmp_path, source, "less", keep="first", merge_captions=2)
    assert work.part(0).texts[0] == ("drawing 0", "the same")


@pytest.fixture
def test_set(tmp_path):
    folder = tmp_path / "test-set"
    folder.mkdir()
    drawing(0).resize((50, 50)).save(folder / "first.jpg", quality=80)
    drawing(3).save(folder / "third.png")
    drawing(99).save(folder / "stranger.png")
    Image.new("RGB", (30, 30)).save(folder / "black.png")
    return folder


@pytest.mark.parametrize("same_caption", [False, True])
def test_what_is_in_an_evaluation_set_goes_with_its_whole_group_and_is_named(tmp_path, source, test_set, same_caption):
    work, entry = dedup(tmp_path, source, against=(str(test_set),), same_caption=same_caption)
    rows = outcome(work, entry)
    copies = {"0", "bytes", "pixels", "jpeg", "large"}
    assert {name for name, row in rows.items() if row["dropped"] == "in evaluation set"} == {*copies, "3"}
    assert rows["3"]["evaluation"] == f"{test_set}: third.png"
    assert {rows[name]["evaluation"] for name in copies} == {f"{test_set}: first.jpg"}
    assert rows["black"]["dropped"] is None


def test_the_nearest_evaluation_pictures_by_hash_are_those_of_comparing_each_with_each(tmp_path, monkeypatch):
    draw = numpy_generator("nearest evaluation")
    base = draw.integers(2**63, size=60).astype(np.uint64)
    flips = np.uint64(1) << draw.integers(64, size=(60, 5)).astype(np.uint64)
    near = np.concatenate([np.bitwise_xor.reduce(flips[:, :count], axis=1) ^ base for count in range(6)])
    own, other = draw.permutation(near)[:200], draw.permutation(near)[:90]
    table = {"hash": own, "seen": np.full(200, 4, np.uint8), "id": np.arange(200)}
    facts = duplicates_pictures.PictureFacts(
        seen=np.full(90, 4, np.uint8), bad=[None] * 90, digest=other, pixels=other, hash=other, area=np.ones(90, np.int64),
        rows=None,
    )  # fmt: skip
    reach = duplicates_search.Reach(("hash",), 4, 1.0, False, False)
    alike, bits = np.full(200, -1), np.full(200, 255)
    evaluation = duplicates_search.Evaluation([str(row) for row in range(90)], facts, np.zeros(90, np.uint64))
    duplicates_search._alike_in_evaluation(table, evaluation, reach, alike, bits)
    differing = np.bitwise_count(own[:, None] ^ other[None]).astype(int)
    least = differing.min(axis=1)
    assert np.array_equal(bits, np.where(least <= 4, least, 255))
    assert np.array_equal(differing[np.arange(200), alike][alike >= 0], least[alike >= 0])


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detectors") / "detector"
    config = DetectorConfig(
        embed_dim=16, layers=(1,), width=4, pool="flatten", preprocess=PreprocessConfig(image_size=16, resize="squash")
    )
    save_detector(DuplicateDetector(config, seed=0), folder)
    return str(folder)


def test_a_detectors_rows_join_what_they_are_alike_by(tmp_path, source, detector):
    work, entry = dedup(tmp_path, source, rules=("bytes",), detector=detector, threshold=0.999, keep="first")
    rows = outcome(work, entry)
    assert {rows[name]["dropped"] for name in ("pixels", "large")} == {"near picture (detector)"}
    assert rows["bytes"]["dropped"] == "same bytes" and rows["bytes"]["cosine"] == pytest.approx(1, abs=1e-3)
    strangers = [name for name in map(str, range(1, 10)) if rows[name]["dropped"]]
    assert not strangers and rows["pixels"]["bits"] is None


@pytest.mark.slow
def test_the_same_files_come_of_one_process_and_of_several(tmp_path, source, detector, test_set):
    settings = {"detector": detector, "threshold": 0.99, "against": (str(test_set),), "merge_captions": 3}
    _, alone = dedup(tmp_path, source, **settings)
    _, shared = dedup(tmp_path, source, "shared", workers=2, **settings)
    assert parts_of(alone) == parts_of(shared) and len(parts_of(alone)) == 8


def test_parts_of_which_nothing_lives_are_nothing_to_a_second_pass(tmp_path, source, detector):
    work, first = dedup(tmp_path, source, part_size=1)
    second = run_stage(work, "dedup", Config(detector=detector, threshold=0.9999, keep="first"))
    assert second.counts()["rows"] == first.counts()["kept"] == 14 and second.counts()["reasons"] == {}


def test_the_parts_that_rows_are_cut_into_do_not_change_what_goes(tmp_path, source):
    whole, cut = (outcome(*dedup(tmp_path, source, f"work{size}", part_size=size)) for size in (1000, 3))
    assert {name: (row["dropped"], row["kept"]) for name, row in whole.items()} == {
        name: (row["dropped"], row["kept"]) for name, row in cut.items()
    }


def test_a_decision_needs_no_pictures_and_gives_what_a_run_with_its_settings_gives(tmp_path, source, monkeypatch):
    fresh = dedup(tmp_path, source, "fresh", bits=0, look_bits=8)[1]
    work, _ = dedup(tmp_path, source, bits=4)
    monkeypatch.setattr(duplicates_pictures, "look", None)
    monkeypatch.setattr(duplicates_search, "find_pairs", None)
    made = decide(work, bits=0, by="ada")
    assert parts_of(made) == parts_of(fresh)
    assert made.settings["bits"] == 0 and decision_of(made).by == "ada"
    again = decide(work, bits=4, exclude=["a/jpeg"])
    rows = outcome(work, again)
    assert rows["jpeg"]["dropped"] is None and rows["jpeg"]["kept"] == "large" and rows["0"]["dropped"]
    assert decision_of(again).excluded == {"a/jpeg": "seen to be another picture"}


def test_the_report_has_the_rules_and_the_sizes_of_groups(tmp_path, source):
    _, entry = dedup(tmp_path, source)
    rules, sizes = entry.stage().figures(entry.counts()["facts"], entry.folder)
    assert "5 samples are in 1 groups" in rules.says and "3 pictures are nearly black" in rules.says
    assert "near picture (hash)" in rules.more and "5 to 9" in sizes.more


def test_a_decision_past_the_search_about_a_stranger_or_below_later_stages_is_refused(tmp_path, source):
    work, _ = dedup(tmp_path, source)
    with pytest.raises(ConfigError, match=r"9 bits; expected at most 8; search again with --look-bits"):
        decide(work, bits=9)
    with pytest.raises(ConfigError, match="there was no detector"):
        decide(work, threshold=0.9)
    with pytest.raises(ConfigError, match="'a/7' is in no pair of duplicates"):
        decide(work, bits=3, exclude=["a/7"])
    run_stage(work, "dedup", Config(rules=("caption",)))
    with pytest.raises(DataError, match="equal samples need no review"):
        review_page(work)
    run_stage(work, "filter", filter_stage.Config(captions=Captions(min_words=1)))
    with pytest.raises(DataError, match="later stages rest on these duplicates"):
        decide(work, bits=3)


def test_the_page_shows_pairs_on_both_sides_of_the_threshold_and_loads_nothing(tmp_path, source, test_set, detector):
    work, _ = dedup(tmp_path, source, bits=0, look_bits=16, against=(str(test_set),), detector=detector, threshold=0.9999)
    page, _ = review_page(work)
    assert "0 of 64 bits differ: joined" in page and re.search("[1-9] of 64 bits differ: not joined", page)
    assert "Near by the detector" in page and "Near pictures of evaluation sets" in page and "nearly the same" in page
    assert not re.search(r"<script|https?://|src=\"(?!data:)|url\((?!data:)", page)
    assert "dedup-decide" in page and page.count("data:image/webp") >= 8


@pytest.mark.parametrize(("settings", "what"), [
    ({"rules": ()}, "rules is"), ({"bits": 17}, "bits is 17"), ({"look_bits": 3}, "look_bits is 3"),
    ({"rules": ("bytes",), "look_bits": 8}, "look_bits is 8"), ({"detector": "d"}, "threshold is missing"),
    ({"threshold": 0.9}, "detector is missing"), ({"keep": "score"}, "keep is 'score'"), ({"data": "d"}, "data says where"),
    ({"keep": "first", "score": "a.b"}, "score has no effect"), ({"max_group": 1}, "max_group is 1"),
    ({"rules": ("caption",), "same_caption": True}, "same_caption has no effect"),
    ({"rules": ("caption",), "against": ("x",)}, "not found by captions"), ({"look_threshold": 0.9}, "look_threshold is 0.9"),
])  # fmt: skip
def test_settings_that_cannot_be_meant_are_refused(settings, what):
    with pytest.raises(ConfigError, match=what):
        Config(**settings)


def test_an_evaluation_set_that_is_none_is_refused_before_anything_is_read(tmp_path, source):
    work = begin(tmp_path / "work", describe([str(source)]))
    with pytest.raises((ConfigError, DataError), match="no-such-set"):
        run_stage(work, "dedup", Config(against=("no-such-set",)))
