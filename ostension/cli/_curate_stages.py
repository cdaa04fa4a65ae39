"""Sub-commands of `ostension curate` that run stages: one for each stage that there is, and one for a whole chain."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ostension.errors import UsageError

if TYPE_CHECKING:
    from ostension.curate.base import Stage
    from ostension.curate.work import Entry, Work

# The flags that all stages share, with their lines in the help.
SHARED = {
    "source": "A work folder; or a source of pairs or captions, which is read into the work folder --output first.",
    "output": "The work folder, where the source is none.",
    "part_size": "Rows a part, when a work folder is begun.",
    "texts": "Columns with the captions, when a work folder is begun.",
    "captions_only": "Take captions alone, also of tables whose columns name pictures, when a work folder is begun.",
    "workers": "Processes that work on parts.",
    "on": "Where: local, or ray for a cluster whose nodes all see the work folder.",
    "ray_address": "Of the cluster; without, what RAY_ADDRESS says, else Ray is started on this machine.",
    "json": "Print one JSON object instead of lines.",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageCommand:
    """What the command of every stage does."""

    source: Annotated[tuple[str, ...], tyro.conf.Positional]
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    part_size: int | None = None
    texts: tuple[str, ...] = ()
    captions_only: bool = False
    workers: int = 0
    on: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    json: bool = False

    def run(self) -> int:
        from ostension.curate.run import connected, run_stage

        kind: type[Stage] = self.STAGE  # type: ignore[attr-defined]
        names = [field.name for field in dataclasses.fields(kind.config_type)]
        config = kind.config_type(**{name: getattr(self, name) for name in names})
        kind(config).check()  # before a source is read
        with connected(self.on, self.workers, self.ray_address):
            work = opened(self, workers=self.workers, on=self.on)
            entry = run_stage(work, kind.name, config, workers=self.workers, on=self.on, progress=Bar())
        show([entry], as_json=self.json)
        return 0


def command_of(name: str) -> type:
    """The command of a stage: its settings as flags beside the shared ones."""
    from ostension.curate.base import STAGES, load_stage

    kind = load_stage(name)
    hints = typing.get_type_hints(kind.config_type, include_extras=True)
    taken = {field.name for field in dataclasses.fields(StageCommand)}
    fields: list[Any] = []
    for field in dataclasses.fields(kind.config_type):
        assert field.name not in taken, f"{name}: a setting called {field.name!r} is a flag of every stage"
        default = {"default": field.default} if field.default is not dataclasses.MISSING else {}
        if field.default_factory is not dataclasses.MISSING:
            default = {"default_factory": field.default_factory}
        fields.append((field.name, hints[field.name], dataclasses.field(kw_only=True, **default)))
    made = dataclasses.make_dataclass(
        name.title().replace("-", ""), fields, bases=(StageCommand,), frozen=True, kw_only=True, namespace={"STAGE": kind}
    )
    _, _, settings = inspect.cleandoc(kind.config_type.__doc__ or "").partition("\nAttributes:\n")
    lines = [f"    {flag}: {text}" for flag, text in SHARED.items()]
    opening = STAGES.summary(name)
    made.__doc__ = f"{opening}\n\nArgs:\n" + "\n".join([*lines, settings])
    return made


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Run a whole curation from a TOML file; stages that are done are left as they are.

    Examples:
      ostension curate run pairs.toml -o work
      ostension curate run pairs.toml -o work --workers 2

    Args:
        chain: The TOML file: the source, then [[stages]] with their settings.
        output: The work folder.
        workers: Processes that work on parts.
        on: Where: local, or ray for a cluster whose nodes all see the work folder.
        ray_address: Of the cluster; without, what RAY_ADDRESS says, else Ray is started on this machine.
        json: Print one JSON object instead of lines.
    """

    chain: Annotated[Path, tyro.conf.Positional]
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    workers: int = 0
    on: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    json: bool = False

    def run(self) -> int:
        from ostension.curate.chain import read_chain, run_chain
        from ostension.curate.run import connected

        with connected(self.on, self.workers, self.ray_address):
            work = run_chain(read_chain(self.chain), self.output, workers=self.workers, on=self.on, progress=Bar())
        show(work.entries, as_json=self.json)
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Show:
    """What a work folder holds: its stages in order, what went in, what was kept, what was dropped and why.

    Without a folder, the stages that there are.

    Args:
        work: The work folder.
        json: Print one JSON object instead of lines.
    """

    work: Annotated[Path | None, tyro.conf.Positional] = None
    json: bool = False

    def run(self) -> int:
        from ostension.curate.base import STAGES
        from ostension.curate.work import Work

        if self.work is not None:
            show(Work(self.work).entries, as_json=self.json)
            return 0
        found = {name: STAGES.summary(name) for name in STAGES.names()}
        width = max(map(len, found), default=0)
        lines = "\n".join(f"{name.ljust(width)}  {line}" for name, line in found.items())
        print(json.dumps(found, indent=2) if self.json else lines)
        return 0


class Bar:
    """A progress bar a pass."""

    def __init__(self):
        self._bar: Any = None
        self._what = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if self._bar is None or self._what != what:
            self._what = what
            self._bar = tqdm(desc=what, total=total or None, unit=" parts", leave=False, disable=None)
        self._bar.n = done
        self._bar.refresh()
        if done == total:
            self._bar.close()


def opened(command: StageCommand, **how: Any) -> Work:
    """The work folder that a command is about.

    Raises:
        UsageError: for a source without -o, or a work folder with what only a source takes.
    """
    from ostension.curate.candidates import describe
    from ostension.curate.run import begin
    from ostension.curate.work import PART_SIZE, Work
    from ostension.data.layout import Layout

    source = command.source
    if not source:
        raise UsageError("the source is missing", expected="a work folder, or pairs or captions with -o WORK")
    if len(source) == 1 and Work.is_one(source[0]):
        for name in ("output", "part_size", "texts", "captions_only"):
            if getattr(command, name) not in (None, (), False):
                expected = "a source with it, or the folder alone"
                raise UsageError(f"--{name.replace('_', '-')} beside a work folder", source=source[0], expected=expected)
        work = Work(source[0])
        return begin(work.folder, work.facts, progress=Bar(), **how)
    if command.output is None:
        raise UsageError(f"{' '.join(source)} is no work folder", expected="one, or a source with -o WORK", fix="add -o WORK")
    size = PART_SIZE if command.part_size is None else command.part_size
    layout = Layout(texts=command.texts)
    facts = describe(source, layout=layout, part_size=size, captions_only=command.captions_only)
    return begin(command.output, facts, progress=Bar(), **how)


def show(entries: Any, *, as_json: bool) -> None:
    """Print what stages ended in."""
    if as_json:
        print(json.dumps([{"stage": entry.name, **_counts(entry)} for entry in entries], indent=2, ensure_ascii=False))
        return
    for entry in entries:
        counts = _counts(entry)
        if not entry.done:
            print(f"{entry.number:02d} {entry.name}: not ended")
            continue
        share = f" ({counts['kept'] / counts['rows']:.1%})" if counts["rows"] else ""
        rows = f"{counts['rows']:,} rows, {counts['kept']:,} kept{share}, {counts['seconds']:.1f} s"
        print(f"{entry.number:02d} {entry.name}: {rows}")
        for reason, number in sorted(counts["reasons"].items(), key=lambda item: -item[1]):
            print(f"     {number:>12,}  {reason}")
        if gone := sum(counts["text_reasons"].values()):
            print(f"     {gone:>12,}  of {counts['texts']:,} captions")
    sys.stdout.flush()


def _counts(entry: Entry) -> dict[str, Any]:
    return entry.counts() if entry.done else {"done": False}


def stage_commands() -> dict[str, type]:
    """A command for each stage."""
    from ostension.curate.base import STAGES

    return {name: command_of(name) for name in STAGES.names()}
