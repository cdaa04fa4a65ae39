"""The stages match and balance on work folders: columns, counts, facts, figures; the same whoever maps."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

sys.path.append(str(Path(__file__).parent))
from curating import lines_of, parts_of, tar_of

from ostension.curate import balance_figures
from ostension.curate.candidates import describe
from ostension.curate.matching import Rules, match_plain
from ostension.curate.run import begin, run_stage
from ostension.curate.stages.balance import Config as Balance
from ostension.curate.stages.match import Config as Match
from ostension.curate.work import Work
from ostension.errors import ConfigError, DataError
from ostension.runtime import numpy_generator

QUERIES = ["dog", "red", "red dog", "axolotl", "unicorn"]
CAPTIONS = [f"a red dog, number {number}" if number % 4 == 0 else f"a dog {number}" for number in range(400)]
CAPTIONS[7], CAPTIONS[8], CAPTIONS[9] = "an axolotl", "a cat", "Dog"


@pytest.fixture
def queries(tmp_path):
    return lines_of(tmp_path / "queries.txt", QUERIES)


def work_of(tmp_path: Path, captions: list[str], name: str = "work", part_size: int = 50) -> Work:
    return begin(tmp_path / name, describe([str(lines_of(tmp_path / "captions.txt", captions))], part_size=part_size))


def column(entry, name: str) -> list:
    return [value for path in sorted(entry.folder.glob("part-*.parquet")) for value in pq.read_table(path)[name].to_pylist()]


def test_match_gives_each_pair_its_queries_and_drops_those_without(tmp_path, queries):
    work = work_of(tmp_path, CAPTIONS)
    entry = run_stage(work, "match", Match(queries=queries))
    assert column(entry, "queries") == [match_plain([caption], QUERIES) for caption in CAPTIONS]
    counts = entry.counts()
    assert counts["kept"] == 398 and counts["reasons"] == {"no query": 2}
    facts = counts["facts"]
    expected = {"queries": 5, "same_as_another": 0, "matched_queries": 4, "pairs": 400, "matched_pairs": 398}
    assert {name: facts[name] for name in expected} == expected
    assert facts["head"] == [["dog", 397], ["red", 99], ["red dog", 99], ["axolotl", 1]]
    assert facts["pairs_by_matches"] == [2, 299, 0, 99] and facts["matches"] == 397 + 99 + 99 + 1
    table = pq.read_table(entry.folder / "queries.parquet")
    assert table["query"].to_pylist() == QUERIES and table["pairs"].to_pylist() == [397, 99, 99, 1, 0]


def test_match_folds_capitals_and_keeps_pairs_without_queries_if_told(tmp_path, queries):
    work = work_of(tmp_path, CAPTIONS)
    entry = run_stage(work, "match", Match(queries=queries, case="folded", unmatched="keep"))
    assert column(entry, "queries") == [match_plain([caption], QUERIES, Rules(case="folded")) for caption in CAPTIONS]
    assert entry.counts()["kept"] == 400 and column(entry, "queries")[9] == [0]


def test_another_list_of_queries_is_another_match(tmp_path, queries):
    work = work_of(tmp_path, CAPTIONS)
    first = run_stage(work, "match", Match(queries=queries), place=1)
    assert run_stage(work, "match", Match(queries=queries), place=1) == first
    lines_of(queries, ["cat"])
    with pytest.raises(DataError, match="what they point to has changed"):
        run_stage(work, "match", Match(queries=queries), place=1)


def test_a_list_that_is_missing_is_told_before_anything_is_read(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        run_stage(work_of(tmp_path, CAPTIONS), "match", Match(queries=tmp_path / "none.txt"))


@pytest.mark.parametrize("draw", ["offline", "online"])
def test_balance_keeps_what_the_probabilities_say(tmp_path, queries, draw):
    work = work_of(tmp_path, CAPTIONS)
    run_stage(work, "match", Match(queries=queries))
    entry = run_stage(work, "balance", Balance(limit=40, draw=draw))
    p = {0: 40 / 397, 1: 40 / 99, 2: 40 / 99, 3: 1.0}
    keep = [1 - math.prod(1 - p[number] for number in match_plain([caption], QUERIES)) for caption in CAPTIONS]
    keep = [value for value, caption in zip(keep, CAPTIONS, strict=True) if match_plain([caption], QUERIES)]
    assert column(entry, "keep") == pytest.approx(keep)
    facts, kept = entry.counts()["facts"], entry.counts()["kept"]
    assert facts["expected_pairs"] == pytest.approx(sum(keep))
    assert facts["kept_pairs"] == kept and abs(kept - sum(keep)) < 4 * math.sqrt(sum(value * (1 - value) for value in keep))
    assert entry.counts()["reasons"] == {"over the limit": 398 - kept}
    assert facts["tail_share"] == pytest.approx(1 / 596) and facts["queries_over_limit"] == 3
    table = pq.read_table(entry.folder / "counts.parquet")
    assert table["pairs"].to_pylist() == [397, 99, 99, 1]
    lives = [match_plain(texts, QUERIES) for part in work.parts() for texts in part.texts]
    assert table["after"].to_pylist() == [sum(number in found for found in lives) for number in range(4)]
    assert "an axolotl" in {texts[0] for part in work.parts() for texts in part.texts}


def test_balance_finds_its_limit_from_a_number_of_pairs_or_a_tail(tmp_path, queries):
    work = work_of(tmp_path, CAPTIONS)
    run_stage(work, "match", Match(queries=queries))
    facts = run_stage(work, "balance", Balance(pairs=100)).counts()["facts"]
    assert facts["expected_pairs"] == pytest.approx(100) and facts["limit_is_exact"]
    other = work_of(tmp_path, CAPTIONS, "other")
    run_stage(other, "match", Match(queries=queries))
    assert run_stage(other, "balance", Balance(tail_share=0.3)).counts()["facts"]["limit"] == 397


def test_a_limit_from_a_sample_is_near(tmp_path):
    rng = numpy_generator("captions")
    words = [f"w{number}" for number in range(200)]
    captions = [" ".join(words[int(200 ** rng.random()) - 1] for _ in range(4)) for _ in range(4000)]
    work = work_of(tmp_path, captions, part_size=1000)
    run_stage(work, "match", Match(queries=lines_of(tmp_path / "words.txt", words)))
    facts = run_stage(work, "balance", Balance(pairs=1000, sample=1500)).counts()["facts"]
    assert not facts["limit_is_exact"] and facts["expected_pairs"] == pytest.approx(1000, rel=0.06)


def test_pairs_that_match_was_told_to_keep_stay(tmp_path, queries):
    work = work_of(tmp_path, CAPTIONS)
    run_stage(work, "match", Match(queries=queries, unmatched="keep"))
    entry = run_stage(work, "balance", Balance(pairs=102))
    facts = entry.counts()["facts"]
    assert facts["pairs_without_query"] == 2 and facts["expected_pairs"] == pytest.approx(102)
    assert {"a cat", "Dog"} <= {texts[0] for part in work.parts() for texts in part.texts}


def test_what_training_draws_is_kept_with_its_probabilities(tmp_path, queries):
    work = work_of(tmp_path, CAPTIONS)
    run_stage(work, "match", Match(queries=queries))
    entry = run_stage(work, "balance", Balance(pairs=100, draw="later"))
    facts = entry.counts()["facts"]
    assert entry.counts()["kept"] == 398 and sum(column(entry, "keep")) == pytest.approx(100)
    table = pq.read_table(entry.folder / "counts.parquet")
    assert table["after"].to_pylist() == np.rint(table["expected"].to_numpy()).tolist()
    says = entry.stage().figures(facts, entry.folder)[0].says
    assert "an epoch of training has 100 of 398 pairs on average" in says


def test_training_finds_the_probabilities_beside_the_shards(tmp_path, queries):
    from ostension.curate.write import WriteConfig, write
    from ostension.data.open import open_pairs
    from ostension.data.thinned import column_beside

    work = begin(tmp_path / "work", describe([str(tar_of(tmp_path / "a.tar", CAPTIONS[:12]))], part_size=5))
    run_stage(work, "match", Match(queries=queries))
    entry = run_stage(work, "balance", Balance(limit=2, draw="later"))
    write(work, tmp_path / "out", WriteConfig(shard_size=6))
    found = column_beside(open_pairs(str(tmp_path / "out")), "balance.keep")
    assert found.tolist() == column(entry, "keep") and len(set(found.tolist())) == 2


def test_balance_counts_what_stages_before_it_have_left(tmp_path, queries):
    work = work_of(tmp_path, CAPTIONS)
    run_stage(work, "match", Match(queries=queries))
    run_stage(work, "balance", Balance(limit=100, seed=1))
    left = [match_plain(texts, QUERIES) for part in work.parts() for texts in part.texts]
    entry = run_stage(work, "balance", Balance(limit=40, seed=2))
    counts = [sum(number in found for found in left) for number in range(4)]
    assert pq.read_table(entry.folder / "counts.parquet")["pairs"].to_pylist() == counts


def test_balance_before_match_says_what_to_run(tmp_path):
    with pytest.raises(ConfigError, match="ostension curate match"):
        run_stage(work_of(tmp_path, CAPTIONS), "balance", Balance(limit=3))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "none of limit, pairs and tail_share"),
        ({"limit": 3, "pairs": 4}, "limit and pairs"),
        ({"limit": 0}, "limit"),
        ({"limit": math.inf}, "limit"),
        ({"tail_share": 1.2}, "tail_share"),
    ],
)
def test_balance_wants_one_sound_setting(settings, words):
    with pytest.raises(ConfigError, match=words):
        Balance(**settings)


def test_more_pairs_than_there_are_cannot_be_wanted(tmp_path, queries):
    work = work_of(tmp_path, CAPTIONS)
    run_stage(work, "match", Match(queries=queries))
    with pytest.raises(DataError, match=r"balance.pairs is 999.*up to 398"):
        run_stage(work, "balance", Balance(pairs=999))


def test_figures_show_counts_before_and_after_head_and_what_went(tmp_path, queries):
    work = work_of(tmp_path, CAPTIONS)
    match = run_stage(work, "match", Match(queries=queries))
    balance = run_stage(work, "balance", Balance(limit=40))
    found = {figure.name: figure for figure in match.stage().figures(match.counts()["facts"], match.folder)}
    assert list(found) == ["match-counts", "match-pairs", "match-head"]
    assert "4 of 5 queries have a pair, 1 have none" in found["match-pairs"].says
    shown = {figure.name: figure for figure in balance.stage().figures(balance.counts()["facts"], balance.folder)}
    kept = balance.counts()["kept"]
    assert f"{kept} of 398 pairs stay" in shown["balance-counts"].says and "<svg" in shown["balance-counts"].svg
    assert "red dog" in shown["balance-head"].more and ">397<" in shown["balance-head"].more
    json.dumps(match.counts())  # facts are plain JSON


def test_figures_warn_of_what_was_dropped_after_balancing(tmp_path, queries):
    work = work_of(tmp_path, CAPTIONS)
    run_stage(work, "match", Match(queries=queries))
    first = run_stage(work, "balance", Balance(limit=100))
    assert balance_figures.warnings(first.folder) == []
    second = run_stage(work, "balance", Balance(limit=40))
    dropped = second.counts()["rows"] - second.counts()["kept"]
    (warning,) = balance_figures.warnings(first.folder)
    assert f"balance dropped {dropped} pairs afterwards" in warning
    shown = first.stage().figures(first.counts()["facts"], first.folder)[0].says
    assert warning in shown and balance_figures.warnings(second.folder) == []


def test_a_histogram_doubles_its_bins():
    counts = np.array([0, 1, 1, 2, 3, 4, 7, 8, 1024])
    assert balance_figures.histogram(counts)[:4] == [(1, 2), (2, 2), (4, 2), (8, 1)]
    assert balance_figures.histogram(counts)[-1] == (1024, 1)
    assert balance_figures.histogram(np.zeros(3, int)) == []


def test_nothing_that_matches_is_told_in_figures_too(tmp_path):
    work = work_of(tmp_path, ["a cat", "a mouse"])
    entry = run_stage(work, "match", Match(queries=lines_of(tmp_path / "queries.txt", ["dog"]), unmatched="keep"))
    assert [figure.name for figure in entry.stage().figures(entry.counts()["facts"], entry.folder)] == [
        "match-pairs",
        "match-head",
    ]
    balance = run_stage(work, "balance", Balance(limit=3))
    assert balance.counts()["kept"] == 2
    assert [f.name for f in balance.stage().figures(balance.counts()["facts"], balance.folder)] == ["balance-head"]


@pytest.mark.slow
def test_many_processes_give_the_same_bytes(tmp_path, queries):
    found = []
    for workers in (0, 2):
        work = work_of(tmp_path, CAPTIONS, f"work{workers}")
        entries = [
            run_stage(work, "match", Match(queries=queries), workers=workers),
            run_stage(work, "balance", Balance(pairs=150), workers=workers),
        ]
        found.append([parts_of(entry) for entry in entries])
    assert found[0] == found[1]
