"""DomainBed: its splits, its selection rules by hand, and its own table from its own runs."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest

from ostension.errors import ConfigError, DataError
from ostension.evals.domainbed import (
    RULES,
    Checkpoint,
    choose,
    folder_order,
    mean_error,
    read_sweep,
    seed_hash,
    split_domain,
    tabulate,
)

# The runs in domainbed/misc/test_sweep_data (ERM on VLCS), and the table in test_sweep_results.txt made of them.
SWEEP = Path(__file__).with_name("domainbed_sweep.csv")
PUBLISHED = {
    "training-domain": (["98.0 +/- 0.2", "64.2 +/- 0.8", "74.1 +/- 0.4", "77.1 +/- 0.2"], "78.3 +/- 0.0"),
    "leave-one-domain-out": (["96.9 +/- 1.0", "64.4 +/- 0.9", "70.5 +/- 0.5", "76.7 +/- 0.1"], "77.1 +/- 0.1"),
    "oracle": (["96.9 +/- 1.0", "65.9 +/- 0.5", "71.6 +/- 1.3", "76.9 +/- 0.3"], "77.8 +/- 0.3"),
}


def published_runs() -> list[Checkpoint]:
    with open(SWEEP, newline="") as handle:
        return [
            Checkpoint(
                dataset="VLCS", method="ERM", test_domains=tuple(row["test"].split("+")), trial=int(row["trial"]),
                draw=int(row["draw"]), step=int(row["step"]), inside={str(i): float(row[f"in{i}"]) for i in range(4)},
                outside={str(i): float(row[f"out{i}"]) for i in range(4)},
            )
            for row in csv.DictReader(handle)
        ]  # fmt: skip


def shown(value) -> str:
    return f"{100 * value.mean:.1f} +/- {100 * value.error:.1f}"


@pytest.mark.parametrize("rule", RULES)
def test_the_published_table_comes_out_of_the_published_runs(rule):
    runs = published_runs()
    assert len(runs) == 200
    ((name, table),) = tabulate(choose(runs, rule)).items()
    assert name == ("VLCS", "ERM")
    assert ([shown(value) for value in table.domains.values()], shown(table.average)) == PUBLISHED[rule]
    # The order of the runs plays no part.
    assert tabulate(choose(runs[::-1], rule))[name] == table


def test_seeds_and_splits_are_the_published_ones():
    # Printed by DomainBed's own seed_hash and split_dataset (numpy 2).
    assert [seed_hash(trial, domain) for trial in range(2) for domain in range(3)] == [
        894182419, 1514274641, 1325548499, 785910682, 1442673865, 1981683110,
    ]  # fmt: skip
    assert seed_hash("PACS", 1) == 1412677344
    inside, outside = split_domain(10, trial=0, domain=1)
    assert (outside.tolist(), inside.tolist()) == ([5, 0], [3, 7, 8, 6, 1, 2, 9, 4])
    for count, trial, domain, first, last, digest in (
        (1670, 0, 2, [1441, 1432, 282, 669, 637], 1664, "bebb4621f68d502c"),
        (2048, 2, 0, [388, 1649, 941, 375, 1008], 1744, "1dcbb1e573c756a4"),
    ):
        inside, outside = split_domain(count, trial=trial, domain=domain)
        assert outside[:5].tolist() == first and inside[-1] == last and len(outside) == int(0.2 * count)
        assert hashlib.sha256(str(outside.tolist()).encode()).hexdigest()[:16] == digest
        assert sorted([*inside, *outside]) == list(range(count))


def test_samples_are_counted_as_torchvision_lists_folders():
    labels = ["dog", "cat", "cat", "dog"]
    ids = ["p/dog/2.jpg", "p/cat/b.jpg", "p/cat/a.jpg", "p/dog/10.jpg"]
    assert folder_order(labels, ids).tolist() == [2, 1, 3, 0]


def run(test, draw=0, step=0, trial=0, **accuracies):
    """A checkpoint on three domains: `a=(in, out)`."""
    inside = {name: float(accuracies.get(name, (0.5, 0.5))[0]) for name in "abc"}
    outside = {name: float(accuracies.get(name, (0.5, 0.5))[1]) for name in "abc"}
    return Checkpoint(
        dataset="d", method="m", test_domains=tuple(test), trial=trial, draw=draw, step=step, inside=inside, outside=outside
    )


def test_each_rule_looks_at_its_own_accuracies():
    runs = [
        run("a", draw=0, step=0, a=(0.10, 0.9), b=(0, 0.8), c=(0, 0.8)),
        run("a", draw=0, step=1, a=(0.20, 0.6), b=(0, 0.7), c=(0, 0.7)),
        run("a", draw=1, step=0, a=(0.30, 0.1), b=(0, 0.6), c=(0, 0.6)),
        run("a", draw=1, step=1, a=(0.40, 0.7), b=(0, 0.5), c=(0, 0.5)),
        # Left out beside a, b and c do best in draw 1 at step 0.
        run("ab", draw=0, step=0, b=(0.5, 0)), run("ca", draw=0, step=0, c=(0.5, 0)),
        run("ab", draw=1, step=0, b=(0.9, 0)), run("ca", draw=1, step=0, c=(0.9, 0)),
        # At step 1 the run without a and c is missing, so that step cannot be judged.
        run("ab", draw=1, step=1, b=(1.0, 0)),
    ]  # fmt: skip
    found = {rule: next(one for one in choose(runs, rule) if one.test_domain == "a") for rule in RULES}
    assert (found["training-domain"].accuracy, found["training-domain"].validation) == (0.10, pytest.approx(0.8))
    assert (found["oracle"].accuracy, found["oracle"].validation) == (0.40, 0.7)  # the last steps only: 0.6 and 0.7
    assert (found["leave-one-domain-out"].accuracy, found["leave-one-domain-out"].validation) == (0.30, 0.9)
    # No run has b alone for test, so nothing is chosen for it.
    assert {one.test_domain for rule in RULES for one in choose(runs, rule)} == {"a"}


def test_among_equals_the_later_draw_and_the_earlier_step_win():
    even = [run("a", draw=draw, step=step, a=(draw + step / 10, 0.5)) for draw in (0, 1) for step in (0, 1)]
    (chosen,) = choose(even, "training-domain")
    assert (chosen.draw, chosen.step) == (1, 0)


def test_errors_are_those_of_the_mean_over_trials():
    found = mean_error([0.8, 0.9, 0.7])
    assert found.mean == pytest.approx(0.8) and found.error == pytest.approx(math.sqrt(0.02 / 3) / math.sqrt(3))
    trials = [run("a", trial=t, a=(0.6 + t / 10, 0)) for t in range(3)] + [run("b", trial=t, b=(0.2, 0)) for t in range(2)]
    table = tabulate(choose(trials, "oracle"))["d", "m"]
    assert table.domains["a"].trials == 3 and table.domains["b"].trials == 2
    # The mean over domains is of the two trials that have both.
    assert table.average.trials == 2 and table.average.mean == pytest.approx((0.4 + 0.45) / 2)
    assert math.isnan(tabulate(choose([run("a"), run("b", trial=1)], "oracle"))["d", "m"].average.mean)


def test_a_folder_of_runs_is_read_and_a_wrong_line_named(tmp_path):
    tree = {"args": {"dataset": "PACS", "algorithm": "ERM", "test_envs": [1], "trial_seed": 0, "hparams_seed": 2}, "step": 300}
    tree |= {f"env{i}_{part}_acc": (i + (part == "out") / 2) / 4 for i in range(2) for part in ("in", "out")}
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "results.jsonl"
    path.write_text(json.dumps(tree) + "\n")
    (one,) = read_sweep(tmp_path, ["art", "photo"])
    assert one.test_domains == ("photo",) and one.inside == {"art": 0.0, "photo": 0.25} and one.outside["photo"] == 0.375
    assert read_sweep(tmp_path)[0].test_domains == ("1",)
    path.write_text(json.dumps(tree) + "\n{}\n")
    with pytest.raises(DataError, match="line 2 is no checkpoint"):
        read_sweep(tmp_path)
    with pytest.raises(DataError, match="no run"):
        read_sweep(tmp_path / "run")
    with pytest.raises(ConfigError, match="rule of selection"):
        choose([one], "oracel")


def test_parts_are_small_whole_numbers_of_every_domain():
    inside, outside = split_domain(4, trial=0, domain=0)
    assert len(outside) == 0 and sorted(inside) == [0, 1, 2, 3] and inside.dtype == np.int64
