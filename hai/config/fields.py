"""The schema as data: JSON Schema for editors, rules in words for messages, the reference page of the docs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from hai.config.schema import RunConfig
from hai.config.text import inline_yaml

__all__ = ["config_fields", "config_reference", "config_schema", "field_at", "nearest_keys", "rule_of"]

Property = dict[str, Any]  # one node of the JSON Schema

_RESUME_WORDS = {"fixed": "no", "raise": "may grow", "free": "yes"}
_TYPE_WORDS = {
    "boolean": "true or false",
    "integer": "a whole number",
    "null": "null",
    "number": "a number",
    "object": "a section of keys",
    "string": "text",
}


@lru_cache(maxsize=1)
def _schema() -> Property:
    return RunConfig.model_json_schema()


def config_schema() -> Property:
    """Describe the config as JSON Schema (draft 2020-12), for editors that complete and check YAML."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_schema()}


def _resolve(node: Property) -> Property:
    """Follow a reference to the section it names, keeping what is said beside the reference."""
    if "$ref" not in node:
        return node
    return {**_schema()["$defs"][node["$ref"].rsplit("/", 1)[-1]], **node}


def field_at(place: Sequence[Any]) -> tuple[tuple[Any, ...], Property | None]:
    """Find the config field that a path of keys and list positions leads to.

    Returns:
        The part of the path that names the field (what lies within its value is cut off) and the field's schema; the
        schema is None, and the path ends with the first wrong name, if there is no such field.
    """
    node = _schema()
    for depth, part in enumerate(place):
        if "properties" in node:
            if part not in node["properties"]:
                return tuple(place[: depth + 1]), None
            node = _resolve(node["properties"][part])
        elif "$ref" in node.get("items", {}) and isinstance(part, int):
            node = _resolve(node["items"])
        else:
            return tuple(place[:depth]), node
    return tuple(place), node


def config_fields() -> dict[str, Property]:
    """List every key that holds a value, dotted, in the order of the schema; `N` stands for a position in a list."""
    return {key: node for key, node in _walk("", _schema()) if "properties" not in node}


def _walk(prefix: str, section: Property) -> Iterable[tuple[str, Property]]:
    for name, raw in section["properties"].items():
        node, key = _resolve(raw), f"{prefix}{name}"
        yield key, node
        if "properties" in node:
            yield from _walk(f"{key}.", node)
        elif "$ref" in node.get("items", {}):
            yield from _walk(f"{key}.N.", _resolve(node["items"]))


def rule_of(node: Property) -> str:
    """Say in words what a field's value may be."""
    if "anyOf" in node:
        return ", or ".join(rule_of(option) for option in node["anyOf"])
    if "const" in node:
        return str(node["const"])
    if "enum" in node:
        return f"one of {', '.join(node['enum'])}"
    if "$ref" in node:
        return _TYPE_WORDS["object"]
    if node["type"] == "array":
        least, most = node.get("minItems"), node.get("maxItems")
        count = "values" if least is None else f"{'' if most == least else 'at least '}{least} values"
        return f"a list of {count}, each {rule_of(node['items'])}"
    bounds = [
        f"{sign} {node[name]:g}"
        for name, sign in (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"))
        if name in node
    ]
    kind = "text of at least one letter" if node.get("minLength") else _TYPE_WORDS[node["type"]]
    words = " ".join([kind, " and ".join(bounds)]).strip()
    return f"{words} matching {node['pattern']}" if "pattern" in node else words


def _similarity(key: str, candidate: str) -> float:
    """Compare two keys as wholes, by their last names, and by short forms: `lr` and `rate` for `learning_rate`."""
    last, name = key.rsplit(".", 1)[-1].lower(), candidate.rsplit(".", 1)[-1]
    initials = "".join(word[0] for word in name.split("_"))
    in_same_section = key.rpartition(".")[0] == candidate.rpartition(".")[0]
    return 0.06 * in_same_section + max(
        difflib.SequenceMatcher(None, key.lower(), candidate).ratio(),
        0.97 * difflib.SequenceMatcher(None, last, name).ratio(),
        0.9 * (len(last) > 1 and last == initials),
        0.9 * (len(last) > 3 and (name.startswith(f"{last}_") or name.endswith(f"_{last}"))),
    )


def nearest_keys(key: str) -> list[str]:
    """Find the valid keys that an unknown one most likely means: none, one, or up to three equally near ones."""
    positions = [part for part in key.split(".") if part.isdecimal()]
    wanted = ".".join("N" if part.isdecimal() else part for part in key.split("."))
    scores = {candidate: _similarity(wanted, candidate) for candidate, _ in _walk("", _schema())}
    best = max(scores.values())
    if best < 0.6:
        return []
    near = sorted((name for name in scores if scores[name] > best - 0.05), key=lambda name: -scores[name])[:3]
    return [".".join((positions or ["0"])[0] if part == "N" else part for part in name.split(".")) for name in near]


def config_reference() -> str:
    """Write the reference page of all config keys in Markdown."""
    lines = [
        "# Config keys",
        "",
        "Made by `make docs` from `hai/config/`. Any key can be set on the command line:",
        "`optim.learning_rate=3e-4`, `data.sources.0.path=faces`.",
        "The last column says whether a resumed run may change it.",
    ]
    sections: dict[str, list[str]] = {}
    for key, node in config_fields().items():
        default = f"`{inline_yaml(node['default'])}`" if "default" in node else "required"
        cells = [f"`{key}`", rule_of(node), default, node["description"], _RESUME_WORDS[node["resume"]]]
        row = " | ".join(cell.replace("|", "\\|") for cell in cells)
        sections.setdefault(key.rpartition(".")[0], []).append(f"| {row} |")
    for section, rows in sections.items():
        title = f"`{section}`" if section else "Top level"
        lines += ["", f"## {title}", "", "| key | value | default | meaning | resume |", "|---|---|---|---|---|", *rows]
    return "\n".join(lines) + "\n"
