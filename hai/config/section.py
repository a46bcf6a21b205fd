"""How a config field is declared, and what a resume may do with it.

- `fixed`: part of the run's identity; a resume with another value is refused, field by field;
- `raisable`: may only grow (or become null, "no limit") on a resume;
- `free`: where and how the run is carried out; may change at any time.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from hai.masking import has_login

__all__ = ["Section", "check_range", "fixed", "free", "raisable", "refuse_login"]


def _field(resume: str, default: Any, text: str, bounds: dict[str, Any]) -> Any:
    extra: dict[str, Any] = {"resume": resume}
    if isinstance(default, type):
        return Field(default_factory=default, description=text, json_schema_extra=extra, **bounds)
    return Field(default, description=text, json_schema_extra=extra, **bounds)  # pydantic copies lists per instance


def check_range(value: list[float], floor: float, ceiling: float) -> list[float]:
    """Return a range as it is; raises ValueError where it is none within the bounds."""
    low, high = value
    if not floor <= low <= high <= ceiling:
        raise ValueError(f"must be two numbers, {floor:g} <= low <= high <= {ceiling:g}")
    return value


def refuse_login(value: str | None) -> str | None:
    """Return a path or URL as it is; raises ValueError where it holds a user name or password: run.yaml keeps it."""
    if value is not None and has_login(value):
        raise ValueError(
            "must not hold a user name or password; give them by the environment, such as AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY or GOOGLE_APPLICATION_CREDENTIALS, or in ~/.netrc"
        )
    return value


def fixed(default: Any, text: str, **bounds: Any) -> Any:
    """Declare a field that belongs to the run's identity."""
    return _field("fixed", default, text, bounds)


def raisable(default: Any, text: str, **bounds: Any) -> Any:
    """Declare a limit that a resume may raise, never lower."""
    return _field("raise", default, text, bounds)


def free(default: Any, text: str, **bounds: Any) -> Any:
    """Declare a field that a resume may change."""
    return _field("free", default, text, bounds)


class Section(BaseModel):
    """Base of every part of the config: frozen, strict about names, lenient about nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)
