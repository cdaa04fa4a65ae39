"""Fine-tuning a tiny tower: what moves, where it starts, and that it learns by the probe's own rule."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from ostension.data.task import Task
from ostension.evals.elevater.finetune import Network, TowerTrainer
from ostension.evals.elevater.heads import HeadConfig, start_of
from ostension.evals.elevater.probe import TrainConfig, Trial
from ostension.evals.elevater.probing import ProbeConfig, Sets, adapt
from ostension.evals.inputs import ArrayInputs
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.store import Features


@pytest.fixture(scope="module")
def model() -> CLIP:
    return CLIP(preset("tiny-vit"), seed=0)


def pictures_of(model: CLIP, count: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Pictures that are bright in the left half (class 0) or in the right one (class 1), and noise."""
    size = model.transform.config.image_size
    targets = np.arange(count) % 2
    found = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 0.3
    for index, target in enumerate(targets):
        half = slice(0, size // 2) if target == 0 else slice(size // 2, size)
        found[index, :, :, half] += 1
    return found, targets


def made(model: CLIP, init: str, count: int = 24) -> tuple[Sets, torch.Tensor, torch.Tensor, ArrayInputs, int]:
    train, targets = pictures_of(model, count, 0)
    test, test_targets = pictures_of(model, 16, 1)
    task = Task(
        title="Halves", name="halves", version=1, classes={"l": ("left",), "r": ("right",)}, templates=("{}",), licence="none",
        citation="ours",
    )  # fmt: skip
    with torch.no_grad():
        matrix = model.visual.proj.detach().numpy()
        rows = [model.encode_image(part).numpy() for part in (train, test)]
    shared = {"classes": ("l", "r")}
    sets = Sets(
        task=task, train=Features(rows=rows[0], targets=targets, **shared),
        test=Features(rows=rows[1], targets=test_targets, **shared),
    )  # fmt: skip
    inputs = ArrayInputs(
        task, {"test": sets.test}, class_rows=np.random.default_rng(0).normal(size=(2, matrix.shape[1])),
        projection=(matrix, np.zeros(matrix.shape[1], np.float32)),
    )  # fmt: skip
    return sets, train, test, inputs, matrix.shape[0] if init == "merged" else matrix.shape[1]


@pytest.mark.parametrize("init", ["random", "text", "merged"])
def test_a_tower_learns_and_the_model_that_was_given_stays(model, init):
    sets, train, test, inputs, width = made(model, init)
    before = copy.deepcopy(model.state_dict())
    head = HeadConfig(init=init)
    start = start_of(head, width, inputs.classifier(), inputs, seed=0)
    trainer = TowerTrainer(model, sets, head, start, lambda places: train[places], lambda places: test[places])
    config = ProbeConfig(learning_rate=0.02, weight_decay=1e-4, epochs=1, final_epochs=10, batch_size=6)
    probed = adapt(trainer, sets, config, shots=-1, seed=0)
    assert (probed.logits.argmax(axis=1) == sets.test.targets).mean() > 0.85
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_merged_network_starts_at_zero_shot_and_leaves_the_projection(model):
    sets, train, test, inputs, width = made(model, "merged")
    head = HeadConfig(init="merged", batch_norm=False)
    network = Network(model, head, start_of(head, width, inputs.classifier(), inputs, seed=0))
    found = network.logits(lambda places: test[places], np.arange(16))
    np.testing.assert_allclose(found, sets.test.array() @ inputs.classifier().T, atol=1e-5)
    optimizer = torch.optim.SGD(network.trained(), lr=0.1, weight_decay=0.1)
    network.train()
    network(train[:6]).square().sum().backward()
    projection, first = network.model.visual.proj.clone(), network.model.visual.conv1.weight.clone()
    texts = network.model.text.token_embedding.weight.clone()
    optimizer.step()
    assert torch.equal(projection, network.model.visual.proj) and torch.equal(texts, network.model.text.token_embedding.weight)
    assert not torch.equal(first, network.model.visual.conv1.weight)


def test_a_search_looks_at_held_out_pictures_and_an_overflow_ends_a_trial(model):
    sets, train, test, inputs, width = made(model, "text")
    head = HeadConfig(init="text")
    start = start_of(head, width, inputs.classifier(), inputs, seed=0)
    trainer = TowerTrainer(model, sets, head, start, lambda places: train[places], lambda places: test[places])
    seen = []
    trials = [Trial(learning_rate=1e-3, weight_decay=0.0), Trial(learning_rate=1e10, weight_decay=1e10)]
    ended = trainer.train(
        trials, np.arange(8), np.arange(8, 12), TrainConfig(epochs=3, batch_size=4),
        lambda place, epoch, logits: seen.append((place, epoch, logits.shape)), every_epoch=True,
    )  # fmt: skip
    assert seen[:3] == [(0, epoch, (4, 2)) for epoch in (1, 2, 3)] and list(ended) == [1]
