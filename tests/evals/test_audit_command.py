"""The audit as a command, a protocol and a page: every form of material, and what is said where it is wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ostension
from ostension.cli.main import main
from ostension.config import from_tree, to_tree
from ostension.data.task import Task, read_task
from ostension.evals.audit.page import html_page, markdown, verdict
from ostension.evals.audit.parts import Subject
from ostension.evals.audit.run import audit
from ostension.evals.audit.subject import subject_of
from ostension.evals.audit.words import known_senses, reference_words, senses_of
from ostension.evals.inputs import ArrayInputs
from ostension.evals.protocol import load_protocol
from ostension.evals.records import Record
from ostension.evals.targets import find_protocols
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.runtime import numpy_generator
from ostension.store import Features

NAMES = "cat\nfire_hydrant\ncrane\nwine glass\nglass\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random model, names, and 24 pictures in two groups."""
    root = tmp_path_factory.mktemp("audit")
    ostension.save(CLIP(preset("tiny-vit"), seed=0), root / "model")
    (root / "names.txt").write_text(NAMES)
    (root / "pictures").mkdir()
    lines = ["file,place"]
    for index in range(24):
        pixels = numpy_generator(index, "picture").integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "pictures" / f"{index}.png")
        lines.append(f"{index}.png,{'north' if index % 2 else 'south'}")
    (root / "groups.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def run(folder, capsys, monkeypatch):
    """Run `ostension eval audit` in the folder: (exit status, stdout, stderr)."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("OSTENSION_MODEL", raising=False)
    threads = torch.get_num_threads()

    def call(*arguments):
        status = main(["eval", "audit", *arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    yield call
    torch.set_num_threads(threads)


def test_names_without_a_model_are_looked_at_for_spelling_and_senses(run):
    status, out, err = run("names.txt")
    assert status == 0 and "names are only read" in err
    assert "'fire_hydrant' has underscores" in out and "do: write spaces" in out
    assert "'glass' in 'wine glass'" in out
    assert "'crane' has 2 senses that can be photographed: crane bird, construction crane" in out


def test_the_names_that_imagenet_has_twice_are_found(run):
    status, out, _ = run("imagenet", "--json")
    findings = json.loads(out)["details"]["findings"]
    assert status == 0
    high = [finding["classes"] for finding in findings if finding["severity"] == "high"]
    assert high == [["missile", "missile"], ["sunglasses", "sunglasses"]]
    assert ["Boxer"] in [finding["classes"] for finding in findings if finding["kind"] == "ambiguous"]


def test_a_model_and_pictures_with_groups_give_a_page_and_a_record(run, folder):
    arguments = ("names.txt", "--model", "model", "--images", "pictures", "--groups", "groups.csv", "--add", "child, tree")
    status, out, err = run(*arguments, "--json", "-o", "audit.html")
    assert status == 0 and "wrote audit.html" in err
    record = json.loads(out)
    assert record["counts"]["samples"] == 24 and record["counts"]["classes"] == 5
    details = record["details"]
    assert [addition["name"] for addition in details["additions"]] == ["child", "tree"]
    assert set(details["additions"][0]["by_group"]["place"]) == {"north", "south"}
    assert any("several senses" in finding["rule"] or "visible senses" in finding["rule"] for finding in details["findings"])
    senses = next(finding for finding in details["findings"] if finding["kind"] == "ambiguous")
    assert senses["classes"] == ["crane"] and "cosine" in senses["evidence"]
    assert record["hashes"]["weights"]
    from_tree(Record, record)
    page = (folder / "audit.html").read_text()
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")
    again = run(*arguments, "--json")[1]
    assert again == out


def test_markdown_and_json_are_written_too(run, folder):
    assert run("names.txt", "-o", "audit.md")[0] == 0
    assert (folder / "audit.md").read_text().startswith("# The class names of names\n")
    assert run("names.txt", "-o", "audit.json")[0] == 0
    assert json.loads((folder / "audit.json").read_text())["details"]["findings"]


def test_a_build_can_fail_on_findings(run, folder):
    (folder / "ids.txt").write_text("n02119789\ncat\n")
    assert run("ids.txt", "--fail-on", "high")[0] == 1
    assert run("names.txt", "--fail-on", "high")[0] == 0
    assert run("names.txt", "--fail-on", "medium")[0] == 1


def test_ready_features_are_audited_without_a_model(run, folder):
    generator = np.random.default_rng(0)
    np.savez(folder / "rows.npz", rows=generator.normal(size=(5, 8)), names=np.array(NAMES.split("\n")[:5]))
    np.savez(folder / "test.npz", rows=generator.normal(size=(30, 8)))
    status, out, _ = run("names.txt", "--features", "test.npz", "--texts", "rows.npz", "--json")
    details = json.loads(out)["details"]
    assert status == 0 and details["summary"]["images"] == 30
    assert any("only one row a class" in line for line in details["skipped"])
    ambiguous = next(finding for finding in details["findings"] if finding["kind"] == "ambiguous")
    assert "cosine" not in ambiguous["evidence"]


def test_a_task_with_its_data_is_audited_with_labels(run, folder):
    (folder / "sorted").mkdir()
    for index in range(8):
        into = folder / "sorted" / ("cat" if index % 2 else "dog")
        into.mkdir(exist_ok=True)
        (into / f"{index}.png").write_bytes((folder / "pictures" / f"{index}.png").read_bytes())
    assert main(["task", "new", "sorted", "-o", "pets.toml"]) == 0
    status, out, _ = run("pets.toml", "--model", "model", "--data", "sorted", "--json")
    record = json.loads(out.splitlines()[-1])
    assert status == 0 and record["details"]["summary"]["accuracy"]["value"] >= 0
    assert record["task"] == "pets"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.txt",), "no such file or task: missing.txt"),
        (("names.txt", "--images", "pictures"), "no model is given"),
        (("names.txt", "--groups", "groups.csv"), "--groups has no effect without --images"),
        (("names.txt", "--images", "a", "--data", "b"), "--images and --data are all given"),
        (("names.txt", "--features", "a.npz"), "--features and --texts need each other"),
        (("names.txt", "-o", "audit.pdf"), "expected a name that ends in .html, .md, .json"),
        (("names.txt", "--fail-on", "worst"), "--fail-on is 'worst'"),
        (("names.txt", "--model", "model", "--data", "pictures"), "--data needs a task with labels"),
        (("flickr8k",), "has no classes"),
        (("names.txt", "--model", "model", "--images", "pictures", "--groups", "names.txt"), 'a column "file"'),
        (("twice.txt",), "'cat'"),
    ],
)
def test_what_cannot_be_meant_is_one_line(run, folder, arguments, message):
    (folder / "twice.txt").write_text("cat\ncat\n")
    status, out, err = run(*arguments)
    assert status in (1, 2) and out == ""
    assert message in err and err.count("\n") == 1 and "Traceback" not in err


def test_a_picture_without_a_line_of_groups_is_named(run, folder):
    (folder / "few.csv").write_text("file,place\n0.png,north\n")
    status, _, err = run("names.txt", "--model", "model", "--images", "pictures", "--groups", "few.csv")
    assert status == 1 and "no line for the picture" in err


def test_names_from_data_are_escaped_on_the_page():
    found = audit(Subject(names=("<script>alert(1)</script>", "a & b")))
    page = html_page(found, title="<b>T</b>", subject="s", command="ostension eval audit <x>")
    assert "<script" not in page and "&lt;b&gt;T" in page and "&lt;x&gt;" in page


def test_the_page_has_everything_that_was_found():
    generator = np.random.default_rng(0)
    names = (*(f"thing {word}" for word in ("one", "two", "three", "four")), "traffic_light")
    rows = generator.normal(size=(5, 16))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = audit(Subject(names=names, rows=rows, images=rows[generator.integers(0, 5, 60)]))
    page, text = html_page(found, title="T", subject="s"), markdown(found, title="T", subject="s")
    for finding in found.findings:
        assert finding.suggestion in text and re.sub("'", "&#x27;", finding.suggestion) in page
    for line in found.skipped:
        assert line in text
    assert "Taking a class off the list" in page and "If labels are given by a threshold" in page
    assert verdict(found) in text


def test_the_protocol_gives_the_record_and_columns_of_each_picture():
    module = load_protocol("audit")
    task = Task(title="T", name="t", version=1, classes={"a": ("cat",), "b": ("mouse",), "c": ("dog",)}, templates=("a {}.",),
                groups={"g": ()}, licence="-", citation="-")  # fmt: skip
    rows = np.eye(3, 5) + 0.2
    pictures = Features(rows=rows[[0, 0, 1, 2]], targets=np.array([0, 0, 1, 2]), classes=("a", "b", "c"),
                        groups={"g": np.array(["x", "y", "x", "y"])})  # fmt: skip
    outcome = module.run(ArrayInputs(task, {"test": pictures}, class_rows=rows), module.Config(), seed=0)
    assert outcome.samples["predicted"].tolist() == [0, 0, 1, 2]
    assert outcome.record.metrics["classes_to_change"].value == 0
    assert outcome.record.metrics["classes_to_look_at"].value == pytest.approx(1 / 3)
    assert any(finding["classes"] == ["mouse"] for finding in outcome.record.details["findings"])
    json.dumps(to_tree(outcome.record))
    alone = module.run(ArrayInputs(task, {}, class_rows=rows), module.Config(), seed=0)
    assert alone.record.split == "" and alone.samples == {}
    assert "retrieval" in module.reason_not(read_task("flickr8k"))


def test_single_templates_are_tried_where_there_is_a_text_tower():
    task = Task(title="T", name="t", version=1, classes={"a": ("cat",), "b": ("dog",)}, templates=("a {}.",), licence="-",
                citation="-")  # fmt: skip
    prompts = {}
    generator = np.random.default_rng(0)
    tried = ("a {}.", "the {}.", "my {}.")
    for name in ("cat", "dog", *reference_words()):
        prompts.update({template.format(name): generator.normal(size=6) for template in tried})
    inputs = ArrayInputs(task, {}, prompt_rows=prompts)
    subject = subject_of(inputs, templates=tried[1:])
    assert subject.template_rows is not None and subject.template_rows.shape == (3, 2, 6)
    assert subject.templates == tried and subject.reference is not None
    assert subject_of(inputs).template_rows is None


def test_senses_are_those_of_the_word_alone():
    assert senses_of("mouse") == ("mouse animal", "computer mouse")
    assert senses_of("Cranes") == senses_of("crane") != ()
    assert senses_of("mouse_(computer_equipment)") == () and senses_of("computer mouse") == () and senses_of("dog") == ()
    assert len(known_senses()) > 100 and all(len(senses) >= 2 for senses in known_senses().values())
    assert len(reference_words()) == len(set(reference_words())) >= 40
    assert not set(reference_words()) & set(known_senses())


@pytest.mark.parametrize("page", ["class-design.md", "bias.md"])
def test_the_python_on_the_pages_runs(page, capsys):
    text = (Path(__file__).parents[2] / "docs" / "howto" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})
    assert capsys.readouterr().out


def test_thresholds_are_settings_of_a_run():
    (asked,) = find_protocols(["audit"], {"audit.thresholds.close": 0.2, "audit.add": ["child"]})
    assert asked.config.thresholds.close == 0.2 and asked.config.add == ("child",)
    (near,) = find_protocols(["near-miss"], {"near-miss.near": {"cat": ["a cat-shaped cloud"]}})
    assert near.config.near == {"cat": ("a cat-shaped cloud",)}
