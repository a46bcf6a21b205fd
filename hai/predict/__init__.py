"""Scoring what has no labels: files of all kinds to pictures, pictures to logits on every device, logits to a table."""

from __future__ import annotations

from hai.predict.detector import Detector, Prediction, load_detector
from hai.predict.files import check_output, check_place, find_files
from hai.predict.pictures import load_picture, num_threads
from hai.predict.run import end_process, run_prediction

__all__ = [
    "Detector",
    "Prediction",
    "check_output",
    "check_place",
    "end_process",
    "find_files",
    "load_detector",
    "load_picture",
    "num_threads",
    "run_prediction",
]
