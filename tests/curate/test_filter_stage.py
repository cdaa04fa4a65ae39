"""The filter as a stage: planted faults with exact counts, presets, several captions, one process and several."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

sys.path.append(str(Path(__file__).parent))
from curating import lines_of, parts_of, picture
from test_filter_pictures import MOVING, encoded, plain

from ostension.cli.main import main
from ostension.config import from_tree, to_tree
from ostension.curate.candidates import describe
from ostension.curate.filter_presets import PRESETS, read_preset
from ostension.curate.images_rules import Pictures
from ostension.curate.run import begin, run_stage
from ostension.curate.stages.filter import Captions, Config, Filter, Unsafe, reason_of
from ostension.curate.work import read_part
from ostension.data.layout import Layout
from ostension.errors import ConfigError, DataError

GOOD = "a black and white dog runs through the tall grass number"
FAULTS = {
    "too few words": ("red bus", None),
    "other language": ("ein schwarzer Hund läuft durch das hohe Gras am Fluss", None),
    "file name": ("IMG_20160716_113957.jpg", None),
    "camera settings": ("OLYMPUS DIGITAL CAMERA", None),
    "address": ("http://www.example.com/a/b.html", None),
    "boilerplate": ("click here to enlarge this image", None),
    "repeated characters": ("a gooooooooooooooood dog runs over the grass", None),
    "too small": (None, encoded("PNG", (100, 300))),
    "too narrow": (None, encoded("PNG", (200, 700))),
    "picture cut short": (None, encoded("JPEG", (220, 220))[:-500]),
    "not a picture": (None, b"<html>404</html>"),
    "animated": (None, encoded("GIF", (200, 200), frames=2)),
    "plain picture": (None, plain(size=(200, 200))),
}
RULES = Config(
    captions=Captions(
        min_words=3, titles=("file-name", "camera-settings", "address", "boilerplate"), languages=("en",), max_character_run=9
    ),
    pictures=Pictures(min_side=200, max_aspect=3.0, animated="drop", plain=2, check="decode"),
)
# The rule of titles looks first at what is long enough.
RULES_OF_TITLES = Config(captions=Captions(titles=("file-name", "camera-settings", "address", "boilerplate")))


def tar_of(path, pairs):
    """A shard of (captions, encoded picture); several captions are lines of a JSON member's list."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for number, (caption, data) in enumerate(pairs):
            ending = "gif" if data[:3] == b"GIF" else "jpg" if data[:3] == b"\xff\xd8\xff" else "png"
            for suffix, member in ((ending, data), ("txt", caption.encode())):
                info = tarfile.TarInfo(f"{number:06d}.{suffix}")
                info.size = len(member)
                tar.addfile(info, io.BytesIO(member))
    return path


@pytest.fixture(scope="module")
def good():
    return encoded("JPEG", (260, 210))


def planted(good, times):
    """Pairs with each fault planted `times` + its place times, between good ones; and the counts."""
    pairs, counts = [(f"{GOOD} {place}", good) for place in range(10)], {}
    for place, (reason, (caption, data)) in enumerate(FAULTS.items()):
        counts[reason] = times + place % 3
        pairs += [(caption or f"{GOOD} {copy}", data or good) for copy in range(counts[reason])]
        pairs.append((f"{GOOD} between {place}", good))
    return pairs, counts


def filtered(tmp_path, source, config, name="work", part_size=16, layout=None, **options):
    work = begin(tmp_path / name, describe([str(source)], part_size=part_size, layout=layout or Layout()), **options)
    return work, run_stage(work, "filter", config, **options)


def table(entry, *names):
    return [row for path in sorted(entry.folder.glob("part-*.parquet")) for row in read_part(path, list(names)).to_pylist()]


def test_planted_faults_are_counted_by_reason_exactly(tmp_path, good):
    pairs, counts = planted(good, 2)
    # Titles are often of fewer than three words: their rule is tried on its own first.
    work, entry = filtered(tmp_path, tar_of(tmp_path / "a.tar", pairs), RULES_OF_TITLES)
    titles = ("file name", "camera settings", "address", "boilerplate")
    assert entry.counts()["reasons"] == {reason: counts[reason] for reason in sorted(titles)}
    entry = run_stage(work, "filter", RULES)
    left = {reason: count for reason, count in sorted(counts.items()) if reason not in titles}
    assert entry.counts()["reasons"] == left
    assert entry.counts()["kept"] == 10 + len(FAULTS)
    assert all(text.startswith(GOOD) for part in work.parts() for (text,) in part.texts)


def test_the_lineage_says_what_was_measured(tmp_path, good):
    pairs = [(f"{GOOD} 1", good), ("red bus", good), (f"{GOOD} 2", MOVING["GIF"])]
    _, entry = filtered(tmp_path, tar_of(tmp_path / "a.tar", pairs), RULES)
    first, second, third = table(entry, "dropped", "language", "language_p", "format", "width", "height", "frames", "bytes")
    assert first["language"] == ["en"] and first["language_p"][0] > 0.5
    assert (first["format"], first["width"], first["height"]) == ("JPEG", 260, 210)
    assert (first["frames"], first["bytes"]) == (1, len(good))
    assert second == {**dict.fromkeys(second), "dropped": "too few words", "language": [None], "language_p": [None]}
    assert third["dropped"] == "animated" and third["frames"] == 3


@pytest.mark.slow
def test_one_process_and_several_give_the_same_bytes(tmp_path, good):
    pairs, _ = planted(good, 1)
    config = Config(captions=dataclasses.replace(RULES.captions, max_pairs=1), pictures=RULES.pictures)
    source = tar_of(tmp_path / "a.tar", pairs)
    _, one = filtered(tmp_path, source, config, "one", part_size=7)
    _, several = filtered(tmp_path, source, config, "several", part_size=7, workers=2)
    assert parts_of(one) == parts_of(several)
    assert one.counts()["facts"] == several.counts()["facts"]


def test_captions_of_a_pair_are_judged_alone_and_the_last_one_takes_the_pair(tmp_path):
    rows = [
        ["a dog runs over the grass", "IMG_1234.jpg", "x"],
        ["IMG_1234.jpg", "DSC00012"],
        ["IMG_1234.jpg", "x"],
        ["two cats sleep on a sofa"],
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"caption": texts}) + "\n" for texts in rows))
    rules = Config(captions=Captions(titles=("file-name",), min_characters=2))
    work, entry = filtered(tmp_path, path, rules)
    assert table(entry, "dropped", "texts", "text_reasons") == [
        {"dropped": None, "texts": ["a dog runs over the grass"], "text_reasons": [None, "file name", "too few characters"]},
        {"dropped": "file name", "texts": [], "text_reasons": ["file name", "file name"]},
        {"dropped": "no caption left", "texts": [], "text_reasons": ["file name", "too few characters"]},
        {"dropped": None, "texts": ["two cats sleep on a sofa"], "text_reasons": [None]},
    ]
    counts = entry.counts()
    assert counts["texts"] == 8 and counts["text_reasons"] == {"file name": 4, "too few characters": 2}
    assert [part.texts for part in work.parts()] == [[("a dog runs over the grass",), ("two cats sleep on a sofa",)]]


def test_captions_that_too_many_pairs_have_go_wherever_they_lie(tmp_path):
    captions = ["Shop now"] * 3 + [f"a dog {place}" for place in range(20)] + [" shop  NOW "] * 2 + ["twice"] * 2
    source = lines_of(tmp_path / "a.txt", captions)
    work, entry = filtered(tmp_path, source, Config(captions=Captions(max_pairs=4)), part_size=5)
    assert entry.counts()["reasons"] == {"shared caption": 5} and entry.counts()["kept"] == 22
    assert entry.counts()["facts"]["shared_captions"] == 1
    assert not list(entry.folder.glob("*.tmp"))
    again = run_stage(work, "filter", Config(captions=Captions(max_pairs=2)))
    assert again.counts()["reasons"] == {}, "those that went are not counted again"


def test_a_shared_caption_goes_alone_where_its_pair_has_another(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [["shop now", "shop now", "a dog"], ["shop now"], ["x", "shop now"], ["shop now", "x", "a cat"]]
    path.write_text("".join(json.dumps({"caption": texts}) + "\n" for texts in rows))
    _, entry = filtered(tmp_path, path, Config(captions=Captions(max_pairs=3, min_characters=2)), part_size=3)
    assert table(entry, "dropped", "texts", "text_reasons") == [
        {"dropped": None, "texts": ["a dog"], "text_reasons": ["shared caption", "shared caption", None]},
        {"dropped": "shared caption", "texts": [], "text_reasons": ["shared caption"]},
        {"dropped": "no caption left", "texts": [], "text_reasons": ["too few characters", "shared caption"]},
        {"dropped": None, "texts": ["a cat"], "text_reasons": ["shared caption", "too few characters", None]},
    ]
    assert reason_of([]) == "no text"


def test_the_report_gets_figures_with_the_limits_in_them(tmp_path, good):
    _, entry = filtered(tmp_path, tar_of(tmp_path / "a.tar", planted(good, 1)[0]), RULES)
    figures = {figure.name: figure for figure in entry.stage().figures(entry.counts()["facts"], entry.folder)}
    assert {"filter-words", "filter-shorter-side", "filter-aspect", "filter-language"} <= set(figures)
    assert ">200</text>" in figures["filter-shorter-side"].svg and "<polyline" in figures["filter-words"].svg


# Presets


@pytest.mark.parametrize("name", PRESETS.names())
def test_every_preset_says_its_source_and_can_be_read(name):
    record = read_preset(name)
    assert set(record) <= {"source", "departs", "captions", "pictures"} and record["source"]
    assert any(rules.active for rules in Config(preset=name).rules())


def test_datacomp_basic_is_its_published_rule():
    captions, pictures = Config(preset="datacomp-basic").rules()
    assert (captions.min_words, captions.min_characters, captions.languages) == (3, 6, ("en",))
    assert (pictures.min_side, pictures.max_aspect) == (200, 3.0)


def test_values_of_a_preset_can_be_overridden_and_switched_off():
    captions, pictures = Captions(languages=("de", "en"), min_words=0), Pictures(sizes="meta", max_aspect=2)
    config = Config(preset="datacomp-basic", captions=captions, pictures=pictures)
    captions, pictures = config.rules()
    assert captions.languages == ("de", "en") and captions.min_words == 0 and captions.min_characters == 6
    assert pictures.from_meta and pictures.max_aspect == 2 and pictures.min_side == 200
    assert from_tree(Config, json.loads(json.dumps(to_tree(config)))) == config
    assert Filter(config).inputs() != Filter(Config(preset="datacomp-basic")).inputs()


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="'datacomp-basic'"):
        Config(preset="datacomp")


def test_a_filter_without_a_rule_is_refused():
    for config in ({}, {"captions": Captions(min_words=0, titles=("none",))}, {"pictures": Pictures(check="off", min_side=3)}):
        with pytest.raises(ConfigError, match="no rule is on"):
            Config(**config)


# Sources without pictures


def test_rules_for_pictures_say_what_to_do_where_there_are_none(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"caption": f"{GOOD} 1", "width": 300, "height": 100}) + "\n")
    with pytest.raises(DataError, match=r"captions alone.*pictures\.check=off.*pictures\.sizes=meta"):
        filtered(tmp_path, path, Config(preset="datacomp-basic"), "one")
    _, entry = filtered(tmp_path, path, Config(preset="datacomp-basic", pictures=Pictures(check="off")), "two")
    assert entry.counts()["kept"] == 1
    _, entry = filtered(tmp_path, path, Config(preset="datacomp-basic", pictures=Pictures(sizes="meta")), "three")
    assert entry.counts()["reasons"] == {"too small": 1}


# Hooks


@pytest.fixture
def hooks(tmp_path, monkeypatch):
    (tmp_path / "stage_hooks.py").write_text(
        "def bytes_of(values): return [len(value) / 1e6 for value in values]\n"
        "def bad_words(values): return ['gun' in value for value in values]\n"
        "def fails(values): raise RuntimeError('no model\\nat all')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("stage_hooks", None)


def test_hooks_give_columns_and_reasons(tmp_path, hooks, good):
    pairs = [("a dog", good), ("a gun", good), ("a cat", encoded("PNG", (300, 300)))]
    unsafe = Unsafe(captions="stage_hooks:bad_words", pictures="stage_hooks:bytes_of", picture_score=0.1)
    config = Config(unsafe=unsafe)
    _, entry = filtered(tmp_path, tar_of(tmp_path / "a.tar", pairs), config)
    found = table(entry, "dropped", "unsafe_caption", "unsafe_picture")
    assert [row["dropped"] for row in found] == [None, "unsafe caption", "unsafe picture"]
    assert [row["unsafe_caption"] for row in found] == [[0.0], [1.0], [0.0]]
    assert found[1]["unsafe_picture"] is None and found[2]["unsafe_picture"] > 0.1
    (hooks / "stage_hooks.py").write_text((hooks / "stage_hooks.py").read_text() + "# another version\n")
    assert Filter(config).inputs() != from_inputs(entry)


def from_inputs(entry):
    return json.loads((entry.folder / "stage.json").read_text())["inputs"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_hook_that_fails_ends_the_run_with_one_line(tmp_path, hooks, good, workers):
    config = Config(unsafe=Unsafe(pictures="stage_hooks:fails"))
    source = tar_of(tmp_path / "a.tar", [("a dog", good)] * 3)
    with pytest.raises(DataError, match=r"stage_hooks:fails at a/000000 to a/000002: failed: RuntimeError: no model at all"):
        filtered(tmp_path, source, config, workers=workers)


def test_what_is_missing_is_known_before_anything_is_read(tmp_path):
    for unsafe in (Unsafe(pictures="no_such_module_here:f"), Unsafe(words=str(tmp_path / "none.txt"))):
        with pytest.raises((ConfigError, DataError)):
            Filter(Config(unsafe=unsafe)).check()


# The command


def test_the_command_filters_by_a_preset_with_a_change(tmp_path, good, capsys):
    source = tar_of(tmp_path / "a.tar", planted(good, 1)[0])
    rules = ["--preset", "yfcc", "--captions.min-words", "3"]
    assert main(["curate", "filter", str(source), "-o", str(tmp_path / "w"), *rules, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert set(found["reasons"]) == {"too few words", "other language", "boilerplate", "camera settings"}
    assert found["facts"]["language"]["en"] > 0 and sum(found["facts"]["words"]["counts"]) == found["texts"]


def test_a_bad_setting_of_the_command_is_one_line(tmp_path, capsys):
    path = lines_of(tmp_path / "a.txt", ["a dog"])
    for flags, message in (
        (["--preset", "datacomp"], "unknown preset"),
        ([], "no rule is on"),
        (["--captions.min-words", "-2"], "captions.min_words is -2"),
    ):
        assert main(["curate", "filter", str(path), "-o", str(tmp_path / "w"), *flags]) in (1, 2)
        assert message in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_kept_parquet_is_readable_without_us(tmp_path, good):
    _, entry = filtered(tmp_path, tar_of(tmp_path / "a.tar", [(GOOD, good), ("x", picture(1))]), RULES)
    assert pq.read_table(entry.part(0)).column_names[:5] == ["row", "dropped", "texts", "text_reasons", "language"]
