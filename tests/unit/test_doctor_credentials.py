from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from kagglesdk import kaggle_env

from benchmarks.faults.web import File, WebServer
from hai.doctor.credentials import check_clouds, check_hub, check_kaggle, check_kaggle_data, check_wandb
from hai.doctor.findings import Finding

KEY = "0123456789abcdef0123456789abcdef01234567"
SECRET = "canary" + "5up3r"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without any login."""
    prefixes = ("KAGGLE_", "COLAB_", "WANDB_", "AWS_", "GOOGLE_", "CLOUDSDK_", "HF_TOKEN", "HF_HOME", "NETRC", "XDG_")
    for name in list(os.environ):
        if name.startswith(prefixes) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


def put(file: Path, content: str, mode: int = 0o600) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding="utf-8")
    file.chmod(mode)
    return file


def lines(findings: Iterator[Finding]) -> list[tuple[str, str]]:
    found = list(findings)
    assert not any(SECRET in str(one) or KEY in str(one) for one in found)
    assert all(one.mend for one in found if one.status != "ok")
    return [(one.status, one.text) for one in found]


def test_a_login_that_others_can_read_is_told_and_never_shown(home: Path) -> None:
    file = put(home / ".kaggle" / "kaggle.json", json.dumps({"username": "me", "key": SECRET}), 0o644)
    found = list(check_kaggle())
    assert [(one.status, one.text) for one in found] == [
        ("warning", "~/.kaggle/kaggle.json can be read by others (0644)"),
        ("ok", "login from ~/.kaggle/kaggle.json"),
    ]
    assert found[0].mend == "chmod 600 ~/.kaggle/kaggle.json"
    assert SECRET not in str(found)
    file.chmod(0o600)
    assert lines(check_kaggle()) == [("ok", "login from ~/.kaggle/kaggle.json")]


def test_no_login_matters_only_to_data_of_kaggle(home: Path) -> None:
    assert lines(check_kaggle(["faces", "gs://bucket/x"])) == [("ok", "no login; only data of Kaggle want one")]
    assert lines(check_kaggle(["kaggle:me/faces"])) == [("warning", "no login, which its data mostly want")]


def test_a_damaged_login_stops_only_what_needs_it(home: Path) -> None:
    put(home / ".kaggle" / "kaggle.json", f"{{{SECRET}")
    ((status, text),) = lines(check_kaggle())
    assert status == "warning"
    assert "kaggle.json: must read" in text
    assert [status for status, _ in lines(check_kaggle(["kaggle:me/faces"]))] == ["problem"]


@pytest.fixture
def kaggle(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    with WebServer() as server:
        monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, server.url)
        server.files["/kaggle/me/faces"] = File(b"x" * 1000)
        server.logins = ["Bearer right"]
        yield server


def test_kaggle_is_asked_for_the_data_with_the_token(kaggle: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", "right")
    assert lines(check_kaggle_data("kaggle:me/faces")) == [("ok", "kaggle:me/faces may be downloaded")]
    monkeypatch.setenv("KAGGLE_API_TOKEN", SECRET)
    (finding,) = check_kaggle_data("kaggle:me/faces")
    assert finding.status == "problem"
    assert "401" in finding.text
    assert "wrong, expired or revoked" in finding.mend
    assert SECRET not in str(finding)
    kaggle.refusal = (403, "accept the rules")
    (refused,) = check_kaggle_data("kaggle:competitions/contest")
    assert "/competitions/contest/rules" in refused.mend


def test_kaggle_out_of_reach_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, "http://127.0.0.1:9")
    ((status, text),) = lines(check_kaggle_data("kaggle:me/faces"))
    assert status == "problem"
    assert "cannot be reached" in text


def test_the_key_of_wandb(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines(check_wandb()) == [("ok", "no key; only logging.wandb.enabled wants one")]
    assert [status for status, _ in lines(check_wandb(enabled=True))] == ["warning"]
    assert [status for status, _ in lines(check_wandb(enabled=True, mode="offline"))] == ["ok"]
    put(home / ".netrc", f"machine api.wandb.ai login user password {KEY}\n", 0o640)
    assert lines(check_wandb(enabled=True)) == [
        ("warning", "~/.netrc can be read by others (0640)"),
        ("ok", "key from ~/.netrc"),
    ]
    put(home / ".netrc", "{{ no machine")
    assert [text for status, text in lines(check_wandb()) if status == "warning"] == ["~/.netrc cannot be understood"]
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    assert lines(check_wandb(enabled=True)) == [("warning", "the key from WANDB_API_KEY is too short to be one")]
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert lines(check_wandb(enabled=True)) == [("ok", "key from WANDB_API_KEY")]


def test_credentials_of_clouds(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines(check_clouds(["runs"])) == []
    put(home / ".aws" / "credentials", f"[default]\naws_secret_access_key = {SECRET}\n", 0o604)
    assert lines(check_clouds(["runs"])) == [
        ("warning", "~/.aws/credentials can be read by others (0604)"),
        ("ok", "credentials from ~/.aws/credentials"),
    ]
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(home / "nothing.json"))
    text = "GOOGLE_APPLICATION_CREDENTIALS = ~/nothing.json; no such file"
    assert ("warning", text) in lines(check_clouds(["runs"]))
    assert ("problem", text) in lines(check_clouds(["gs://bucket/runs"]))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", SECRET)
    half = "AWS_ACCESS_KEY_ID is set, AWS_SECRET_ACCESS_KEY is not"
    assert ("problem", half) in lines(check_clouds(["s3://bucket/runs"]))


def test_the_token_of_the_hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines(check_hub()) == []
    put(home / ".cache" / "huggingface" / "token", SECRET, 0o644)
    assert lines(check_hub()) == [
        ("warning", "~/.cache/huggingface/token can be read by others (0644)"),
        ("ok", "token from ~/.cache/huggingface/token"),
    ]
    monkeypatch.setenv("HF_TOKEN", SECRET)
    assert ("ok", "token from HF_TOKEN") in lines(check_hub())
