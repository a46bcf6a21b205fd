"""The values of a trial: a function of the seed and the trial's number, so that a sweep run again has the same ones."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hai.config.fields import config_fields
from hai.config.schema import RunConfig
from hai.config.sweep import Entry

__all__ = ["applying", "combinations", "draw", "fraction", "params_of", "perturbed", "trial_id"]

Space = Mapping[str, Entry]
_FACTORS = (0.8, 1.2)


def fraction(*parts: Any) -> float:
    """Return a number in [0, 1) that looks random and is a function of its arguments."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return (int.from_bytes(digest[:7], "big") >> 3) / 2**53


def applying(space: Space, choose: Callable[[str, Entry], Any]) -> dict[str, Any]:
    """Choose a value for every key whose condition holds, those of conditions first."""
    params: dict[str, Any] = {}
    for key, entry in space.items():
        if all(other in params and params[other] in wanted for other, wanted in entry.when.items()):
            params[key] = choose(key, entry)
    return params


def draw(space: Space, seed: int, number: int, attempt: int = 0) -> dict[str, Any]:
    """Draw the values of trial `number`; the combinations of `grid` entries take turns.

    A key's value depends on no other key, so that a key added to the space leaves the others' values as they are.
    """
    turn = dict(next(itertools.islice(itertools.cycle(_product(space, "grid")), number, None)))

    def choose(key: str, entry: Entry) -> Any:
        return turn[key] if key in turn else _at(entry, fraction(seed, number, attempt, key))

    return applying(space, choose)


def combinations(space: Space, most: int | None = None) -> list[dict[str, Any]]:
    """List the combinations of a space without ranges, once each, however many keys do not apply.

    Args:
        space: whose entries are lists.
        most: how many to list; None: all of them.
    """
    found: dict[str, dict[str, Any]] = {}
    for combination in _product(space, "grid", "choice"):
        if len(found) == most:
            break
        params = applying(space, lambda key, _: combination[key])  # noqa: B023  (called at once)
        found.setdefault(json.dumps(params, sort_keys=True, default=str), params)
    return list(found.values())


def perturbed(space: Space, params: Mapping[str, Any], seed: int | str, resample: float) -> dict[str, Any]:
    """Change each value a little: numbers by a fifth, a listed value to its neighbour; or draw it anew.

    Args:
        space: what may be tried.
        params: values to start from.
        seed: another seed changes them otherwise.
        resample: probability that a value is drawn anew.

    Source: Jaderberg et al., Population Based Training of Neural Networks, 2017.
    """

    def choose(key: str, entry: Entry) -> Any:
        anew, direction = fraction(seed, key, "anew"), int(2 * fraction(seed, key, "direction"))
        if key not in params or anew < resample:
            return _at(entry, fraction(seed, key, "value"))
        old = params[key]
        if not entry.is_range:
            place = entry.values.index(old) + (-1, 1)[direction]
            return entry.values[min(max(place, 0), len(entry.values) - 1)]
        changed = old * _FACTORS[direction]
        if entry.kind == "randint":
            changed = math.floor(changed) if direction == 0 else math.ceil(changed)
        return _within(entry, changed)

    return applying(space, choose)


def params_of(space: Space, config: RunConfig) -> dict[str, Any]:
    """Read the values that a config has for the keys of a space, as far as they apply."""

    def choose(key: str, entry: Entry) -> Any:
        value: Any = config
        for part in key.split("."):
            value = value[int(part)] if part.isdecimal() else getattr(value, part)
        return value

    return applying(space, choose)


def trial_id(config: RunConfig, params: Mapping[str, Any], parent: str = "") -> str:
    """Name a trial by what it learns: the hash of its resolved config, where and how it is carried out left out."""
    identity: dict[str, Any] = {"params": dict(params), "parent": parent}
    for key, node in config_fields().items():
        if node["resume"] != "free" and ".N." not in key and key != "data.sources":
            value: Any = config
            for part in key.split("."):
                value = getattr(value, part)
            identity[key] = value
    identity["sources"] = [source.model_dump(exclude={"path", "image_dir"}) for source in config.data.sources]
    text = json.dumps(identity, sort_keys=True, default=lambda value: value.model_dump())
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _product(space: Space, *kinds: str) -> Iterator[dict[str, Any]]:
    keys = [key for key, entry in space.items() if entry.kind in kinds]
    for values in itertools.product(*(space[key].values for key in keys)):
        yield dict(zip(keys, values, strict=True))


def _at(entry: Entry, position: float) -> Any:
    """Return the value at a position in [0, 1) of an entry."""
    if not entry.is_range:
        return entry.values[int(position * len(entry.values))]
    low, high = entry.values
    if entry.kind == "randint":
        return low + int(position * (high - low + 1))
    if entry.kind == "loguniform":
        return _within(entry, math.exp(math.log(low) + position * (math.log(high) - math.log(low))))
    return _within(entry, low + position * (high - low))


def _within(entry: Entry, value: float) -> Any:
    low, high = entry.values
    shown = value if entry.kind == "randint" else float(f"{value:.4g}")  # four digits: people read them
    return min(max(shown, low), high)
