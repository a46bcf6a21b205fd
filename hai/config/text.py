"""YAML text to plain values and back, by the rules of YAML 1.2.

PyYAML follows YAML 1.1, where `1:4` is the number 64, `on` is true, `010` is 8, `1e-4` is a string and the second of
two equal keys wins in silence. Each would be a mistake in a training config, so none of them holds here.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

__all__ = ["dump_yaml", "inline_yaml", "parse_yaml"]

_TAG = "tag:yaml.org,2002:"
_DEEPEST = 100
_INTEGER = re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$")
_FLOAT = re.compile(
    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_RULES = (  # (type, pattern, first characters) in the order in which they are tried
    ("null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", _INTEGER, list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
)


class _Loader(yaml.SafeLoader):
    """Safe loader with the core schema of YAML 1.2; equal keys are collected as problems."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  the base class's name

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.repeated: list[tuple[int, str]] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping, noting keys that stand twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                self.repeated.append((key.start_mark.line + 1, key.value))
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def fetch_flow_collection_start(self, token: Any) -> None:
        """Open a bracket; the scanner's time grows with the square of how deep they are nested."""
        if self.flow_level >= _DEEPEST:
            raise RecursionError
        super().fetch_flow_collection_start(token)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Leave mappings as they are: YAML 1.2 has no merge keys, and nested ones multiply without bound."""

    def _integer(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node))
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


class _Dumper(yaml.SafeDumper):
    """Safe dumper that quotes every string which YAML 1.1 or 1.2 would read as something else."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        """Put lists of plain values on one line."""
        plain = not any(isinstance(item, dict | list) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=plain or flow_style)


for _name, _pattern, _first in _RULES:
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, _first)
    _Dumper.add_implicit_resolver(_TAG + _name, _pattern, _first)
_Loader.add_constructor(_TAG + "int", _Loader._integer)


def parse_yaml(text: str, where: str, *, numbered: bool = True) -> tuple[Any, list[str]]:
    """Parse one YAML document; problems read `where:line: ...`, without the line if not `numbered`.

    Returns:
        The value and the problems found, one line each; the value is None if the text is not YAML at all.
    """
    try:
        loader = _Loader(text)
        value = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"{where}:{mark.line + 1}" if mark and numbered else where
        detail = "; ".join(part for part in (error.context, error.problem) if part)
        return None, [f"{at}: not valid YAML: {detail}"]
    except RecursionError:
        return None, [f"{where}: not valid YAML: nested too deeply"]
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError) as error:  # a wrong value behind a tag
        return None, [f"{where}: not valid YAML: {' '.join(str(error).split()) or type(error).__name__}"]
    places = [(f"{where}:{line}" if numbered else where, key) for line, key in sorted(loader.repeated)]
    return value, [f"{at}: {key}; the key stands twice; remove one" for at, key in places]


def dump_yaml(value: Any) -> str:
    """Write a value as block-style YAML, keys in their order, lists of plain values on one line."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=10**6)


def inline_yaml(value: Any, width: int = 60) -> str:
    """Write a value as one line of YAML, cut to a width."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=True, width=10**6)
    line = text.removesuffix("...\n").strip()
    return line if len(line) <= width else line[: width - 3] + "..."
