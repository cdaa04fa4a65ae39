"""Measure: embed once, then every protocol; results as records, compared, reported, exported."""

from __future__ import annotations

from ostension.cli import _eval_results

# One line a module: sub-commands by name. A module imports nothing heavy before one of them runs.
COMMAND = {
    **_eval_results.COMMANDS,
}
