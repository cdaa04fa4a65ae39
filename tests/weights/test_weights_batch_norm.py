"""Statistics of batch normalisation that are estimated anew, against their definition and torch's own running averages."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from weight_samples import moved, state, tiny, weights, written

from ostension.errors import ConfigError, DataError
from ostension.weights import arithmetic
from ostension.weights.batch_norm import Pictures, estimate, layers
from ostension.weights.line import Line


@pytest.fixture(scope="module")
def model():
    return tiny("tiny-resnet")


@pytest.fixture(scope="module")
def images(model):
    side = model.config.vision.image_size
    return torch.randn(12, 3, side, side, generator=torch.Generator().manual_seed(0))


def given(images, *sizes):
    """Pictures in batches of these sizes."""
    return Pictures(lambda _: iter(images.split(list(sizes))), {"data": "noise"})


def test_in_one_batch_every_layer_has_the_mean_and_variance_of_what_comes_into_it(model, images):
    tuned = copy.deepcopy(model)
    assert estimate(tuned, given(images, len(images))) == len(images)
    inputs = {}
    found = layers(tuned)
    hooks = [part.register_forward_pre_hook(lambda part, args, name=name: inputs.update({name: args[0]}))
             for name, part in found.items()]  # fmt: skip
    for part in found.values():
        part.train()
        part.momentum = 0.0
    with torch.no_grad():
        tuned.encode_image(images)
    for hook in hooks:
        hook.remove()
    for name, part in found.items():
        wide = inputs[name].double().transpose(0, 1).flatten(1)
        assert torch.allclose(part.running_mean.double(), wide.mean(1), atol=1e-5), name
        assert torch.allclose(part.running_var.double(), wide.var(1), rtol=1e-4), name


def test_means_are_those_of_torchs_cumulative_average_and_variances_also_count_the_means_of_batches(model, images):
    tuned, plain = copy.deepcopy(model), copy.deepcopy(model)
    estimate(tuned, given(images, 4, 4, 4))
    inputs = []
    for part in layers(plain).values():
        part.reset_running_stats()
        part.momentum = None
        part.train()
    plain.visual.bn1.register_forward_pre_hook(lambda part, args: inputs.append(args[0].detach()))
    with torch.no_grad():
        for batch in images.split(4):
            plain.encode_image(batch)
    for name, part in layers(tuned).items():
        other = layers(plain)[name]
        assert torch.allclose(part.running_mean, other.running_mean, atol=1e-5), name
        assert int(part.num_batches_tracked) == int(other.num_batches_tracked) == 3
    first = torch.cat(inputs).double().transpose(0, 1).flatten(1)  # of the first layer both are exact, whatever the batches
    assert torch.allclose(tuned.visual.bn1.running_var.double(), first.var(1), rtol=1e-5)
    assert torch.allclose(tuned.visual.bn1.running_mean.double(), first.mean(1), atol=1e-6)


def test_only_statistics_change_and_layers_answer_as_before_afterwards(model, images):
    tuned = copy.deepcopy(model)
    before = {name: value.clone() for name, value in tuned.state_dict().items()}
    estimate(tuned, given(images, 5, 7))
    for name, value in tuned.state_dict().items():
        statistics = name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")
        assert torch.equal(value, before[name]) != statistics, name
    assert not any(part.training for part in tuned.modules()) and {part.momentum for part in layers(tuned).values()} == {0.1}
    once = tuned.encode_image(images)
    estimate(tuned, given(images, 5, 7))
    assert torch.equal(tuned.encode_image(images), once)


def test_a_soup_a_mix_and_a_point_of_the_line_are_estimated_in_their_files(model, images, tmp_path):
    folders = [written(model, tmp_path / "a"), written(moved(model, 1, 0.05), tmp_path / "b")]
    pictures = given(images, 6, 6)
    noted = len(arithmetic.soup(folders, tmp_path / "plain"))
    assert len(arithmetic.soup(folders, tmp_path / "soup", recalibrate=pictures)) == noted - 1
    arithmetic.mix(folders, [0.5, 0.5], tmp_path / "mix", recalibrate=pictures)
    arithmetic.interpolate(*folders, {0.0: tmp_path / "0", 0.5: tmp_path / "half"}, recalibrate=pictures)
    assert weights(tmp_path / "soup") == weights(tmp_path / "mix") == weights(tmp_path / "half") != weights(tmp_path / "plain")
    assert weights(tmp_path / "0") == weights(folders[0])
    plain, found = state(tmp_path / "plain"), state(tmp_path / "soup")  # `state` compares the sums of the manifest, too
    changed = {name.rpartition(".")[2] for name in plain if not torch.equal(plain[name], found[name])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}
    record = json.loads((tmp_path / "soup" / "provenance.json").read_text())["weights"]
    assert record["batch_norm"] == {"data": "noise", "pictures": 12}
    live = Line(model, moved(model, 1, 0.05), recalibrate=pictures).at(0.5)
    assert all(torch.allclose(value, found[name], atol=1e-6) for name, value in live.state_dict().items())


def test_pictures_without_layers_layers_without_pictures_and_too_few_are_refused(model, images, tmp_path):
    vit = written(tiny(), tmp_path / "vit")
    with pytest.raises(ConfigError, match="no batch normalisation"):
        arithmetic.soup([vit], tmp_path / "x", recalibrate=given(images, 12))
    folder = written(model, tmp_path / "resnet")
    with pytest.raises(DataError, match="no pictures"):
        arithmetic.mix([folder, written(moved(model, 2), tmp_path / "c")], [0.5, 0.5], tmp_path / "x",
                       recalibrate=Pictures(lambda _: (), {}))  # fmt: skip
    assert not (tmp_path / "x").exists()
