"""`python -m ostension`, which is also how `torchrun -m ostension` starts the command."""

from __future__ import annotations

import sys

from ostension.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
