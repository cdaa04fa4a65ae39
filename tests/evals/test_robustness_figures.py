"""What the page shows of domains, groups and people: every number of the record, nothing that is not there."""

from __future__ import annotations

from ostension.evals.figures import domains, groups_compared, human
from ostension.evals.human import COLUMNS
from ostension.evals.records import Metric, Record


def a_record(protocol: str, details: dict, task="pacs", **metrics: float) -> Record:
    measured = {name: Metric(value=value, count=10) for name, value in metrics.items()} or {
        "accuracy": Metric(value=0.5, count=1)
    }
    return Record(
        protocol=protocol,
        subject="m",
        metrics=measured,
        config={},
        hashes={},
        counts={},
        task=task,
        model="m",
        split="test",
        details=details,
    )


def test_domains_are_a_table_of_every_rule():
    row = {"art": [0.5, 0.01, 3], "photo": [0.75, 0.02, 3]}
    whole = {"domains": row, "average": [0.625, 0.015, 3]}
    table = {"zero-shot": {"training-domain": whole, "oracle": whole}, "probe": {"training-domain": whole, "oracle": whole}}
    (figure,) = domains.draw(
        [a_record("domain-generalisation", {"table": table}), a_record("domains", {"table": {"probe": {}}})]
    )
    assert figure.more.count("62.5 %") == 3  # zero-shot once, since nothing is chosen, and the probe by each rule
    assert "± 2.0" in figure.more and "chosen on the test domain" in figure.more
    alone = a_record("domains", {"table": {"probe": {"oracle": row}}})
    assert "75.0 %" in domains.draw([alone])[0].more and "mean" not in domains.draw([alone])[0].more
    sets = {"probe": {"oracle": {"sets": {"pacs": 0.5, "vlcs": 0.7}, "average": [0.6]}}}
    (several,) = domains.draw([a_record("domain-generalisation", {"table": sets}, task="domainbed5")])
    assert "60.0 %" in several.more and "PACS" in several.more and domains.draw([]) == []


def test_groups_are_bars_of_both_classifiers():
    cells = {"land/w": [0.25, 40, 0.1, 0.4], "land/l": [0.9, 100, 0.8, 0.95]}
    details = {"groups": cells, "worst": "land/w", "by_chance": 1e-5}
    (figure,) = groups_compared.draw([a_record("groups", details, gap=0.6)])
    assert "land/w, 60.0 points below the average" in figure.says and "less than 0.1 %" in figure.says
    assert len(figure.keys) == 1 and "25.0 %" in figure.svg
    both = details | {"probe_groups": cells, "probe_worst": "land/w", "probe_by_chance": 0.2}
    (figure,) = groups_compared.draw([a_record("groups", both, gap=0.6, probe_gap=0.5)])
    assert len(figure.keys) == 2 and "probability of 20 %" in figure.says


def test_people_are_beside_the_model_with_their_source():
    details = {
        "conditions": {"zero-shot": {column: [0.5, 9] for column in COLUMNS}}, "models": {"zero-shot": 0.875},
        "people": {"zero-shot": 5},
        "classes": [["<cat>", {"zero-shot": 0.25}, {"zero-shot": 1.0}]], "correlation": {"zero-shot": [0.5, 0.04]},
        "dropped": {"zero-shot": {"bob": 0.1}},
    }  # fmt: skip
    (figure,) = human.draw([a_record("human", details)])
    assert "87.5 %" in figure.more and "&lt;cat&gt;" in figure.more and "25.0 % / 100.0 %" in figure.more
    assert "r = 0.50" in figure.says and "1 person missed" in figure.says
    told = {
        "table": [["m", {"accuracy": 0.9}], ["people", dict.fromkeys(COLUMNS, 0.5)]],
        "source": "Table 2",
        "evidence": "second-hand",
    }
    (figure,) = human.draw([a_record("human-comparison", told)])
    assert "Table 2" in figure.says and "second-hand" in figure.says and figure.more.count("50.0 %") == 4
