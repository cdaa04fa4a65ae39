"""The searches of `train.strength_search` and their score, under their first names."""

from __future__ import annotations

from ostension.evals.few_shots import score_of
from ostension.train.strength_search import COOP_STARTS, GRID, Choice, PathProbe, coop_search, paper_search, whole_grid

__all__ = ["COOP_STARTS", "GRID", "Choice", "PathProbe", "coop_search", "paper_search", "score_of", "whole_grid"]
