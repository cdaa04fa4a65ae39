"""Pre-train a small CLIP on emoji, name what it never saw, and write a report (minutes on two cores)."""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import sys
from pathlib import Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo:
    """Pre-train a small CLIP from scratch on emoji, name what it never saw, and write a report.

    Four drawing styles and 85 % of the names are trained on; the fifth style and the other names are what it is asked.
    Works offline. The same command again goes on where a stopped one left off.

    Args:
        minutes: Wall time of the whole demo, from which the steps follow by this machine's speed. Default: 2300 steps, 8 to
            10 minutes on two cores without matrix units.
        languages: Also train on and ask in seven other languages.
        out: Folder of the model, the records and the report.
        seed: Of everything random.
        smoke: Twenty steps on an eighth of the names, which only shows that everything runs.
    """

    minutes: float | None = None
    languages: bool = False
    out: Path = Path("ostension-demo")
    seed: int = 0
    smoke: bool = False

    def run(self) -> int:
        import signal

        from ostension.recipes._demo_run import DemoConfig, run_demo
        from ostension.train.progress import Progress

        config = DemoConfig(minutes=self.minutes, languages=self.languages, seed=self.seed, smoke=self.smoke)
        result = run_demo(config, self.out, trackers=[Progress()])
        if result.report is None:
            # A scheduler that asked for a stop got it; a person who pressed Ctrl-C is told by the usual status.
            return 130 if result.signal == signal.SIGINT else 0
        print(result.report)
        print("\nThe report is one page, for any browser. Go on with:")
        print("\n".join(f"  {command}" for command in (*_activation(), *result.commands)))
        return 0


def _activation() -> list[str]:
    """The line that puts `ostension` on the path, where it is in a virtual environment that is not active."""
    if sys.prefix == sys.base_prefix or shutil.which("ostension"):
        return []
    folder = os.path.relpath(sys.prefix)
    return [f"source {shlex.quote(sys.prefix if folder.startswith('..') else folder)}/bin/activate"]


COMMAND = Demo
