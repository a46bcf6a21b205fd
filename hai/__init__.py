"""Train a deepfake detector and a pairwise image ranker on whatever GPUs you have today."""

__all__ = ["__version__"]

__version__ = "0.1.0"
