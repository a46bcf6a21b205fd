"""Train a deepfake detector and a pairwise image ranker on whatever GPUs you have today."""

from importlib import import_module
from typing import Any

__all__ = ["Run", "Sweep", "__version__", "evaluate", "load", "load_ranker", "split_data", "train", "tune"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Offer what `hai.api` offers, imported when it is first asked for: `import hai` alone loads nothing."""
    if name in __all__:
        return getattr(import_module("hai.api"), name)
    raise AttributeError(f"module 'hai' has no attribute {name!r}")
