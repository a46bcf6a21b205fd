"""What a page shows of the places that a detector looked at when it was wrong."""

from __future__ import annotations

from hai.explain import Explained
from hai.report.blocks import picture
from hai.results import Scores
from hai.types import LABELS, Record

__all__ = ["lay_out_explained"]

_WHAT = {"image": "what in the image speaks for the call", "spectrum": "what in its spectrum speaks for the call"}


def lay_out_explained(explained: dict[str, list[Explained]], scores: Scores) -> Record:
    """Lay out explained mistakes for the template, by source; those without any view are left out."""
    looked = []
    for source, mistakes in explained.items():
        shots = [_shot(mistake, scores) for mistake in mistakes if mistake.views]
        if shots:
            looked.append({"source": source, "shots": shots})
    has_spectrum = any("spectrum" in mistake.views for mistakes in explained.values() for mistake in mistakes)
    return {"looked": looked, "has_spectrum": has_spectrum}


def _shot(mistake: Explained, scores: Scores) -> Record:
    row = mistake.row
    label = int(scores.label[row])
    views = [(picture(pixels), _WHAT[name]) for name, pixels in mistake.views.items()]
    return {
        "pictures": [(picture(mistake.seen), "as the model got it"), *views],
        "path": scores.path[row],
        "label": LABELS[label],
        "prediction": LABELS[1 - label],
        "probability": float(scores.probability_fake[row]),
    }
