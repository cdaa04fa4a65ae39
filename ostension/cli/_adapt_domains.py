"""`ostension adapt domains`: DomainBed's protocol for methods that adapt."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ostension.cli._adapt_shared import embedder_of, own_settings, plan_from, words_of
from ostension.cli._eval_run import STORE, models_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Domains:
    """Leave each domain out in turn, learn from the others, and choose by DomainBed's rules; what is recorded is kept.

    Domains are the splits of the task that select one value of the group "domain", as in pacs, vlcs, office_home,
    terra_incognita and domainnet. Each is cut 80 to 20 as DomainBed cuts it; a batch holds as many pictures of each training
    domain; accuracy is that of the test domain's 80 %, the mean over trials ± the standard error. Rules: training-domain
    chooses by the 20 % of the training domains, leave-one-domain-out by runs without two domains, oracle by the test domain's
    own 20 %, which is no result but an upper bound.

    Examples:
      ostension adapt domains --methods zero-shot,finetune,wise-ft --task pacs --defaults recommended --model FOLDER -o pacs
      ostension adapt domains --methods coop,dpl --task pacs --set coop.recipe.epochs=5 --set dpl.recipe.epochs=5 --model FOLDER

    Args:
        methods: Names of methods, separated by commas; zero-shot is the hand-written prompts.
        task: A task with domains, or a TOML file.
        test: Leave out only this domain; repeat the flag.
        defaults: Where recipes come from: "method", the method's own; "domainbed", Adam at 5e-5 for 5,001 steps, which tunes
            CLIP to below zero-shot; "recommended", AdamW at 1e-5 for as many. The latter two are for methods with a recipe.
        trials: Splits that are drawn; the published tables have 3.
        draws: Settings that are tried in each trial: those given, then random learning rates and weight decays around them; the
            published tables have 20.
        rules: Rules, separated by commas; leave-one-domain-out costs runs for every pair of domains.
        limit: Take so many pictures of each domain, of every class its share.
        model: A model's folder, file or hub name. Default: OSTENSION_MODEL.
        data: The folder of all data. Default: OSTENSION_DATA.
        store: The folder of embeddings.
        output: The folder of results, with a file for each run.
        set: A setting of a method, such as coop.length=4 or coop.recipe.epochs=50; repeat the flag.
        device: Where to compute: auto, cpu, cuda, cuda:N.
        dtype: Type of the weights: auto, float32, bfloat16, float16.
        json: Print one JSON object a row instead of a table.
    """

    methods: str
    task: str
    test: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    defaults: Literal["method", "domainbed", "recommended"] = "method"
    trials: int = 3
    draws: int = 1
    rules: str = "training-domain,oracle"
    limit: int | None = None
    model: str | None = None
    data: Path | None = None
    store: Path = STORE
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("results")
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    device: str = "auto"
    dtype: str = "auto"
    json: bool = False

    def run(self) -> int:
        from ostension.cli._tables import text_table
        from ostension.data.task import read_task
        from ostension.evals.adaptation_domains import DomainPlan, run_domains
        from ostension.evals.domainbed import Checkpoint, tabulate_all
        from ostension.evals.results import Results
        from ostension.evals.task_splits import TaskSplits

        methods, rules = words_of(self.methods, "--methods"), tuple(words_of(self.rules, "--rules"))
        task = Path(self.task) if self.task.endswith(".toml") else read_task(self.task)
        splits = TaskSplits(task, self.data, limit=self.limit)
        plans = []
        for method in methods:
            config = plan_from(method, own_settings(self.set, method, methods)).config
            defaults = self.defaults if getattr(config, "recipe", None) is not None else "method"
            plans.append(DomainPlan(
                method=method, config=config, defaults=defaults, trials=self.trials, draws=self.draws,
                rules=rules, test=self.test,
            ))  # fmt: skip
        embedder = embedder_of(self, models_of([self.model] if self.model else [])[0])
        results, failed = Results(self.output), 0
        found: list[Checkpoint] = []
        for plan in plans:
            for step in run_domains(plan, splits, embedder, results):
                if isinstance(step, str):
                    failed += 1
                    print(step, file=sys.stderr)
                elif isinstance(step, Checkpoint):
                    found.append(step)
                    told = ", ".join(f"{name} {100 * step.inside[name]:.1f} %" for name in step.test_domains)
                    print(f"{step.method}, trial {step.trial}, draw {step.draw}: left out {told}", file=sys.stderr)
        rows = tabulate_all(found, rules)
        if self.json:
            for method, rule, table in rows:
                columns = {**table.domains, "mean": table.average}
                print(json.dumps({
                    "task": splits.task.name, "method": method, "rule": rule,
                    **{name: [value.mean, value.error, value.trials] for name, value in columns.items() if value.trials},
                }))  # fmt: skip
        elif rows:
            domains = list(rows[0][2].domains)
            cells = [
                (method, rule, *(_cell(table.domains[name]) if name in table.domains else "" for name in domains),
                 _cell(table.average))
                for method, rule, table in rows
            ]  # fmt: skip
            print(text_table(("method", "chosen by", *domains, "mean"), cells, left=2))
        return 1 if failed else 0


def _cell(value) -> str:
    """A mean with its standard error, in percent."""
    return f"{100 * value.mean:.1f} ± {100 * value.error:.1f}" if value.trials else ""
