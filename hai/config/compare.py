"""What changed between the config of a run and the one it is to go on with, and whether it may."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hai.config.fields import config_fields
from hai.config.schema import RunConfig

__all__ = ["Difference", "compare_configs"]


@dataclass(frozen=True)
class Difference:
    """One field with two values."""

    field: str
    old: Any
    new: Any
    allowed: bool


def compare_configs(old: RunConfig, new: RunConfig) -> list[Difference]:
    """List the fields in which two configs differ, each with whether a resume may change it.

    Sources are matched by their names, so their order does not matter; a field of one reads `data.sources.NAME.weight`.
    The phases of the loss are one field: they differ as a whole.
    """
    shared = {source.name for source in old.data.sources} & {source.name for source in new.data.sources}
    before, after = _flat(old, shared), _flat(new, shared)
    differences = []
    for key in dict.fromkeys([*before, *after]):
        one, rule = before.get(key, (None, "fixed"))  # only a source can stand on one side alone
        two, rule = after.get(key, (None, rule))
        if one != two:
            differences.append(Difference(key, one, two, _is_allowed(rule, one, two)))
    return differences


def _flat(config: RunConfig, shared: set[str]) -> dict[str, tuple[Any, str]]:
    """Spread a config to {field: (value, what a resume may do)}; sources that only one config has stay whole."""
    fields = config_fields()
    per_source = {key.removeprefix("data.sources.N."): node for key, node in fields.items() if ".sources.N." in key}
    flat: dict[str, tuple[Any, str]] = {}
    for key, node in fields.items():
        if key != "data.sources" and ".N." not in key:
            value: Any = config
            for part in key.split("."):
                value = getattr(value, part)
            flat[key] = (value, node["resume"])
    for source in config.data.sources:
        name = f"data.sources.{source.name}"
        if source.name in shared:
            flat |= {f"{name}.{part}": (getattr(source, part), node["resume"]) for part, node in per_source.items()}
        else:
            flat[name] = (source.model_dump(exclude_unset=True), "fixed")
    return flat


def _is_allowed(rule: str, old: Any, new: Any) -> bool:
    if rule == "raise":
        return new is None or (old is not None and new >= old)
    return rule == "free"
