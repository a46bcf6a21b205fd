"""No secret of the user's reaches a file or the screen."""

from __future__ import annotations

import base64
from pathlib import Path
from urllib.parse import quote

import pytest

from benchmarks.faults.secrets import _forms, leak_secrets


def assert_nothing_leaks(found: dict[str, object]) -> None:
    assert found["leaked"] == []
    assert found["failed"] == []
    assert int(str(found["secrets"])) >= 15
    assert int(str(found["places"])) >= 40


def test_no_secret_is_written_anywhere(tmp_path: Path) -> None:
    assert_nothing_leaks(leak_secrets(tmp_path))


@pytest.mark.slow
def test_no_secret_is_written_when_a_bucket_refuses_its_key(tmp_path: Path) -> None:
    assert_nothing_leaks(leak_secrets(tmp_path, thorough=True))


@pytest.mark.parametrize("before", ["", "x", "me:", "user:"])
def test_a_secret_is_found_however_it_is_written(before: str) -> None:
    secret = "abc/def+0123456789xyz"
    for text in (secret, quote(secret, safe=""), base64.b64encode(f"{before}{secret}@".encode()).decode()):
        assert any(form in f"... {text} ...".encode() for form in _forms(secret))
