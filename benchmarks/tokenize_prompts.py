"""Tokenising against open_clip's SimpleTokenizer: a classifier's prompts, and batches of captions.

Each row: seconds of processor time and how many times faster than open_clip in the same run. Both sides give the same ids,
in an int64 matrix of 77 columns; that is checked first. Both are warm: every word has been seen. The rows:

    prompts, composed    80 templates x 1,000 names from pieces that were tokenised once, packed
    prompts, one by one  the same 80,000 prompts as texts
    captions             batches of 256 ordinary captions: plain sentences of 6 to 14 words, made from a seed and
                         distributed as words are in English; `--captions FILE` reads yours, one a line
    captions, non-ASCII  the same with curly quotes and accents, which have to be repaired

    python benchmarks/tokenize_prompts.py [--open-clip FOLDER] [--captions FILE] [--record FILE]

Only open_clip's tokenizer.py is loaded, so its own requirements are not needed.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import _measure
import torch

from ostension.runtime import numpy_generator
from ostension.text.prompts import class_names, compose, fill, prompt_set_names, templates
from ostension.text.tokenizer import TokenizerConfig, build_tokenizer, pack

INSTALL = "this benchmark compares with open_clip: pip install --no-deps open_clip_torch==3.3.0, or --open-clip FOLDER"
BATCH = 256
CONNECTING = (
    "a",
    "the",
    "of",
    "on",
    "in",
    "with",
    "and",
    "is",
    "at",
    "to",
    "two",
    "near",
    "its",
    "over",
    "from",
    "by",
    "while",
)


def main() -> None:
    options = _measure.arguments(
        __doc__,
        open_clip=("", "folder of the package open_clip, if it is not installed"),
        captions=("", "captions to read, one a line, in place of the made ones"),
        num_captions=(8192, "captions to make"),
    )
    theirs = load_tokenizer(options.open_clip).SimpleTokenizer()
    ours = build_tokenizer(TokenizerConfig())
    forms, names = templates("openai_imagenet"), class_names("imagenet")
    prompts = [fill(form, name) for name in names for form in forms]
    captions = read_captions(options.captions) if options.captions else make_captions(options.num_captions)
    repaired = [caption.replace("e", "é", 1).replace(" a ", " “a” ", 1) for caption in captions if "e" in caption]
    tasks = {
        "prompts, composed": (
            lambda: pack([row for rows in compose(ours, forms, names) for row in rows], ours.pad_id, 77),
            lambda: theirs(prompts),
        ),
        "prompts, one by one": (lambda: ours(prompts), None),
        "captions": batched(ours, theirs, captions),
        "captions, non-ASCII": batched(ours, theirs, repaired),
    }
    figures: dict[str, dict[str, float]] = {}
    seconds: dict[str, float] = {}
    for name, (mine, peer) in tasks.items():
        if peer is None:  # as the row before
            seconds = {"open_clip": seconds["open_clip"]} | _measure.interleaved({"ostension": mine}, options.rounds)
        else:
            assert torch.equal(mine(), peer()), f"{name}: the ids differ"
            seconds = _measure.interleaved({"open_clip": peer, "ostension": mine}, options.rounds)
        figures[name] = seconds | {"times faster": seconds["open_clip"] / seconds["ostension"]}
    _measure.table(f"{len(prompts)} prompts, {len(captions)} captions", figures)
    settings = {"templates": len(forms), "names": len(names), "captions": len(captions), "batch": BATCH}
    _measure.write_record(options.record, "tokenize_prompts", settings, figures)


def batched(ours, theirs, texts: list[str]):
    """Both tokenizers over `texts` in batches; the results joined, to be compared."""
    batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    return (
        lambda: torch.cat([ours(batch, truncate=True) for batch in batches]),
        lambda: torch.cat([theirs(batch) for batch in batches]),
    )


def make_captions(count: int) -> list[str]:
    """Sentences from the words of the 27 data sets' class names and small words between them, frequent ones more often."""
    generator = numpy_generator("captions")
    words = sorted({word for name in prompt_set_names() for text in class_names(name) for word in text.split()})
    generator.shuffle(words)
    ranks = generator.zipf(1.3, size=(count, 14)) % len(words)
    lengths = generator.integers(6, 15, size=count)
    ends = generator.choice(["", ".", " ."], size=count)
    connecting = generator.integers(len(CONNECTING), size=(count, 14))
    captions = []
    for row in range(count):
        parts = [words[ranks[row, place]] if place % 2 else CONNECTING[connecting[row, place]] for place in range(lengths[row])]
        captions.append(" ".join(parts).capitalize() + ends[row])
    return captions


def read_captions(path: str) -> list[str]:
    """The lines of a file that are not empty."""
    return [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]


def load_tokenizer(folder: str):
    """The module open_clip/tokenizer.py, from `folder` or from the installed package, without the package around it."""
    if not folder:
        found = importlib.util.find_spec("open_clip")
        if found is None or not found.submodule_search_locations:
            raise SystemExit(INSTALL)
        folder = found.submodule_search_locations[0]
    path = Path(folder) / "tokenizer.py"
    if not path.is_file():
        raise SystemExit(f"{path}: no such file; {INSTALL}")
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
