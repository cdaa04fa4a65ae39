"""Sub-command of `ostension eval` that shows results: a page, tables, single charts."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from ostension.errors import DataError, UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Show results as one page to read: what was measured, tables, figures, and how to repeat it.

    The page is a single HTML file that works offline and has no scripts. Tables and charts can be written beside it.

    Examples:
      ostension eval report results
      ostension eval report ours theirs -o both.html --plots charts
      ostension eval report results --csv results.csv --markdown results.md

    Args:
        results: Folders of results, as `ostension eval run` writes them.
        output: The page.
        csv: Also write every metric of every result as CSV.
        markdown: Also write the headline numbers as Markdown tables.
        plots: Also write every chart as an SVG file of its own into this folder.
    """

    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("report.html")
    csv: Path | None = None
    markdown: Path | None = None
    plots: Path | None = None

    def __post_init__(self):
        if not self.results:
            raise UsageError("no folder of results is given", expected="what `ostension eval run -o FOLDER` wrote")

    def run(self) -> int:
        from ostension.evals.failures import read_failures
        from ostension.evals.figure import draw_all
        from ostension.evals.plots import write_plots
        from ostension.evals.results import Results
        from ostension.evals.results_page import results_page
        from ostension.evals.tables import as_csv, as_markdown
        from ostension.files import write_text

        folders = [Results(folder) for folder in self.results]
        results = [result for folder in folders for result in folder]
        if not results:
            listed = ", ".join(map(str, self.results))
            raise DataError("holds no results", source=listed, expected="what `ostension eval run -o FOLDER` writes")
        twice = _twice([result.place for result in results])
        if twice:
            raise DataError(f"two results of {' / '.join(twice)}", source=", ".join(map(str, self.results)),
                            fix="give one of the folders, or measure under another model's name")  # fmt: skip
        summaries = [record for folder in folders for record in folder.summaries()]
        records = [*(result.record for result in results), *summaries]
        failed = {place: reason for folder in folders for place, reason in read_failures(folder.folder).items()}
        write_text(self.output, results_page(results, summaries, failed=failed, source=str(self.results[0])))
        print(f"wrote {self.output}", file=sys.stderr)
        for path, make in ((self.csv, as_csv), (self.markdown, as_markdown)):
            if path is not None:
                write_text(path, make(records))
                print(f"wrote {path}", file=sys.stderr)
        if self.plots is not None:
            figures = [figure for section in draw_all(records).values() for figure in section]
            print(f"wrote {len(write_plots(self.plots, figures))} charts in {self.plots}", file=sys.stderr)
        return 0


def _twice(places: list[tuple[str, str, str]]) -> tuple[str, str, str] | None:
    seen: set[tuple[str, str, str]] = set()
    return next((place for place in places if place in seen or seen.add(place)), None)  # type: ignore[func-returns-value]


COMMANDS = {"report": Report}
