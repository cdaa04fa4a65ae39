"""LitServe 0.2.19 with transformers' CLIP, to compare with: `python _serve_lit.py litserve MODEL PORT THREADS`.

A file of its own because LitServe pickles the class into its worker, so the class has to stand at the top of a module.
"""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import litserve
import torch
from _serve_peers import as_before, picture, rows_answer
from PIL import Image


class Embed(litserve.LitAPI):
    """Texts or pictures, one a request, in batches of up to 32 that wait 10 ms; a batch of both is computed in two parts."""

    def setup(self, device: Any) -> None:
        from transformers import AutoProcessor, CLIPModel

        as_before()
        torch.set_num_threads(int(sys.argv[4]))
        self.model = CLIPModel.from_pretrained(sys.argv[2]).eval()
        self.processor = AutoProcessor.from_pretrained(sys.argv[2])

    def decode_request(self, request):  # LitServe reads the annotations of this one
        item = request["input"][0] if isinstance(request["input"], list) else request["input"]
        if isinstance(item, str):
            return item
        image = Image.open(io.BytesIO(picture(item["image"]))).convert("RGB")
        return self.processor.image_processor(images=image, return_tensors="pt")["pixel_values"][0]

    def batch(self, inputs: Any) -> Any:
        return list(inputs)

    def predict(self, inputs: Any) -> Any:
        with torch.inference_mode():
            if isinstance(inputs[0], str):
                tokens = self.processor.tokenizer(inputs, return_tensors="pt", padding=True, truncation=True)
                rows = self.model.get_text_features(**tokens)
            else:
                rows = self.model.get_image_features(pixel_values=torch.stack(inputs))
        return torch.nn.functional.normalize(rows, dim=-1).numpy()

    def unbatch(self, output: Any) -> Any:
        return list(output)

    def encode_response(self, output: Any) -> Any:
        return json.loads(rows_answer(output[None], True))


if __name__ == "__main__":
    api = Embed(max_batch_size=32, batch_timeout=0.01, api_path="/v1/embeddings")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=False)
    server.run(host="127.0.0.1", port=int(sys.argv[3]), generate_client_file=False, log_level="warning")
