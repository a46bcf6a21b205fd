"""The drawing surface of all plots: styled figures that become inline SVG in the page's colours, light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ACCENT", "BAD", "FAKE", "GOOD", "GRID", "INK", "MUTED", "REAL", "SERIES", "inline_svg", "open_figure"]

# matplotlib writes literal colours; these stand for the page's CSS variables and are replaced in the finished SVG.
INK, MUTED, GRID, REAL, FAKE, ACCENT, GOOD, BAD = (f"#0a0b0{i}" for i in range(1, 9))
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    REAL: "real",
    FAKE: "fake",
    ACCENT: "accent",
    GOOD: "good",
    BAD: "bad",
}
SERIES = (ACCENT, FAKE, REAL, INK)
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "hai",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "text.color": INK,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


@contextmanager
def open_figure(width: float = 4.1, height: float = 3.0, rows: int = 1) -> Iterator[tuple[Figure, list[Axes]]]:
    """Open a styled figure of `rows` stacked axes that share x; sizes in inches, 72 SVG units each."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, 1, sharex=True, squeeze=False)
        yield figure, list(axes[:, 0])


def inline_svg(figure: Figure, key: str, description: str) -> str:
    """Write a figure as an SVG element for an HTML page.

    Args:
        key: unique within the page; ids inside the SVG start with it.
        description: what a screen reader says; plain text without markup.
    """
    buffer = io.BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue().decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{key}-", text)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)  # it would style the whole page
    text = re.sub(r" font-family: [^;\"]*;", "", text)
    text = re.sub(r"<path [^>]*>", _rounded, text)
    text = re.sub("|".join(_VARIABLES), lambda match: f"var(--{_VARIABLES[match[0]]})", text)
    text = re.sub(r">\n\s*<", "><", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{description}" ', 1)


def _rounded(tag: re.Match[str]) -> str:
    return re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", tag[0])
