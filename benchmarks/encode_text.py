"""Building a zero-shot classifier against open_clip: 80 templates x 1,000 names, text tower of ViT-B/32, random weights.

open_clip tokenises and encodes every prompt at 77 tokens, so its cost for a prompt does not depend on the others: it is
measured on a sample. Ours shares what prompts have in common, so it runs whole templates over all names; `--templates N`
takes N of the 80, evenly spaced (all 80 take minutes and give the same figures). Tokenising counts on both sides.

Each row: seconds of processor time for 1,000 prompts, how many times faster than open_clip's eager float32 in the same run,
the rate of products as a share of this machine's measured matmul peak (of those that are computed, and of those that 77
tokens would have taken), and the largest difference to open_clip's float32 unit embeddings on the sample.

    python benchmarks/encode_text.py [--templates 8] [--names 1000] [--record FILE]
"""

from __future__ import annotations

import _measure
import torch
import torch.nn.functional as F
from _peers import load_open_clip

from ostension.model.clip import CLIP
from ostension.model.prefix_tree import plan
from ostension.model.presets import preset
from ostension.text.prompts import class_names, fill, templates

NAME = "ViT-B-32"
GFLOP_A_TOKEN = 5.96 / 77  # open_clip's profile of the text tower


def open_clip_model(open_clip, ours: CLIP):
    """open_clip's model with the weights of `ours`."""
    from open_clip.model import CLIP as OpenClip

    theirs = OpenClip(**open_clip.get_model_config(f"{NAME}-quickgelu")).eval()
    theirs.load_state_dict({key.removeprefix("text."): value for key, value in ours.state_dict().items()}, strict=False)
    return theirs


def main() -> None:
    options = _measure.arguments(
        __doc__, templates=(8, "templates of the 80"), names=(1000, "names of ImageNet's"), sample=(128, "for open_clip")
    )
    open_clip = load_open_clip()
    peaks = {dtype: _measure.matmul_peak(dtype) for dtype in (torch.float32, torch.bfloat16)}
    print("matmul peak: " + ", ".join(f"{str(dtype)[6:]} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in peaks.items()))
    chosen = templates("openai_imagenet")[:: max(1, 80 // options.templates)][: options.templates]
    names = class_names("imagenet")[: options.names]
    grid = [fill(template, name) for name in names for template in chosen]
    sample = grid[:: max(1, len(grid) // options.sample)][: options.sample]

    ours = CLIP(preset(NAME)).eval()
    half = CLIP(preset(NAME), seed=None).eval()
    half.load_state_dict(ours.state_dict())
    half = half.bfloat16()
    theirs, theirs_half = open_clip_model(open_clip, ours), open_clip_model(open_clip, ours).bfloat16()
    tokenize = open_clip.get_tokenizer("ViT-B-32")
    cases = {
        "open_clip float32": lambda: theirs.encode_text(tokenize(sample)),
        "open_clip bfloat16 weights": lambda: theirs_half.encode_text(tokenize(sample)),
        "ostension float32": lambda: ours.class_embeddings(names, chosen),
        "ostension bfloat16 weights": lambda: half.class_embeddings(names, chosen),
    }
    with torch.no_grad():
        seconds = _measure.interleaved(cases, options.rounds)
        tokens = tokenize(sample)
        reference = F.normalize(theirs.encode_text(tokens).double(), dim=-1)
        outputs = {
            "open_clip float32": theirs.encode_text(tokens),
            "open_clip bfloat16 weights": theirs_half.encode_text(tokens),
            "ostension float32": ours.encode_text(ours.tokenizer(sample)),
            "ostension bfloat16 weights": half.encode_text(half.tokenizer(sample)),
        }
    rows = ours.tokenizer(grid)
    computed = sum(len(tree.keys) for tree, _ in plan(rows, rows.argmax(dim=1), 1 << 16))
    print(f"{len(grid)} prompts: 77 tokens each as padded, {float(rows.argmax(dim=1).float().mean()) + 1:.1f} as written, "
          f"{computed / len(grid):.1f} to compute")  # fmt: skip
    figures = {}
    for case in cases:
        peer = case.startswith("open_clip")
        peak = peaks[torch.bfloat16 if "bfloat16" in case else torch.float32]
        each = seconds[case] / len(sample if peer else grid)
        figures[case] = {
            "s/1000": 1000 * each,
            "x open_clip": seconds["open_clip float32"] / len(sample) / each,
            "of peak": (77 if peer else computed / len(grid)) * GFLOP_A_TOKEN * 1e9 / each / peak,
            "as if 77": 77 * GFLOP_A_TOKEN * 1e9 / each / peak,
            "max difference": float((F.normalize(outputs[case].double(), dim=-1) - reference).abs().max()),
        }
    _measure.table(f"{len(chosen)} templates x {len(names)} names", figures)
    settings = {"templates": len(chosen), "names": len(names), "sample": len(sample), "rounds": options.rounds}
    figures["matmul peak"] = {str(dtype)[6:]: rate for dtype, rate in peaks.items()}
    _measure.write_record(options.record, "encode_text", settings, figures)


if __name__ == "__main__":
    main()
