"""Tune: `hai tune` for `ray job submit`, which runs the code that travels with the job."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hai.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main(["tune", *sys.argv[1:]])
