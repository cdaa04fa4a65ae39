"""The plain paths can be recorded as a graph with a free batch size, which export builds on."""

from __future__ import annotations

import subprocess
import sys

import pytest

# In a process of its own: under the run-time checker of the shapes, recording takes minutes.
SCRIPT = """
import torch
from ostension.model.clip import CLIP
from ostension.model.presets import preset

class Encoder(torch.nn.Module):
    def __init__(self, encode, model):
        super().__init__()
        self.encode, self.model = encode, model

    def forward(self, x):
        return self.encode(x)

torch.set_num_threads(1)
images, resnet, siglip = (CLIP(preset(name)).eval() for name in ("tiny-vit", "tiny-resnet", "tiny-siglip"))
tokens = torch.randint(1, 1000, (5, 24))
for encode, model, batch in (
    (lambda x: images.encode_image(x, normalize=True), images, torch.randn(5, 3, 32, 32)),
    (lambda x: images.encode_text(x, normalize=True, plain=True), images, tokens),
    (lambda x: siglip.encode_text(x, normalize=True, plain=True), siglip, tokens),
    (lambda x: resnet.encode_image(x, normalize=True), resnet, torch.randn(5, 3, 64, 64)),
):
    encoder = Encoder(encode, model)
    with torch.no_grad():
        free = {"x": {0: torch.export.Dim("batch", min=1, max=512)}}
        recorded = torch.export.export(encoder, (batch[:2],), dynamic_shapes=free).module()
        print(float((recorded(batch) - encoder(batch)).abs().max()))
"""


@pytest.mark.slow
def test_recorded_towers_take_any_batch_size():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    differences = [float(line) for line in done.stdout.split()]
    assert len(differences) == 4 and max(differences) < 1e-5
