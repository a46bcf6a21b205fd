"""From a YAML file and `key=value` overrides to a checked config, with every mistake named at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hai.config.fields import field_at, nearest_keys, rule_of
from hai.config.schema import RunConfig
from hai.config.text import dump_yaml, inline_yaml, parse_yaml
from hai.errors import ConfigError
from hai.masking import masked, without_secrets

__all__ = ["config_from_yaml_text", "config_with", "load_config", "nearest_file", "show_config"]

_COMMAND_LINE = "command line"


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a config file and lay overrides over it.

    Args:
        path: YAML file, UTF-8.
        overrides: `key.sub=value` with YAML values; lists also by position (`data.sources.0.path=faces`), where the
            position after the last adds an entry. A mapping is merged into the one that is there.

    Raises:
        ConfigError: all mistakes, one a line: file or command line, key, value, rule, nearest valid name.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file{nearest_file(Path(path))}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    return config_from_yaml_text(text, str(path), overrides)


def config_from_yaml_text(text: str, where: str = "run.yaml", overrides: Sequence[str] = ()) -> RunConfig:
    """Check a config given as YAML text; `where` names it in messages.

    Raises:
        ConfigError: as for `load_config`.
    """
    values, problems = parse_yaml(text, where)
    if values is None:
        values = {}
        if problems:
            raise ConfigError("\n".join(problems))
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: must hold `key: value` lines, found {_shown(values)}")
    if "space" in values:
        raise ConfigError(f"{where}: has a `space` of values to try, so it is a sweep; hai tune --config {where}")
    places: list[tuple[Any, ...]] = []
    for override in overrides:
        key, equals, raw = override.partition("=")
        value, wrong = parse_yaml(raw, f"{_COMMAND_LINE}: {key.strip()}", numbered=False)
        problems += wrong
        if not equals or not key.strip():
            problems.append(
                f"{_COMMAND_LINE}: {override!r} is no override; write key=value, e.g. optim.learning_rate=3e-4"
            )
        elif value is not None or not wrong:
            place = tuple(int(part) if part.isdecimal() else part for part in key.strip().split("."))
            problems += _lay_over(values, place, value)
            places.append(place)
    try:
        config = RunConfig.model_validate(values, strict=True)
    except ValidationError as error:
        problems += _describe(error, values, where, places)
        raise ConfigError("\n".join(dict.fromkeys(problems))) from None
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def config_with(config: RunConfig, values: Mapping[str, Any], where: str) -> RunConfig:
    """Change fields of a config, each given by its dotted key.

    Raises:
        ConfigError: all mistakes, one a line; `where` names their place.
    """
    changed = config.model_dump(mode="python")
    places = [tuple(int(part) if part.isdecimal() else part for part in key.split(".")) for key in values]
    for place, value in zip(places, values.values(), strict=True):
        _lay_over(changed, place, value)
    try:
        return RunConfig.model_validate(changed, strict=True)
    except ValidationError as error:
        raise ConfigError("\n".join(_describe(error, changed, where, []))) from None


def show_config(config: RunConfig) -> str:
    """Write a resolved config as YAML, every key with its value; `config_from_yaml_text` reads it back.

    Secrets are masked, such as the signatures in URLs of data: where one is needed, it has to be given again.
    """
    return dump_yaml(masked(config.model_dump(mode="python")))


def _shown(value: Any, width: int = 60) -> str:
    """Write a value for a message: secrets are masked in the whole of it, then it is cut."""
    text = without_secrets(inline_yaml(value, 10**6))
    return text if len(text) <= width else text[: width - 3] + "..."


def _lay_over(values: dict[Any, Any], place: tuple[Any, ...], value: Any) -> list[str]:
    """Put a value at a place in nested mappings and lists; return what is wrong with the place."""
    here: Any = values
    for depth, part in enumerate(place):
        if isinstance(here, list) and (isinstance(part, str) or part > len(here)):
            name = ".".join(map(str, place[:depth]))
            return [f"{_COMMAND_LINE}: {'.'.join(map(str, place))}; {name} has {len(here)} entries, counted from 0"]
        if isinstance(here, list):
            key, old = part, here[part] if part < len(here) else None
            here += [None] * (part == len(here))
        else:
            key, old = str(part), here.get(str(part))
        if depth == len(place) - 1:
            here[key] = _merged(old, value)
        elif not isinstance(old, dict | list):
            here[key] = [] if isinstance(place[depth + 1], int) else {}
        here = here[key]
    return []


def _merged(old: Any, new: Any) -> Any:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}


def _describe(error: ValidationError, values: Any, where: str, places: list[tuple[Any, ...]]) -> Iterator[str]:
    """Turn pydantic's errors into our lines, one for each field."""
    told = set()
    for item in error.errors(include_url=False):
        place, node = field_at(item["loc"])
        if place in told:
            continue  # a union reports once for each of its members
        told.add(place)
        key = ".".join(map(str, place))
        inside = node is not None and not {"properties", "items"} & node.keys()  # an override may go into a plain value
        given = any(place[: len(one)] == one or (inside and one[: len(place)] == place) for one in places)
        source = _COMMAND_LINE if given else where
        if node is not None and item["type"] == "missing":
            yield f"{source}: {key} is missing; must be {rule_of(node)}: {node['description'].split(';')[0]}"
            continue
        value = _value_at(values, place, node)
        line = f"{source}: {key} = {_shown(value)}; "
        if node is None:
            near = nearest_keys(key)
            hint = f"; did you mean {' or '.join(near)}?" if near else "; `hai config schema` lists the keys"
            yield f"{line}unknown key{hint}"
        elif item["type"] == "value_error":
            yield line + str(item["ctx"]["error"])
        else:
            hint = "; remove the line for the default" if value is None else _nearest_choice(value, node)
            yield f"{line}must be {rule_of(node)}{hint}"


def _value_at(values: Any, place: tuple[Any, ...], node: dict[str, Any] | None) -> Any:
    """Read the value that stands at a place, or the field's default if none does."""
    for part in place:
        if isinstance(values, dict) and part not in values:
            return node.get("default") if node else None
        values = values[part]
    return values


def _nearest_choice(value: Any, node: dict[str, Any]) -> str:
    choices = [choice for option in [node, *node.get("anyOf", [])] for choice in option.get("enum", [])]
    near = [] if isinstance(value, dict | list) else difflib.get_close_matches(str(value), choices, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def nearest_file(path: Path) -> str:
    """Name the config file that a wrong path most likely means."""
    folders = [folder for folder in (path.parent, Path("configs")) if folder.is_dir()]
    known = [str(file) for folder in folders for file in sorted(folder.rglob("*.yaml"))[:200]]
    near = difflib.get_close_matches(str(path), known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
