"""Agreement of pictures and captions: scores, thresholds, shares, what is kept in a store, one process and several."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

sys.path.append(str(Path(__file__).parent))
from curating import lines_of, parts_of
from test_filter_stage import filtered, table, tar_of

from ostension.cli.main import main
from ostension.curate import embeddings
from ostension.curate.candidates import describe
from ostension.curate.embeddings import one_thread
from ostension.curate.run import begin, run_stage
from ostension.curate.score_shares import MOST_GROUPS, Counts, rounded
from ostension.curate.stages.agreement import Config
from ostension.curate.work import read_part
from ostension.data.open import open_pairs
from ostension.errors import ConfigError, DataError, LimitError
from ostension.formats.load import load, save
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.store import Store, embed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model with weights drawn at random: what it says means nothing, and is the same every time."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    save(CLIP(preset("tiny-vit")).eval(), path / "model")
    return str(path / "model")


def pictures(count):
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (24 + number, 30, 3), np.uint8)
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        yield out.getvalue()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "a.tar"
    return tar_of(path, [(f"a picture of thing number {place}", data) for place, data in enumerate(pictures(20))])


def several(tmp_path, rows):
    """A Parquet of pictures with lists of captions and the field `from`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = list(pictures(len(rows)))
    columns = {"image": data, "captions": [texts for texts, _ in rows], "from": [name for _, name in rows]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    return tmp_path / "a.parquet"


def run(tmp_path, source, config, name="work", **options):
    work = begin(tmp_path / name, describe([str(source)], part_size=8))
    return work, run_stage(work, "agreement", config, **options)


def plain_scores(folder, source):
    """The same by plain torch: each pair's captions against its picture, one by one."""
    model = load(folder, device="cpu", dtype="float32")
    pairs = open_pairs(source)
    with torch.no_grad():
        for index in range(len(pairs)):
            pair = pairs.read(index)
            image = model.encode_image(model.transform(pair.image)[None], normalize=True)
            texts = model.encode_text(model.tokenizer(list(pair.texts), truncate=True), normalize=True)
            yield (texts @ image[0]).tolist()


def test_scores_are_the_cosines_of_the_models_rows(tmp_path, folder, source):
    _, entry = run(tmp_path, source, Config(model=folder))
    found = table(entry, "score", "scores", "dropped")
    expected = list(plain_scores(folder, source))
    np.testing.assert_allclose([row["score"] for row in found], [max(row) for row in expected], atol=2e-5)
    assert all(row["dropped"] is None for row in found), "without a threshold nothing goes"
    assert sum(entry.counts()["facts"]["histogram"]["counts"]) == 20


@pytest.mark.parametrize("top", [0.05, 0.3, 0.5, 1.0])
def test_a_share_keeps_that_many_of_the_best_and_a_threshold_keeps_what_reaches_it(tmp_path, folder, source, top):
    _, entry = run(tmp_path, source, Config(model=folder, top=top, store=str(tmp_path / "store")))
    scores = np.array([row["score"] for row in table(entry, "score")])
    bound = np.sort(scores)[::-1][max(1, int(np.ceil(20 * top))) - 1]
    assert entry.counts()["kept"] == (scores >= bound).sum()
    reached = entry.counts()["facts"]["reached"][""]
    assert abs(reached - bound) < 1e-6
    (figure,) = entry.stage().figures(entry.counts()["facts"], entry.folder)
    assert f"{reached:.5g} stay" in figure.says and "<polyline" in figure.svg
    _, again = run(tmp_path, source, Config(model=folder, threshold=reached, store=str(tmp_path / "store")), "again")
    kept = [[row["dropped"] for row in table(one, "dropped")] for one in (entry, again)]
    assert kept[0] == kept[1]
    assert set(kept[0]) <= {None, "low agreement"}


def test_captions_are_judged_by_the_best_or_each(tmp_path, folder):
    rows = [([f"text {place}", f"other words about {place}", "x y z"], "one") for place in range(10)]
    path = several(tmp_path, rows)
    work = begin(tmp_path / "w", describe([str(path)], layout=layout("captions"), part_size=4))
    first = run_stage(work, "agreement", Config(model=folder))
    scores = np.array([row["scores"] for row in table(first, "scores")])
    bound = float(rounded(np.sort(scores.ravel())[14]))
    each = run_stage(work, "agreement", Config(model=folder, threshold=bound, captions="each"))
    enough = rounded(scores) >= bound
    assert 15 <= enough.sum() < 30
    found = table(each, "dropped", "texts", "text_reasons")
    for (texts, _), marks, row in zip(rows, enough, found, strict=True):
        assert row["texts"] == [text for text, mark in zip(texts, marks, strict=True) if mark]
        assert row["text_reasons"] == [None if mark else "low agreement" for mark in marks]
        assert row["dropped"] == (None if marks.any() else "low agreement")
    again = begin(tmp_path / "b", describe([str(path)], layout=layout("captions"), part_size=4))
    best = run_stage(again, "agreement", Config(model=folder, threshold=bound))
    assert [row["dropped"] is None for row in table(best, "dropped")] == enough.any(axis=1).tolist()


def layout(texts):
    from ostension.data.layout import Layout

    return Layout(texts=(texts,))


def test_each_source_has_a_share_of_its_own(tmp_path, folder):
    path = several(tmp_path, [([f"words about {place}"], "one" if place < 8 else "two") for place in range(12)])
    work = begin(tmp_path / "w", describe([str(path)], layout=layout("captions"), part_size=5))
    entry = run_stage(work, "agreement", Config(model=folder, top=0.25, by="from"))
    kept = [row["dropped"] is None for row in table(entry, "dropped")]
    assert (sum(kept[:8]), sum(kept[8:])) == (2, 1)
    assert set(entry.counts()["facts"]["reached"]) == {"one", "two"}


@pytest.mark.slow
def test_one_process_and_several_give_the_same_bytes_whatever_threads_there_are(tmp_path, folder, source):
    config = Config(model=folder, threshold=0.0, batch_size=3)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        _, one = run(tmp_path, source, config, "one")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    _, two = run(tmp_path, source, config, "two", workers=2)
    assert parts_of(one) == parts_of(two) and one.counts()["facts"] == two.counts()["facts"]


def test_what_a_store_has_is_not_computed_again(tmp_path, folder, source, monkeypatch):
    config = Config(model=folder, store=str(tmp_path / "store"))
    _, first = run(tmp_path, source, config, "one")
    monkeypatch.setattr(CLIP, "embed_images", lambda *_, **__: pytest.fail("a picture was embedded again"))
    monkeypatch.setattr(CLIP, "embed_texts", lambda *_, **__: pytest.fail("a caption was embedded again"))
    _, second = run(tmp_path, source, config, "two")
    assert parts_of(first) == parts_of(second)
    # Rows that an earlier stage took away change nothing for the others.
    filtered(tmp_path, source, filter_config(), "three", part_size=8)
    work = begin(tmp_path / "three", describe([str(source)], part_size=8))
    entry = run_stage(work, "agreement", config)
    assert 0 < entry.counts()["rows"] < 20
    tables = [read_part(one.part(1), ["row", "score"]).to_pydict() for one in (first, entry)]
    scores = [dict(zip(found["row"], found["score"], strict=True)) for found in tables]
    assert 0 < len(scores[1]) < len(scores[0]) and scores[1].items() <= scores[0].items()


def filter_config():
    from ostension.curate.stages.filter import Captions
    from ostension.curate.stages.filter import Config as Filter

    return Filter(captions=Captions(max_characters=len("a picture of thing number 1")))


def test_only_what_is_new_is_computed(tmp_path, folder, source, monkeypatch):
    config = Config(model=folder, store=str(tmp_path / "store"))
    filtered(tmp_path, source, filter_config(), "one", part_size=8)
    run_stage(begin(tmp_path / "one", describe([str(source)], part_size=8)), "agreement", config)
    counted = []
    plain = CLIP.embed_images

    def embed_images(self, images, **rest):
        counted.append(len(images))
        return plain(self, images, **rest)

    monkeypatch.setattr(CLIP, "embed_images", embed_images)
    _, entry = run(tmp_path, source, config, "two")
    assert sum(counted) == 10  # of 20; those of one digit were there
    np.testing.assert_allclose(
        [row["score"] for row in table(entry, "score")], [max(row) for row in plain_scores(folder, source)], atol=2e-5
    )


def test_a_store_that_holds_the_whole_source_is_used_without_reading_a_picture(tmp_path, folder, source, monkeypatch):
    store = Store(tmp_path / "store")
    embed(store, load(folder, device="cpu", dtype="float32"), open_pairs(source), stored="float32")
    monkeypatch.setattr(embeddings, "read_picture", lambda *_, **__: pytest.fail("a picture was read"))
    _, entry = run(tmp_path, source, Config(model=folder, store=str(tmp_path / "store")))
    np.testing.assert_allclose(
        [row["score"] for row in table(entry, "score")], [max(row) for row in plain_scores(folder, source)], atol=2e-5
    )


def test_a_store_of_another_source_is_not_mistaken_for_it(tmp_path, folder, source):
    other = tar_of(tmp_path / "b.tar", [(f"thing {place}", data) for place, data in enumerate(reversed(list(pictures(20))))])
    embed(Store(tmp_path / "store"), load(folder, device="cpu", dtype="float32"), open_pairs(other))
    _, entry = run(tmp_path, source, Config(model=folder, store=str(tmp_path / "store")))
    np.testing.assert_allclose(
        [row["score"] for row in table(entry, "score")], [max(row) for row in plain_scores(folder, source)], atol=2e-5
    )


@pytest.mark.parametrize("rules", [{"threshold": -1.0}, {"top": 1.0}, {"top": 1.0, "captions": "each"}])
def test_pictures_that_cannot_be_used_go_with_their_own_reason(tmp_path, folder, rules):
    pairs = [("fine", data) for data in pictures(3)]
    pairs[1] = ("broken", pairs[1][1][:200])
    source = tar_of(tmp_path / "a.tar", pairs)
    _, entry = run(tmp_path, source, Config(model=folder, **rules))
    assert [row["dropped"] for row in table(entry, "dropped")] == [None, "unreadable", None]
    assert [row["score"] is None for row in table(entry, "score")] == [False, True, False]


def test_sixteen_bit_weights_give_about_the_same_scores_and_are_another_stage(tmp_path, folder, source):
    _, full = run(tmp_path, source, Config(model=folder), "full")
    _, half = run(tmp_path, source, Config(model=folder, dtype="bfloat16"), "half")
    scores = [[row["score"] for row in table(entry, "score")] for entry in (full, half)]
    np.testing.assert_allclose(*scores, atol=0.03)
    assert full.identity != half.identity


def test_captions_alone_have_no_agreement(tmp_path, folder):
    with pytest.raises(DataError, match="agreement needs pictures"):
        run(tmp_path, lines_of(tmp_path / "a.txt", ["a dog"]), Config(model=folder))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"threshold": 0.3, "top": 0.3}, "both set"),
        ({"threshold": 28.0}, "threshold is 28.0"),
        ({"top": 0.0}, "top is 0.0"),
        ({"by": "source"}, "top beside it"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"model": ""}, "model is ''"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(bad, message):
    with pytest.raises(ConfigError, match=message):
        Config(**{"model": "m", **bad})


def test_the_command_scores_and_drops(tmp_path, folder, source, capsys):
    flags = ["-o", str(tmp_path / "w"), "--part-size", "8", "--json"]
    assert main(["curate", "agreement", str(source), "--model", folder, "--top", "0.3", *flags]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["kept"] == 6 and found["reasons"] == {"low agreement": 14}
    assert main(["curate", "agreement", str(source), "--model", str(tmp_path / "none"), *flags[:-1]]) == 1
    assert "Traceback" not in capsys.readouterr().err


# Shares


@settings(deadline=None)
@given(st.lists(st.integers(-100_000, 100_000), min_size=1, max_size=60), st.floats(0.01, 1.0))
def test_the_score_that_a_share_reaches_is_that_of_a_sorted_list(steps, share):
    scores = np.array(steps) / 100_000
    counts = Counts()
    half = len(scores) // 2
    counts.add("", scores[:half])
    counts.add("", scores[half:])
    (reached,) = counts.reached_by(share).values()
    wanted = max(1, int(np.ceil(share * len(scores) - 1e-9)))
    assert reached == pytest.approx(np.sort(scores)[::-1][wanted - 1], abs=1e-9)
    histogram = counts.histogram()
    assert sum(histogram["counts"]) == len(scores)
    assert histogram["edges"][0] == pytest.approx(scores.min(), abs=1e-6)


def test_a_share_of_a_round_number_is_that_number():
    counts = Counts()
    counts.add("", np.arange(10) / 10)
    assert counts.reached_by(0.3) == {"": 0.7}


def test_too_many_groups_are_refused_and_no_scores_have_no_histogram():
    counts = Counts("place")
    for group in range(MOST_GROUPS):
        counts.add(str(group), np.zeros(1))
    with pytest.raises(LimitError, match="256 values of 'place'"):
        counts.add("one more", np.zeros(1))
    assert Counts().histogram() == {"edges": [], "counts": []}


def test_one_thread_is_given_back():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), one_thread():
        raise KeyError
    assert torch.get_num_threads() == before
