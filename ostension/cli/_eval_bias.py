"""The sub-command `ostension eval label-sets`: texts to classify people and things with, and where they come from."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from ostension.evals.bias.label_sets import LabelSet


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelSets:
    """List the label sets for bias probes, or show one: texts, categories, sources, published values.

    Examples:
      ostension eval label-sets
      ostension eval label-sets fairface_harms

    Args:
        name: A shipped label set's name, or a TOML file; all of them if none is given.
        json: Print one JSON object a line.
    """

    name: Annotated[str | None, tyro.conf.Positional] = None
    json: bool = False

    def run(self) -> int:
        from ostension.config import to_tree
        from ostension.evals.bias.label_sets import label_set_names, read_label_set

        names = [self.name] if self.name is not None else label_set_names()
        for name in names:
            labels = read_label_set(name)
            if self.json:
                print(json.dumps({"name": name, **to_tree(labels)}, ensure_ascii=False))
            elif self.name is None:
                print(f"{name:<20} {len(labels.texts):>4} texts, {len(labels.categories)} harm categories: {labels.title}")
            else:
                print("\n".join(lines_of(name, labels)))
        return 0


COMMANDS = {"label-sets": LabelSets}


def lines_of(name: str, labels: LabelSet) -> list[str]:
    """A label set for a reader."""
    lines = [f"{name}: {labels.title} (version {labels.version})", f"source    {labels.source} ({labels.evidence})"]
    lines += [f"note      {note}" for note in labels.notes]
    lines += [f"template  {template}" for template in labels.templates]
    lines += [f"neutral   {text}" for text in labels.neutral]
    lines += [f"{category:<9} {text}" for category, texts in labels.categories.items() for text in texts]
    lines += [f"to add    {text}" for text in labels.added]
    for one in labels.published:
        of = f"{one.by} {one.group}" if one.by else "all"
        ends = "" if one.low is None or one.high is None else f" ({100 * one.low:.1f} to {100 * one.high:.1f})"
        added = ", with the added text" if one.added else ""
        lines.append(f"published {one.category}, {of}{added}: {100 * one.value:.1f} %{ends}, {one.evidence}")
    return lines
