"""A sweep file: the run that it starts from, the values that are tried and how they are chosen."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ValidationError

from hai.config.fields import field_at, nearest_keys, rule_of
from hai.config.load import config_from_yaml_text, config_with, nearest_file
from hai.config.schema import RunConfig
from hai.config.section import Section, fixed, free, raisable
from hai.config.text import dump_yaml, inline_yaml, parse_yaml
from hai.errors import ConfigError

__all__ = ["Entry", "Sweep", "SweepSettings", "is_sweep", "load_sweep", "show_sweep", "sweep_changes"]

KINDS: Final = ("loguniform", "uniform", "randint", "choice", "grid")
_RANGES: Final = ("loguniform", "uniform", "randint")
_OF_THE_LAUNCH: Final = ("task", "name", "storage", "scale", "checkpoint", "logging")
_DIVIDING: Final = ("seed", "data.split_ratios", "data.near_duplicate_distance", "data.tiers", "data.score_column")
_IN_MID_TRAINING: Final = (
    *("optim.", "augment.", "loss.", "pairs."),
    *("model.dropout", "model.drop_path", "train.gradient_clip_norm"),
)
_SHAPING: Final = ("optim.name", "pairs.loss", "pairs.ties")  # what they change is in the checkpoint's tensors
_COMMAND_LINE: Final = "command line"
_MOST_COMBINATIONS: Final = 10_000  # years of training


class SweepSettings(Section):
    """How a sweep tries values, and with what."""

    num_trials: int | None = raisable(
        20, "Trials besides the base config; with searcher grid null: every combination; pbt: the population.", ge=1
    )
    searcher: Literal["random", "optuna", "grid"] = fixed(
        "random", "`random`: trial i is a function of the seed and i; `optuna`: TPE; `grid`: every combination once."
    )
    scheduler: Literal["asha", "pbt", "none"] = fixed(
        "asha",
        "`asha`: every trial gets a little, the best share of them more, and so on; `pbt`: the weakest go on from the "
        "strongest with changed values; `none`: every trial to its end.",
    )
    metric: str | None = fixed(
        None, "Validation metric that trials are compared by, at their best checkpoint; null: the task's own."
    )
    mode: Literal["max", "min"] = fixed("max", "Whether a higher or a lower metric is better.")
    seed: int = fixed(0, "Seed of the values that are tried.", ge=0, lt=2**63)
    include_base: bool = fixed(True, "Also train the base config to its end, to see what the sweep has gained.")
    first_rung_epochs: float = fixed(1.0, "asha: epochs that every trial gets.", gt=0)
    reduction: int = fixed(3, "asha: one in so many goes on, to so many times the epochs.", ge=2)
    interval_epochs: int = fixed(1, "pbt: epochs between two comparisons.", ge=1)
    quantile: float = fixed(0.25, "pbt: share of the population that is replaced, and that replaces it.", gt=0, le=0.5)
    resample: float = fixed(0.25, "pbt: probability that a value is drawn anew, not changed a little.", ge=0, le=1)
    workers_per_trial: int = free(1, "Worker processes of one trial; above 1 they train through Ray Train.", ge=1)
    cpus_per_worker: int | None = free(None, "null: worked out from the machine.", ge=1)
    gpus_per_worker: float | None = free(
        None, "Below 1 trials share a card: 0.25 lets four small ones run on it; null: one where there are any.", ge=0
    )
    max_concurrent: int | None = free(None, "Most trials at once; null: as many as there is room for.", ge=1)
    time_limit_minutes: float | None = free(
        None, "Start nothing after so many minutes, save what runs and say what is best; null: no limit.", gt=0
    )
    evaluate_test: bool = free(True, "At the end measure the best and the base on the test split, once.")


@dataclass(frozen=True)
class Entry:
    """What may be tried for one key.

    Args:
        kind: loguniform, uniform, randint (both ends included), choice or grid.
        values: low and high, or the values themselves.
        when: other keys of the space with the values for which this one applies.
    """

    kind: str
    values: tuple[Any, ...]
    when: dict[str, tuple[Any, ...]]

    @property
    def is_range(self) -> bool:
        """Say whether the values lie between two ends."""
        return self.kind in _RANGES

    def takes(self, value: Any) -> bool:
        """Say whether the key may get this value."""
        if not self.is_range:
            return value in self.values
        return isinstance(value, int | float) and self.values[0] <= value <= self.values[1]

    def to_yaml(self) -> dict[str, Any]:
        """Write the entry as a sweep file has it."""
        when = {key: list(values) if len(values) > 1 else values[0] for key, values in self.when.items()}
        return {self.kind: list(self.values), **({"when": when} if when else {})}


@dataclass(frozen=True)
class Sweep:
    """A sweep as it was asked for.

    Args:
        base: config that every trial changes.
        settings: how values are tried.
        space: what may be tried by dotted key, a condition's key before those that depend on it.
    """

    base: RunConfig
    settings: SweepSettings
    space: dict[str, Entry]


def is_sweep(path: str | Path) -> bool:
    """Say whether a file holds a sweep, not a run; False where it cannot be read."""
    try:
        return "space" in _read(Path(path))[0]
    except ConfigError:
        return False


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep file: `base` (another config, relative to this file), keys laid over it, `space` and `sweep`.

    Args:
        path: YAML file.
        overrides: `key=value` for the base config, `sweep.KEY=value`, `space.KEY={kind: [...]}` or `space.KEY=null`.

    Raises:
        ConfigError: all mistakes, one a line.
    """
    where = str(path)
    values, problems = _read(Path(path))
    own = {"sweep": values.pop("sweep", None) or {}, "space": values.pop("space", None) or {}}
    base, laid = values.pop("base", None), []
    for override in overrides:
        section, _, key = override.partition("=")[0].strip().partition(".")
        if section not in own or not key:
            laid.append(override)
            continue
        value, wrong = parse_yaml(override.partition("=")[2], f"{_COMMAND_LINE}: {section}.{key}", numbered=False)
        problems += wrong
        if isinstance(own[section], dict):
            own[section].pop(key, None)
            if value is not None or section == "sweep":
                own[section][key] = value
    if base is not None:
        text, more = _read(Path(path).parent / str(base))
        values, problems = _over(text, values), [*problems, *more]
    run: RunConfig | None = None
    try:
        run = config_from_yaml_text(dump_yaml(values) if values else "", where, laid)
    except ConfigError as error:
        problems += str(error).splitlines()
    settings, more = _settings(own["sweep"], where)
    space, wrong = _space(own["space"], where)
    problems += [*more, *wrong]
    if run is not None and settings is not None and not problems:
        problems += [*_misfits(settings, space, run, where), *_values_misfit(space, run, where)]
    if problems or run is None or settings is None:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return Sweep(run, settings, space)


def show_sweep(sweep: Sweep) -> dict[str, Any]:
    """Write a sweep's settings and space as plain values; with the base config they are the whole sweep."""
    space = {key: entry.to_yaml() for key, entry in sweep.space.items()}
    return {"sweep": sweep.settings.model_dump(), "space": space}


def sweep_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Compare two results of `show_sweep` and list what a sweep that goes on may not change."""
    lines = []
    for name, field in SweepSettings.model_fields.items():
        extra = field.json_schema_extra
        rule = extra["resume"] if isinstance(extra, dict) else "fixed"
        one, two = old["sweep"].get(name, field.default), new["sweep"][name]
        grown = rule == "raise" and (two is None or (one is not None and two >= one))
        if one != two and rule != "free" and not grown:
            lines.append(f"sweep.{name}: the sweep has {inline_yaml(one)}, given {inline_yaml(two)}")
    for key in dict.fromkeys([*old["space"], *new["space"]]):
        one, two = old["space"].get(key), new["space"].get(key)
        if one != two:
            lines.append(f"space.{key}: the sweep has {inline_yaml(one)}, given {inline_yaml(two)}")
    return lines


def _read(path: Path) -> tuple[dict[Any, Any], list[str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file{nearest_file(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    values, problems = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise ConfigError("\n".join(problems) or f"{path}: must hold `key: value` lines, found {inline_yaml(values)}")
    return values, problems


def _over(old: Any, new: Any) -> Any:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {**old, **{key: _over(old.get(key), value) for key, value in new.items()}}


def _settings(given: Any, where: str) -> tuple[SweepSettings | None, list[str]]:
    nodes = SweepSettings.model_json_schema()["properties"]
    if not isinstance(given, dict):
        return None, [f"{where}: sweep = {inline_yaml(given)}; must be a section of keys"]
    try:
        return SweepSettings.model_validate(given, strict=True), []
    except ValidationError as error:
        lines = []
        for name in dict.fromkeys(str(item["loc"][0]) for item in error.errors(include_url=False)):
            line = f"{where}: sweep.{name} = {inline_yaml(given.get(name))}; "
            if name in nodes:
                near = _near(str(given.get(name)), nodes[name].get("enum", []))
                lines.append(f"{line}must be {rule_of(nodes[name])}{near}")
            else:
                lines.append(f"{line}unknown key{_near(name, nodes) or '; known: ' + ', '.join(nodes)}")
        return None, lines


def _near(word: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _space(given: Any, where: str) -> tuple[dict[str, Entry], list[str]]:
    """Read the space; conditions come before what depends on them."""
    if not isinstance(given, dict) or not given:
        return {}, [
            f"{where}: space = {inline_yaml(given)}; must name the keys to try, e.g. "
            "`space: {optim.learning_rate: {loguniform: [1e-4, 1e-2]}}`"
        ]
    entries, problems = {}, []
    for key, value in given.items():
        name = f"{where}: space.{key}"
        wrong = _wrong_key(str(key))
        entry, reason = _entry(value)
        problems += [f"{name}; {wrong}"] * bool(wrong) + [f"{name} = {inline_yaml(value)}; {reason}"] * bool(reason)
        if entry is not None:
            entries[str(key)] = entry
    for key, entry in entries.items():
        for other, wanted in entry.when.items():
            if other not in given:
                near = _near(other, [str(one) for one in given])
                problems.append(f"{where}: space.{key}.when.{other}; is no key of the space{near}")
            for value in wanted if other in entries else ():
                if not entries[other].takes(value):
                    known = ", ".join(inline_yaml(one) for one in entries[other].values)
                    name = f"{where}: space.{key}.when.{other} = {inline_yaml(value)}"
                    problems.append(f"{name}; {other} never takes this value; {entries[other].kind}: {known}")
    ordered: dict[str, Entry] = {}
    while not problems and len(ordered) < len(entries):
        ready = [key for key, entry in entries.items() if key not in ordered and entry.when.keys() <= ordered.keys()]
        if not ready:
            circle = ", ".join(key for key in entries if key not in ordered)
            problems.append(f"{where}: space: the conditions of {circle} wait for each other; remove one `when`")
        ordered |= {key: entries[key] for key in ready}
    return ordered, problems


def _wrong_key(key: str) -> str:
    place, node = field_at(tuple(int(part) if part.isdecimal() else part for part in key.split(".")))
    if node is None or len(place) < len(key.split(".")):
        near = nearest_keys(key)
        return "unknown key" + (f"; did you mean {' or '.join(near)}?" if near else "")
    if "properties" in node:
        return f"is a section; name a key in it, such as {key}.{next(iter(node['properties']))}"
    if key in _DIVIDING or (key.startswith("data.sources") and not key.endswith(".weight")):
        return "decides what is in which split, or which tier, so trials could not be compared; set it in the config"
    if key.split(".")[0] in _OF_THE_LAUNCH:
        return "says where or how a run is carried out, not what it learns; set it in the config instead"
    return ""


def _entry(value: Any) -> tuple[Entry | None, str]:
    kinds = [key for key in value if key != "when"] if isinstance(value, dict) else []
    if len(kinds) != 1 or kinds[0] not in KINDS:
        near = _near(str(kinds[0]), KINDS) if len(kinds) == 1 else ""
        return None, f"must be one of {', '.join(KINDS)} with a list, and perhaps `when`{near}"
    kind, listed, when = kinds[0], value[kinds[0]], value.get("when", {})
    if not isinstance(when, dict):
        return None, "`when` must name other keys of the space with their values, e.g. `when: {pairs.loss: margin}`"
    if not isinstance(listed, list) or not listed:
        return None, f"{kind} must be a list of values"
    if kind in _RANGES:
        numbers = [one for one in listed if isinstance(one, int | float) and not isinstance(one, bool)]
        if kind == "randint" and (len(numbers) != 2 or not all(isinstance(one, int) for one in listed)):
            return None, "randint must be two whole numbers, the lowest and the highest"
        if len(numbers) != 2 or len(listed) != 2 or not listed[0] < listed[1]:
            return None, f"{kind} must be two numbers, low < high"
        if kind == "loguniform" and listed[0] <= 0:
            return None, "loguniform must be two numbers, 0 < low < high"
        if kind != "randint":
            listed = [float(one) for one in listed]
    elif len({inline_yaml(one, 10**6) for one in listed}) < len(listed):
        return None, f"{kind} names a value twice"
    conditions = {str(key): tuple(one) if isinstance(one, list) else (one,) for key, one in when.items()}
    return Entry(kind, tuple(listed), conditions), ""


def _misfits(settings: SweepSettings, space: dict[str, Entry], run: RunConfig, where: str) -> list[str]:
    """List what searcher, scheduler, space and run ask of each other."""
    problems = []
    ranges = [key for key, entry in space.items() if entry.is_range]
    if settings.searcher == "grid" and ranges:
        problems.append(f"{where}: sweep.searcher = grid; {', '.join(ranges)} have no finite list; use choice or grid")
    size = math.prod(len(entry.values) for entry in space.values())
    if settings.searcher == "grid" and settings.num_trials is None and not ranges and size > _MOST_COMBINATIONS:
        problems.append(f"{where}: sweep.num_trials = null; the grid has {size:,} combinations; give a number")
    if settings.searcher != "grid" and settings.num_trials is None:
        problems.append(f"{where}: sweep.num_trials = null; only searcher grid knows where to end; give a number")
    if settings.scheduler != "pbt":
        return problems
    fixed_keys = [key for key in space if not key.startswith(_IN_MID_TRAINING) or key in _SHAPING]
    every, rule = run.train.eval_every_epochs, f"{where}: sweep.scheduler = pbt; "
    if fixed_keys:
        problems.append(
            f"{rule}{', '.join(fixed_keys)} cannot change in the middle of training; only keys of optim, augment, "
            "loss and pairs, dropout and the clipping norm can"
        )
    if settings.searcher != "random":
        problems.append(f"{rule}it chooses by itself, so searcher must be random, not {settings.searcher}")
    if every != int(every) or settings.interval_epochs % every:
        problems.append(
            f"{rule}interval_epochs = {settings.interval_epochs} must be a multiple of train.eval_every_epochs = "
            f"{every:g}, a whole number"
        )
    if run.train.early_stopping_patience is not None:
        problems.append(f"{rule}train.early_stopping_patience must be null; pbt itself stops what falls behind")
    return problems


def _values_misfit(space: dict[str, Entry], run: RunConfig, where: str) -> list[str]:
    """List, one for each key, a value that the config refuses beside the base's, the first and the last other ones."""
    others = [{}, *({key: entry.values[place] for key, entry in space.items()} for place in (0, -1))]
    problems: list[str] = []
    for key, entry in space.items():
        context: dict[str, Any] = {}
        for other, wanted in entry.when.items():
            context |= {deeper: values[0] for deeper, values in space[other].when.items()} | {other: wanted[0]}
        for value in entry.values:
            found = [_refusals(run, {**rest, **context, key: value}, key, f"{where}: space") for rest in others]
            if all(found):
                problems.append(found[0][0])
                break
    return problems


def _refusals(run: RunConfig, values: dict[str, Any], key: str, where: str) -> list[str]:
    try:
        config_with(run, values, where)
    except ConfigError as error:
        return [line for line in str(error).splitlines() if line.startswith(f"{where}: {key} = ")]
    return []
