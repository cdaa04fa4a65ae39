"""Methods under DomainBed's protocol: parts, batches, draws, runs that go on, and the rules on planted and real runs."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from ostension.adapt import coop, finetune
from ostension.adapt._recipe import Recipe
from ostension.adapt._tuning import tuning
from ostension.adapt.base import METHODS
from ostension.cli.main import main
from ostension.errors import ConfigError, DataError
from ostension.evals.adaptation_domains import (
    DomainPlan,
    _parts,
    _pictures,
    domains_of,
    published,
    run_domains,
)
from ostension.evals.answers import names_of
from ostension.evals.domainbed import split_domain
from ostension.evals.figures import domains as figure
from ostension.evals.results import Results
from ostension.evals.store_inputs import Embedder
from ostension.evals.summaries import domains as summary
from ostension.evals.task_splits import TaskSplits
from ostension.formats.load import save
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.store import Store

DOMAINS = ("art", "photo", "sketch")
RECIPE = Recipe(epochs=1, batch_size=2, views=0, warmup_epochs=0)


@pytest.fixture(scope="module")
def model():
    base = preset("tiny-vit")
    text, tokenizer = (dataclasses.replace(part, context_length=48) for part in (base.text, base.tokenizer))
    return CLIP(dataclasses.replace(base, text=text, tokenizer=tokenizer), seed=0).eval()


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Three domains of two colours, 10, 12 and 14 pictures."""
    root = tmp_path_factory.mktemp("domains")
    record = ['title = "colours"\nversion = 1\ntemplates = ["a photo of a {}."]\nlicence = "none"\ncitation = "none"\n'
              f'[classes]\nred = "red"\nblue = "blue"\n[groups]\ndomain = {json.dumps(DOMAINS)}\n'
              '[[sources]]\nkind = "folder"\npath = "set"\nlevels = ["domain", "label"]\n']  # fmt: skip
    for number, domain in enumerate(DOMAINS):
        record.append(f'[splits.{domain}]\ncount = {10 + 2 * number}\nselect = {{ domain = ["{domain}"] }}\n')
        for label, paint in (("red", (220, 20, 20)), ("blue", (20, 20, 220))):
            (root / "set" / domain / label).mkdir(parents=True)
            for index in range(5 + number):
                noise = np.random.default_rng([index, number, *paint]).integers(-20, 20, (32, 32, 3))
                pixels = np.clip(np.array(paint) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / "set" / domain / label / f"{index}.png")
    (root / "colours.toml").write_text("".join(record))
    return root / "colours.toml"


@pytest.fixture
def embedder(model, tmp_path):
    return Embedder(model, Store(tmp_path / "store"), name="tiny")


def plan_of(**changes):
    return DomainPlan(**{"method": "coop", "config": coop.Config(recipe=RECIPE, length=2), "trials": 1, **changes})


def steps_of(*arguments):
    *found, last = run_domains(*arguments)
    return found, last


def test_parts_are_domainbeds_and_what_is_learned_never_meets_the_test_domain(task, embedder, tmp_path, monkeypatch):
    seen, splits = [], TaskSplits(task)
    domains = domains_of(splits)
    assert list(domains) == sorted(DOMAINS) and [len(data) for data in domains.values()] == [10, 12, 14]
    assert domains["art"].ids == sorted(domains["art"].ids, key=lambda name: (name.split("/")[-2], name))
    parts = _parts(plan_of(), domains, 2)
    np.testing.assert_array_equal(parts["photo"][1], split_domain(12, trial=2, domain=1)[1])

    def fit(model, examples, config, *, seed, folder=None, progress=None):
        seen.append(examples)
        return coop.fit(model, examples, config, seed=seed)

    monkeypatch.setattr(METHODS.load("kgcoop"), "fit", fit)
    found, _ = steps_of(plan_of(method="kgcoop"), splits, embedder, Results(tmp_path / "results"))
    assert [one.test_domains for one in found] == [("art",), ("photo",), ("sketch",)]
    for one, examples in zip(found, seen, strict=True):
        left = set(domains[one.test_domains[0]].ids)
        known = {examples.train.source.key(index) for index in range(len(examples.train))}
        judged = {examples.val.source.key(index) for index in range(len(examples.val))}
        assert not left & (known | judged) and not known & judged
        assert len(known) + len(judged) == 36 - len(left)


def test_features_of_parts_are_those_of_the_pictures_and_batches_hold_as_many_of_each_domain(task, embedder):
    splits, plan = TaskSplits(task), plan_of()
    domains = domains_of(splits)
    inside = {name: part[0] for name, part in _parts(plan, domains, 0).items() if name != "art"}
    pictures = _pictures(domains, inside, embedder, by_domain=True)
    rows, direct = pictures.features(embedder.model)[0], torch.stack(
        [embedder.model.encode_image(embedder.model.transform(pictures.source.read(index).image)[None], normalize=True)[0]
         for index in range(3)]
    )  # fmt: skip
    torch.testing.assert_close(rows[:3], direct.detach(), atol=2e-3, rtol=0)  # the store has float16
    from ostension.adapt._fit import _Orders

    addition = coop.CoOp(embedder.model, plan.config, names_of(splits.task))
    for order in _Orders(addition, pictures, RECIPE, 0, 0).orders:
        assert np.bincount(pictures.domains[order]).tolist() == [2, 2]


def test_runs_are_kept_and_the_record_goes_into_domainbeds_table(task, embedder, tmp_path):
    results, splits = Results(tmp_path / "results"), TaskSplits(task)
    plan = plan_of(trials=2)
    found, last = steps_of(plan, splits, embedder, results)
    assert len(found) == 6 and last.record.protocol == "domains-coop"
    assert set(last.record.metrics) == {"accuracy_training_domain", "accuracy_oracle"}
    written = {path: path.stat().st_mtime_ns for path in results.folder.rglob("trial*.json")}
    assert len(written) == 6
    again, _ = steps_of(plan, splits, embedder, results)
    assert again == found
    assert {path: path.stat().st_mtime_ns for path in results.folder.rglob("trial*.json")} == written
    _, zero_shot = steps_of(plan_of(method="zero-shot", config=None, trials=2), splits, embedder, results)
    table, *_ = summary.run([last.record, zero_shot.record])
    rows = table.details["table"]
    assert set(rows) == {"coop", "zero-shot"} and set(rows["coop"]["training-domain"]["domains"]) == set(DOMAINS)
    assert rows["coop"]["oracle"]["average"][2] == 2
    (drawn,) = figure.draw([table, last.record, zero_shot.record])
    assert "chosen on the test domain" in drawn.more


def test_leave_one_domain_out_makes_runs_without_two(task, embedder, tmp_path):
    plan = plan_of(method="zero-shot", config=None, rules=("leave-one-domain-out",), test=("art",))
    found, last = steps_of(plan, TaskSplits(task), embedder, Results(tmp_path / "results"))
    assert [one.test_domains for one in found] == [("art",), ("art", "photo"), ("art", "sketch")]
    assert last.record.details["table"]["zero-shot"]["leave-one-domain-out"]["art"][2] == 1


def test_draws_change_the_recipe_as_far_as_domainbeds_and_the_first_is_what_was_given():
    plan = DomainPlan(method="finetune", config=finetune.Config(recipe=tuning()), draws=40)
    made = [plan.settings(draw, trial=0, tests=("art",), steps=10).recipe for draw in range(40)]
    assert made[0] == tuning() and len({one.lr for one in made}) == 40
    rates = np.log10([one.lr / 3e-5 for one in made[1:]])
    assert -0.7 <= rates.min() < -0.4 and 0.5 < rates.max() <= 0.81
    assert all(1e-6 <= one.weight_decay <= 1e-2 for one in made[1:])
    assert plan_of(method="zero-shot", config=None, draws=5).num_draws == 1


def test_published_and_recommended_defaults():
    config = finetune.Config()
    plan = DomainPlan(method="finetune", config=config, defaults="domainbed")
    recipe = plan.settings(0, trial=0, tests=("a",), steps=98).recipe
    assert (recipe.lr, recipe.weight_decay, recipe.batch_size, recipe.epochs, recipe.schedule) == (5e-5, 0, 32, 52, "constant")
    assert recipe.epochs * 98 >= 5001 > (recipe.epochs - 1) * 98
    plan = dataclasses.replace(plan, defaults="recommended")
    recipe = plan.settings(0, trial=0, tests=("a",), steps=98).recipe
    assert recipe == tuning(lr=1e-5, batch_size=32, epochs=52)
    assert set(published(1)) <= {field.name for field in dataclasses.fields(Recipe)}
    with pytest.raises(ConfigError, match="no recipe"):
        DomainPlan(method="zero-shot", defaults="domainbed")
    with pytest.raises(ConfigError, match="rule of selection"):
        DomainPlan(method="zero-shot", rules=("best",))


def test_a_task_without_domains_and_an_unknown_domain_are_refused(task, embedder, tmp_path):
    with pytest.raises(DataError, match="three domains"):
        domains_of(TaskSplits("local_cifar10", tmp_path))
    with pytest.raises(ConfigError, match="no domain 'cartoon'"):
        list(run_domains(plan_of(test=("cartoon",)), TaskSplits(task), embedder, Results(tmp_path / "results")))


def test_the_command_prints_domainbeds_table(task, model, tmp_path, capsys):
    save(model, tmp_path / "model")
    asked = ["adapt", "domains", "--model", str(tmp_path / "model"), "--dtype", "float32", "--task", str(task), "--trials", "2",
             "--store", str(tmp_path / "store"), "-o", str(tmp_path / "results")]  # fmt: skip
    assert main([*asked, "--methods", "zero-shot"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["method", "chosen", "by", *DOMAINS, "mean"] and len(rows) == 2 and "±" in rows[0]
    assert main([*asked, "--methods", "zero-shot", "--json"]) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[0])
    assert row["rule"] == "training-domain" and row["mean"][2] == 2
    assert main([*asked, "--methods", "zero-shot", "--rules", "best"]) == 1
