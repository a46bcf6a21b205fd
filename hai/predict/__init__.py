"""Scoring what has no labels: files of all kinds to pictures, pictures to logits on every device, logits to a table."""

from __future__ import annotations

from hai.predict.files import check_output, find_files
from hai.predict.pictures import load_picture, num_threads
from hai.predict.run import run_prediction

__all__ = ["check_output", "find_files", "load_picture", "num_threads", "run_prediction"]
