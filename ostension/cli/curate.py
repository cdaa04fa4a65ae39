"""Make the pairs: query lists, matching, filters, near-duplicates, captions, balance; from candidates to shards."""

from __future__ import annotations

from ostension.cli._curate_dedup import Decide, Review
from ostension.cli._curate_output import Follow, Report, Write
from ostension.cli._curate_queries import MakeQueries
from ostension.cli._curate_stages import Run, Show, stage_commands
from ostension.cli._curate_study import Study

COMMAND = {
    "queries": MakeQueries,
    **stage_commands(),
    "dedup-review": Review,
    "dedup-decide": Decide,
    "run": Run,
    "write": Write,
    "report": Report,
    "show": Follow,
    "ls": Show,
    "study": Study,
}
