"""Captions that are no description: names that cameras and programs give to files, camera settings, addresses, boilerplate.

The rule that made CLIP's subset of YFCC100M: pictures whose title or description is natural language, without automatic file
names such as "20160716 113957.JPG" and descriptions of camera settings (Radford et al., 2021, section 2.2). The rule itself was
not published; this one is our own. Precision goes before recall: a title goes only where nothing in it describes the picture,
so "sunset over the lake.jpg" and "our dog, f/2.8 1/250 s" stay. How often it is wrong is in docs/howto/curate-filter.md.

Kinds, and what each of them is:

    file name         IMG_1234, DSC00012.JPG, 20160716 113957, scan0001, Screenshot 2016-..., hashes, numbers, "image 3.png"
    camera settings   "OLYMPUS DIGITAL CAMERA", "f/2.8 1/250 ISO 400 50mm", "Canon EOS 5D, Exposure: 1/60 sec"
    address           URLs, mail addresses and leftovers of HTML, where they are most of the text
    boilerplate       "click to enlarge", "image may contain: ...", "untitled", "photo by ...", "no description available"
    copyright         lines that only say whose picture it is; not in the YFCC rule, and off by default
"""

from __future__ import annotations

import functools
import tomllib
from pathlib import Path

import regex

FILE_NAME, CAMERA, ADDRESS, BOILERPLATE, COPYRIGHT = "file name", "camera settings", "address", "boilerplate", "copyright"
KINDS = (FILE_NAME, CAMERA, ADDRESS, BOILERPLATE, COPYRIGHT)
USUAL = (FILE_NAME, CAMERA, ADDRESS, BOILERPLATE)
LONGEST = 400  # letters; longer captions say something, or are cut by other rules

_EXTENSION = regex.compile(
    r"(?i)\.(?:jpe?g|jpe|png|gif|webp|bmp|tiff?|hei[cf]|avif|svg|raw|raf|orf|rw2|cr[23]|nef|arw|dng|mp4|mov|avi|3gp)$"
)
# What programs append to a name: " (1)", "-2", "_edited", " copy", "~2", "_o", "-scaled", "-1024x768", "@2x".
_APPENDED = regex.compile(
    r"(?i)(?:\s*\(\d+\)|[-_ ~](?:\d{1,3}|edit(?:ed)?|copy|kopie|copie|final|crop(?:ped)?|resized?|small|large|"
    r"thumb(?:nail)?|scaled|web|bw|hdr|[a-z]|\d{2,5}x\d{2,5})|\s*-\s*copy|@2x)+$"
)
_DATE = r"(?:19|20)\d\d[-._ :]?(?:0[1-9]|1[0-2])[-._ :]?(?:0[1-9]|[12]\d|3[01])"
_TIME = r"(?:[01]\d|2[0-3])[-._ :h]?[0-5]\d(?:[-._ :m]?[0-5]\ds?)?(?:[-._ ]?\d{1,4})?"
_STAMP = rf"{_DATE}(?:(?:[-_ T,]|\s+at\s+)*{_TIME}(?:\s*[ap]\.?m\.?)?)?"
# Prefixes that cameras, phones, scanners and programs number their files with. Those that are English words, or people's names,
# ask for the sign and the number of digits that the machine writes: "SAM_1234" is a camera's, "Sam 2010" is not.
_NUMBERED = regex.compile(
    r"""(?ix)
    (?: [_\ ]?(?:img|imgp|image|dsc[fnp]?|_?mg|mvi|mov|vid|pict?|picture|photo|foto|scan|scanned|imag|cimg|hpim|dcp|dcam|fscn|
            phot|imm|pano|burst|untitled|unbenannt|sans\ titre|snapshot|snap|slide|folie|file|video|bild|imagen|immagine|imagem|
            document|img_e|picsart|b612|beautyplus|vsco|instasquare|collage|received|new\ image|screenshot|
            screen\ shot|screencap)
        [-_\ \#]{0,3}\(?\d+[-_.\ \d]*\)?[a-z]?
    |   (?:sany|sam|sdc|gopr|gp|dji|pxl|mvc|crw|kif|sta|stb|stp|ptdc|dvc|wp|whp|fb_img|sl|frame|rimg|mah|mva)
        [_-]?\d{4,}[-_\ \d]*
    |   [pslrad]\d{6,8}              # P1000123 (Panasonic, Olympus), S, L (Leica), R (Ricoh), A, D
    |   [a-z]{3}_\d{4}               # the rule of DCF: letters of the maker's, an underscore, four digits
    |   _[a-z]{3}\d{4,5}
    |   1\d\d[-_\ ]\d{4}(?:[-_\ ]img)?   # Kodak, Canon: folder and number
    |   \d{3,4}[-_]?(?:dsc|img)[-_]?\d{3,5}
    )"""
)
_PROGRAM = regex.compile(
    rf"""(?ix)
    (?: whatsapp\ (?:image|video) | screen[\ _-]?shots?(?:\ from)? | bildschirmfoto | capture(?:\ d['’]écran)? |
        schermafbeelding | captura\ de\ (?:pantalla|tela) | signal | telegram | photo | image | img | vid | video | pxl |
        picture | snapchat | scan | pano | burst | fb_img | received | camera | cam | mvimg | wp | web_?cam )
    (?:[-_\ ] | \ (?:am|um|on|le)\ )* {_STAMP} (?: [-_\ .]*(?:wa\d+|\d+|mp|pro|night|portrait|com\.[\w.]+) )*
    """
)
_STAMPED = regex.compile(_STAMP)
_NUMBERS = regex.compile(r"[\d\s._\-:,#()/x+]*\d[\d\s._\-:,#()/x+]*")
_UUID = regex.compile(r"(?i)\{?[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\}?")
_HEX = regex.compile(r"(?i)(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{16,}|\d{6,}[_-][0-9a-f]{8,}(?:[_-][a-z]{1,2})?")
_CODE = regex.compile(r"(?=(?:\D*\d){4})(?=(?:[^a-zA-Z]*[a-zA-Z]){4})[A-Za-z0-9_-]{20,}")  # ids in letters and digits
_DEFAULT = regex.compile(
    r"(?i)(?:img|image|images|photo|foto|picture|pic|unnamed|untitled|noname|default|download|thumb(?:nail)?|banner|avatar|"
    r"placeholder|screenshot|scan|maxresdefault|hqdefault|attachment|file|temp|tmp|index|logo)(?:[-_ ]?\d*)"
)

_PROCESSED = regex.compile(
    r"""(?ix)
    (?:processed|created|made|shot|taken|uploaded|edited|posted|published|sent|captured)\s+(?:with|by|via|using|from|on|in)\s+
        (?:(?:my|an?|the)\s+)?
        (?:vsco(?:cam)?|gimp|instagram|snapseed|lightroom|photoshop|picasa|iphoto|flickr|hipstamatic|iphone|ipad|android|blackberry|
            nokia|samsung|canon|nikon|sony|gopro|photogene|picsart|aperture|rni\s+films|camera\+)
        (?:\s+(?:mobile|app|for|with|preset|pro|plus|max|mini|lens|film|phone|cell|camera|on|iphone|ipad|android|\w*\d[\w.]*|\w))*
    | hdr\s+tonemapped\s+using\s+photomatix[\w\s.]* | creator:\s+gd-jpeg.*
    """
)
_SETTING = regex.compile(
    r"""(?ix)
      \b[fƒ]\s?[/:=]?\s?\d{1,2}(?:[.,]\d)?(?!\w) | ƒ\s?/?\s?\d+(?:[.,]\d)?
    | \b1/\d{1,5}(?:\s?(?:s|sec|secs|second|seconds)\b)? | \b\d+(?:[.,]\d+)?\s?(?:s|sec|secs|second|seconds)\b
    | \b(?:iso|asa)\s*[:=-]?\s?\d{2,6}\b | \b\d{1,4}(?:[.,]\d+)?(?:\s?-\s?\d{1,4}(?:[.,]\d+)?)?\s?mm\b
    | [+-]?\d+(?:[./]\d+)?\s?ev\b | \b\d{3,5}\s?k(?:elvin)?\b | \b\d{1,2}(?:[.,]\d)?\s?(?:mp|megapixels?)\b
    | \b\d{3,5}\s?x\s?\d{3,5}\b
    """
)
_STRONG = regex.compile(
    r"(?ix) \b[fƒ]\s?/\s?\d | \b1/\d{2,5}\b | \biso\s*[:=-]?\s?\d{2,6}\b | \bexposure\b | \baperture\b | \bfocal\s+length\b"
)
with (Path(__file__).parent / "titles.toml").open("rb") as _file:
    _RECORD = tomllib.load(_file)
_STAMPS = frozenset(_RECORD["stamps"])
_CAMERA_WORDS = frozenset(_RECORD["words"].split())
_WORD = regex.compile(r"\p{L}{2,}")

_URL = regex.compile(
    r"(?i)\b(?:https?|ftp)://\S+|\bwww\.\S+|\S+@[\w-]+\.[\w.]+|"
    r"\b[\w.-]+\.(?:com|net|org|info|co\.uk|de|ru)(?:/\S*)?(?![\w.])"
)
_MARKUP = regex.compile(
    r"(?i)</?[a-z][a-z0-9]*(?:\s[^<>]*)?/?>|&(?:[a-z]{2,8}|#\d{1,6}|#x[0-9a-f]{1,5});|"
    r"\[/?(?:img|url|caption)[^\]]*\]|\{\{[^}]*\}\}"
)

_BOILERPLATE = regex.compile(
    r"""(?ix)
    (?:please\s+)?click\s+(?:here|(?:on\s+)?(?:the\s+|this\s+)?(?:image|photo|picture|thumbnail)|to\s+|for\s+)[\w\s,]{0,40}?
        (?:enlarge|larger|bigger|full|zoom|view|see|image|version|download|more|info|details|here)[\w\s-]{0,20}
    | (?:click|tap|hover|roll\s+over)(?:\s+\w+){0,4}\s+(?:enlarge|zoom)(?:\s+\w+){0,2}
    | (?:view|see|show|open|load)\s+(?:full|larger|original|bigger|more|all)
        (?:\s*-?\s*(?:sized?|image|photo|picture|version|screen))*
    | enlarge(?:\s+(?:this\s+)?(?:image|photo|picture))?
    | (?:image|photo|picture)\s+may\s+contain:?.{0,200} | may\s+be\s+an?\s+(?:image|illustration|graphic)\s+of.{0,200}
    | (?:no|kein|sans|senza|sin)\s*(?:title|titel|titre|titolo|título|titulo|caption|description|alt(?:ernative)?\s+text)
        (?:\s+(?:available|provided|given|found))?
    | (?:no\s+)?(?:image|photo|picture|description|caption|preview|thumbnail)s?\s+(?:is\s+|are\s+)?
        (?:not\s+(?:yet\s+)?(?:available|found)|unavailable|coming\s+soon|missing|available)
    | no\s+(?:image|photo|picture|preview)s?(?:\s+(?:yet|provided))?
    | image | photo | picture | img | alt | caption | description | unnamed | null | none | nan | undefined | n/?a
    | untitled(?:\s+(?:document|image|photo|picture|design))? | loading | please\s+wait | advertisement | placeholder
    | lorem\s+ipsum.*
    | (?:default|featured|post|article|profile|cover|main|hero|header|product|thumbnail|stock)\s+(?:image|photo|picture)
    | image\s+result(?:\s+for.*)? | share\s+(?:this|on)(?:\s+\w+){0,3} | (?:read|learn|see)\s+more | add\s+to\s+cart | buy\s+now
    """
)
_CREDIT = regex.compile(
    r"(?i)(?:(?:photo|image|picture|foto|photograph|pic)s?\s*(?:credits?|courtesy(?:\s+of)?|source|by|via|from|©|:|/)|"
    r"(?:credits?|courtesy(?:\s+of)?|source|via)\s*:)\s*(?:to\s+|by\s+|of\s+)?[:/]?\s*(?P<who>.{0,60})"
)
_RIGHTS_LINE = regex.compile(
    r"""(?ix)
    (?:(?:photo|image|picture|photograph)s?\s+)?
    (?: (?:©|\(c\)|&copy;)\s*\S.{1,80} | copyright\s*(?:©|\(c\)|&copy;|\d{4}|by\b|of\b).{0,80} | licensed\s+under.{0,80} )
    | (?:.{0,40}\W)? all\s+rights\s+reserved | creative\s+commons.{0,40}
    """
)


_SMALL = frozenset(_RECORD["small"].split())
# Without these a text can be no file name and no address; most captions are through with it at once.
_NUMBER_OR_DOT, _SIGNS = regex.compile(r"\d|\w\.\w"), regex.compile(r"[@/<>&\[{]|\w\.\w")


def kind_of_title(text: str, kinds: tuple[str, ...] = USUAL) -> str | None:
    """Which of `kinds` a caption is; None for one that may describe its picture."""
    text = " ".join(text.split())
    if not text or len(text) > LONGEST:
        return None
    return next((kind for kind in KINDS if kind in kinds and _RULES[kind](text)), None)


def is_file_name(text: str) -> bool:
    """Whether a text is a name that a machine gave to a file: nothing in it was chosen to describe a picture."""
    if not _NUMBER_OR_DOT.search(text):
        return False
    path = text.replace("\\", "/").rsplit("/", 1)[-1] if " " not in text else text
    stem = _EXTENSION.sub("", path.strip(" \"'[]"))
    has_extension = stem != path.strip(" \"'[]")
    for name in dict.fromkeys((stem, _APPENDED.sub("", stem))):
        name = name.strip(" ._-")
        if not name:
            continue
        if any(rule.fullmatch(name) for rule in (_NUMBERED, _PROGRAM, _STAMPED, _NUMBERS, _UUID, _HEX)):
            return True
        if has_extension and (_DEFAULT.fullmatch(name) or len(name) == 1):
            return True
        if _CODE.fullmatch(name) and not _is_words(name):
            return True
    return False


def is_camera_settings(text: str) -> bool:
    """Whether a text is what a camera or a program writes of itself, or a list of settings, and no word besides."""
    plain = text.casefold().strip(" .,;:!\"'()[]")
    if plain in _STAMPS or _PROCESSED.fullmatch(plain):
        return True
    if not _STRONG.search(text):
        return False
    left, count = _SETTING.subn(" ", text)
    if count + len(_STRONG.findall(left)) < 2:
        return False
    return all(word.casefold() in _CAMERA_WORDS for word in _WORD.findall(left))


def is_address(text: str) -> bool:
    """Whether URLs, mail addresses and HTML are most of a text."""
    if not _SIGNS.search(text):
        return False
    left = _MARKUP.sub("", _URL.sub("", text))
    if len(left) == len(text):
        return False
    words = len(_WORD.findall(left))
    return words == 0 or (words <= 2 and len(left) < 0.3 * len(text))


def is_boilerplate(text: str) -> bool:
    """Whether a text is a phrase of web pages, or says no more than who took the picture."""
    plain = text.strip(" .,;:!…\"'()[]<>*-–|")
    if _BOILERPLATE.fullmatch(plain):
        return True
    credit = _CREDIT.fullmatch(plain)
    return credit is not None and _is_name(credit["who"])


def is_copyright(text: str) -> bool:
    """Whether a text only says whose picture it is."""
    return _RIGHTS_LINE.fullmatch(text.strip(" .,;:!\"'[]")) is not None


def _is_name(text: str) -> bool:
    """Whether words could be a person's or a firm's: at most six, each with a capital, a sign of a user's name, or small."""
    words = text.split()
    return len(words) <= 6 and all(
        word.lower() in _SMALL or not word[0].islower() or "@" in word or "." in word for word in words
    )


@functools.lru_cache(maxsize=4096)
def _is_words(name: str) -> bool:
    """Whether a name is words joined by dashes or underscores: "golden-gate-bridge-2015", and not "aX3kd9_QpLw82mZk01"."""
    parts = [part.rstrip("0123456789") or part for part in regex.split(r"[-_]", name) if part]
    words = [part for part in parts if regex.fullmatch(r"\p{L}[\p{Ll}]*|\p{Lu}+", part) and regex.search(r"(?i)[aeiouy]", part)]
    return len(words) >= 2 and sum(map(len, words)) >= 0.5 * sum(map(len, parts))


_RULES = {
    FILE_NAME: is_file_name, CAMERA: is_camera_settings, ADDRESS: is_address, BOILERPLATE: is_boilerplate,
    COPYRIGHT: is_copyright,
}  # fmt: skip
