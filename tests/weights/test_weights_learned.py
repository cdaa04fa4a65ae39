"""Learned soups against a plain one that holds all models, and what their files are."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call
from weight_samples import moved, state, tiny, weights, written

from ostension.errors import ConfigError
from ostension.formats.load import load
from ostension.weights import sources
from ostension.weights.learned import Learner, learned_soup
from ostension.weights.states import StateSource

IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TEXTS = ["a cat", "a large dog", "a kite"]
TARGETS = torch.tensor([0, 1, 2, 0, 1, 2])


def loss(live, images=IMAGES):
    logits = live(images.to(live.dtype), live.tokenizer(TEXTS))
    return F.cross_entropy(logits, TARGETS[: len(images)])


@pytest.fixture(scope="module")
def models():
    base = tiny()
    return [moved(base, seed, 0.05).double() for seed in range(3)]


@pytest.mark.parametrize("by", ["tensor", "model"])
def test_steps_are_those_of_a_soup_that_holds_all_models(by, models):
    sources = [StateSource(str(seed), model.state_dict()) for seed, model in enumerate(models)]
    live = moved(tiny(), 9).double()
    learner = Learner(sources, live, by)
    plain = tiny().double()
    stacked = {name: torch.stack([dict(model.named_parameters())[name].detach() for model in models])
               for name, _ in plain.named_parameters()}  # fmt: skip
    theta = torch.zeros(len(stacked) if by == "tensor" else 1, 3, dtype=torch.float64, requires_grad=True)
    scale = torch.zeros((), dtype=torch.float64, requires_grad=True)

    class Logits(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self):
            return loss(self.model)

    def reference():
        merged = {
            f"model.{name}": torch.tensordot(theta[row if by == "tensor" else 0].softmax(0), values, dims=1)
            for row, (name, values) in enumerate(stacked.items())
        }
        merged["model.logit_scale"] = merged["model.logit_scale"] + scale
        return functional_call(Logits(plain), merged, ())

    optimizers = [torch.optim.AdamW(part, lr=0.05, weight_decay=0.0)
                  for part in ([learner.theta, learner.log_scale], [theta, scale])]  # fmt: skip
    assert learner.names == list(stacked)
    for _ in range(3):
        found = learner.step(loss)
        optimizers[1].zero_grad()
        wanted = reference()
        wanted.backward()
        assert found == pytest.approx(float(wanted.detach()), rel=1e-10)
        torch.testing.assert_close(learner.theta.grad, theta.grad, rtol=1e-7, atol=1e-12)
        torch.testing.assert_close(learner.log_scale.grad, scale.grad, rtol=1e-8, atol=1e-12)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(learner.theta, theta, rtol=1e-5, atol=1e-7)
    assert float(scale.detach()) != 0 and learner.theta.detach().std() > 0


class Held:
    """Two batches an epoch."""

    def live(self, folder):
        return load(folder, device="cpu", dtype="float32")

    def batches(self, epoch):
        return [IMAGES[:3].float(), IMAGES[3:].float()]

    def loss(self, live, batch):
        return loss(live, batch)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root, base = tmp_path_factory.mktemp("learned"), tiny()
    return [
        written(base, root / "base"),
        written(moved(base, 1, 0.02), root / "near"),
        written(moved(base, 2, 0.3), root / "far"),
    ]


@pytest.mark.parametrize("by", ["tensor", "model"])
def test_the_file_is_the_average_that_was_learned(by, folders, tmp_path):
    told = []
    found = learned_soup(folders, tmp_path / "soup", Held(), by=by, epochs=3, told=lambda *seen: told.append(seen))
    assert [epoch for epoch, _ in told] == [1, 2, 3] and found.losses[-1] < found.losses[0]
    states, soup = [state(folder) for folder in folders], state(tmp_path / "soup")
    for name, shares in found.coefficients.items():
        assert sum(shares) == pytest.approx(1, abs=1e-12)
        wide = sum(share * part[name].double() for share, part in zip(shares, states, strict=True))
        if name == "logit_scale":
            wide = wide + torch.tensor(found.scale).double().log()
        assert torch.allclose(soup[name].double(), wide, atol=1e-6), name
    assert (len(set(found.coefficients.values())) == 1) == (by == "model")
    record = json.loads((tmp_path / "soup" / "provenance.json").read_text())["weights"]
    assert record["learned"]["coefficients"].keys() == found.coefficients.keys() and len(record["inputs"]) == 3
    learned_soup(folders, tmp_path / "again", Held(), by=by, epochs=3)
    assert weights(tmp_path / "again") == weights(tmp_path / "soup")


def test_models_are_read_in_blocks_and_equal_tensors_take_no_gradients(folders, tmp_path, monkeypatch):
    sizes, real = [], sources.TensorFile.read
    monkeypatch.setattr(
        sources.TensorFile, "read", lambda self, name, start, stop: sizes.append(stop - start) or real(self, name, start, stop)
    )
    other = load(folders[1], dtype="float32")
    other.text.load_state_dict(load(folders[0], dtype="float32").text.state_dict())
    held = Held()
    seen = []
    held.loss = lambda live, batch: seen.append({n for n, p in live.named_parameters() if p.requires_grad}) or loss(live, batch)
    learned_soup([folders[0], written(other, tmp_path / "image")], tmp_path / "soup", held, epochs=1)
    assert max(sizes) <= sources.BLOCK
    assert seen and all(name.startswith("visual.") or name == "logit_scale" for name in seen[0])


def test_one_model_and_odd_settings_are_refused(folders, tmp_path):
    for models, changes, message in (
        (folders[:1], {}, "two or more"), (folders, {"by": "layer"}, "tensor or model"), (folders, {"epochs": 0}, "1 or more"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            learned_soup(models, tmp_path / "x", Held(), **changes)
    assert not (tmp_path / "x").exists()
