"""Strings that are hard to tokenise, made from a seed, and OpenAI's tokenizer loaded from its file alone."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import regex

from ostension.runtime import numpy_generator

FRAGMENTS = (
    *("a", "The", "photo", "dog.", "o'clock", "'s", "'LL", "don't", "'", '"', "(", ")", "!", "?", "...", "-", "_", "#", ";"),
    *("1234", "½", "²", "٣", "Ⅷ", "&", "&&", "& ", "&T", "AT&T", "<", "<b>", "&amp;", "&lt;", "&nbsp;", "&#39;", "&#x1F600;"),
    *("&notit;", "&AMP;", "&EACUTE;", "&amp;amp;lt;", "&#128;", "&#0;", "&#xD800;", "&copy", "&" + "amp;" * 20 + "gt;"),
    *("Ã©", "â€œ", "â€\x9d", "Ã ", "Â ", "â€\ufffd", "Ð¿Ñ€", "Ã\x83Â©", "\r\n", "\n", "\t", "\r", "\x00", "\x1b[1m", "\x1c"),
    *("\x7f", "\x0b", "\x0c", "\x85", "\xa0", "\u2028", "\u3000", "\ufeff", "\u200d", "\u202e", "\ufffd", "\ud83d", "\ude00"),
    *("\ud83d\ude00", "ſ", "'ſ", "ß", "ẞ", "Σ", "ΑΣ", "ΌΔΟΣ.", "ﬁ", "ﬃ", "ＦＵＬＬ", "ﾊﾟ", "ǅ", "İ", "ı", "é", "e\u0301", "ñ"),
    *("\u0301", "\u0316\u0301", "\u0323" * 70, "“", "”", "’", "«", "…", "—", "שלום", "مرحبا", "漢字", "한국어", "ᄒ", "नमस्ते"),
    *("ไทย", "привет", "👩‍👩‍👧", "🇺🇸", "👍🏽", "❤️", "😂😂😂😂", "<|endoftext|>", "<|STARTOFTEXT|>", "<start_of_text>", "</w>"),
)
# Blocks whose characters have been in Unicode for long, so that the stored ids do not depend on versions.
BLOCKS = ((0x20, 0x7F), (0xA0, 0x250), (0x370, 0x3FF), (0x400, 0x480), (0x5D0, 0x5EB), (0x4E00, 0x9F00), (0x1F300, 0x1F5FF))


def hard_strings(count: int, *, seed: int = 0, everything: bool = False) -> list[str]:
    """`count` strings; with `everything`, some hold code points from the whole of Unicode."""
    generator = numpy_generator(seed, "hard strings")
    return [_string(generator, everything) for _ in range(count)]


def _string(generator: np.random.Generator, everything: bool) -> str:
    length = int(generator.choice([1, 2, 3, 5, 8, 13, 21]))
    kind = generator.random()
    if kind < 0.5:
        parts = [FRAGMENTS[index] for index in generator.integers(len(FRAGMENTS), size=length)]
        return "".join(part + (" " if generator.random() < 0.3 else "") for part in parts)
    if kind < 0.7:
        return "".join(map(chr, generator.integers(9, 127, size=length)))
    if kind < 0.8:
        parts = [FRAGMENTS[index] for index in generator.integers(len(FRAGMENTS), size=length)]
        return "".join(parts).encode("utf-8", "replace").decode("windows-1252", "replace")
    blocks = (*BLOCKS, (0, 0x110000), (0, 0x3000)) if everything else BLOCKS
    return "".join(chr(generator.integers(*blocks[generator.integers(len(blocks))])) for _ in range(length))


def load_reference(path: Path):
    """OpenAI's `SimpleTokenizer` from `simple_tokenizer.py`, without the package around it (which imports torchvision).

    Its pattern loses the two special strings: ours treats them as ordinary characters.
    """
    spec = importlib.util.spec_from_file_location("reference_simple_tokenizer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    reference = module.SimpleTokenizer()
    specials = r"<\|startoftext\|>|<\|endoftext\|>|"
    assert reference.pat.pattern.startswith(specials)
    reference.pat = regex.compile(reference.pat.pattern.removeprefix(specials), regex.IGNORECASE)
    reference.cache = {}
    return reference
