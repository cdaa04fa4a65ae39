"""Runs over tasks and protocols: results written when done, resumed by identity, failures that stop nothing else."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from eval_making import a_model, a_task, add_protocol

import ostension
from ostension.cli.main import main
from ostension.errors import ConfigError, DataError
from ostension.evals.identity import code_sha256, differences
from ostension.evals.protocol import load_protocol
from ostension.evals.results import Results, read_result, read_samples
from ostension.evals.store_inputs import Embedder
from ostension.evals.suite_run import Runner
from ostension.evals.targets import OpenedTasks, Target, find_protocols, find_targets, of_one_task
from ostension.files import folder_lock
from ostension.store import Store


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return a_model()


@pytest.fixture
def place(tmp_path, monkeypatch):
    add_protocol(tmp_path / "protocols", monkeypatch)
    a_task(tmp_path)
    return tmp_path


def run(place: Path, model, *, tasks=("pets.toml",), protocols=("counting",), settings=None, told=None, **options):
    embedder = Embedder(model, Store(place / "store"), name="m")
    targets = find_targets([str(place / task) if task.endswith(".toml") else task for task in tasks])
    opened = OpenedTasks(limit=options.get("limit"))
    runner = Runner(find_protocols(protocols, settings or {}), results=Results(place / "results"), told=told, **options)
    return list(runner.suite(embedder, targets, opened))


def statuses(steps) -> list[str]:
    return [step.status for step in steps]


def test_a_result_is_written_and_not_computed_again(place, model):
    mark = str(place / "mark")
    (step,) = run(place, model, settings={"counting.mark": mark})
    assert step.status == "done" and step.record.headline.value == 0.06
    path = place / "results" / "m" / "pets" / "counting.json"
    assert step.result == read_result(path) and step.result.place == ("m", "pets", "counting")
    assert step.record.hashes["data/pets/test"] == step.result.identity["data"]["pets/test"]
    (again,) = run(place, model, settings={"counting.mark": mark})
    assert again.status == "recorded" and again.result == step.result
    assert Path(mark).read_text() == "pets\n"


def test_what_changed_is_said_and_computed_again(place, model, monkeypatch):
    told: list[str] = []
    run(place, model)

    def changed(**options) -> str:
        told.clear()
        (step,) = run(place, model, told=told.append, **options)
        assert step.status == "done" and told == [f"m: pets counting: computed again: {step.reason}"]
        return step.reason

    assert changed(settings={"counting.factor": 2.0}) == "config.factor was 1.0, is 2.0"
    assert changed() == "config.factor was 2.0, is 1.0"
    assert changed(seed=1) == "seed was 0, is 1"
    run(place, model)
    assert changed(again=True) == "asked for"
    (place / "pets" / "test" / "cat" / "8.png").write_bytes((place / "pets" / "test" / "cat" / "0.png").read_bytes())
    assert changed().startswith("data.pets/test was ")
    record = place / "pets.toml"
    record.write_text(record.read_text().replace("a {}.", "the {}."))
    assert changed().startswith("task.sha256 was ")
    record.write_text(record.read_text().replace('title = "Pets"', 'title = "Our pets"'))
    assert statuses(run(place, model)) == ["recorded"]  # what is only said of the data changes no number
    source = place / "protocols" / "counting.py"
    source.write_text(source.read_text().replace("/ 100)", "/ 200)"))
    add_module_again(monkeypatch)
    assert changed().startswith("code was ")


def add_module_again(monkeypatch):
    monkeypatch.delitem(sys.modules, "ostension.evals.protocols.counting")


def test_another_model_under_the_same_name_is_computed_again(place, model):
    run(place, model)
    (step,) = run(place, a_model(seed=1))
    assert step.status == "done" and step.reason.startswith("weights was ")


def test_a_damaged_result_is_said_and_computed_again(place, model):
    run(place, model)
    path = place / "results" / "m" / "pets" / "counting.json"
    for damage in (path.read_text()[:100], "{}", json.dumps({**json.loads(path.read_text()), "record": {"protocol": 3}})):
        path.write_text(damage)
        (step,) = run(place, model)
        assert step.status == "done" and str(path) in step.reason
        assert read_result(path) == step.result


def test_samples_are_written_on_request_and_read_back(place, model):
    (step,) = run(place, model)
    with pytest.raises(DataError, match="--samples"):
        read_samples(step.result)
    (step,) = run(place, model, samples=True)
    assert step.reason == "outputs of samples are wanted"
    found = read_samples(step.result)
    assert found["id"] == step.record.details["ids"] and found["correct"] == ["1", "0"] * 3
    assert statuses(run(place, model, samples=True)) == statuses(run(place, model)) == ["recorded"]


def test_a_failure_does_not_stop_the_rest(place, model, monkeypatch):
    add_protocol(place / "protocols", monkeypatch, "other")
    for fail, reason in (
        ("data", "cannot be measured"),
        ("nan", "pets counting: metrics.share.value is nan; expected finite numbers"),
        ("defect", "a defect: KeyError: 'oh' (the whole of it in "),
    ):
        first, second = run(place, model, protocols=("counting", "other"), settings={"counting.fail": fail}, again=True)
        assert (first.status, second.status) == ("failed", "done") and first.reason.startswith(reason)
        assert not (place / "results" / "m" / "pets" / "counting.json").exists()
    assert "KeyError" in (place / "results" / "m" / "pets" / "counting.error.txt").read_text()
    run(place, model)
    assert not (place / "results" / "m" / "pets" / "counting.error.txt").exists()


def test_missing_data_fails_with_its_reason_and_what_cannot_be_meant_does_not_apply(place, model, monkeypatch):
    add_protocol(place / "protocols", monkeypatch, "learning", ("train", "test"), "pre")
    a_task(place, "untaught", train=0)
    monkeypatch.delenv("OSTENSION_DATA", raising=False)
    steps = run(place, model, tasks=("untaught.toml", "cifar10", "flickr30k"), protocols=("counting", "learning"))
    assert statuses(steps) == ["done", "not applicable", "failed", "failed", "not applicable", "not applicable"]
    assert steps[1].reason == "its record has no split 'train'" and "no data is given" in steps[2].reason
    assert steps[4].reason == "it has captions"


def test_a_missing_task_is_not_given_the_data_of_another(place, model):
    opened = OpenedTasks(data=place, itself=of_one_task(find_targets(["cifar10", "dtd"])))
    with pytest.raises(ConfigError, match="no data of the task 'cifar10' in .*expected .*cifar10"):
        opened.splits("cifar10").missing("test")
    assert of_one_task(find_targets(["pacs"])) and not of_one_task(find_targets(["pacs", "dtd"]))


def test_nothing_is_learned_about_classes_that_are_not_in_training(place, model, monkeypatch):
    add_protocol(place / "protocols", monkeypatch, "learning", ("train", "test"), "pre")
    (place / "pets" / "train" / "dog" / "1.png").unlink()
    (place / "pets" / "train" / "dog" / "3.png").unlink()
    for path in (place / "pets" / "test" / "cat").iterdir():
        path.unlink()
    (step,) = run(place, model, protocols=("learning",))
    assert step.status == "not applicable" and step.reason == "no class of 'test' is in 'train'"


def test_a_limited_run_says_so(place, model):
    (step,) = run(place, model, limit=2)
    assert step.record.counts["limit"] == 2 and step.result.limit == 2 and "limited" in step.result.notes[0]
    (step,) = run(place, model)
    assert step.status == "done" and step.reason == "limit was 2, is nothing" and "limit" not in step.record.counts


def test_a_dry_run_computes_nothing(place, model):
    (step,) = run(place, model, dry=True)
    assert step.status == "planned" and not (place / "results").exists() and not (place / "store").exists()
    run(place, model)
    assert statuses(run(place, model, dry=True)) == ["recorded"]


def test_counts_that_differ_from_the_record_stand_in_the_notes(place, model):
    record = place / "pets.toml"
    record.write_text(record.read_text().replace("count = 6", "count = 7"))
    (step,) = run(place, model)
    assert "has 6 samples, the record says 7" in step.result.notes[0]


def test_two_runs_at_once_on_one_models_results_are_refused(place, model):
    with folder_lock(place / "results" / "m"), pytest.raises(DataError, match="in use by another run"):
        run(place, model)
    run(place, model)


def test_results_that_cannot_be_written_are_one_line(place, model):
    (place / "results").write_text("a file")
    with pytest.raises(DataError, match="is not a folder"):
        run(place, model)


def test_a_full_disk_is_one_line_and_the_rest_goes_on(place, model, monkeypatch):
    from ostension.evals import results

    add_protocol(place / "protocols", monkeypatch, "other")
    plain = results.write_json

    def full(path, tree):
        if path.name == "counting.json":
            raise OSError(28, "No space left on device")
        plain(path, tree)

    monkeypatch.setattr(results, "write_json", full)
    first, second = run(place, model, protocols=("counting", "other"))
    assert first.status == "failed" and "cannot be written: No space left on device; make room" in first.reason
    assert second.status == "done"


def test_a_task_without_a_test_split_gives_a_result_for_each_split():
    targets = find_targets(["pacs", "emoji@train", "pacs@photo"])
    splits = [(target.task, target.split) for target in targets]
    assert splits == [
        ("pacs", "photo"), ("pacs", "art_painting"), ("pacs", "cartoon"), ("pacs", "sketch"), ("emoji", "train"),
    ]  # fmt: skip
    assert find_targets(["shifts7"])[0] == Target(task="imagenet_v2", split="test")
    with pytest.raises(ConfigError, match=r"unknown task or suite 'cifer10'.*cifar10"):
        find_targets(["cifer10"])
    with pytest.raises(ConfigError, match="split"):
        find_targets(["pacs@foto"])


def test_settings_reach_their_protocol_or_are_refused(place):
    (asked,) = find_protocols(["counting"], {"counting.factor": 3})
    assert asked.config.factor == 3.0
    for key, message in (
        ("counting.facto", r"unknown setting 'counting.facto'.*counting.factor"),
        ("zeroshot.templates", "has no effect"),
        ("countin.factor", "unknown protocol 'countin'.*counting"),
        ("factor", "PROTOCOL.SETTING"),
    ):
        with pytest.raises(ConfigError, match=message):
            find_protocols(["counting"], {key: 1})
    with pytest.raises(ConfigError, match="unknown protocol 'zero-shoot'.*nearest: 'zeroshot'"):
        find_protocols(["zero_shoot"], {})
    with pytest.raises(ConfigError, match="factor"):
        find_protocols(["counting"], {"counting.factor": "much"})


def test_code_counts_and_comments_do_not(place, monkeypatch):
    module = "ostension.evals.protocols.counting"
    load_protocol("counting")
    before = code_sha256(module)
    source = place / "protocols" / "counting.py"
    source.write_text(source.read_text().replace('"""Counts samples, for tests."""', '"""Counts."""\n# a comment'))
    assert code_sha256(module) == before
    source.write_text(source.read_text() + "\nfrom ostension.evals.metrics import ranks\n")
    assert code_sha256(module) != before


def test_differences_are_short():
    old, new = {"a": {"b": "0" * 64, "c": 1}, "d": "x" * 100}, {"a": {"b": "1" * 64, "c": 1}, "d": ""}
    assert differences(old, new) == [f"a.b was {'0' * 12}, is {'1' * 12}", f"d was {'x' * 12}, is nothing"]


def test_folds_are_averaged(tmp_path, model, monkeypatch):
    from test_store_inputs import write_csv_task

    add_protocol(tmp_path / "protocols", monkeypatch, "learning", ("train", "test"), "pre")
    write_csv_task(tmp_path, "both", {"train": ["", "2", "2", ""], "test": ["1"] * 6})
    (step,) = run(tmp_path, model, protocols=("learning",), samples=True)
    assert step.record.headline.value == pytest.approx((0.06 + 0.02) / 2) and step.record.counts["folds"] == 2
    assert step.record.details["folds"] == {"1": {"share": 0.06}, "2": {"share": 0.02}}
    assert read_samples(step.result)["fold"] == ["1"] * 6 + ["2"] * 2
    assert statuses(run(tmp_path, model, protocols=("learning",), samples=True)) == ["recorded"]


def test_folds_that_the_data_does_not_say_are_noted(tmp_path, model, monkeypatch):
    add_protocol(tmp_path / "protocols", monkeypatch)
    a_task(tmp_path, more='folds = { count = 2, split = "both" }')
    (step,) = run(tmp_path, model)
    assert step.status == "done" and step.result.notes[0].endswith("no field 'fold', so its 2 official folds are not used")


def test_evaluate_gives_records_in_one_call(place, model):
    records = ostension.evaluate(model, [place / "pets.toml"], protocols=["counting"], name="mine", store=place / "store")
    assert [(record.model, record.task, record.protocol) for record in records] == [("mine", "pets", "counting")]
    with pytest.raises(DataError, match="1 of 1 failed: pets counting: cannot be measured"):
        ostension.evaluate(model, [place / "pets.toml"], protocols=["counting"], settings={"counting.fail": "data"})


@pytest.fixture
def saved(place, model):
    ostension.save(model, place / "tiny")
    return place


def command(place: Path, *words: str) -> list[str]:
    return [
        "eval", "run", str(place / "pets.toml"), "--protocol", "counting", "--model", str(place / "tiny"),
        "--store", str(place / "store"), "-o", str(place / "results"), "--dtype", "float32", *words,
    ]  # fmt: skip


def test_the_command_prints_a_table_or_json_lines_and_says_what_failed(saved, capsys):
    assert main(command(saved)) == 0
    out, err = capsys.readouterr()
    assert "6.00 %" in out and "embedding pets/test: 6 of 6" in err and "share 0.0600" in err
    assert main(command(saved, "--json")) == 0
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert row["status"] == "recorded" and row["metrics"]["share"]["value"] == 0.06 and Path(row["path"]).is_file()
    assert main(command(saved, "--set", "counting.fail=data")) == 1
    out, err = capsys.readouterr()
    assert err.splitlines()[-1] == "failed: tiny: pets counting: cannot be measured"
    assert main(command(saved, "--set", "counting.factor=2", "--dry-run")) == 0
    assert "config.factor was 1.0, is 2.0" in capsys.readouterr().out
    assert main(command(saved, "--set", "counting.facto=2")) == 1
    assert "nearest: counting.factor" in capsys.readouterr().err


def test_commands_that_cannot_be_meant_are_refused(saved, capsys, monkeypatch):
    monkeypatch.delenv("OSTENSION_MODEL", raising=False)
    for words, message in (
        (["eval", "run", "-o", "r"], "no task is given"),
        (["eval", "run", "cifar10", "-o", "r", "--protocol", "counting"], "no model is given"),
        (["eval", "run", "cifar10", "-o", "r", "--limit", "0"], "--limit is 0"),
        (["eval", "run", "cifar10", "-o", "r", "--texts", "t.npz"], "--texts has no effect"),
    ):
        assert main(words) == 2
        assert message in capsys.readouterr().err


def test_embedding_alone_fills_the_store(saved, capsys):
    words = [
        "eval",
        "embed",
        str(saved / "pets.toml"),
        "--model",
        str(saved / "tiny"),
        "--store",
        str(saved / "store"),
        "--json",
    ]
    assert main(words) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["split"], row["rows"]) for row in rows] == [("train", 4), ("test", 6)]
    assert main([*words, "--split", "val"]) == 1
    assert "unknown split of the task 'pets' 'val'; expected one of the known names" in capsys.readouterr().err


@pytest.mark.slow  # two processes that import torch
def test_a_killed_run_goes_on_where_it_was(saved, capsys):
    """The second protocol waits until it is killed; what the first one gave is kept and not computed again."""
    mark = saved / "mark"
    slow = saved / "protocols" / "waiting.py"
    text = (saved / "protocols" / "counting.py").read_text()
    slow.write_text(
        text.replace('    if config.fail == "data":', '    import time; time.sleep(60)\n    if config.fail == "data":')
    )
    program = (
        "import sys; from ostension.evals import protocols; "
        f"protocols.__path__.append({str(saved / 'protocols')!r}); "
        "protocols.__spec__.submodule_search_locations = protocols.__path__; "
        "from ostension.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    words = command(saved, "--set", f"waiting.mark={mark}")
    words[words.index("counting")] = "counting,waiting"
    process = subprocess.Popen([sys.executable, "-c", program, *words], env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        until = time.monotonic() + 120
        while not mark.exists() and time.monotonic() < until:
            time.sleep(0.05)
        assert mark.exists()
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    result = saved / "results" / "tiny" / "pets" / "counting.json"
    before = result.stat().st_mtime_ns
    assert not (result.parent / "waiting.json").exists()
    assert main(command(saved, "--json")) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "recorded" and result.stat().st_mtime_ns == before


def test_a_step_says_where_it_belongs(place, model):
    (step,) = run(place, model)
    assert step.target == "pets" and dataclasses.replace(step, split="photo").target == "pets@photo"
