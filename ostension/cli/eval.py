"""Measure: embed once, then every protocol; results as records, compared, reported, exported."""

from __future__ import annotations

from ostension.cli import (
    _eval_audit,
    _eval_bias,
    _eval_elevater,
    _eval_overlap,
    _eval_rareact,
    _eval_report,
    _eval_results,
    _eval_run,
)

# One line a module: sub-commands by name. A module imports nothing heavy before one of them runs.
COMMAND = {
    **_eval_run.COMMANDS,
    **_eval_results.COMMANDS,
    **_eval_report.COMMANDS,
    **_eval_rareact.COMMANDS,
    **_eval_overlap.COMMANDS,
    **_eval_audit.COMMANDS,
    **_eval_bias.COMMANDS,
    **_eval_elevater.COMMANDS,
}
