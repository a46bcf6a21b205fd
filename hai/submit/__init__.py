"""Packages for contests: a checkpoint with the code that scores, proven to run offline where nothing else is."""

from __future__ import annotations

from hai.submit.run import run_submission

__all__ = ["run_submission"]
