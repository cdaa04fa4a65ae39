"""Combinations of weight files: endpoints and identities hold to the bit, and results are complete models."""

from __future__ import annotations

import itertools
import json

import pytest
import safetensors.torch
import torch
from weight_samples import moved, state, tiny, weights, written

import ostension
from ostension.cli.main import main
from ostension.formats.load import load, save
from ostension.weights import arithmetic


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    model = tiny()
    with torch.no_grad():
        model.visual.conv1.weight.view(-1)[:5] = -0.0
    return written(model, folder / "start"), written(moved(model, 1), folder / "end")


def test_a_point_of_the_line_is_the_mean_of_both_ends(pair, tmp_path):
    arithmetic.interpolate(*pair, {0.25: tmp_path / "quarter", 0.5: tmp_path / "half"})
    start, end = state(pair[0]), state(pair[1])
    for alpha, name in ((0.25, "quarter"), (0.5, "half")):
        for key, value in state(tmp_path / name).items():
            wide = (1 - alpha) * start[key].double() + alpha * end[key].double()
            assert torch.equal(value, wide.to(value.dtype)), key


def test_the_ends_of_the_line_are_the_files_byte_for_byte(pair, tmp_path):
    arithmetic.interpolate(*pair, {0.0: tmp_path / "start", 1.0: tmp_path / "end"})
    assert weights(tmp_path / "start") == weights(pair[0])
    assert weights(tmp_path / "end") == weights(pair[1])


@pytest.mark.parametrize("alpha", [0.3, 0.5, 1.7, -0.4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_equal_models_give_themselves_with_their_negative_zeros(alpha, dtype, tmp_path):
    model = tiny().to(dtype)
    with torch.no_grad():
        model.visual.conv1.weight.view(-1)[:5] = -0.0
    folder = written(model, tmp_path / "model")
    other = tmp_path / "other"
    save(model, other)
    arithmetic.interpolate(folder, other, {alpha: tmp_path / "between"})
    assert weights(tmp_path / "between") == weights(folder)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 72])
def test_a_soup_of_equal_models_is_the_model(count, pair, tmp_path):
    arithmetic.soup([pair[0]] * count, tmp_path / "soup")
    assert weights(tmp_path / "soup") == weights(pair[0])


def test_a_soup_does_not_depend_on_the_order(pair, tmp_path):
    model = tiny()
    folders = [*pair, written(moved(model, 2, 0.1), tmp_path / "third")]
    found = set()
    for number, order in enumerate(itertools.permutations(folders)):
        arithmetic.soup(order, tmp_path / f"soup-{number}")
        found.add(weights(tmp_path / f"soup-{number}"))
    assert len(found) == 1


def test_a_mix_does_not_depend_on_the_order(pair, tmp_path):
    arithmetic.mix(pair, [0.3, 0.7], tmp_path / "one")
    arithmetic.mix(pair[::-1], [0.7, 0.3], tmp_path / "other")
    arithmetic.interpolate(*pair, {0.7: tmp_path / "line"})
    assert weights(tmp_path / "one") == weights(tmp_path / "other")
    one, line = state(tmp_path / "one"), state(tmp_path / "line")
    assert all(torch.allclose(one[key], line[key], rtol=1e-6) for key in one)


def test_a_start_and_its_task_vector_give_what_it_became(pair, tmp_path):
    vector = tmp_path / "vector.safetensors"
    arithmetic.diff(*pair, vector)
    arithmetic.apply(pair[0], [vector], [1.0], tmp_path / "again")
    again, end = state(tmp_path / "again"), state(pair[1])
    for key, value in end.items():
        ulp = torch.nextafter(value.abs(), torch.tensor(float("inf"))) - value.abs() if value.is_floating_point() else 0
        assert ((again[key] - value).abs() <= ulp).all(), key


def test_a_task_vector_may_make_variances_smaller(tmp_path):
    model = tiny("tiny-resnet")
    start, end = written(model, tmp_path / "start"), written(moved(model, 1), tmp_path / "end")
    arithmetic.diff(start, end, tmp_path / "v.safetensors")
    vector = safetensors.torch.load_file(tmp_path / "v.safetensors")
    assert any((value < 0).any() for name, value in vector.items() if name.endswith("running_var"))
    arithmetic.apply(start, [tmp_path / "v.safetensors"], [1.0], tmp_path / "again")
    for name, value in state(tmp_path / "again").items():
        assert torch.allclose(value, state(end)[name], rtol=1e-6, atol=1e-7), name


def test_a_vector_of_scale_zero_or_of_equal_models_changes_no_bit(pair, tmp_path):
    arithmetic.diff(*pair, tmp_path / "vector.safetensors")
    arithmetic.diff(pair[0], pair[0], tmp_path / "nothing.safetensors")
    arithmetic.apply(pair[0], [tmp_path / "vector.safetensors"], [0.0], tmp_path / "zero")
    arithmetic.apply(pair[0], [tmp_path / "nothing.safetensors"], [-2.0], tmp_path / "same")
    arithmetic.apply(pair[0], [tmp_path / "vector.safetensors"] * 2, [0.5, -0.5], tmp_path / "undone")
    for name in ("zero", "same", "undone"):
        assert weights(tmp_path / name) == weights(pair[0]), name


def test_several_vectors_do_not_depend_on_the_order(pair, tmp_path):
    third = written(moved(tiny(), 5), tmp_path / "third")
    arithmetic.diff(*pair, tmp_path / "one.safetensors")
    arithmetic.diff(pair[0], third, tmp_path / "two.safetensors")
    arithmetic.apply(pair[0], [tmp_path / "one.safetensors", tmp_path / "two.safetensors"], [0.3, 0.4], tmp_path / "a")
    arithmetic.apply(pair[0], [tmp_path / "two.safetensors", tmp_path / "one.safetensors"], [0.4, 0.3], tmp_path / "b")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def test_patches_that_moved_different_weights_can_be_applied_in_any_order_or_together(pair, tmp_path):
    start = load(pair[0], dtype="float32")
    for name, part in (("image", "visual."), ("text", "text.")):
        tuned = moved(start, 7)
        tuned.load_state_dict({key: value if key.startswith(part) else start.state_dict()[key]
                               for key, value in tuned.state_dict().items()})  # fmt: skip
        arithmetic.diff(pair[0], written(tuned, tmp_path / name), tmp_path / f"{name}.safetensors")
    vectors = [tmp_path / "image.safetensors", tmp_path / "text.safetensors"]
    arithmetic.apply(pair[0], vectors, [0.4, 0.7], tmp_path / "together")
    for first, second, scales in ((*vectors, (0.4, 0.7)), (*vectors[::-1], (0.7, 0.4))):
        step, both = tmp_path / f"after-{first.stem}", tmp_path / f"both-{first.stem}"
        arithmetic.apply(pair[0], [first], [scales[0]], step, force=True)
        arithmetic.apply(step, [second], [scales[1]], both, force=True)
        assert weights(both) == weights(tmp_path / "together")


def test_another_layout_is_converted_on_reading(pair, tmp_path):
    for layout in ("open_clip", "hf"):
        save(load(pair[1], dtype="float32"), tmp_path / layout, layout=layout)
    arithmetic.interpolate(*pair, {0.5: tmp_path / "plain"})
    for layout in ("open_clip", "hf"):
        arithmetic.interpolate(pair[0], tmp_path / layout, {0.5: tmp_path / f"of-{layout}", 1.0: tmp_path / f"end-{layout}"},
                               force=True)  # fmt: skip
        mine, other = state(tmp_path / "plain"), state(tmp_path / f"of-{layout}")
        assert all(torch.allclose(mine[key], other[key], rtol=1e-6, atol=1e-8) for key in mine)
        assert all(torch.equal(value, state(pair[1])[key]) for key, value in state(tmp_path / f"end-{layout}").items())


def test_whole_numbers_are_not_averaged(tmp_path):
    model, other = tiny("tiny-resnet"), tiny("tiny-resnet")
    counters = [name for name in model.state_dict() if name.endswith("num_batches_tracked")]
    for part, number in ((model, 3), (other, 8)):
        for name in counters:
            part.state_dict()[name].fill_(number)
    folders = [written(model, tmp_path / "a"), written(other, tmp_path / "b")]
    notes = arithmetic.soup(folders, tmp_path / "soup")
    assert {int(state(tmp_path / "soup")[name]) for name in counters} == {8}
    assert any("batch normalisation" in note for note in notes)


def test_types_that_differ_meet_in_one_that_holds_both(pair, tmp_path):
    narrow = written(load(pair[1], dtype="bfloat16"), tmp_path / "narrow")
    arithmetic.soup([pair[0], narrow], tmp_path / "a")
    arithmetic.soup([narrow, pair[0]], tmp_path / "b")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    half = (state(pair[0])["text.text_projection"].double() + state(narrow)["text.text_projection"].double()) / 2
    assert torch.equal(state(tmp_path / "a")["text.text_projection"], half.float())


def test_the_result_says_what_it_is_made_of(pair, tmp_path):
    arithmetic.interpolate(*pair, {0.25: tmp_path / "out"})
    record = json.loads((tmp_path / "out" / "provenance.json").read_text())["weights"]
    assert record["operation"] == "interpolate"
    assert [entry["coefficient"] for entry in record["inputs"]] == [0.75, 0.25]
    hashes = [json.loads((folder / "manifest.json").read_text())["files"]["model.safetensors"]["sha256"] for folder in pair]
    assert [entry["sha256"]["model.safetensors"] for entry in record["inputs"]] == hashes
    assert str(tmp_path) not in json.dumps(record)


def test_the_result_classifies(pair, tmp_path):
    arithmetic.soup(pair, tmp_path / "soup")
    model = ostension.load(tmp_path / "soup")
    assert len(model.embed_texts(["a cat"])) == 1


def test_commands_write_what_the_functions_write(pair, tmp_path, capsys):
    start, end = map(str, pair)
    out = str(tmp_path / "line")
    assert main(["weights", "interpolate", start, end, "--alpha", "0.25", "--alpha", "0.5", "-o", out]) == 0
    assert capsys.readouterr().out.split() == [f"{out}/alpha-0.25", f"{out}/alpha-0.5"]
    assert main(["weights", "mix", f"{start}:0.5", f"{end}:0.5", "-o", str(tmp_path / "mix")]) == 0
    assert main(["weights", "soup", "uniform", start, end, "-o", str(tmp_path / "soup")]) == 0
    assert main(["weights", "diff", start, end, "-o", str(tmp_path / "v.safetensors")]) == 0
    assert main(["weights", "apply", start, str(tmp_path / "v.safetensors"), "--scale", "0.5", "-o", str(tmp_path / "p")]) == 0
    assert weights(tmp_path / "mix") == weights(tmp_path / "soup") == weights(tmp_path / "line" / "alpha-0.5")
    capsys.readouterr()
    assert main(["weights", "check", start, end, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["changed"] == row["tensors"] and row["cosine"] > 0.5 and row["differences"] == []
    assert main(["weights", "mix", start, "-o", str(tmp_path / "x")]) == 2
    assert "NAME:COEFFICIENT" in capsys.readouterr().err
