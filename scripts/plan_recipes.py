"""Write the record of the paper's recipes on paper, from which docs/howto/paper-recipes.md has its table.

    python scripts/plan_recipes.py          # about two minutes of one core

256 processes on V100s, which is what the paper's largest vision transformer was trained on.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ostension.files import write_json
from ostension.recipes import RECIPES, clip
from ostension.train.plan import PlanConfig, make_plan

RECORD = Path(__file__).parents[1] / "docs" / "records" / "paper-plans.json"
ASKED = PlanConfig(world_size=256, pairs=clip.PAIRS, device="v100")
# What the paper says of two of its runs (section 2.5): GPUs and days.
SAID = {"clip-rn50x64": (592, 18), "clip-vit-l-14": (256, 12)}


def row(name: str) -> dict[str, Any]:
    """A recipe's numbers, with the paper's savings of memory and without."""
    made = RECIPES.load(name).recipe()
    plan = make_plan(made, ASKED)
    roomy = make_plan(made.changed(clip.ROOMY), ASKED)
    assert plan.operations is not None and roomy.operations is not None
    run_flop = plan.operations.run_training_flop * plan.length.pairs_seen
    found = {
        "parameters": plan.parameters,
        "image_macs": plan.operations.image,
        "text_macs": plan.operations.text,
        "steps": plan.length.steps,
        "pairs_seen": plan.length.pairs_seen,
        "training_flop": plan.operations.model_training_flop * plan.length.pairs_seen,
        "run_flop": run_flop,
        "seconds": plan.seconds,
        "process": plan.process,
        "process_without_savings": roomy.process,
        "checkpoint": plan.checkpoint,
    }
    if name in SAID:
        gpus, days = SAID[name]
        found["paper"] = {"gpus": gpus, "days": days, "implied_flops_per_s": run_flop / (gpus * days * 86400)}
    return found


def main() -> None:
    rows = {}
    for name in clip.OFFERS:
        rows[name] = row(name)
        print(name, flush=True)
    write_json(RECORD, {"asked": dataclasses.asdict(ASKED), "made_by": "scripts/plan_recipes.py", "recipes": rows})


if __name__ == "__main__":
    main()
