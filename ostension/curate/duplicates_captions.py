"""When two captions are the same, and the number by which that is seen.

Captions are the same if nothing is left of their difference when, in this order,

1. characters are brought to their compatibility form (Unicode NFKC): full-width letters, ligatures, composed accents;
2. marks that have no width (Unicode Cf, and selectors of variants) go;
3. case is folded (as `str.casefold`: also "ss" for the sharp s), and the form is brought about again;
4. punctuation, controls and blanks of every kind become one space, and none is left at the ends. Symbols stay: "C++" is no "C".

Nothing else: word order, stop words, spelling and accents count. **Captions that are merely alike are not looked for** (the
field uses MinHash for web pages, where the text is the document). A caption is a few words about a picture: "a photo of a black
cat" and "a photo of a white cat" share nearly all words and are not duplicates, and a frequent caption over different pictures
is what `balance` is for. What was copied together with its picture is found by the picture.

A sample with several captions has the same as another if both have the same set of them. Samples without a caption, or of
punctuation alone, are the same as nothing. The number is 64 bits of BLAKE2b: among a hundred million captions, the chance that
any two different ones share it is 0.03 %.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence

import regex

_NOTHING = regex.compile(r"[\p{Cf}\uFE00-\uFE0F]+")
_SPACE = regex.compile(r"[\p{P}\p{Z}\p{Cc}]+")


def normalised(caption: str) -> str:
    """The caption without what does not count."""
    seen = _NOTHING.sub("", unicodedata.normalize("NFKC", caption))
    return _SPACE.sub(" ", unicodedata.normalize("NFKC", seen.casefold())).strip()


def caption_digest(captions: Sequence[str]) -> int:
    """64 bits that tell a sample's captions, whatever their order; 0 if there is nothing in them."""
    words = sorted({found for caption in captions if (found := normalised(caption))})
    return text_digest("\n".join(words)) if words else 0


def text_digest(text: str) -> int:
    """64 bits of a text, never 0."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") or 1


def new_captions(own: Sequence[str], others: Sequence[str], most: int) -> list[str]:
    """The own captions, and of the others in their order those that are not the same as one before, up to `most` in all."""
    found, seen = list(own), {normalised(caption) for caption in own}
    for caption in others:
        if len(found) >= most:
            break
        if (words := normalised(caption)) and words not in seen:
            seen.add(words)
            found.append(caption)
    return found


def url_digest(url: str | None) -> int:
    """64 bits that tell an address, whatever its scheme, the case of its host, and its fragment; 0 for none."""
    if not url:
        return 0
    bare = url.partition("#")[0].strip()
    scheme, mark, rest = bare.partition("://")
    host, slash, path = (rest if mark else scheme).partition("/")
    return text_digest(f"{host.lower()}{slash}{path}")
