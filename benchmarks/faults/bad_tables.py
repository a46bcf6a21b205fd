"""CSVs with every kind of bad row, and which of their rows are bad: known from how each was made, not from reading."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["IMAGES", "TWINS", "Made", "build_table"]

IMAGES = ("a.png", "b.png", "c.png", "d.png", "sub/e.png", "한글/f g.png", "h,i.png", "j.png")
"""Pictures that lie beside the table, all different but for the twins."""

TWINS = ("j.png", "twin.png")
"""Two files with the same picture."""

_BAD_PATHS = ("gone.png", "", "../a.png", "/etc/hostname", "a.png\0", ".", "sub", "x" * 150_000, "~/a.png", "a.png\0b")
_BAD_PATHS += ("https://host/a.png", "x/../../a.png", "..\\a.png", "=HYPERLINK(1)", "-", "a.png;b.png", "\u202ea.png")
_LABELS = ("real", "fake", "FAKE", "0", "1", " real ")
_BAD_LABELS = ("", "2", "true", "re\u0430l", "real\0", "y" * 150_000, "real;fake", "0.0", "-1", "=1", "NaN", "None")
_TIERS = ("S", "A", "B", "C", "s", " b ")
_BAD_TIERS = ("", "D", "SS", "0", "S\0", "z" * 150_000, "\u0405", "S,A")
_SPLITS = ("", "train", "VAL", "test", " train ")
_BAD_SPLITS = ("all", "0", "training", "train\0", "w" * 150_000, "train,val")
_PREFERENCES = ("left", "RIGHT", "tie", " tie ")
_BAD_PREFERENCES = ("", "1", "both", "left right", "l", "v" * 150_000, "LEFT\0")
_SCORES = ("", "3.5", "1e3", "-2", " 7 ")
_BAD_SCORES = ("abc", "nan", "inf", "1,5", "--1", "1e999", "0x10", "u" * 150_000)
_NOTES = (
    "",
    "a note",
    "two\nlines",
    "three\r\nmore\rlines",
    'a "word"',
    "semi;colon",
    "=1+1",
    "漢字",
    "<script>",
    "a,b",
)
_ENDS = ("\n", "\r\n", "\r")
_NEEDED = {"detector": 2, "ranker": 3, "comparisons": 3}
_COLUMNS = {
    "detector": ("path", "label", "group", "split", "source", "note"),
    "ranker": ("image_id", "filename", "tier", "group", "split", "source", "votes", "note"),
    "comparisons": ("left", "right", "preference", "split", "note"),
}


@dataclass
class Made:
    """A table and what is right to say about it."""

    kind: str
    bad: set[int] = field(default_factory=set)
    """First lines of the bad rows."""
    whole: bool = False
    """The table cannot be read at all."""
    twins: bool = False
    """Its rows are good, but the twins have two labels."""


def build_table(rng: random.Random, path: Path) -> Made:
    """Write a table whose pictures lie beside it."""
    kind = rng.choice(tuple(_COLUMNS))
    columns = list(_COLUMNS[kind][: _NEEDED[kind]]) + [
        name for name in _COLUMNS[kind][_NEEDED[kind] :] if rng.random() < 0.6
    ]
    if kind == "ranker" and "votes" not in columns:
        columns.append("votes")
    rng.shuffle(columns)
    made, end = Made(kind), rng.choice(_ENDS)
    header = [rng.choice((name, name.upper(), f" {name} ")) for name in columns]
    trouble = rng.random()
    if trouble < 0.03:
        header.remove(next(name for name in header if name.strip().lower() == _COLUMNS[kind][0]))
        made.whole = True
    elif trouble < 0.05:
        header.append(_COLUMNS[kind][1])
        made.whole = True
    text, line = _row(rng, header) + end, 2
    rows = _Rows(kind, made)
    badness = rng.choice((0.0, 0.0, 0.1, 0.5))
    for number in range(rng.randint(1, 12)):
        odd = rng.random()
        if odd < 0.06:
            written = rng.choice(("", "   ", ",,,", '"",""'))
        elif odd < 0.09 and badness:
            written = rng.choice(('"a.png"x,real,left', "\udcff,\udcfe", 'a.png,"b"c'))
            made.bad.add(line)
        else:
            cells = rows.cells(rng, columns, number, badness, line)
            written = _row(rng, cells + ["more"] * (rng.random() < 0.1))
        text += written + end
        line += len(re.findall("\r\n|\r|\n", written + end))
    rows.settle()
    if badness and rng.random() < 0.1:
        made.bad.add(line)
        text += f'a.png,"never closed{end}b.png,real{end}'
    data = text.encode("utf-8", "surrogateescape")
    if rng.random() < 0.02:
        made.whole, data = True, rng.choice((b"", text.encode("utf-16", "replace"), bytes(range(128, 256)) + data))
    made.whole |= not rows.count and not made.bad
    path.write_bytes((b"\xef\xbb\xbf" if rng.random() < 0.3 and data else b"") + data)
    return made


def _row(rng: random.Random, cells: list[str]) -> str:
    """Write cells, quoted where they must be and now and then where they need not."""
    quoted = ('"' + cell.replace('"', '""') + '"' for cell in cells)
    needs = (bool(re.search('[,"\r\n]', cell)) or rng.random() < 0.2 for cell in cells)
    return ",".join(q if need else cell for cell, q, need in zip(cells, quoted, needs, strict=True))


class _Rows:
    """What rows have in common: names that may occur once, splits that all rows have or none."""

    def __init__(self, kind: str, made: Made) -> None:
        self.kind, self.made, self.count = kind, made, 0
        self.seen: set[tuple[str, str]] = set()
        self.labels: dict[str, str] = {}
        self.undivided: set[int] = set()
        self.divided = False

    def cells(self, rng: random.Random, columns: list[str], number: int, badness: float, line: int) -> list[str]:
        row: dict[str, str] = {}
        bad = False
        for name in columns:
            row[name], wrong = self._cell(rng, name, number, badness / 3)
            bad |= wrong
        cells = [row[name] for name in columns]
        if not any(cell.strip() for cell in cells):
            return cells
        self.count += 1
        once = {"detector": ("path",), "ranker": ("filename", "image_id"), "comparisons": ()}[self.kind]
        for name, value in [(name, _clean(row[name])) for name in once]:
            bad |= (name, value) in self.seen
            self.seen.add((name, value))
        if self.kind == "comparisons":
            bad |= _clean(row["left"]) == _clean(row["right"])
            self.divided |= row.get("split", "").strip().lower() in ("train", "val", "test")
            if not row.get("split", ""):
                self.undivided.add(line)
        else:
            label = row["label" if self.kind == "detector" else "tier"].strip().lower()
            self.labels[_clean(row[once[0]])] = {"0": "real", "1": "fake"}.get(label, label)
        if bad:
            self.made.bad.add(line)
        return cells

    def settle(self) -> None:
        """Add what only all rows together tell."""
        if self.divided:
            self.made.bad |= self.undivided
        self.made.twins = len({self.labels[name] for name in TWINS if name in self.labels}) == 2

    def _cell(self, rng: random.Random, name: str, number: int, badness: float) -> tuple[str, bool]:
        """Draw a cell, and whether it is wrong by itself."""
        if name in ("path", "filename", "left", "right"):
            if rng.random() < badness:
                return rng.choice(_BAD_PATHS), True
            pool = IMAGES if self.kind == "comparisons" else (*IMAGES, TWINS[1])
            fresh = [image for image in pool if (name, image) not in self.seen]
            image = rng.choice(pool if not fresh or rng.random() < badness else fresh)
            return rng.choice(
                (image, image, f"./{image}", image.replace("/", "\\"), f"x/../{image}", f" {image} ")
            ), False
        if name == "image_id":
            wrong = rng.random() < badness
            return ("" if wrong else f"id{number if rng.random() >= badness else 0}"), wrong
        good, bad = {
            "label": (_LABELS, _BAD_LABELS),
            "tier": (_TIERS, _BAD_TIERS),
            "split": (_SPLITS, _BAD_SPLITS),
            "preference": (_PREFERENCES, _BAD_PREFERENCES),
            "votes": (_SCORES, _BAD_SCORES),
            "group": (("", f"g{number}", f"g{number} <b>"), ()),
        }.get(name, (_NOTES, ()))
        wrong = bool(bad) and rng.random() < badness
        return rng.choice(bad if wrong else good), wrong


def _clean(path: str) -> str:
    return path.strip().replace("\\", "/").removeprefix("./").removeprefix("x/../")
