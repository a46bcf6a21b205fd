"""What `hai data audit` does: look for whatever would make a score on some data meaningless."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hai.console import plain
from hai.data import audit_checks as checks
from hai.data.audit_checks import Finding
from hai.data.comparisons import comparison_units
from hai.data.content import Progress
from hai.data.draws import hash_keys, permutation
from hai.data.gather import Table, divide, divided_groups, is_divided, join_comparisons, join_sources, units_of
from hai.data.looks import BYTES_PER_PIXEL, FACTS, PATCH, Looks, look_at, without_detail
from hai.data.manifest import Manifest, Problem
from hai.data.rows import COMPARED, Rows, raise_faults
from hai.data.separable import FEWEST, Plan, Separation, features_of, plan_test, separate
from hai.data.sources import DETECTOR, load_source
from hai.data.splits import codes_of, components, linked
from hai.data.tiers import ranked_form
from hai.types import SPLITS, Record

if TYPE_CHECKING:
    from hai.config.schema import DataConfig, SourceConfig

__all__ = ["ALL_FACTS", "THUMBNAIL", "WARN_FROM", "Audit", "Separability", "audit_data"]

WARN_FROM: Final = 0.65
"""AUC from which something that should not tell the label is reported."""
ALL_FACTS: Final = "all file facts together"
THUMBNAIL: Final = f"{PATCH}x{PATCH} thumbnail"

_MOST_TESTED: Final = 20_000
_MOST_TESTED_SOURCE: Final = 4_000
_MOST_SOURCES: Final = 8
_MOST_CLOSELY: Final = 2_000
_LISTED: Final = 20
_LOOK_DRAW: Final = 0x4C4F4F4B


class Separability(NamedTuple):
    """How well one thing tells one target apart."""

    target: str
    """label or source."""
    fact: str
    """One of FACTS, ALL_FACTS or THUMBNAIL."""
    classes: tuple[str, ...]
    """Names of the classes, by their number in the plan."""
    among: str
    """Label of all the images; "" if they are of several."""
    separation: Separation
    plan: Plan

    @property
    def between(self) -> str:
        """Say what is told apart."""
        *others, last = [self.classes[code] for code in np.unique(self.plan.target)]
        names = f"{', '.join(others)} and {last}"
        return f"{names}, {self.among} images" if self.among else names

    @property
    def is_warning(self) -> bool:
        """Say whether the AUC is high, and surely above guessing."""
        return self.separation.value >= WARN_FROM and self.separation.low > 0.5

    @property
    def line(self) -> str:
        """What is said of it; an AUC below 1 is never shown as 1."""
        value = self.separation.value
        return f"{self.target} separable by {self.fact}: AUC {value if value == 1 else min(value, 0.99):.2f}"

    def record(self) -> Record:
        """Write it as a JSON object."""
        found = self.separation
        return {
            "target": self.target,
            "fact": self.fact,
            "between": self.between,
            "auc": found.value,
            "low": found.low,
            "high": found.high,
            "n": len(self.plan.rows),
            "num_groups": self.plan.num_units,
            "groups_kept_together": self.plan.is_grouped,
            "warning": self.is_warning,
        }


@dataclass
class Audit:
    """What an audit found."""

    manifest: Manifest
    """All usable images; those without a split have the one that training would give them."""
    looks: Looks
    tests: list[Separability]
    """Of the label, then of the source; each in the order of FACTS, then ALL_FACTS and THUMBNAIL."""
    findings: list[Finding]
    """The gravest first."""
    notes: list[str] = field(default_factory=list)
    """What a reader should know of how it was looked for."""
    num_rows: int = 0
    """Files that the data name."""
    seconds: float = 0.0

    @property
    def lines(self) -> list[str]:
        """Every finding as one line."""
        return [finding.text for finding in self.findings]

    def record(self) -> Record:
        """Write the audit as a JSON object."""
        return {
            "n": len(self.manifest),
            "num_files": self.num_rows,
            "num_looked_at": len(self.looks.rows),
            "counts": self.manifest.table(),
            "findings": [
                {"kind": found.kind, "text": found.text, "count": found.count, "examples": found.examples}
                for found in self.findings
            ],
            "separability": [test.record() for test in self.tests],
            "warn_from": WARN_FROM,
            "notes": self.notes,
            "identity": self.manifest.identity,
            "seconds": round(self.seconds, 1),
        }


def audit_data(
    data: DataConfig,
    seed: int = 42,
    *,
    task: str = "detector",
    most: int = 200_000,
    progress: Progress | None = None,
) -> Audit:
    """Look for whatever would make a score on some data meaningless; what is wrong with rows and files is a finding.

    Args:
        data: the sources; their `splits` are not looked at.
        seed: of the division of rows without a split, as in training, and of samples.
        task: detector or ranker.
        most: images whose headers and pixels are looked at; of more, whole groups drawn at random.
        progress: called with (done, total) while something takes long.

    Raises:
        DataError: a source as a whole is unusable, or no image is left.
        StorageError: a source cannot be reached or copied.
    """
    started = time.monotonic()
    data = data.model_copy(update={"sources": [source.model_copy(update={"splits": None}) for source in data.sources]})
    faults: list[str] = []
    form = ranked_form(data) if task == "ranker" else DETECTOR
    loaded = [(config, load_source(config, faults, progress, form=form)) for config in data.sources]
    table = join_sources(loaded, data.max_megapixels, progress)
    table = table.rows(table.length >= 0)  # missing files are among the faults
    num_rows = len(table.path) + len({fault.partition(": ")[0] for fault in faults})
    problems = tuple(Problem(table.path[i], error) for i, error in enumerate(table.error) if error)
    table = table.rows(np.array([not error for error in table.error], dtype=np.bool_))
    if not len(table.path):
        raise_faults([*faults, *(f"{plain(bad.path)}: {bad.reason}" for bad in problems)], "data: no image can be used")
    source, _ = codes_of(table.source)
    table = table.rows(np.lexsort((codes_of(table.group)[0], source, table.label, table.content)))  # whatever its form
    twice = divided_groups(table, data)
    unit = _units(table, loaded, data)
    labels = loaded[0][1].labels
    manifest = _manifest(table, labels, problems)
    rows = _looked_at(unit, most, seed)
    looks = look_at(manifest, rows, data.max_megapixels, progress)
    notes = _notes(table, len(rows), data, seed)
    undivided = is_divided(table, data)
    if task == "ranker" and undivided and data.near_duplicate_distance is not None:
        unit = components(unit, linked(len(unit), rows[checks.near_sets(looks)]))
    manifest = _manifest(divide(table, data, seed, unit), labels, problems)
    close = rows[np.sort(permutation(len(rows), seed, _LOOK_DRAW)[:_MOST_CLOSELY])] if task == "detector" else rows[:0]
    blurred = without_detail(manifest, close, data.max_megapixels)
    tests = [*_label_tests(manifest, looks, unit, seed), *_source_tests(manifest, looks, unit, seed)]
    notes += [
        f"{test.target} ({test.between}): a class has a single group, so folds divide groups; AUCs may be too high"
        for test in tests
        if not test.plan.is_grouped and test.fact == THUMBNAIL
    ]
    findings = [
        *_separable(tests),
        *checks.copies(manifest),
        *checks.near_copies(manifest, looks),
        *checks.divided(twice),
        *_unusable("unusable row", faults),
        *_unusable("unreadable", [f"{plain(bad.path)}: {plain(bad.reason)}" for bad in problems]),
        *checks.balance(manifest),
        *checks.small(manifest),
        *checks.enlarged(manifest, blurred, len(close)),
        *checks.odd_files(manifest, looks),
        *(Finding("other", plain(line)) for _, source in loaded for line in source.warnings),
    ]
    return Audit(manifest, looks, tests, findings, notes, num_rows, time.monotonic() - started)


def _units(table: Table, loaded: list[tuple[SourceConfig, Rows]], data: DataConfig) -> NDArray[np.int64]:
    """Number what belongs together: groups, equal contents, what is compared."""
    unit = units_of(table, data, refuse=False)
    comparisons = join_comparisons(loaded)
    if not len(comparisons):
        return unit
    position = np.full(sum(len(rows.path) for _, rows in loaded), -1, dtype=np.int32)
    position[table.number] = np.arange(len(table.path), dtype=np.int32)
    here = np.concatenate([position[comparisons[:, :2]], comparisons[:, 2:]], axis=1)
    return comparison_units(table, here[(here[:, :2] >= 0).all(axis=1)], unit, len(data.sources))


def _manifest(table: Table, labels: tuple[str, ...], problems: tuple[Problem, ...]) -> Manifest:
    columns: dict[str, Any] = {
        item.name: getattr(table, item.name) for item in fields(Manifest) if hasattr(table, item.name)
    }
    return Manifest(**columns | {"image_id": None, "score": None}, problems=problems, labels=labels)


def _looked_at(unit: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """Choose whole units at random until there are enough images, all if they are few."""
    if len(unit) <= most:
        return np.arange(len(unit))
    size = np.bincount(unit)
    order = np.argsort(hash_keys(seed, _LOOK_DRAW, np.arange(len(size))), kind="stable")
    chosen = np.zeros(len(size), dtype=np.bool_)
    chosen[order[np.cumsum(size[order]) <= most]] = True
    return np.flatnonzero(chosen[unit])


def _notes(table: Table, looked: int, data: DataConfig, seed: int) -> list[str]:
    notes = []
    if looked < len(table.path):
        notes.append(
            f"headers and pixels of {looked:,} of {len(table.path):,} images were looked at, whole groups drawn at "
            "random; equal files, groups and counts are of all"
        )
    undivided = int((table.split < 0).sum())
    if undivided:
        ratios = ", ".join(f"{share:g} {name}" for share, name in zip(data.split_ratios, SPLITS, strict=True))
        notes.append(
            f"{undivided:,} images name no split; they were divided as training does it with seed {seed} ({ratios})"
        )
    return notes


def _label_tests(manifest: Manifest, looks: Looks, unit: NDArray[np.int64], seed: int) -> list[Separability]:
    if manifest.labels == COMPARED:
        return []
    target = manifest.label[looks.rows]
    plan = plan_test(target, unit[looks.rows], _MOST_TESTED, seed)
    if plan is None:
        return []
    return [Separability("label", fact, manifest.labels, "", found, plan) for fact, found in _measured(plan, looks)]


def _source_tests(manifest: Manifest, looks: Looks, unit: NDArray[np.int64], seed: int) -> list[Separability]:
    """Test each source against the others of the same label; of each fact, keep the source that it tells best."""
    source, names = codes_of(manifest.source)
    source, label = source[looks.rows], manifest.label[looks.rows]
    best: dict[str, Separability] = {}
    for code, label_name in enumerate(manifest.labels):
        counts = np.bincount(source[label == code], minlength=len(names))
        several = np.flatnonzero(counts >= FEWEST)
        several = several[np.argsort(-counts[several], kind="stable")][:_MOST_SOURCES]
        if len(several) < 2:
            continue
        for one in several[: 1 if len(several) == 2 else None]:
            target = np.where(label == code, (source != one).astype(np.int64), -1)
            plan = plan_test(target, unit[looks.rows], _MOST_TESTED_SOURCE, seed)
            if plan is None:
                continue
            other = plain(names[several[1]]) if len(several) == 2 else "the others"
            classes = (plain(names[one]), other)
            for fact, found in _measured(plan, looks):
                if fact not in best or found.value > best[fact].separation.value:
                    best[fact] = Separability("source", fact, classes, label_name, found, plan)
    return list(best.values())


def _measured(plan: Plan, looks: Looks) -> list[tuple[str, Separation]]:
    features = {
        fact: features_of({name: looks.columns[name] for name in names}, plan.rows) for fact, names in FACTS.items()
    }
    if not features["dimensions"].shape[1]:
        del features[BYTES_PER_PIXEL]
    features[ALL_FACTS] = np.concatenate(list(features.values()), axis=1)
    features[THUMBNAIL] = looks.patch[plan.rows].reshape(len(plan.rows), -1).astype(np.float32)
    return [(fact, separate(plan, part)) for fact, part in features.items()]


def _separable(tests: list[Separability]) -> list[Finding]:
    """Report what tells a target apart; all facts together only where none does it alone, with the strongest named."""
    found = []
    for target in ("label", "source"):
        own = [test for test in tests if test.target == target]
        alone = [test for test in own if test.fact in FACTS]
        reported = [test for test in own if test.is_warning and test.fact != ALL_FACTS]
        reported.sort(key=lambda test: -test.separation.value)
        found += [Finding(f"separable {target}", test.line, len(test.plan.rows)) for test in reported]
        together = [test for test in own if test.fact == ALL_FACTS and test.is_warning]
        if together and not any(test.is_warning for test in alone):
            strongest = max(alone, key=lambda test: test.separation.value)
            named = together[0]._replace(fact=f"{ALL_FACTS}, most by {strongest.fact}")
            found.append(Finding(f"separable {target}", named.line, len(named.plan.rows)))
    return found


def _unusable(kind: str, lines: list[str]) -> list[Finding]:
    """Report what cannot be used, a line each up to a number."""
    found = [Finding(kind, line, 1, [[line]]) for line in lines[:_LISTED]]
    more = lines[_LISTED:]
    if more:
        found.append(
            Finding(kind, f"{len(more):,} more like these, listed in audit.json", len(more), [[line] for line in more])
        )
    return found
