"""The page of a sweep: all trials and their parameters, how they learned, what mattered, the best one on test."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final
from urllib.parse import quote

from hai.console import plain, shown_seconds
from hai.masking import without_secrets
from hai.report import detector, ranking
from hai.report.blocks import INTERVALS, markup, number, size_text
from hai.report.influence import FEWEST_TRIALS, influences
from hai.report.pages import ReportData, render_page
from hai.report.parallel import Axis, draw_lines, is_number, label_of, metric_axis, param_axis
from hai.report.sweep_plots import learning_plot, search_plot
from hai.report.training import provenance_facts
from hai.sweep.records import SweepRecord, TrialRecord
from hai.types import Record

__all__ = ["render_sweep"]

_ROWS: Final = {"detector": detector.build_row, "ranker": ranking.build_row}
_TITLES: Final = {"detector": "Sweep of a deepfake detector", "ranker": "Sweep of an image ranker"}
_FIRST_ROWS: Final = 50
_MOST_FAILURES: Final = 20
_LONG: Final = 24
_EDGE: Final = 0.04
"""Share of a searched range that counts as its edge."""
_FEWEST_FOR_EDGES: Final = 10
_STATUSES: Final = {
    "finished": "finished",
    "stopped": "stopped early",
    "failed": "failed",
    "running": "unfinished",
    "pending": "not begun",
}


def render_sweep(sweep: SweepRecord) -> str:
    """Write a sweep as one HTML page without scripts; its only links lead to the trials' own reports beside it."""
    ranked = _ranked(sweep)
    best = next((trial for trial in sweep.trials if trial.id == sweep.best), None)
    title = _ROWS[sweep.task](sweep.metric.removeprefix("val/"), dict.fromkeys(("value", "low", "high")))["title"]
    names = _short_names(_keys(sweep))
    counts = Counter(trial.status for trial in sweep.trials)
    begun = [trial for trial in sweep.trials if trial.status != "pending"]
    axes = [param_axis(key, names[key], sweep.space.get(key), begun) for key in names]
    unfinished = counts["pending"] + counts["running"]
    status = "failed" if sweep.trials and counts["failed"] == len(sweep.trials) else "finished"
    if unfinished:
        status = f"{len(sweep.trials) - unfinished} of {len(sweep.trials)} trials"
    run = ReportData(
        name=sweep.name,
        title=_TITLES[sweep.task],
        status=status,
        task=sweep.task,
        split="test" if _is_measured(sweep) else "validation",
        facts=provenance_facts({**sweep.provenance, "command": without_secrets(sweep.command)}),
        notes=_notes(sweep, axes, best),
        commands=_commands(sweep, best),
        versions=sweep.provenance.get("versions", {}),
        written=time.strftime("%Y-%m-%d %H:%M %Z"),
    )
    curves = [
        ("Learning curves", "Dots are where trials were stopped early." if counts["stopped"] else "",
         learning_plot(sweep.trials, title, sweep.best, key="curves")),
        ("The search", "A line that has long been level says that more of the same will hardly find a better trial.",
         search_plot(sweep.trials, title, sweep.mode, key="search")),
    ]  # fmt: skip
    parts: Record = {
        "pill": "running" if unfinished else status,
        "heading": "Before you trust the best",
        "metric_title": title,
        "counts": _counts_text(len(sweep.trials), counts),
        "lines": None,
        "curves": [(name, caption, markup(svg)) for name, caption, svg in curves if svg],
        "best": _best_part(sweep, best, axes) if best else None,
        "columns": [{"key": key, "title": name} for key, name in names.items()],
        "parents": any(trial.parent for trial in sweep.trials),
        "rows": _rows(sweep, ranked, list(names)),
        "first_rows": _FIRST_ROWS,
        "has_stopped": counts["stopped"] > 0,
        **_failures(sweep),
        **_headline(sweep, best, title, len(ranked)),
        **_influence_part(sweep, begun),
    }
    if axes and begun:
        texts = [_text(trial, title) for trial in begun]
        scale = metric_axis(title, sweep.metric, sweep.mode, begun)
        parts["lines"] = draw_lines([*axes, scale], begun, texts, sweep.best)
        parts["legend"] = _legend(counts, best, len(ranked))
    return render_page("sweep.html", run, parts)


# -- trials ------------------------------------------------------------------------------------------------------------


def _ranked(sweep: SweepRecord) -> list[TrialRecord]:
    """Order the trials that have a value, the best first."""
    sign = -1 if sweep.mode == "max" else 1
    scored = [(sign * trial.value, trial.number, trial) for trial in sweep.trials if is_number(trial.value)]
    return [trial for _, _, trial in sorted(scored, key=lambda entry: entry[:2])]


def _keys(sweep: SweepRecord) -> list[str]:
    found = dict.fromkeys(key for trial in sweep.trials for key in trial.params)
    return [*(key for key in sweep.space if key in found), *(key for key in found if key not in sweep.space)]


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """Name each dotted key by as few of its last parts as tell it from the others."""
    names = {}
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        others = [f".{other}" for other in keys if other != key]
        names[key] = next((end for end in ends if not any(other.endswith(f".{end}") for other in others)), key)
    return names


def _counts_text(total: int, counts: Counter[str]) -> str:
    parts = [f"{counts[status]} {text}" for status, text in _STATUSES.items() if counts[status]]
    if total == counts["finished"]:
        return "One trial, finished." if total == 1 else f"{total} trials, all finished."
    return f"{total} {'trial' if total == 1 else 'trials'}: {', '.join(parts)}."


def _rows(sweep: SweepRecord, ranked: Sequence[TrialRecord], keys: Sequence[str]) -> list[Record]:
    """Lay out the table: ranked trials, then those without a value by number."""
    places = {trial.id: place for place, trial in enumerate(ranked, 1)}
    rest = [trial for trial in sweep.trials if trial.id not in places]
    return [
        {
            "rank": places.get(trial.id),
            "number": trial.number,
            "id": trial.id,
            "link": _link(trial),
            "is_best": trial.id == sweep.best,
            "status": trial.status,
            "status_text": _STATUSES.get(trial.status, trial.status),
            "value": trial.value,
            "step": trial.step,
            "time": shown_seconds(trial.seconds),
            "params": [_cell(trial, key) for key in keys],
            "parent": _parent_text(sweep, trial),
        }
        for trial in [*ranked, *rest]
    ]


def _cell(trial: TrialRecord, key: str) -> Record:
    if key not in trial.params:
        return {"text": None, "short": "", "long": False, "changed": False}
    text = label_of(trial.params[key])
    is_long = len(text) > _LONG
    short = text[: _LONG - 1] + "\N{HORIZONTAL ELLIPSIS}" if is_long else text
    return {"text": text, "short": short, "long": is_long, "changed": key in trial.changed}


def _link(trial: TrialRecord) -> str:
    """Link a trial's own report, a file beside this page; "" where there is none, as of a trial that was stopped."""
    if trial.status != "finished" or not trial.folder or ".." in trial.folder.split("/"):
        return ""
    return f"./{quote(trial.folder.strip('/'))}/report.html"


def _parent_text(sweep: SweepRecord, trial: TrialRecord) -> str:
    parent, _, step = trial.parent.partition("/step_")
    if not parent:
        return ""
    found = next((other for other in sweep.trials if other.id == parent), None)
    name = f"trial {found.number}" if found else parent
    return f"{name} at step {int(step):,}" if step.isdigit() else name


def _text(trial: TrialRecord, title: str) -> str:
    """Say everything about a trial's line."""
    value = f"{title} {number(trial.value)}" if is_number(trial.value) else "no value"
    params = [f"{key} = {label_of(value)}" for key, value in trial.params.items()]
    return "\n".join([f"Trial {trial.number}, {_STATUSES.get(trial.status, trial.status)}: {value}", *params])


def _legend(counts: Counter[str], best: TrialRecord | None, num_scored: int) -> list[tuple[str, str]]:
    kinds = [("chosen", f"the best, trial {best.number}")] if best else []
    kinds += [("high", "the best tenth")] if num_scored > 10 else []  # of fewer it is the best alone
    kinds += [("next", "the next fifth"), ("low", "the others")] if num_scored > 1 else []
    kinds += [("early", "stopped early")] if counts["stopped"] else []
    return kinds + ([("lost", "failed")] if counts["failed"] else [])


def _failures(sweep: SweepRecord) -> Record:
    failed = [trial for trial in sweep.trials if trial.status == "failed"]
    return {
        "failures": [
            {"number": trial.number, "error": plain(without_secrets(" ".join(trial.error.split()))) or "no reason kept"}
            for trial in failed[:_MOST_FAILURES]
        ],
        "more_failures": max(0, len(failed) - _MOST_FAILURES),
    }


# -- what it says ------------------------------------------------------------------------------------------------------


def _is_measured(sweep: SweepRecord) -> bool:
    metrics = sweep.test.get("best", {}).get("metrics", {})
    return metrics.get(sweep.metric.removeprefix("val/")) is not None


def _headline(sweep: SweepRecord, best: TrialRecord | None, title: str, num_scored: int) -> Record:
    """Lay out the best on test beside the default, or on validation while there is no test."""
    if best is None:
        return {"verdict": ["No trial has a value."] if sweep.trials else []}
    row, metric = _ROWS[sweep.task], sweep.metric.removeprefix("val/")
    chosen = {"title": "On validation, where it was chosen", "value": best.value, "low": None, "high": None}
    laid: Record = {"verdict": [f"Trial {best.number} has the best {title} on validation images."]}
    found = {name: sweep.test[name] for name in ("best", "default") if sweep.test.get(name)}
    base = found.get("default", {}).get("metrics", {}).get(metric)
    if not _is_measured(sweep):
        size = f"the best of {num_scored} values, so it flatters: " if num_scored > 1 else "one value: "
        size += "only a test split tells what it is worth"
        laid |= {"headline": {**chosen, "title": title}, "size": size, "tiles": []}
    else:
        headline = row(metric, found["best"]["metrics"][metric])
        laid |= {"headline": headline, "size": size_text(found["best"]), "tiles": [chosen]}
        if base is not None:
            laid["tiles"].insert(0, {**base, "title": "Default config, the same images"})
            laid["verdict"].append(_comparison(found["best"], found["default"], metric, sweep.mode))
    return laid | (_test_part(best, found, row) if "best" in found else {})


def _test_part(best: TrialRecord, found: Record, row: Callable[[str, Record], Record]) -> Record:
    """Lay out all metrics of the evaluations on test, side by side."""
    names = {"best": f"best (trial {best.number})", "default": "default config"}
    records = [record["metrics"] for record in found.values()]
    rows = []
    for key in dict.fromkeys(key for record in records for key in record):
        cells = [row(key, record[key]) if key in record else None for record in records]
        rows.append({**next(cell for cell in cells if cell), "cells": cells})
    size = size_text(found["best"])
    return {
        "test": rows,
        "test_names": [names[name] for name in found],
        "test_text": f"Chosen on validation, then measured once on {size} that no trial has learned from or been "
        f"chosen by. {INTERVALS}",
    }


def _comparison(chosen: Record, base: Record, metric: str, mode: str) -> str:
    """Say what the test tells about the best and the default config, and no more."""
    if chosen.get("checkpoint") is not None and chosen.get("checkpoint") == base.get("checkpoint"):
        return "It is the default config: the search has found nothing better."
    best, default = chosen["metrics"][metric], base["metrics"][metric]
    if not is_number(best["value"]) or not is_number(default["value"]):
        return "The test images do not tell it from the default config."
    gain = (best["value"] - default["value"]) * (1 if mode == "max" else -1)
    numbers = f"{number(best['value'])} against {number(default['value'])} of the default config"
    if gain <= 0:
        return f"On test images it is no better: {numbers}. The search has found nothing that carries over."
    bounds = [part[end] for part in (best, default) for end in ("low", "high")]
    if None in bounds or (best["low"] <= default["high"] and default["low"] <= best["high"]):
        return f"On test images it is ahead, {numbers}; the intervals overlap, so that may be chance."
    return f"On test images it is better: {numbers}, and the intervals do not overlap."


def _notes(sweep: SweepRecord, axes: Sequence[Axis], best: TrialRecord | None) -> list[str]:
    notes = []
    edges = [axis.name for axis in axes if best and _is_at_edge(sweep, axis, best)]
    if edges and len(sweep.trials) >= _FEWEST_FOR_EDGES:
        verb = "lies" if len(edges) == 1 else "lie"
        notes.append(f"{', '.join(edges)} of the best trial {verb} at the edge of what was searched; widen the range")
    failed = [trial for trial in sweep.trials if trial.status == "failed"]
    if best and len(failed) * 5 >= len(sweep.trials):
        notes.append(f"{len(failed)} of {len(sweep.trials)} trials failed; what they would have found is not known")
    return notes


def _is_at_edge(sweep: SweepRecord, axis: Axis, best: TrialRecord) -> bool:
    entry, value = sweep.space.get(axis.name), best.params.get(axis.name)
    if not isinstance(entry, dict) or not {"uniform", "loguniform"} & set(entry) or not is_number(value):
        return False
    if axis.low is None or axis.high is None:
        return False
    low, high, at = (math.log(x) if axis.is_log else x for x in (axis.low, axis.high, value))
    return min(at - low, high - at) < _EDGE * (high - low)


def _best_part(sweep: SweepRecord, best: TrialRecord, axes: Sequence[Axis]) -> Record:
    at_edge = {axis.name for axis in axes if _is_at_edge(sweep, axis, best)}
    return {
        "number": best.number,
        "link": _link(best),
        "step": best.step,
        "time": shown_seconds(best.seconds),
        "parent": _parent_text(sweep, best),
        "params": [
            {
                "key": key,
                "value": label_of(value),
                "searched": _searched(sweep.space.get(key)),
                "at_edge": key in at_edge and len(sweep.trials) >= _FEWEST_FOR_EDGES,
            }
            for key, value in best.params.items()
        ],
    }


def _searched(entry: Any) -> str:
    """Write an entry of the search space in a line."""
    if entry is None:
        return ""
    if not isinstance(entry, dict):
        return label_of(entry)
    return ", ".join(f"{kind} {label_of(value)}" for kind, value in entry.items())


def _influence_part(sweep: SweepRecord, begun: Sequence[TrialRecord]) -> Record:
    scored = [trial for trial in begun if is_number(trial.value)]
    if not scored:
        return {"influences": []}
    if any(trial.parent for trial in begun):
        return {
            "influence_text": "Not computed: trials that go on from one another are not independent, so no parameter "
            "can be given the credit.",
            "influences": [],
        }
    if len(scored) < FEWEST_TRIALS:
        have = "1 trial has" if len(scored) == 1 else f"{len(scored)} trials have"
        text = f"{have} a value; from {FEWEST_TRIALS} on this can be told from chance."
        return {"influence_text": text, "influences": []}
    found = influences([trial.params for trial in scored], [trial.value for trial in scored if is_number(trial.value)])
    if not found:
        return {"influence_text": "No parameter varies enough among the trials to tell.", "influences": []}
    return {
        "influence_text": f"How much of the differences in rank between the {len(scored)} trials with a value one "
        "parameter alone explains. The mark is what shuffled values stay below in 95 of 100 sweeps, all parameters "
        "together; only a bar beyond it says something. What matters only together with another parameter does not "
        "show, and a search that has kept to good regions hides what it has learned.",
        "influences": [
            {
                "key": influence.key,
                "share": influence.share,
                "chance": influence.chance,
                "width": f"{100 * influence.share:.1f}",
                "mark": f"{100 * influence.chance:.1f}",
                "is_told": influence.share > influence.chance,
            }
            for influence in found
        ],
    }


def _commands(sweep: SweepRecord, best: TrialRecord | None) -> list[tuple[str, str]]:
    commands = [("Sweep again; trials that are done are not repeated:", without_secrets(sweep.command))]
    if best:
        commands.append(("Train the best config as a run of its own, in the folder of this page:",
                         "hai train --config best.yaml --name NAME"))  # fmt: skip
        commands.append(("Measure the best trial on new images:",
                         f"hai evaluate --checkpoint {best.folder} --data FOLDER_OR_CSV"))  # fmt: skip
    return [(text, command) for text, command in commands if command]
