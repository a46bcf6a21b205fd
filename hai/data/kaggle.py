"""Kaggle's side of a download: which data is meant, whose login, how to ask, and what its refusals mean."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hai.data.archives import shown
from hai.data.download import TIMEOUT, Ask
from hai.errors import ConfigError, StorageError
from hai.masking import without_secrets

__all__ = [
    "KaggleData",
    "KaggleLogin",
    "find_login",
    "is_kaggle",
    "kaggle_data",
    "kaggle_refusal",
    "kaggle_request",
    "login_help",
]

_SITE: Final = "https://www.kaggle.com"
_PAGE: Final = re.compile(
    r"https://(?:www\.)?kaggle\.com/"
    r"(?P<data>datasets/[\w.-]+/[\w.-]+(?:/versions/\d+)?|c(?:ompetitions)?/[\w.-]+)(?:[/?#]\S*)?"
)
"""The address of a page as a browser shows it: of a dataset or competition, whichever tab is open."""
_DATASET: Final = re.compile(r"(?:datasets/)?(?P<owner>[\w.-]+)/(?P<name>[\w.-]+)(?:/versions/(?P<version>\d+))?")
_COMPETITION: Final = re.compile(r"c(?:ompetitions)?/(?P<name>[\w.-]+)(?:/(?:data|rules|overview))?")


@dataclass(frozen=True)
class KaggleData:
    """A dataset, or the files of a competition where `owner` is empty."""

    owner: str
    name: str
    version: int | None = None

    @property
    def source(self) -> str:
        """Return how users name it."""
        if not self.owner:
            return f"kaggle:competitions/{self.name}"
        return f"kaggle:{self.owner}/{self.name}" + (f"/versions/{self.version}" if self.version else "")

    @property
    def page(self) -> str:
        """Return where it is seen in a browser."""
        return f"{_SITE}/datasets/{self.owner}/{self.name}" if self.owner else f"{_SITE}/competitions/{self.name}"


@dataclass(frozen=True)
class KaggleLogin:
    """A way to tell Kaggle who asks: a token, or a user name and key."""

    origin: str
    """Where it was found, for messages."""
    token: str = field(default="", repr=False)
    username: str = field(default="", repr=False)
    key: str = field(default="", repr=False)


def is_kaggle(source: str) -> bool:
    """Tell whether a source is Kaggle's: `kaggle:...`, or the address of a page."""
    return source.startswith("kaggle:") or _PAGE.fullmatch(source) is not None


def kaggle_data(source: str) -> KaggleData:
    """Read what is meant by a source.

    Raises:
        ConfigError: it is neither a dataset nor a competition.
    """
    path = source.removeprefix("kaggle:")
    path = page["data"] if (page := _PAGE.fullmatch(path)) else path.partition("?")[0].strip("/")
    if match := _COMPETITION.fullmatch(path):
        return KaggleData("", match["name"])
    if (match := _DATASET.fullmatch(path)) and match["owner"] not in ("competitions", "datasets", "c"):
        return KaggleData(match["owner"], match["name"], int(match["version"]) if match["version"] else None)
    raise ConfigError(
        f"SOURCE = {source}; must be kaggle:OWNER/DATASET, kaggle:OWNER/DATASET/versions/N or "
        "kaggle:competitions/NAME, as in the address of its page"
    )


def find_login() -> KaggleLogin | None:
    """Find the user's login, in the order of Kaggle's own client, then in the secrets of Colab; None: there is none.

    A token: KAGGLE_API_TOKEN (it, or a file that holds it), `~/.kaggle/access_token`. A user name and key:
    KAGGLE_USERNAME with KAGGLE_KEY, `kaggle.json` in KAGGLE_CONFIG_DIR, `~/.kaggle` or `~/.config/kaggle`. What
    `kaggle auth login` left: `~/.kaggle/credentials.json`.

    Raises:
        ConfigError: a file with a login cannot be understood.
        StorageError: Kaggle does not renew what `kaggle auth login` left.
    """
    return _token() or _name_and_key() or _browser_login() or _colab_secret()


def _token() -> KaggleLogin | None:
    home = Path("~/.kaggle").expanduser()
    given = os.environ.get("KAGGLE_API_TOKEN", "").strip()
    if given:
        return KaggleLogin("KAGGLE_API_TOKEN", token=_text(given) or given)
    in_notebook = os.environ.get("KAGGLE_API_V1_TOKEN", "") if os.environ.get("KAGGLE_KERNEL_RUN_TYPE") else ""
    for file in (in_notebook, home / "access_token", home / "access_token.txt"):
        if token := _text(file):
            return KaggleLogin(str(file), token=token)
    return None


def _text(file: str | Path) -> str:
    """Return what a file holds; nothing if it cannot be read or is no file at all."""
    if not file:
        return ""
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def _name_and_key() -> KaggleLogin | None:
    username, key = os.environ.get("KAGGLE_USERNAME", ""), os.environ.get("KAGGLE_KEY", "")
    if username and key:
        return KaggleLogin("KAGGLE_USERNAME and KAGGLE_KEY", username=username.strip(), key=key.strip())
    chosen = os.environ.get("KAGGLE_CONFIG_DIR")
    config = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config")
    for folder in [Path(chosen)] if chosen else [Path("~/.kaggle"), config / "kaggle"]:
        file = folder.expanduser() / "kaggle.json"
        if not file.is_file():
            continue
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            return KaggleLogin(str(file), username=content["username"].strip(), key=content["key"].strip())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(
                f'{file}: must read {{"username": "...", "key": "..."}}; download it again from {_SITE}/settings/api'
            ) from None
    return None


def _browser_login() -> KaggleLogin | None:
    file = Path("~/.kaggle/credentials.json").expanduser()
    if not file.is_file():
        return None
    from kagglesdk.kaggle_client import KaggleClient
    from kagglesdk.kaggle_creds import KaggleCredentials

    try:
        credentials = KaggleCredentials.load(client=KaggleClient())
        token = credentials.get_access_token() if credentials else None
    except Exception as error:  # of the network, of Kaggle, of a damaged file
        reason = without_secrets(str(error))[:200]
        raise StorageError(f"{file}: cannot be renewed ({reason}); run: kaggle auth login --force") from None
    return KaggleLogin("kaggle auth login", token=token) if token else None


def _colab_secret() -> KaggleLogin | None:
    try:
        from google.colab import userdata  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        return None

    def secret(name: str) -> str:
        with suppress(Exception):  # there is none, the notebook may not read it, or this is not its kernel
            return str(userdata.get(name)).strip()
        return ""

    if token := secret("KAGGLE_API_TOKEN"):
        return KaggleLogin("Colab's secret KAGGLE_API_TOKEN", token=token)
    username, key = secret("KAGGLE_USERNAME"), secret("KAGGLE_KEY")
    return KaggleLogin("Colab's secrets", username=username, key=key) if username and key else None


def kaggle_request(data: KaggleData, login: KaggleLogin | None) -> Ask:
    """Return what asks for all files of a dataset or competition, as one zip.

    Kaggle answers with a redirect to a signed address that holds for a while; each call gets a fresh one. The login
    goes to Kaggle only.
    """
    import requests
    from kagglesdk.competitions.types.competition_api_service import ApiDownloadDataFilesRequest
    from kagglesdk.datasets.types.dataset_api_service import ApiDownloadDatasetRequest
    from kagglesdk.kaggle_env import KaggleEnv, get_endpoint, get_env

    request: Any
    if data.owner:
        method, request = "datasets.DatasetApiService/DownloadDataset", ApiDownloadDatasetRequest()
        request.owner_slug, request.dataset_slug = data.owner, data.name
        request.dataset_version_number = data.version
    else:
        method, request = "competitions.CompetitionApiService/DownloadDataFiles", ApiDownloadDataFilesRequest()
        request.competition_name = data.name
    environment = get_env()
    root = get_endpoint(environment) + ("" if environment == KaggleEnv.PROD else "/api")
    url, body = f"{root}/v1/{method}", request.to_dict(request)
    session = requests.Session()

    def with_token(asked: Any) -> Any:
        asked.headers["Authorization"] = f"Bearer {login.token if login else ''}"
        return asked

    if login:
        session.auth = with_token if login.token else (login.username, login.key)

    def ask(headers: Mapping[str, str]) -> Any:
        response = session.post(url, json=body, headers=dict(headers), stream=True, timeout=TIMEOUT)
        if "application/json" in response.headers.get("Content-Type", ""):  # a refusal may come with status 200
            response.status_code = max(response.status_code, _code(response))
        return response

    return ask


def kaggle_refusal(data: KaggleData, login: KaggleLogin | None, response: Any) -> str:
    """Say in a line what a refusal of Kaggle means and what the user can do."""
    status = response.status_code
    said = _said(response)
    for secret in filter(None, (login.token, login.key) if login else ()):
        said = said.replace(secret, "***")
    answer = f"Kaggle refuses ({status}{': ' + said if said else ''})"
    if status in (401, 403, 404) and login is None:
        return f"{answer}; no login was found, and Kaggle may want one: {login_help()}"
    if status == 401:
        return f"{answer}; the login from {login.origin if login else ''} is wrong, expired or revoked: {login_help()}"
    if status == 403 and not data.owner:
        return (
            f"{answer}; in a browser, signed in as the same user: accept the rules at {data.page}/rules (of a finished "
            f"competition with Late Submission) and verify your phone at {_SITE}/settings/phone, then run again"
        )
    if status == 403:
        return (
            f"{answer}; in a browser, signed in as the same user: open {data.page}, accept what its owner asks for (or "
            f"ask to be let in, if it is private) and verify your phone at {_SITE}/settings/phone, then run again"
        )
    if status == 404:
        return f"{answer}; there is nothing of that name, or not for you: compare it with {data.page}"
    return f"{answer}; try again later"


def login_help() -> str:
    """Say how to log in to Kaggle."""
    there = f"create a token at {_SITE}/settings/api and put it into KAGGLE_API_TOKEN or ~/.kaggle/access_token"
    if os.environ.get("COLAB_RELEASE_TAG"):
        return (
            f"{there}; from a secret of Colab: import os; from google.colab import userdata; "
            'os.environ["KAGGLE_API_TOKEN"] = userdata.get("KAGGLE_API_TOKEN")'
        )
    return f"{there}, or run: kaggle auth login"


def _code(response: Any) -> int:
    with suppress(Exception):
        return int(response.json()["code"])
    return 0


def _said(response: Any) -> str:
    """Return the server's own words, if it has some that are for people."""
    with suppress(Exception):  # not JSON, not this JSON, or the connection broke
        message = response.json().get("message", "")
        return without_secrets(shown(" ".join(str(message).split()))[1:-1]) if message else ""
    return ""
