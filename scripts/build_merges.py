"""Cut the merges that CLIP's tokenizer reads out of OpenAI's published list, and pack them.

    python scripts/build_merges.py path/to/bpe_simple_vocab_16e6.txt.gz

The list is in the packages clip-anytorch and open_clip_torch and in the repository openai/CLIP (MIT licence). It has a
version line and 262,144 merges; the tokenizer uses the first 48,894. Writes ostension/text/data/bpe_merges.txt.gz.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

from ostension.files import sha256_file, write_bytes
from ostension.text.bpe import MERGES_FILE
from ostension.text.config import NUM_MERGES

PUBLISHED_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("published", type=Path, help="bpe_simple_vocab_16e6.txt.gz")
    published = parser.parse_args().published
    if sha256_file(published) != PUBLISHED_SHA256:
        raise SystemExit(f"{published} is not the published list (SHA-256 {PUBLISHED_SHA256})")
    lines = gzip.decompress(published.read_bytes()).decode("utf-8").split("\n")[1 : NUM_MERGES + 1]
    # Without a time stamp the same input gives the same file.
    write_bytes(MERGES_FILE, gzip.compress("".join(line + "\n" for line in lines).encode("utf-8"), 9, mtime=0))
    print(f"{MERGES_FILE}: {len(lines)} merges, {MERGES_FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
