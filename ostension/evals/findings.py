"""What results say in a few sentences and headline numbers, made from the records by plain rules."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ostension.evals.records import Record
from ostension.evals.results import Result
from ostension.evals.results_tables import in_order, no_better_than_chance
from ostension.evals.selection import (
    find,
    kind,
    metric_words,
    models,
    one,
    protocol_words,
    published,
    target,
    task_title,
    tasks,
)

TILES = 4
NAMED = 3  # sets that a sentence names


def headline_tiles(results: Sequence[Result], summaries: Sequence[Record]) -> list[tuple[str, str]]:
    """The numbers at the head of the page, with what they are: scores of suites, else means over sets."""
    records = [result.record for result in results]
    names = models(records)
    tiles = [_suite_tile(record, len(names)) for record in best_suites(summaries)]
    if len(names) > 1:
        shared = common_tasks(records, "zeroshot", names)
        means = {name: mean_score(records, "zeroshot", name, shared) for name in names if shared}
        ranked = sorted(means.items(), key=lambda entry: -entry[1])
        tiles += [(_percent(value), f"{name}: zero-shot, {_mean_of(len(shared))}") for name, value in ranked]
    elif names:
        for protocol, words in (("zeroshot", "zero-shot"), ("probe", "linear probe"), ("fewshot", "a few labels")):
            measured = tasks(records, protocol)
            if measured:
                value = mean_score(records, protocol, names[0], measured)
                tiles.append((_percent(value), f"{words}, {_mean_of(len(measured))}"))
        for record in find(summaries, "data_efficiency", model=names[0]):
            if "median" in record.metrics:
                words = f"labelled samples a class match zero-shot, median of {record.counts['tasks']} sets"
                tiles.append((f"{record.metrics['median'].value:.3g}", words))
    if not tiles and records:
        tiles = [(_percent(r.headline.value), f"{metric_words(next(iter(r.metrics)))}, {task_title(target(r))}")
                 for r in records if _is_share(r.headline.value)]  # fmt: skip
    return tiles[:TILES]


def best_suites(summaries: Sequence[Record]) -> list[Record]:
    """Of the scores of suites the one of the largest suite for each protocol and model, protocols in the order of interest."""
    found: dict[tuple[str, str], Record] = {}
    for record in summaries:
        if kind(record.protocol) == "suitescore":
            place = record.config["of"], record.model
            if place not in found or record.counts["measured"] > found[place].counts["measured"]:
                found[place] = record
    order = {name: number for number, name in enumerate(in_order([of for of, _ in found]))}
    return sorted(found.values(), key=lambda record: (order[record.config["of"]], -record.headline.value))


def _suite_tile(record: Record, num_models: int) -> tuple[str, str]:
    """A suite's score, or the mean of what was measured of it, which is said."""
    measured, whole = record.counts["measured"], record.counts["tasks"]
    what = f"mean of the {whole} sets of {record.task}"
    if measured < whole:
        what = f"mean of {measured} of the {whole} sets of {record.task}, which is no score of it"
    words = f"{protocol_words(record.config['of'])}, {what}"
    return _percent(record.headline.value), f"{record.model}: {words}" if num_models > 1 else words


def mean_score(records: Sequence[Record], protocol: str, model: str, chosen: Sequence[str]) -> float:
    """The plain mean of a model's scores on these sets, all of which it has."""
    found = [one(records, protocol, model, task) for task in chosen]
    values = [record.headline.value for record in found if record is not None]
    return sum(values) / len(values)


def common_tasks(records: Sequence[Record], protocol: str, names: Sequence[str]) -> list[str]:
    """The sets that every model has been measured on with a protocol."""
    return [task for task in tasks(records, protocol) if all(one(records, protocol, name, task) for name in names)]


def findings(results: Sequence[Result], summaries: Sequence[Record]) -> list[str]:
    """Sentences, the most important first."""
    records = [result.record for result in results]
    names = models(records)
    lines = []
    if len(names) > 1:
        lines += _ranking(records, names)
    for name in names:
        said = [*_extremes(records, name), *_against_probe(records, name), *_published(records, name)]
        lines += said if len(names) == 1 else [f"{name}. {' '.join(said)}"] if said else []
    lines += _follows(summaries)
    lines += _calibration(records)
    lines += _shifts(summaries)
    return lines or ["There is nothing to compare yet: see the table of scores."]


def _ranking(records: Sequence[Record], names: Sequence[str]) -> list[str]:
    shared = common_tasks(records, "zeroshot", names)
    if not shared:
        return []
    means = {name: mean_score(records, "zeroshot", name, shared) for name in names}
    best, second = sorted(names, key=lambda name: -means[name])[:2]
    wins = draws = 0
    for task in shared:
        ours, theirs = one(records, "zeroshot", best, task), one(records, "zeroshot", second, task)
        assert ours is not None and theirs is not None
        a, b = ours.headline, theirs.headline
        if a.interval and b.interval and a.interval.low <= b.interval.high and b.interval.low <= a.interval.high:
            draws += 1
        elif a.value > b.value:
            wins += 1
    line = f"Zero-shot, {best} leads with {_percent(means[best])} on average over {_sets(len(shared))}; {second} follows with "
    line += f"{_percent(means[second])}. It is clearly ahead on {wins}, clearly behind on {len(shared) - wins - draws}; on "
    return [f"{line}{draws} the intervals overlap, which `ostension eval compare` can settle with paired tests."]


def _extremes(records: Sequence[Record], name: str) -> list[str]:
    found = [record for task in tasks(records, "zeroshot") if (record := one(records, "zeroshot", name, task))]
    if not found:
        return []
    ranked = sorted(found, key=_above_chance)
    lines = []
    if len(found) > 1:
        lines.append(f"Against chance, zero-shot is best on {_scored(ranked[-1])} and weakest on {_scored(ranked[0])}.")
    lost = [task_title(target(record)) for record in found if no_better_than_chance(record.headline)]
    if lost:
        lines.append(f"No better than guessing: {_listed(lost)}.")
    return lines


def _above_chance(record: Record) -> float:
    """The share of the way from chance to a perfect score."""
    chance = record.headline.chance or 0.0
    return (record.headline.value - chance) / (1 - chance)


def _against_probe(records: Sequence[Record], name: str) -> list[str]:
    gains: dict[str, float] = {}
    for task in tasks(records, "zeroshot"):
        zero_shot, probe = one(records, "zeroshot", name, task), one(records, "probe", name, task)
        if zero_shot and probe:
            gains[task_title(task)] = probe.headline.value - zero_shot.headline.value
    if not gains:
        return []
    most, least = max(gains, key=lambda key: gains[key]), min(gains, key=lambda key: gains[key])
    line = f"A linear probe on all labels adds {100 * statistics.mean(gains.values()):.1f} points"
    if len(gains) > 1:
        ends = f"most on {most} ({_points(gains[most])}), least on {least} ({_points(gains[least])})"
        line += f" on average over {len(gains)} sets: {ends}"
    return [line + "."]


def _published(records: Sequence[Record], name: str) -> list[str]:
    near, far = 0, {}
    for record in records:
        known = published(record) if record.model == name else None
        if known is None or known.why_not:  # what was measured otherwise says nothing about the published value
            continue
        near += known.near
        if not known.near:
            far[f"{task_title(target(record))} {protocol_words(record.protocol)}"] = known.found - known.published
    if not near and not far:
        return []
    line = f"{near} of {near + len(far)} results lie within the tolerance of what was published for these weights"
    if far:
        worst = sorted(far, key=lambda key: -abs(far[key]))[:NAMED]
        line += "; furthest off: " + ", ".join(f"{key} ({_points(far[key])})" for key in worst)
    return [line + "."]


def _follows(summaries: Sequence[Record]) -> list[str]:
    lines = []
    for record in find(summaries, "zeroshot_vs_probe"):
        r, share = record.metrics["pearson"], record.metrics["transfer_efficiency"]
        line = f"{record.model}: zero-shot reaches {_percent(share.value)} of the probe, mean of {record.counts['tasks']} sets"
        # An interval as wide as half of all correlations says nothing that belongs at the top of a page.
        if r.interval is not None and r.interval.high - r.interval.low < 1:
            line += f", and follows it with r = {r.value:.2f} ({r.interval.low:.2f} to {r.interval.high:.2f})"
        lines.append(f"{line}.")
    return lines


def _calibration(records: Sequence[Record]) -> list[str]:
    found = [record for record in find(records, "zeroshot") if "ece" in record.metrics]
    if len(found) < 2:
        return []
    worst = max(found, key=lambda record: record.metrics["ece"].value)
    error = worst.metrics["ece"].value
    who = f"{worst.model} on {task_title(target(worst))}" if len(models(records)) > 1 else task_title(target(worst))
    return [f"Confidence is furthest from the truth for {who}: off by {100 * error:.1f} points on average."]


def _shifts(summaries: Sequence[Record]) -> list[str]:
    found = []
    for record in summaries:
        if kind(record.protocol) != "effectiverobustness":
            continue
        who = record.model or record.subject
        drops = {name.removeprefix("drop "): one.value for name, one in record.metrics.items() if name.startswith("drop ")}
        if "effective_robustness" in record.metrics:
            value = record.metrics["effective_robustness"].value
            found.append(f"{who}: effective robustness {_points(value)} on the mean of the seven shifts.")
        elif plain := {name: value for name, value in drops.items() if "(" not in name}:
            worst = max(plain, key=lambda name: plain[name])
            if plain[worst] > 0:
                found.append(f"{who} loses most from {worst}: {100 * plain[worst]:.1f} points of accuracy.")
    return found


def _scored(record: Record) -> str:
    metric = record.headline
    chance = "" if metric.chance is None else f", chance {100 * metric.chance:.2g} %"
    return f"{task_title(target(record))} ({_percent(metric.value)}{chance})"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - 2 * NAMED
    return ", ".join(names) if more <= 0 else f"{', '.join(names[: 2 * NAMED])} and {more} more"


def _points(value: float) -> str:
    return f"{100 * value:+.1f} points".replace("-", "−")


def _percent(value: float) -> str:
    return f"{100 * value:.1f}\u00a0%"


def _is_share(value: float) -> bool:
    return 0 <= value <= 1


def _sets(count: int) -> str:
    return "one set" if count == 1 else f"{count} sets"


def _mean_of(count: int) -> str:
    return "one set" if count == 1 else f"mean of {count} sets"
