"""Keeping secrets out of everything that is written or printed."""

from __future__ import annotations

import os
import re
from typing import Any, Final
from urllib.parse import quote

__all__ = ["SECRET_NAMES", "has_login", "masked", "without_secrets"]

SECRET_NAMES: Final = (
    r"(?:token|secret|password|passwd|credentials?|authorization"
    r"|(?:api|access|secret|private|kaggle|wandb|account)[-_]?key|(?<=[._])key)"
)
"""How the names of options, keys and variables end whose values are secrets."""

_NAMED: Final = re.compile(rf"({SECRET_NAMES}[\"']?\s*[:=]\s*(?:(?:bearer|basic|token)\s+)?)[^\s,}}\]]+", re.IGNORECASE)
_USER_INFO: Final = re.compile(r"(?<=://)[^/@\s]+@")
_QUERY: Final = re.compile(r"(?<=[?&])([^=&\s]+)=[^&\s,}\]\"']+")
_VARIABLE: Final = re.compile(rf".*{SECRET_NAMES}(?:_id)?", re.IGNORECASE)
_SHORTEST = 8  # a shorter value, such as "disabled", would mask words that are none


def without_secrets(text: str) -> str:
    """Mask the values of secret environment variables, logins and queries in URLs, and what is named a token or key."""
    for value in sorted(_secrets_around(), key=len, reverse=True):  # one may begin with another
        text = text.replace(value, "***")
    return _NAMED.sub(r"\1***", _QUERY.sub(r"\1=***", _USER_INFO.sub("***@", text)))


def masked(value: Any) -> Any:
    """Return plain nested values with every text masked; they stay as readable as they were."""
    if isinstance(value, dict):
        return {key: masked(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [masked(part) for part in value]
    return without_secrets(value) if isinstance(value, str) else value


def has_login(url: str) -> bool:
    """Tell whether a URL holds a user name or a password."""
    return _USER_INFO.search(url) is not None


def _secrets_around() -> set[str]:
    """Return the values of the environment's secrets, also as URLs write them."""
    found = {
        value.strip()
        for name, value in os.environ.items()
        if len(value.strip()) >= _SHORTEST and _VARIABLE.fullmatch(name) and not os.path.isabs(value)
    }
    return found | {quote(value, safe="") for value in found}
