"""Pictures of what a detector looked at where it was most wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from hai.errors import DataError
from hai.results import Scores

if TYPE_CHECKING:
    from torch import Tensor

    from hai.trained import Trained

__all__ = ["Explained", "explain_mistakes", "worst_mistakes"]

_MOST_OF_A_SOURCE: Final = 6
_LEAST_OF_A_SOURCE: Final = 2
_MOST: Final = 36
"""Mistakes that are explained: of a source, and of all together."""
_AT_ONCE: Final = 4
"""Images of one backward pass, whose activations are all kept."""

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Explained:
    """A mistake, as the model saw it.

    Args:
        row: its position in the scores.
        seen: the picture that the model got, RGB [S, S, 3].
        views: name -> the same with the places that speak for the wrong call lit up, and the spectrum likewise.
    """

    row: int
    seen: Picture
    views: dict[str, Picture]


def worst_mistakes(scores: Scores, threshold: float) -> dict[str, list[int]]:
    """Choose the most confident mistakes of each source, both kinds by turns, the source with most mistakes first.

    Returns:
        Source -> rows of the scores: up to 6, fewer where there are many sources, 36 in all.
    """
    wrong = np.flatnonzero(scores.predictions(threshold) != scores.label)
    distance = np.abs(scores.probability_fake - threshold)
    by_source: dict[str, list[tuple[int, int]]] = {}
    before: Counter[tuple[str, int]] = Counter()  # mistakes of the same kind that are more confident
    for row in wrong[np.argsort(-distance[wrong], kind="stable")].tolist():
        source, kind = scores.source[row], int(scores.label[row])
        by_source.setdefault(source, []).append((before[source, kind], row))
        before[source, kind] += 1
    order = sorted(by_source, key=lambda name: (-len(by_source[name]), name))[: _MOST // _LEAST_OF_A_SOURCE]
    each = max(_LEAST_OF_A_SOURCE, min(_MOST_OF_A_SOURCE, _MOST // max(1, len(order))))
    return {name: [row for _, row in sorted(by_source[name], key=lambda mistake: mistake[0])[:each]] for name in order}


def explain_mistakes(
    trained: Trained, scores: Scores, show: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, list[Explained]]:
    """Draw what speaks for the wrong calls of a detector's worst mistakes, see `hai.models.grad_cam`.

    Args:
        trained: the detector.
        scores: what it said of labelled images.
        show: called with (done, total).

    Returns:
        Source -> explained mistakes, those of `worst_mistakes`; files that have become unreadable are left out.
    """
    chosen = worst_mistakes(scores, trained.threshold)
    rows = [row for rows in chosen.values() for row in rows]
    explained: dict[int, Explained] = {}
    for start in range(0, len(rows), _AT_ONCE):
        explained |= {found.row: found for found in _within_memory(trained, scores, rows[start : start + _AT_ONCE])}
        show(min(start + _AT_ONCE, len(rows)), len(rows))
    return {source: [explained[row] for row in rows if row in explained] for source, rows in chosen.items()}


def _within_memory(trained: Trained, scores: Scores, rows: list[int]) -> list[Explained]:
    """Explain mistakes together, or one by one where memory runs out; those for which it still does are left out."""
    from hai.memory import free_memory, is_out_of_memory

    try:
        return _explain(trained, scores, rows)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    free_memory(trained.device)
    return [found for row in rows for found in _within_memory(trained, scores, [row])] if len(rows) > 1 else []


def _explain(trained: Trained, scores: Scores, rows: list[int]) -> list[Explained]:
    import torch

    from hai.data.augment import normalise
    from hai.data.images import decode_image, fit_image
    from hai.models.grad_cam import IMAGE, SPECTRUM, grad_cam, spectrum_of

    layout = trained.layout
    pictures: dict[int, Picture] = {}
    for row in rows:
        try:
            image = decode_image(scores.read(row), layout.max_megapixels)
        except DataError:
            continue
        pictures[row] = np.ascontiguousarray(fit_image(image, layout.size, layout.geometry))
    if not pictures:
        return []
    batch = torch.from_numpy(np.stack(list(pictures.values()))).permute(0, 3, 1, 2).to(trained.device)
    called = torch.from_numpy(1 - scores.label[list(pictures)].astype(np.int64)).to(trained.device)
    evidence = grad_cam(trained.model, normalise(batch), called)
    spectrum = spectrum_of(trained.model, normalise(batch))
    explained = []
    for position, (row, picture) in enumerate(pictures.items()):
        views = {}
        if IMAGE in evidence:
            views[IMAGE] = _lit(_dimmed(picture), evidence[IMAGE][position])
        if SPECTRUM in evidence and spectrum is not None:
            views[SPECTRUM] = _lit(_dimmed(_levels(spectrum[position])), evidence[SPECTRUM][position])
        explained.append(Explained(row, picture, views))
    return explained


def _levels(plane: Tensor) -> Picture:
    """Draw a plane [H, W] in grey levels, its darkest and brightest hundredths cut off: [H, W, 3]."""
    values = plane.float().cpu().numpy()
    low, high = np.percentile(values, [1, 99])
    grey = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    return np.repeat((255 * grey + 0.5).astype(np.uint8)[:, :, None], 3, axis=2)


def _dimmed(picture: Picture) -> NDArray[Any]:
    """Turn a picture into a dark grey ground [H, W, 3], 0-1, on which colours tell of evidence alone."""
    grey = picture.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32) / 255
    return np.repeat(0.75 * grey[:, :, None], 3, axis=2)


def _lit(ground: NDArray[Any], evidence: Tensor) -> Picture:
    """Lay evidence [h, w] over a ground [H, W, 3]; its strongest place is lit most, none of it leaves the ground."""
    import torch.nn.functional as F
    from matplotlib import colormaps

    height, width = ground.shape[:2]
    smooth = F.interpolate(evidence[None, None], (height, width), mode="bilinear", align_corners=False)[0, 0]
    heat = smooth.cpu().numpy()
    heat = heat / max(float(heat.max()), 1e-12)
    colour = colormaps["inferno"](0.15 + 0.85 * heat)[:, :, :3]
    share = (0.85 * np.sqrt(heat))[:, :, None]
    return np.asarray((ground * (1 - share) + colour * share) * 255 + 0.5).astype(np.uint8)
