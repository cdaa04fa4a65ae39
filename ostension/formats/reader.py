"""From files to a configuration and a state dict under our names: container, unwrapping, detection, layout, facts."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ostension.errors import CheckpointError, unknown_name
from ostension.files import read_json, sha256_file
from ostension.formats import big_vision, containers, hf_clip, manifest, open_clip, openai, ours, siglip, timm_siglip
from ostension.formats.detect import NAMES, detect
from ostension.formats.facts import Asked, Fact, Reading, family_preprocess, family_tokenizer, resolve, unknown_facts
from ostension.formats.source import Source, find
from ostension.formats.table import Layout, to_ours
from ostension.formats.unwrap import unwrap
from ostension.model.config import ModelConfig

Finish = Callable[[str, Tensor], Tensor]


@dataclasses.dataclass(kw_only=True)
class Examined:
    """Files with their tensors and what is known about the model, before anything is asked for.

    Attributes:
        tensors: under the layout's names, as stored.
        entry: the layout's names of our parameters.
        reading: what the layout's reader found; None for our own layout, whose `config` says everything.
        hashes: SHA-256 of the files, by name; empty where they were not computed.
        provenance: the record that our own folder carries.
    """

    source: Source
    container: str
    layout: str
    tensors: Mapping[str, Tensor]
    entry: Layout
    reading: Reading | None
    config: ModelConfig | None
    notes: list[str]
    hashes: dict[str, str]
    provenance: dict[str, Any]

    def unknown(self) -> list[str]:
        """What has to be asked for before the model can be used."""
        return [] if self.reading is None else unknown_facts(self.reading, self.reading.facts)


@dataclasses.dataclass(kw_only=True)
class Opened(Examined):
    """Files whose model is fully known.

    Attributes:
        facts: what the configuration rests on, with origins.
    """

    config: ModelConfig
    facts: dict[str, Fact]

    def state(self, finish: Finish) -> dict[str, Tensor]:
        """The state dict under our names, each tensor passed through `finish` as soon as it is made."""
        return to_ours(self.tensors, self.entry, self.config, self.source.path, self.layout, finish)


def open_weights(
    name: str | os.PathLike, *, asked: Asked | None = None, layout: str | None = None, ema: bool = False, verify: bool = True
) -> Opened:
    """Open a model's files and settle everything about it; see `load` for the arguments and errors."""
    examined = examine(name, layout=layout, ema=ema, verify=verify)
    asked = asked or Asked()
    if examined.reading is not None:
        config, facts = resolve(examined.reading, asked)
    else:
        assert examined.config is not None
        config, facts = _replace_given(examined.config, asked, examined.source.path)
    values = {field.name: getattr(examined, field.name) for field in dataclasses.fields(examined)}
    return Opened(**{**values, "config": config}, facts=facts)


def examine(name: str | os.PathLike, *, layout: str | None = None, ema: bool = False, verify: bool = True) -> Examined:
    """Open a model's files and find out what they say about it."""
    if layout is not None and layout not in NAMES:
        raise unknown_name("layout", layout, NAMES)
    source = find(name, layout)
    own = _own_config(source, layout)
    hashes = {}
    if verify:
        hashes = manifest.verify(source.folder) if own is not None else {path.name: sha256_file(path) for path in source.files}
    contents = [containers.read(path) for path in source.files]
    tensors, notes = _merge([unwrap(content.tree, content.path, ema=ema) for content in contents], source)
    found = layout or (ours.NAME if own is not None and ours.only_ours(own) else detect(tensors, source.path))
    common: dict[str, Any] = {"source": source, "container": contents[0].container, "notes": notes, "hashes": hashes}
    if own is not None and found in (ours.NAME, open_clip.NAME):
        record = source.folder / ours.PROVENANCE
        provenance = read_json(record, CheckpointError) if record.is_file() else {}
        return Examined(
            **common, layout=ours.NAME, tensors=tensors, entry=ours.entry, reading=None, config=own, provenance=provenance
        )
    if found == big_vision.NAME:
        tensors = big_vision.plain(tensors)
        reading, heads = big_vision.read(tensors, source.path)
        entry = big_vision.layout(heads)
    else:
        digest = hashes.get(source.path.name) if len(source.files) == 1 else None
        reading = _read(found, tensors, source, contents[0], digest)
        entry = _entry(found, tensors)
    reading.settings.setdefault("name", Path(source.public_name).stem if source.revision is None else source.public_name)
    return Examined(**common, layout=reading.layout, tensors=tensors, entry=entry, reading=reading, config=None, provenance={})


def _own_config(source: Source, layout: str | None) -> ModelConfig | None:
    path = source.folder / ours.CONFIG
    if layout not in (None, ours.NAME) or not path.is_file():
        return None
    tree = read_json(path, CheckpointError)
    return ours.read_config(tree, path) if ours.is_config(tree) and source.path.name == ours.WEIGHTS else None


def _merge(parts: list[tuple[dict[str, Tensor], list[str]]], source: Source) -> tuple[dict[str, Tensor], list[str]]:
    tensors: dict[str, Tensor] = {}
    for (part, _), path in zip(parts, source.files, strict=True):
        twice = next((name for name in part if name in tensors), None)
        if twice is not None:
            raise CheckpointError(f"the tensor {twice!r} is in two parts of the model", source=path)
        tensors |= part
    return tensors, list(dict.fromkeys(note for _, notes in parts for note in notes))


def _read(
    layout: str, tensors: Mapping[str, Tensor], source: Source, content: containers.Content, digest: str | None
) -> Reading:
    path = source.path
    if layout in (hf_clip.NAME, siglip.NAME):
        config_path, wanted = source.folder / ours.CONFIG, "clip" if layout == hf_clip.NAME else "siglip"
        if not config_path.is_file():
            raise CheckpointError(
                f"is in the layout {layout!r}, which needs its config.json beside it",
                source=path,
                fix="load the model's folder",
            )
        tree = read_json(config_path, CheckpointError)
        if not isinstance(tree, Mapping) or tree.get("model_type") != wanted:
            found = tree.get("model_type") if isinstance(tree, Mapping) else None
            raise CheckpointError(f"model_type is {found!r}", source=config_path, expected=repr(wanted))
        return (hf_clip if layout == hf_clip.NAME else siglip).read(tensors, path, config_path, tree)
    if layout == ours.NAME:
        raise CheckpointError(
            "is in our layout, which needs its config.json beside it",
            source=path,
            fix=f"load the model's folder ({ours.WEIGHTS} in it)",
        )
    config_path = source.folder / open_clip.CONFIG
    if config_path.is_file():
        return open_clip.read(tensors, path, config_path, read_json(config_path, CheckpointError))
    if layout == openai.NAME:
        return openai.read(tensors, path, container=content.container, evidence=content.evidence, digest=digest)
    return timm_siglip.read(tensors, path) if layout == timm_siglip.NAME else open_clip.read_bare(tensors, path)


def _entry(layout: str, tensors: Mapping[str, Tensor]) -> Layout:
    if layout == open_clip.NAME:
        return open_clip.biased_entry if "text.text_projection.weight" in tensors else open_clip.entry
    return {
        openai.NAME: openai.entry,
        timm_siglip.NAME: timm_siglip.entry,
        hf_clip.NAME: hf_clip.entry,
        siglip.NAME: siglip.entry,
    }[layout]


def _replace_given(config: ModelConfig, asked: Asked, path: Path) -> tuple[ModelConfig, dict[str, Fact]]:
    """Our folder says everything; a preprocessing or tokenizer that the caller gives replaces what it says."""
    if asked.activation is not None and asked.activation != config.text.activation:
        raise CheckpointError(
            f"the activation {asked.activation!r} was given, but the text tower's is {config.text.activation!r}",
            source=path,
            fix="leave it out",
        )
    given: dict[str, Any] = {}
    if asked.preprocess is not None:
        value = asked.preprocess
        given["preprocess"] = family_preprocess(value, config.vision.image_size) if isinstance(value, str) else value
    if asked.tokenizer is not None:
        name, text = asked.tokenizer, config.text
        given["tokenizer"] = (
            family_tokenizer(name, text.vocab_size, text.context_length, path) if isinstance(name, str) else name
        )
    return dataclasses.replace(config, **given), {name: Fact(value, "given") for name, value in given.items()}
