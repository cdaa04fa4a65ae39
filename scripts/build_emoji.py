"""Rebuild the embedded emoji set from its npm packages: five drawing styles of one list of concepts, as tar shards.

    python scripts/build_emoji.py --out ostension/data/emoji

Needs npm (to fetch the packages, about 165 MB, once; `--packages` keeps them) and rsvg-convert (Debian: librsvg2-bin).
The same packages and tools give the same bytes. Written are, for each style, STYLE-000.tar (KEY.webp, KEY.txt, KEY.json)
with its index, and once splits.json (what training never sees), record.json (versions, hashes, counts) and LICENSES/.

Flags are left out: their names cannot generalise, and one style draws them as empty frames. So are the bare skin tones.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import PIL
from emoji_splits import build_splits
from PIL import Image, features

from ostension.data.tar_index import INDEX_SUFFIX, build_index, save_index
from ostension.files import sha256_file, write_json

SIDE = 64
# 32 to 34 dB against the source on white and on black (46 for the line drawings). Halved chroma is the limit: quality 95
# with exact alpha gains 1 to 2 dB for 65 % more bytes.
WEBP = {"format": "WEBP", "quality": 80, "alpha_quality": 60, "method": 6, "exact": False}
LANGUAGES = ("de", "es", "fr", "hi", "ja", "ru", "zh")
WITHOUT_GROUPS = ("flags", "component")

PACKAGES = {
    "emoji-datasource-google@16.0.0": "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    "emoji-datasource-twitter@16.0.0": "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    "@lobehub/fluent-emoji-3d@1.1.0": "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    "openmoji@17.0.0": "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
    "emojibase-data@17.0.0": "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
}
# Style, package, folder in the package, suffix.
STYLES = (
    ("noto", "emoji-datasource-google@16.0.0", "package/img/google/64/", ".png"),
    ("twemoji", "emoji-datasource-twitter@16.0.0", "package/img/twitter/64/", ".png"),
    ("fluent3d", "@lobehub/fluent-emoji-3d@1.1.0", "package/assets/", ".webp"),
    ("openmoji", "openmoji@17.0.0", "package/color/svg/", ".svg"),
    ("openmoji_black", "openmoji@17.0.0", "package/black/svg/", ".svg"),
)
LICENCE_FILES = {
    "emoji-datasource.txt": ("emoji-datasource-google@16.0.0", "package/LICENSE"),
    "emojibase-data.txt": ("emojibase-data@17.0.0", "package/LICENSE"),
    "openmoji.txt": ("openmoji@17.0.0", "package/LICENSE.txt"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Concept:
    """One emoji: its code points without variation selectors, and its words from emojibase (CLDR)."""

    concept: str
    name: str
    tags: list[str]
    names: dict[str, str]
    group: str
    subgroup: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--packages", type=Path, help="folder in which the npm packages are kept (default: a temporary one)")
    arguments = parser.parse_args()
    for tool in ("npm", "rsvg-convert"):
        if shutil.which(tool) is None:
            parser.error(f"{tool} is needed (Debian: apt-get install {'librsvg2-bin' if tool == 'rsvg-convert' else tool})")
    with tempfile.TemporaryDirectory() as temporary:
        build(arguments.out, arguments.packages or Path(temporary))
    return 0


def build(out: Path, folder: Path) -> None:
    """Fetch what is missing, and write the whole set to `out`."""
    archives = {package: fetch(package, sha256, folder) for package, sha256 in PACKAGES.items()}
    concepts = read_concepts(archives["emojibase-data@17.0.0"], archives["emoji-datasource-google@16.0.0"])
    out.mkdir(parents=True, exist_ok=True)
    shards, pictures = {}, {}
    for style, package, prefix, suffix in STYLES:
        pictures[style] = dict(draw(archives[package], prefix, suffix, concepts))
        shards[style] = write_shard(out / f"{style}-000.tar", style, concepts, pictures[style])
        print(f"{style}: {shards[style]['pictures']} pictures, {shards[style]['image_bytes']} bytes", file=sys.stderr)
    write_json(out / "splits.json", build_splits(pictures))
    (out / "LICENSES").mkdir(exist_ok=True)
    for name, (package, member) in LICENCE_FILES.items():
        with tarfile.open(archives[package]) as archive:
            (out / "LICENSES" / name).write_bytes(read_member(archive, member))
    write_json(out / "record.json", record(archives, concepts, shards))


def record(archives: dict[str, Path], concepts: dict[str, Concept], shards: dict[str, dict]) -> dict:
    """What the set was made from, with what, and what came out."""
    rsvg = subprocess.run(["rsvg-convert", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return {
        "packages": {name: {"sha256": sha256_file(path), "bytes": path.stat().st_size} for name, path in archives.items()},
        "tools": {"pillow": PIL.__version__, "libwebp": features.version("webp"), "rsvg-convert": rsvg},
        "picture": {"side": SIDE, "encoding": {key: value for key, value in WEBP.items() if key != "exact"}},
        "languages": ["en", *LANGUAGES],
        "concepts": len(concepts),
        "pictures": sum(shard["pictures"] for shard in shards.values()),
        "bytes": sum(shard["bytes"] for shard in shards.values()),
        "shards": shards,
    }


def fetch(package: str, sha256: str, folder: Path) -> Path:
    """The npm package's archive in `folder`, fetched if it is not there; another content than the pinned one is refused."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (package.removeprefix("@").replace("/", "-").replace("@", "-") + ".tgz")
    if not path.is_file():
        print(f"fetching {package}", file=sys.stderr)
        subprocess.run(
            ["npm", "pack", package, "--silent", "--pack-destination", str(folder)], check=True, stdout=subprocess.DEVNULL
        )
    found = sha256_file(path)
    if found != sha256:
        raise SystemExit(f"{path}: SHA-256 is {found}, expected {sha256}: not the package that this script was written for")
    return path


def read_concepts(emojibase: Path, datasource: Path) -> dict[str, Concept]:
    """The concepts by code points, sorted: those of emoji-datasource that emojibase names, without flags."""
    with tarfile.open(datasource) as archive:
        listed = {normalise(entry["unified"]) for entry in json.loads(read_member(archive, "package/emoji.json"))}
    with tarfile.open(emojibase) as archive:

        def table(name: str) -> dict[str, dict]:
            entries = json.loads(read_member(archive, f"package/{name}/data.json"))
            return {normalise(entry["hexcode"]): entry for entry in entries}

        meta = json.loads(read_member(archive, "package/meta/groups.json"))
        english, others = table("en"), {language: table(language) for language in LANGUAGES}
    concepts = {}
    for concept in sorted(listed & english.keys()):
        entry = english[concept]
        group = meta["groups"][str(entry["group"])]
        if group in WITHOUT_GROUPS:
            continue
        concepts[concept] = Concept(
            concept=concept,
            name=entry["label"],
            tags=entry.get("tags", []),
            names={language: entries[concept]["label"] for language, entries in others.items()},
            group=group,
            subgroup=meta["subgroups"][str(entry["subgroup"])],
        )
    return concepts


def draw(archive_path: Path, prefix: str, suffix: str, concepts: dict[str, Concept]) -> Iterator[tuple[str, bytes]]:
    """Each concept that the style draws, with its picture as WebP."""
    with tarfile.open(archive_path) as archive:
        # A few are there twice, with and without the variation selector; the later one, the qualified, is the same drawing.
        members = {
            normalise(member.name.removeprefix(prefix).removesuffix(suffix)): member.name
            for member in archive.getmembers()
            if member.name.startswith(prefix) and member.name.endswith(suffix)
        }
        sources = {concept: read_member(archive, members[concept]) for concept in concepts if concept in members}
    decode: Callable[[bytes], Image.Image] = render_svg if suffix == ".svg" else open_picture
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        encoded = pool.map(lambda source: encode(decode(source)), sources.values())
        yield from zip(sources, encoded, strict=True)


def open_picture(source: bytes) -> Image.Image:
    return Image.open(io.BytesIO(source))


def render_svg(source: bytes) -> Image.Image:
    command = ["rsvg-convert", "--width", str(SIDE), "--height", str(SIDE), "--format", "png"]
    return Image.open(io.BytesIO(subprocess.run(command, input=source, capture_output=True, check=True).stdout))


def encode(picture: Image.Image) -> bytes:
    """A picture as WebP of SIDE x SIDE pixels with alpha (Pillow resizes with premultiplied alpha)."""
    picture = picture.convert("RGBA")
    if picture.size != (SIDE, SIDE):
        picture = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, **WEBP)
    return buffer.getvalue()


def write_shard(path: Path, style: str, concepts: dict[str, Concept], pictures: dict[str, bytes]) -> dict:
    """Write one shard and its index; gives its line of the record."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for concept, picture in pictures.items():
            facts = dataclasses.asdict(concepts[concept])
            metadata = {"concept": facts.pop("concept"), "style": style, **facts}
            key = f"{style}-{concept}"
            for suffix, content in (
                ("webp", picture),
                ("txt", concepts[concept].name.encode("utf-8")),
                ("json", json.dumps(metadata, ensure_ascii=False, separators=(",", ":")).encode("utf-8")),
            ):
                member = tarfile.TarInfo(f"{key}.{suffix}")  # time, owner and group are 0 unless set
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    # The time of the file is left out of the index, so that it is the same wherever the set is built.
    save_index(dataclasses.replace(build_index(path), tar_mtime_ns=0), path.with_name(path.name + INDEX_SUFFIX))
    return {
        "pictures": len(pictures),
        "image_bytes": sum(map(len, pictures.values())),
        "bytes": path.stat().st_size,
        "sha256": sha256_file(path),
    }


def read_member(archive: tarfile.TarFile, name: str) -> bytes:
    handle = archive.extractfile(name)
    assert handle is not None, name
    return handle.read()


def normalise(code_points: str) -> str:
    """Code points in upper case without the variation selector FE0F, which packages write or leave out as they like."""
    return "-".join(part for part in code_points.upper().split("-") if part != "FE0F")


if __name__ == "__main__":
    sys.exit(main())
