"""Image encoding against open_clip: ViT-B/32, ViT-B/16 and RN50 with random weights, one batch.

Each row: seconds of processor time for an image, how many times faster than open_clip's eager float32 in the same run, the
share of this machine's measured matmul peak in that dtype, and the least cosine to open_clip's float32 embeddings.

    python benchmarks/encode_image.py [--models ViT-B-32,RN50] [--batch 16] [--record FILE]
"""

from __future__ import annotations

import _measure
import torch
from _peers import load_open_clip

from ostension.model.clip import CLIP
from ostension.model.presets import preset

# GFLOP of one image (2 x multiply-adds) as open_clip profiles them.
GFLOP = {"ViT-B-32": 8.82, "ViT-B-16": 35.13, "ViT-L-14": 162.03, "RN50": 12.22, "RN101": 19.54}
BATCH = {"ViT-B-16": 8, "ViT-L-14": 2}


def open_clip_tower(open_clip, name: str, ours: CLIP):
    """open_clip's image tower with the weights of `ours`."""
    from open_clip.model import CLIP as OpenClip

    config = open_clip.get_model_config(f"{name}-quickgelu")
    theirs = OpenClip(**config).eval()
    theirs.load_state_dict({key.removeprefix("text."): value for key, value in ours.state_dict().items()}, strict=False)
    return theirs.visual


def measure(open_clip, name: str, batch: int, rounds: int, peaks: dict[torch.dtype, float]) -> dict[str, dict[str, float]]:
    """The rows of one model."""
    torch.manual_seed(0)
    images = torch.randn(batch, 3, 224, 224)
    ours = CLIP(preset(name)).eval()
    with torch.no_grad():
        for key, parameter in ours.named_parameters():
            if key.endswith("bn3.weight"):
                parameter.fill_(0.3)  # zero at the start, which would hide the bottlenecks
    theirs = open_clip_tower(open_clip, name, ours)
    theirs_half = open_clip_tower(open_clip, name, ours).bfloat16()
    half = CLIP(preset(name), seed=None).eval()
    half.load_state_dict(ours.state_dict())
    half = half.bfloat16()
    cases = {
        "open_clip float32": lambda: theirs(images),
        "open_clip bfloat16 weights": lambda: theirs_half(images.bfloat16()),
        "ostension float32": lambda: ours.encode_image(images),
        "ostension bfloat16 weights": lambda: half.encode_image(images),
    }
    with torch.no_grad():
        seconds = _measure.interleaved(cases, rounds)
        reference = theirs(images).double()
        cosines = {case: torch.cosine_similarity(cases[case]().double(), reference).min() for case in cases}
    rows = {}
    for case in cases:
        dtype = torch.bfloat16 if "bfloat16" in case else torch.float32
        rows[case] = {
            "s/image": seconds[case] / batch,
            "x open_clip": seconds["open_clip float32"] / seconds[case],
            "of peak": GFLOP[name] * 1e9 * batch / seconds[case] / peaks[dtype],
            "least cosine": float(cosines[case]),
        }
    return rows


def main() -> None:
    options = _measure.arguments(__doc__, models=("ViT-B-32,ViT-B-16,RN50", "presets, with commas"), batch=(16, "images"))
    open_clip = load_open_clip()
    peaks = {dtype: _measure.matmul_peak(dtype) for dtype in (torch.float32, torch.bfloat16)}
    print("matmul peak: " + ", ".join(f"{str(dtype)[6:]} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in peaks.items()))
    figures = {}
    for name in options.models.split(","):
        batch = BATCH.get(name, options.batch)
        figures[name] = measure(open_clip, name, batch, options.rounds, peaks)
        _measure.table(f"{name}, batch {batch}", figures[name])
    settings = {"models": options.models, "batch": options.batch, "rounds": options.rounds}
    figures["matmul peak"] = {str(dtype)[6:]: rate for dtype, rate in peaks.items()}
    _measure.write_record(options.record, "encode_image", settings, figures)


if __name__ == "__main__":
    main()
