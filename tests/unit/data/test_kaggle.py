from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType

import pytest
from kagglesdk import kaggle_env
from kagglesdk.datasets.types.dataset_api_service import ApiDownloadDatasetRequest
from kagglesdk.kaggle_client import KaggleClient

from benchmarks.faults.web import File, WebServer
from hai.data.download import download
from hai.data.kaggle import KaggleData, find_login, is_kaggle, kaggle_data, kaggle_refusal, kaggle_request
from hai.errors import ConfigError, StorageError

FACES = KaggleData("me", "faces")
CONTEST = KaggleData("", "contest")
DATA = os.urandom(100_000)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without any login."""
    for name in list(os.environ):
        if name.startswith(("KAGGLE_", "COLAB_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / ".kaggle").mkdir(parents=True)
    return tmp_path / "home"


@pytest.fixture
def kaggle(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    with WebServer() as server:
        monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, server.url)
        server.files["/kaggle/me/faces"] = File(DATA)
        server.files["/kaggle/contest"] = File(DATA[::-1])
        yield server


def taken(data: KaggleData, folder: Path) -> bytes:
    login = find_login()
    folder.mkdir(exist_ok=True)
    body, name = download(
        kaggle_request(data, login),
        folder,
        data.source,
        refusal=lambda response: kaggle_refusal(data, login, response),
        before=lambda name, left, size: None,
    )
    assert name == "archive.zip"
    return body.read_bytes()


@pytest.mark.parametrize(
    ("source", "data"),
    [
        ("kaggle:me/faces", FACES),
        ("kaggle:datasets/me/faces", FACES),
        ("kaggle:me/faces/versions/3", KaggleData("me", "faces", 3)),
        ("kaggle:competitions/contest", CONTEST),
        ("kaggle:c/contest", CONTEST),
        ("https://www.kaggle.com/datasets/me/faces", FACES),
        ("https://www.kaggle.com/datasets/me/faces/versions/3", KaggleData("me", "faces", 3)),
        ("https://www.kaggle.com/competitions/contest/data?select=x", CONTEST),
        ("https://kaggle.com/c/contest/rules", CONTEST),
        ("https://www.kaggle.com/competitions/contest/leaderboard", CONTEST),
        ("https://www.kaggle.com/competitions/contest/overview/evaluation", CONTEST),
        ("https://www.kaggle.com/competitions/contest#x", CONTEST),
        ("https://www.kaggle.com/datasets/me/faces/data", FACES),
        ("https://www.kaggle.com/datasets/me/faces/discussion/1?sort=hotness", FACES),
        ("https://www.kaggle.com/datasets/me/faces?select=labels.csv", FACES),
        ("https://www.kaggle.com/datasets/me/faces/#about", FACES),
        ("https://www.kaggle.com/datasets/me/faces/versions/3/data?select=x", KaggleData("me", "faces", 3)),
        ("kaggle:https://www.kaggle.com/datasets/me/faces/data", FACES),
    ],
)
def test_what_a_source_means(source, data):
    assert is_kaggle(source)
    assert kaggle_data(source) == data
    assert kaggle_data(data.source) == data


@pytest.mark.parametrize("source", ["kaggle:", "kaggle:faces", "kaggle:competitions", "kaggle:a/b/c", "kaggle:a/../b"])
def test_sources_that_mean_nothing(source):
    with pytest.raises(ConfigError, match="must be kaggle:OWNER/DATASET"):
        kaggle_data(source)
    assert not is_kaggle("https://example.org/datasets/me/faces")


def test_no_login(home):
    assert find_login() is None


def test_logins_in_kaggles_own_order(home, monkeypatch):
    """As long as there are better ones, the worse are not looked at."""

    def colab(values: dict[str, str]) -> None:
        module = ModuleType("google.colab")
        module.userdata = type("userdata", (), {"get": staticmethod(lambda name: values[name])})
        monkeypatch.setitem(sys.modules, "google.colab", module)

    def found() -> tuple[str, str]:
        login = find_login()
        assert repr(login) == f"KaggleLogin(origin={login.origin!r})"
        return login.origin, login.token or f"{login.username}:{login.key}"

    colab({"KAGGLE_USERNAME": "u0", "KAGGLE_KEY": "k0"})
    assert found() == ("Colab's secrets", "u0:k0")
    colab({"KAGGLE_USERNAME": "u0", "KAGGLE_KEY": "k0", "KAGGLE_API_TOKEN": " t0\n"})
    assert found() == ("Colab's secret KAGGLE_API_TOKEN", "t0")
    soon = (datetime.now(UTC) + timedelta(hours=5)).isoformat()
    oauth = {"refresh_token": "r", "access_token": "t1", "access_token_expiration": soon, "username": "me"}
    (home / ".kaggle" / "credentials.json").write_text(json.dumps(oauth))
    assert found() == ("kaggle auth login", "t1")
    (home / ".config" / "kaggle").mkdir(parents=True)
    (home / ".config" / "kaggle" / "kaggle.json").write_text(json.dumps({"username": "u2", "key": "k2"}))
    assert found() == (str(home / ".config" / "kaggle" / "kaggle.json"), "u2:k2")
    (home / ".kaggle" / "kaggle.json").write_text(json.dumps({"username": "u3", "key": "k3\n"}))
    assert found() == (str(home / ".kaggle" / "kaggle.json"), "u3:k3")
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(home / "other"))
    (home / "other").mkdir()
    (home / "other" / "kaggle.json").write_text(json.dumps({"username": "u4", "key": "k4"}))
    assert found() == (str(home / "other" / "kaggle.json"), "u4:k4")
    monkeypatch.setenv("KAGGLE_USERNAME", "u5")
    monkeypatch.setenv("KAGGLE_KEY", "k5")
    assert found() == ("KAGGLE_USERNAME and KAGGLE_KEY", "u5:k5")
    (home / ".kaggle" / "access_token.txt").write_text("t6\n")
    assert found() == (str(home / ".kaggle" / "access_token.txt"), "t6")
    (home / ".kaggle" / "access_token").write_text("t7")
    assert found() == (str(home / ".kaggle" / "access_token"), "t7")
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    (home / "notebook").write_text("t8")
    monkeypatch.setenv("KAGGLE_API_V1_TOKEN", str(home / "notebook"))
    assert found() == (str(home / "notebook"), "t8")
    monkeypatch.setenv("KAGGLE_API_TOKEN", str(home / "notebook"))
    assert found() == ("KAGGLE_API_TOKEN", "t8")
    monkeypatch.setenv("KAGGLE_API_TOKEN", "t9" * 400)
    assert found() == ("KAGGLE_API_TOKEN", "t9" * 400)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"username": "u"}', '{"username": "u", "key": 5, "x": "canary"}'])
def test_a_kaggle_json_that_is_none(home, text):
    (home / ".kaggle" / "kaggle.json").write_text(text)
    with pytest.raises(ConfigError, match=r"kaggle\.json: must read") as caught:
        find_login()
    assert "canary" not in str(caught.value)


def test_a_browser_login_that_is_not_renewed(kaggle, home):
    (home / ".kaggle" / "credentials.json").write_text(json.dumps({"refresh_token": "canary", "access_token": "old"}))
    with pytest.raises(StorageError, match=r"cannot be renewed .*; run: kaggle auth login --force") as caught:
        find_login()
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "login"),
    [
        ({}, None),
        ({"KAGGLE_API_TOKEN": "a token"}, "Bearer a token"),
        ({"KAGGLE_USERNAME": "u", "KAGGLE_KEY": "k"}, WebServer.basic("u", "k")),
    ],
)
def test_data_are_asked_for_as_kaggles_own_client_does(kaggle, home, monkeypatch, tmp_path, variables, login):
    """Kaggle's client meets the same server: what that accepts and where it leads is what Kaggle says."""
    (home / ".netrc").write_text("machine 127.0.0.1 login other password other\n")
    (home / ".netrc").chmod(0o600)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    kaggle.logins = [login] if login else []
    request = ApiDownloadDatasetRequest()
    request.owner_slug, request.dataset_slug = "me", "faces"
    client = KaggleClient(username=variables.get("KAGGLE_USERNAME"), password=variables.get("KAGGLE_KEY"))
    with client, client.datasets.dataset_api_client.download_dataset(request) as response:
        assert response.content == DATA
    theirs, kaggle.requests = kaggle.requests, []
    assert taken(FACES, tmp_path / "a") == DATA
    assert kaggle.requests == theirs
    assert taken(CONTEST, tmp_path / "b") == DATA[::-1]


def test_versions(kaggle, tmp_path):
    kaggle.files["/kaggle/me/faces/3"] = File(b"three")
    assert taken(KaggleData("me", "faces", 3), tmp_path) == b"three"


def test_a_broken_download_goes_on_under_a_fresh_signature(kaggle, tmp_path):
    kaggle.files["/kaggle/me/faces"].breaks = [65_536]
    assert taken(FACES, tmp_path) == DATA
    assert [(method, wanted) for method, _, wanted in kaggle.requests] == [
        ("POST", ""),
        ("GET", ""),
        ("POST", "bytes=65536-"),
        ("GET", "bytes=65536-"),
    ]
    assert kaggle.signature == 2


RULES = "You must accept this competition's rules before you'll be able to download files."


@pytest.mark.parametrize(
    ("data", "status", "message", "token", "expected"),
    [
        (
            CONTEST,
            403,
            RULES,
            "t" * 20,
            "kaggle:competitions/contest: Kaggle refuses (403: You must accept this competition's rules before you'll "
            "be able to download files.); in a browser, signed in as the same user: accept the rules at "
            "https://www.kaggle.com/competitions/contest/rules (of a finished competition with Late Submission) and "
            "verify your phone at https://www.kaggle.com/settings/phone, then run again",
        ),
        (
            FACES,
            403,
            "",
            "t" * 20,
            "(403); in a browser, signed in as the same user: open https://www.kaggle.com/datasets",
        ),
        (FACES, 403, "", "", "(403); no login was found, and Kaggle may want one: create a token at"),
        (FACES, 401, "no", "t" * 20, "(401: no); the login from KAGGLE_API_TOKEN is wrong, expired or revoked: create"),
        (FACES, 404, "", "t" * 20, "there is nothing of that name, or not for you: compare it with https://www.kaggle"),
        (FACES, 400, "odd", "t" * 20, "Kaggle refuses (400: odd); try again later"),
        (FACES, 403, "bad tttttttttttttttttttt!", "t" * 20, "(403: bad ***!);"),
    ],
)
def test_refusals_say_what_to_do(kaggle, tmp_path, monkeypatch, data, status, message, token, expected):
    if token:
        monkeypatch.setenv("KAGGLE_API_TOKEN", token)
    kaggle.refusal = (status, message)
    with pytest.raises(StorageError) as caught:
        taken(data, tmp_path)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_refusal_with_status_200_is_one(kaggle, tmp_path):
    kaggle.files["/kaggle/me/faces"] = File(
        json.dumps({"code": 403, "message": "no"}).encode(), kind="application/json"
    )
    with pytest.raises(StorageError, match=r"Kaggle refuses \(403: no\)"):
        taken(FACES, tmp_path)


def test_on_colab_the_help_names_its_secrets(kaggle, tmp_path, monkeypatch):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "1")
    kaggle.refusal = (401, "")
    with pytest.raises(StorageError, match=r"from google\.colab import userdata"):
        taken(FACES, tmp_path)
