"""Checkpoints that are whole or absent, whenever the process is killed.

A save writes `step_N.partial/`, flushes every file and the folder, writes `manifest.json` (sizes and SHA-256) last,
renames the folder to `step_N/`, and only then points `LATEST` at it. So a folder without the suffix is complete, and what
a kill leaves behind is a partial folder that nobody reads, or a pointer one save behind. Loading checks every file against
the manifest: safetensors itself loads a flipped byte without complaint. Tensors are safetensors, the rest is JSON, nothing
is pickled.

One process writes whole tensors, `weights.safetensors` and so on. Of W processes each writes its rows of every tensor,
`weights.00001-of-00004.safetensors`, and the manifest says which rows are where, under `tensors`: so a checkpoint can be read
by any number of processes, each taking the rows that it needs. All processes must see the same folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from ostension.config import require
from ostension.errors import CheckpointError, UsageError
from ostension.files import PARTIAL_SUFFIX, fsync_folder, read_json, sha256_file, write_json, write_text
from ostension.train.parts import PartFiles, SlicedRows, index_of, own_rows, part_name
from ostension.world import ALONE, World

FOLDER, POINTER, MANIFEST, STATE = "checkpoints", "LATEST", "manifest.json", "state.json"
_STEP = re.compile(r"step_(\d{8,})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save and what to keep; neither changes the result of the run.

    Attributes:
        every: steps between two saves; the end of the run is always saved.
        keep: how many of the newest stay; the best by evaluation stays as well.
    """

    every: int = 1000
    keep: int = 2

    def __post_init__(self):
        require(self.every >= 1, "checkpoint.every", self.every, "1 or more")
        require(self.keep >= 1, "checkpoint.keep", self.keep, "1 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint read back: tensors by file (`weights`, `optimizer`, ...) and name, and the JSON state."""

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one run folder.

    Args:
        world: the processes that save together; what finds, deletes and repairs is for the first of them alone.
    """

    def __init__(self, run_folder: Path, world: World = ALONE):
        self.folder, self.world = Path(run_folder) / FOLDER, world

    def paths(self) -> dict[int, Path]:
        """The complete checkpoints by step, in order."""
        if not self.folder.is_dir():
            return {}
        found = {int(match[1]): path for path in self.folder.iterdir() if (match := _STEP.fullmatch(path.name))}
        return dict(sorted(found.items()))

    def path(self, step: int) -> Path:
        """Where the checkpoint after `step` steps lies."""
        return self.folder / f"step_{step:08d}"

    def save(
        self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], rows: SlicedRows | None = None
    ) -> Path:
        """Write one checkpoint; returns its folder, which has been read back and checked.

        Args:
            rows: of tensors that are slices of larger ones, which rows they are.

        Raises:
            CheckpointError: if it cannot be written (a full disk); the older ones are untouched and nothing is left over. If
                one process cannot write its part, all raise it.
        """
        final = self.path(step)
        partial = final.with_name(final.name + PARTIAL_SUFFIX)
        with self._all_or_none(step, partial):
            if self.world.first:
                self.folder.mkdir(exist_ok=True)
                self._remove(partial)
                partial.mkdir()
        with self._all_or_none(step, partial):
            written = self._write(partial, tensors, rows or {})
        files = {name: facts for part in self.world.all_facts(written) for name, facts in part.items()}
        with self._all_or_none(step, partial):
            if self.world.first:
                write_json(partial / STATE, {"step": step, **state})
                index = {} if self.world.size == 1 else {"tensors": index_of(tensors, rows or {}, self.world.size)}
                write_json(partial / MANIFEST, manifest_of(partial, files) | index)
                fsync_folder(partial)
                self._remove(final)  # one that was saved whole but for its pointer
                publish(partial, final)
        with self._all_or_none(step, partial):
            verify(final, only={*written, STATE} if self.world.first else written)
            if self.world.first:
                point_to(final)
        return final

    def _write(self, partial: Path, tensors: Mapping[str, Mapping[str, Tensor]], rows: SlicedRows) -> dict[str, dict[str, Any]]:
        """This process's part of the tensors; the files' sizes and SHA-256."""
        written = {}
        for name, group in tensors.items():
            file = partial / part_name(name, self.world.rank, self.world.size)
            held = {key: value.detach() for key, value in group.items()}
            if self.world.size > 1:
                held = own_rows(held, rows.get(name, {}), self.world)
            safetensors.torch.save_file({key: value.contiguous() for key, value in held.items()}, file)
            _flush(file)
            written[file.name] = facts_of(file)
        return written

    @contextlib.contextmanager
    def _all_or_none(self, step: int, partial: Path) -> Iterator[None]:
        """If what is inside fails in one process, it fails in all, and what was written so far is gone."""
        reason = None
        try:
            yield
        except (OSError, safetensors.SafetensorError) as problem:
            reason = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
        reasons = [told for told in self.world.all_facts(reason) if told is not None]
        if reasons:
            with contextlib.suppress(OSError):
                if self.world.first:
                    self._remove(partial)
            raise CheckpointError(f"step {step} could not be saved: {reasons[0]}", source=self.folder) from None

    def prune(self, keep: int, protected: Collection[int] = ()) -> list[int]:
        """Delete all but the newest `keep` and the `protected` steps; returns the steps that are gone.

        To be called after `save` has verified the newest. A checkpoint that cannot be deleted stays.
        """
        gone = []
        for step in list(self.paths())[:-keep]:
            if step not in protected:
                with contextlib.suppress(OSError):
                    self._remove(self.path(step))
                    gone.append(step)
        return gone

    def remove_leftovers(self) -> None:
        """Delete what interrupted saves and deletions left behind."""
        if self.folder.is_dir():
            for path in self.folder.glob(f"*{PARTIAL_SUFFIX}"):
                if path.is_dir():
                    self._remove(path)
                else:
                    path.unlink()  # a pointer that was about to be renamed

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that passes verification (see `newest_path`), or None where there is none at all."""
        path = self.newest_path()
        return None if path is None else read_checkpoint(path)

    def newest_path(self) -> Path | None:
        """Where the newest checkpoint lies that passes verification; None where there is none at all.

        Each one that does not pass is named on stderr before the one before it is tried, and then set aside under the name
        `step_N.damaged`, so that it neither counts as one to keep nor stands where step N will be saved again. `LATEST`
        then names the one that is given.

        Raises:
            CheckpointError: if there are checkpoints and none can be used.
        """
        damaged = []
        for path in reversed(self.paths().values()):
            try:
                verify(path)
            except CheckpointError as problem:
                print(f"ostension: WARNING: checkpoint not used: {problem}", file=sys.stderr)
                damaged.append(path)
                continue
            for bad in damaged:
                bad.rename(bad.with_name(f"{bad.name}.damaged"))
            with contextlib.suppress(OSError):
                point_to(path)  # a kill may have come between the name and the pointer
            return path
        if damaged:
            what = f"none of the {len(damaged)} checkpoints can be used"
            raise CheckpointError(what, source=self.folder, fix="start in another folder")
        return None

    def _remove(self, path: Path) -> None:
        """Delete a checkpoint or part of one; under another name first, so that a kill leaves nothing that looks whole."""
        if not path.exists():
            return
        doomed = path if path.name.endswith(PARTIAL_SUFFIX) else path.with_name(f"{path.name}.old{PARTIAL_SUFFIX}")
        if doomed != path:
            if doomed.exists():
                shutil.rmtree(doomed)
            path.rename(doomed)
        shutil.rmtree(doomed)


def publish(partial: Path, final: Path) -> None:
    """Give a finished folder its name: from here on the checkpoint exists."""
    os.rename(partial, final)
    fsync_folder(final.parent)


def point_to(path: Path) -> None:
    """Name the newest checkpoint in `LATEST`, for people and other programs."""
    write_text(path.parent / POINTER, path.name + "\n")


def manifest_of(folder: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes and SHA-256 of the files in `folder`; those in `known` are not read again."""
    names = sorted(path.name for path in folder.iterdir() if path.name != MANIFEST)
    return {"files": {name: known.get(name) or facts_of(folder / name) for name in names}}


def facts_of(file: Path) -> dict[str, Any]:
    """What a manifest says of a file."""
    return {"bytes": file.stat().st_size, "sha256": sha256_file(file)}


def verify(path: Path, only: Collection[str] | None = None) -> dict[str, Any]:
    """Check a checkpoint's files (or those named in `only`) against its manifest, which it gives.

    Raises:
        CheckpointError: naming the first file that is missing, of another size or of another content.
    """
    if not (path / MANIFEST).is_file():
        raise CheckpointError(f"has no {MANIFEST}", source=path, expected="a checkpoint whose save was completed")
    manifest = read_json(path / MANIFEST, CheckpointError)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or STATE not in files:
        raise CheckpointError("is no manifest of a checkpoint", source=path / MANIFEST)
    for name, expected in files.items():
        file = path / name
        if Path(name).name != name:
            raise CheckpointError(f"names the file {name!r} outside its folder", source=path / MANIFEST)
        if only is not None and name not in only:
            continue
        if not file.is_file():
            raise CheckpointError("is missing", source=file, expected=f"a file of {expected['bytes']:,} bytes")
        if file.stat().st_size != expected["bytes"]:
            raise CheckpointError(f"has {file.stat().st_size:,} bytes", source=file, expected=f"{expected['bytes']:,}")
        if sha256_file(file) != expected["sha256"]:
            raise CheckpointError("its content is not what was saved", source=file, expected="the SHA-256 in the manifest")
    return manifest


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify the checkpoint in the folder `path`.

    Raises:
        CheckpointError: if anything in it is not as it was saved.
    """
    verify(path)
    return read_checkpoint(path)


def read_checkpoint(path: Path, rows: SlicedRows | None = None) -> Checkpoint:
    """Read a checkpoint that was verified; of the tensors in `rows`, by file and name, only those rows.

    Raises:
        CheckpointError: if it cannot be read.
    """
    index = verify(path, only=()).get("tensors")
    state, rows = read_json(path / STATE, CheckpointError), rows or {}
    tensors = {}
    try:
        with contextlib.ExitStack() as stack:
            files = PartFiles(path, stack)
            for name in sorted(index or [file.stem for file in path.glob("*.safetensors")]):
                wanted = rows.get(name, {})
                tensors[name] = files.assembled(index[name], wanted) if index else files.whole(name, wanted)
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as problem:
        raise CheckpointError(f"cannot be read: {problem}", source=path) from None
    return Checkpoint(path=path, step=state["step"], tensors=tensors, state=state)


def resolve_path(path: str | os.PathLike) -> Path:
    """The checkpoint folder that a user named: itself, or a run folder's (then the one that `LATEST` names).

    Raises:
        UsageError: if there is none, listing those beside it.
    """
    path = Path(path)
    for pointer in (path / FOLDER / POINTER, path / POINTER):
        if pointer.is_file():
            return (pointer.parent / pointer.read_text(encoding="utf-8").strip()).absolute()
    if path.is_dir():
        return path.absolute()
    nearby = next((folder for folder in (path.parent, path.parent / FOLDER, path / FOLDER) if folder.is_dir()), None)
    names = [] if nearby is None else sorted(entry.name for entry in nearby.iterdir() if _STEP.fullmatch(entry.name))
    listed = f"{nearby} holds {', '.join(names)}" if names else "there are no checkpoints beside it"
    raise UsageError(f"no checkpoint at {path}", source="--resume", expected="a checkpoint or run folder", fix=listed)


def _flush(path: Path) -> None:
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())
