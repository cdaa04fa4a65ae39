"""Finding near-duplicates: neighbours from stores, arrays and hashes, searches that go on, decisions, the page."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from ostension.data.pictures import open_pictures
from ostension.errors import ConfigError, DataError
from ostension.evals import overlap_neighbours
from ostension.evals.overlap_neighbours import Neighbours, Pictures, find_neighbours, first_equal, nearest_hashes
from ostension.evals.overlap_page import bands, levels_of, review_page
from ostension.evals.overlap_review import Decision, decide, duplicates, flags, notes_of, passing, scores_of
from ostension.image.copies import CopyConfig, altered_copy
from ostension.image.transforms import PreprocessConfig
from ostension.model.duplicate_detector import DetectorConfig, DuplicateDetector
from ostension.runtime import numpy_generator
from ostension.store import Features, Store, embed

COUNT = 12


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def arrays(count, seed, width=8, prefix="t"):
    rows = unit(numpy_generator("overlap rows", seed).standard_normal((count, width)))
    draw = numpy_generator("overlap hashes", seed)
    return Pictures(
        rows=rows, ids=tuple(f"{prefix}{index}" for index in range(count)), key={"of": seed},
        digests=draw.integers(2**63, size=count).astype(np.uint64), hashes=draw.integers(2**63, size=count).astype(np.uint64),
    )  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Training pictures; evaluation pictures of which two are copies, one the very file, one black, and the rest strangers."""
    training, evaluation = tmp_path_factory.mktemp("training"), tmp_path_factory.mktemp("evaluation")

    def drawing(name, index):
        pixels = numpy_generator("overlap picture", name, index).integers(0, 255, (6, 6, 3)).astype(np.uint8)
        return Image.fromarray(pixels).resize((80, 80), Image.Resampling.BICUBIC)

    for index in range(COUNT):
        drawing("training", index).save(training / f"t{index:02d}.png")
    for index in range(3, 8):
        drawing("evaluation", index).save(evaluation / f"e{index}.png")
    for index in (1, 2):
        copy = altered_copy(drawing("training", index), CopyConfig().only("jpeg"), numpy_generator(index))
        copy.save(evaluation / f"e{index}.png")
    (evaluation / "e0.png").write_bytes((training / "t05.png").read_bytes())
    Image.new("RGB", (80, 80), (3, 3, 3)).save(evaluation / "e8.png")
    Image.new("RGB", (80, 80), (0, 0, 0)).save(training / f"t{COUNT}.png")
    return evaluation, training


@pytest.fixture(scope="module")
def found(places, tmp_path_factory):
    """The search of these sets with an untrained detector, whose rows see small changes as small."""
    folder = tmp_path_factory.mktemp("search")
    return search_pictures(places, folder), folder


def search_pictures(places, folder):
    preprocess = PreprocessConfig(image_size=32, resize="squash")
    config = DetectorConfig(embed_dim=32, layers=(1, 1), width=8, pool="flatten", preprocess=preprocess)
    detector, store = DuplicateDetector(config), Store(folder / "store")
    sides = [Pictures.of_set(embed(store, detector, open_pictures(place), stored="float32")["post", 0]) for place in places]
    names = ("evaluation", "training")
    fingerprints = {name: open_pictures(place).fingerprint() for name, place in zip(names, places, strict=True)}
    return find_neighbours(*sides, folder / "found", facts={"fingerprints": fingerprints})


def test_planted_duplicates_are_found_by_file_by_detector_and_by_hash(found):
    neighbours, _ = found
    row = {name: index for index, name in enumerate(neighbours.ids)}
    assert neighbours.training_ids[neighbours.same_file[row["e0.png"]]] == "t05.png"
    assert (np.delete(neighbours.same_file, row["e0.png"]) == -1).all()
    for name, original in (("e1.png", "t01.png"), ("e2.png", "t02.png")):
        assert neighbours.training_ids[neighbours.nearest[row[name], 0]] == original
        assert neighbours.training_ids[neighbours.alike[row[name]]] == original
        assert neighbours.bits[row[name]] <= 6
        assert neighbours.best[row[name]] > max(neighbours.best[row[f"e{index}.png"]] for index in range(3, 8))
    assert scores_of(neighbours)[row["e0.png"]] == 1.0


def test_the_search_is_the_one_over_all_products_whatever_the_blocks_are():
    evaluation, training = arrays(40, 1, prefix="e"), arrays(70, 2)
    products = evaluation.rows.astype(np.float64) @ training.rows.astype(np.float64).T
    for block in (7, 40, 1000):
        found = find_neighbours(evaluation, training, k=3, block=block)
        np.testing.assert_array_equal(found.nearest, np.argsort(-products, axis=1)[:, :3])
        np.testing.assert_allclose(found.best, products.max(axis=1), atol=1e-12)
    assert found.training_ids[int(found.nearest[0, 0])] == f"t{found.nearest[0, 0]}"


def test_hashes_and_contents_are_compared_exactly(monkeypatch):
    known = np.array([5, 9, 5, 2**63 + 1, 0], dtype=np.uint64)
    wanted = np.array([5, 7, 2**63 + 1, 2**64 - 1], dtype=np.uint64)
    np.testing.assert_array_equal(first_equal(wanted, known), [0, -1, 3, -1])
    for size in (1, 2, 2**22):
        monkeypatch.setattr(overlap_neighbours, "HASHES", size)
        rows, bits = nearest_hashes(wanted, known)
        np.testing.assert_array_equal(rows, [0, 0, 3, 0])  # the first of equals
        np.testing.assert_array_equal(bits, [0, 1, 0, 62])


def test_a_search_that_was_killed_goes_on_with_the_block_that_it_was_at(tmp_path, monkeypatch):
    evaluation, training = arrays(30, 1, prefix="e"), arrays(20, 2)
    whole = find_neighbours(evaluation, training, block=10)

    def dies(done, _):
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_neighbours(evaluation, training, tmp_path, block=10, progress=dies)
    assert len(list(tmp_path.glob("block-*.npz"))) == 2
    searched = []
    real = overlap_neighbours._search_block
    monkeypatch.setattr(
        overlap_neighbours, "_search_block", lambda *given: searched.append(given[2]) or real(*given)
    )
    resumed = find_neighbours(evaluation, training, tmp_path, block=10)
    assert searched == [20]
    np.testing.assert_array_equal(resumed.nearest, whole.nearest)
    assert not list(tmp_path.glob("block-*.npz"))
    again = find_neighbours(evaluation, training, tmp_path, block=10)
    assert searched == [20]
    np.testing.assert_array_equal(again.similarity, whole.similarity)
    assert (again.ids, dict(again.training_ids)) == (whole.ids, dict(whole.training_ids))


def test_a_folder_of_another_search_is_refused_and_a_damaged_one_is_named(tmp_path):
    evaluation, training = arrays(5, 1, prefix="e"), arrays(6, 2)
    find_neighbours(evaluation, training, tmp_path)
    with pytest.raises(DataError, match="a search of another training"):
        find_neighbours(evaluation, arrays(6, 3), tmp_path)
    (tmp_path / "neighbours.npz").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"neighbours.npz.*damaged"):
        Neighbours.load(tmp_path)
    with pytest.raises(DataError, match="holds no neighbours"):
        Neighbours.load(tmp_path / "nothing")


def test_arrays_are_searched_without_files_and_files_without_a_detector(found):
    features = Features(rows=numpy_generator(1).standard_normal((4, 8)), ids=("a", "b", "c", "d"))
    neighbours = find_neighbours(Pictures.of_features(features), Pictures.of_features(features), k=1)
    np.testing.assert_array_equal(neighbours.nearest[:, 0], range(4))
    assert (neighbours.same_file == -1).all() and (neighbours.bits == -1).all()
    hashes = Pictures(rows=None, ids=("x",), hashes=np.array([3], dtype=np.uint64))
    alone = find_neighbours(hashes, Pictures(rows=None, ids=("y",), hashes=np.array([1], dtype=np.uint64)))
    assert alone.bits.tolist() == [1]
    assert alone.match(0) == 0
    assert passing(alone, None, 1).all()
    with pytest.raises(ConfigError, match="had no detector"):
        passing(alone, 0.9, None)
    with pytest.raises(ConfigError, match="had none"):
        passing(neighbours, None, 3)


def test_sides_that_cannot_be_compared_are_refused():
    one, other = arrays(3, 1), arrays(3, 2, width=9)
    with pytest.raises(DataError, match="by one detector"):
        find_neighbours(one, other)
    with pytest.raises(DataError, match="one side has rows"):
        find_neighbours(one, Pictures(rows=None, ids=("a",), hashes=np.zeros(1, np.uint64)))
    with pytest.raises(DataError, match="nothing to compare by"):
        find_neighbours(Pictures(rows=None, ids=("a",)), Pictures(rows=None, ids=("a",)))
    with pytest.raises(DataError, match="no training pictures"):
        find_neighbours(one, arrays(0, 1))
    with pytest.raises(DataError, match="2 hashes"):
        Pictures(rows=None, ids=("a",), hashes=np.zeros(2, np.uint64))


def test_a_decision_takes_what_passes_less_what_a_person_took_out(found, places, tmp_path):
    neighbours, folder = found
    threshold = float(neighbours.best[neighbours.ids.index("e2.png")])
    threshold = min(threshold, float(neighbours.best[neighbours.ids.index("e1.png")]))
    source = open_pictures(places[0])
    plain = decide(neighbours, source, threshold=threshold)
    assert {"e0.png", "e1.png", "e2.png"} <= set(np.array(neighbours.ids)[duplicates(neighbours, plain)])
    without = decide(neighbours, source, threshold=threshold, excluded=("e1.png",), by="a person")
    assert not duplicates(neighbours, without)[neighbours.ids.index("e1.png")]
    assert notes_of(without)[0] == "pairs that pass and were taken out: 1"
    without.save(tmp_path)
    assert Decision.load(tmp_path, neighbours) == without
    with pytest.raises(ConfigError, match="'e9.png' is no picture of the set"):
        decide(neighbours, threshold=threshold, excluded=("e9.png",))
    with pytest.raises(ConfigError, match="'e3.png' is not among the duplicates"):
        decide(neighbours, threshold=0.99999999, excluded=("e3.png",))
    with pytest.raises(ConfigError, match="neither a threshold nor bits"):
        decide(neighbours)
    with pytest.raises(DataError, match="no threshold was decided on"):
        Decision.load(folder, neighbours)


def test_black_frames_are_flagged_and_can_be_dropped(found, places):
    neighbours, _ = found
    source = open_pictures(places[0])
    lowest = float(neighbours.best.min())
    kept, dropped = (decide(neighbours, source, threshold=lowest, drop_flagged=drop) for drop in (False, True))
    assert kept.flagged == dropped.flagged == 1
    assert dropped.excluded == {"e8.png": "nearly black"}
    assert duplicates(neighbours, kept).sum() == duplicates(neighbours, dropped).sum() + 1 == len(neighbours)
    assert notes_of(kept) == ("pairs that are nearly black, of one colour or tiny: 1",)
    assert notes_of(dropped) == ("pairs that pass and were taken out: 1",)


def test_a_decision_about_another_search_is_refused(found, tmp_path):
    neighbours, _ = found
    decide(find_neighbours(arrays(3, 1), arrays(3, 2)), threshold=0.5).save(tmp_path)
    with pytest.raises(DataError, match="another search"):
        Decision.load(tmp_path, neighbours)


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Image.new("RGB", (32, 32), (200, 30, 90)), ("tiny (32 x 32)", "of one colour")),
        (Image.new("RGB", (90, 90), (5, 5, 5)), ("nearly black",)),
        (Image.new("RGB", (90, 90), (255, 255, 255)), ("of one colour",)),
        (Image.fromarray(np.arange(90 * 90, dtype=np.uint32).reshape(90, 90).astype(np.uint8)).convert("RGB"), ()),
    ],
)
def test_traps_are_told(picture, expected):
    assert flags(picture) == expected


def test_levels_are_what_round_numbers_of_pictures_reach_and_bands_hold_every_pair_once():
    scores = np.sort(numpy_generator("levels").random(137))
    levels = levels_of(scores)
    falling = scores[::-1]
    assert levels == [float(falling[rank - 1]) for rank in (5, 10, 20, 50, 100, 137)]
    found = bands(scores, levels)
    assert [band.above for band in found] == [5, 10, 20, 50, 100, 137]
    assert sorted(np.concatenate([band.rows for band in found]).tolist()) == list(range(137))
    assert bands(np.full(9, 0.5), levels_of(np.full(9, 0.5)))[0].above == 9


def test_the_page_shows_pairs_by_similarity_and_loads_nothing(found, places):
    neighbours, _ = found
    evaluation, training = map(open_pictures, places)
    page = review_page(neighbours, evaluation, training, task="a <set>", folder="runs/overlap")
    assert "a &lt;set&gt;" in page
    assert "ostension eval overlap decide runs/overlap --threshold 0." in page
    assert page.index("t05.png") < page.index("t01.png")  # the very file comes before the copies
    assert "same file" in page
    assert "nearly black" in page
    sources = re.findall(r'src="([^"]{0,20})', page)
    assert len(sources) >= 2 * len(neighbours)
    assert all(source.startswith("data:image/webp;") for source in sources)
    assert "<script" not in page and "http://" not in page and "https://" not in page
    few = review_page(neighbours, evaluation, training, task="set", folder="x", pairs=2, levels=(0.0,))
    assert len(re.findall("data:image/webp", few)) == 4 + 2 * few.count("Alike by hash")


def test_the_page_refuses_sources_that_were_not_searched(found, places):
    neighbours, _ = found
    training = open_pictures(places[1])
    with pytest.raises(DataError, match="evaluation set is not the one that was searched"):
        review_page(neighbours, training, training, task="set", folder="x")


def test_the_page_without_a_detector_speaks_of_bits(places):
    sources = [open_pictures(place) for place in places]
    from ostension.store import perceptual_hash

    sides = []
    for source in sources:
        pairs = [source.read(index) for index in range(len(source))]
        hashes = np.array([perceptual_hash(pair.image) for pair in pairs], dtype=np.uint64)
        sides.append(Pictures(rows=None, ids=[pair.key for pair in pairs], hashes=hashes, digests=source.image_digests()))
    neighbours = find_neighbours(*sides)
    page = review_page(neighbours, *sources, task="set", folder="x")
    assert re.search(r"decide x --bits \d+", page)
    assert re.search(r"at most \d+ bits: 5 of 9", page)
