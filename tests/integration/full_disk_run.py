"""A toy run on a disk that another part of this process fills and empties; prints what became of it, as JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from test_loop import newest, tensors_of, toy_config, toy_run

from hai.checkpoint.format import step_of, verify_checkpoint
from hai.errors import CheckpointError
from hai.types import SAVE

PAGE = 4096
TIGHT = range(10, 26)  # steps whose checkpoints meet a disk that is almost full


class Disk:
    """The request hook of a run: looks at its checkpoints, leaves a few pages, and asks for the next one."""

    def __init__(self, root: Path) -> None:
        self._root, self._ballast, self._step = root, root / "ballast", -1
        self._good = 0
        self.lost: list[tuple[int, int]] = []
        self.lines: list[str] = []
        self.saved: set[int] = set()

    def __call__(self) -> int:
        self._step += 1
        whole = self._whole()
        self.saved |= set(whole)
        if max(whole, default=0) < self._good:
            self.lost.append((self._step, self._good))
        self._good = max(whole, default=0)
        self._ballast.unlink(missing_ok=True)
        if self._step in TIGHT:
            self._fill(pages=self._step - TIGHT.start)
        return SAVE  # and wait for it

    def say(self, line: str) -> None:
        self.lines.append(line)

    def _whole(self) -> list[int]:
        found = []
        for folder in (self._root / "run" / "checkpoints").glob("step_*"):
            try:
                verify_checkpoint(folder)
                found.append(step_of(folder.name) or 0)
            except CheckpointError:
                continue  # pruned, or on its way
        return found

    def _fill(self, pages: int) -> None:
        pages = max(1, os.statvfs(self._root).f_bavail - pages)
        descriptor = os.open(self._ballast, os.O_WRONLY | os.O_CREAT, 0o644)
        os.posix_fallocate(descriptor, 0, pages * PAGE)
        os.close(descriptor)


def main(disk: Path, unbroken: Path) -> None:
    """Train on the disk and, for comparison, where there is room."""
    config = toy_config(checkpoint={"keep": 1}, train={"eval_every_epochs": 5})
    hook = Disk(disk)
    summary = toy_run(disk, config, request=hook, say=hook.say)
    toy_run(unbroken, config)
    failed = [line for line in hook.lines if "not saved" in line]
    result = {
        "status": summary["status"],
        "lost": hook.lost,
        "failed": len(failed),
        "lines": failed,
        "saved_when_tight": len(hook.saved & {step for step in TIGHT}),
        "saved_after": max(TIGHT) + 1 in hook.saved and newest(disk).name == "step_00000030",
        "identical": tensors_of(disk) == tensors_of(unbroken),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
