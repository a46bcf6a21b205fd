"""A sweep's own small files: read where they are newest, written here at once, and kept on the storage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from hai.checkpoint.files import save_bytes
from hai.checkpoint.owner import is_owner
from hai.checkpoint.reach import reach
from hai.checkpoint.records import REPORT, SUMMARY, load_json, save_json, save_text
from hai.checkpoint.remote import Location
from hai.checkpoint.upload import Uploader
from hai.errors import CheckpointError
from hai.sweep.records import TrialRecord, parse_trials
from hai.types import Record

__all__ = ["BEST_CONFIG", "SWEEP", "TRIALS", "SweepFolder", "load_sweep_files"]

TRIALS: Final = "trials.csv"
SWEEP: Final = "sweep.yaml"
BEST_CONFIG: Final = "best.yaml"
_FILES: Final = (TRIALS, SWEEP, BEST_CONFIG, SUMMARY, REPORT)


class SweepFolder:
    """The files of a sweep, as its owner sees them.

    Args:
        location: the sweep's folders.
        attempt: which owns it.
        report: takes one line for the user.
    """

    def __init__(self, location: Location, attempt: str, report: Callable[[str], None]) -> None:
        self.path = location.path
        self.path.mkdir(parents=True, exist_ok=True)
        self._uploader: Uploader | None = None
        remote = location.remote
        if remote is not None:
            theirs = {name: reach(remote.url, lambda name=name: remote.read(name)) for name in _FILES}  # type: ignore[misc]
            mine = (self.path / TRIALS).read_bytes() if (self.path / TRIALS).exists() else None
            if _progress(theirs[TRIALS]) >= _progress(mine):
                for name, content in theirs.items():
                    if content is not None:
                        save_bytes(self.path / name, content)
            self._uploader = Uploader(
                remote, self.path, names=list, kept=list, may_write=lambda: is_owner(location, attempt), report=report,
                small=_FILES,
            )  # fmt: skip

    def load_trials(self) -> list[TrialRecord]:
        """Read trials.csv; raises CheckpointError where it is damaged."""
        path = self.path / TRIALS
        if not path.exists():
            return []
        try:
            return parse_trials(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(
                f"{path}: {error}; put back what was there, or move the file away: trials that have a folder are "
                "recognised, those with values from Optuna are proposed anew"
            ) from None

    def load_text(self, name: str) -> str | None:
        """Read a file; None when it is absent."""
        path = self.path / name
        return path.read_text(encoding="utf-8") if path.exists() else None

    def load_summary(self) -> Record:
        """Read summary.json; empty when it is absent or torn."""
        return load_json(self.path / SUMMARY) or {}

    def save_text(self, name: str, text: str) -> None:
        """Write a file."""
        if self.load_text(name) != text:
            save_text(self.path / name, text)
            self._nudge()

    def save_summary(self, summary: Record) -> None:
        """Write summary.json."""
        save_json(self.path / SUMMARY, summary)
        self._nudge()

    def close(self) -> None:
        """Send what the storage does not have yet."""
        if self._uploader is not None:
            self._uploader.close(wait=False)

    def _nudge(self) -> None:
        if self._uploader is not None:
            self._uploader.nudge()


def load_sweep_files(location: Location) -> tuple[Record, list[TrialRecord]]:
    """Read summary and trials of a sweep from its work folder, which a sweep that has just ended leaves whole."""
    path = location.path / TRIALS
    trials = parse_trials(path.read_text(encoding="utf-8")) if path.exists() else []
    return load_json(location.path / SUMMARY) or {}, trials


def _progress(content: bytes | None) -> tuple[int, int]:
    """Tell how far a trials.csv has come: steps and trials."""
    try:
        trials = parse_trials((content or b"").decode("utf-8"))
    except ValueError:
        return (-1, 0)
    return sum(trial.step for trial in trials), len(trials)
