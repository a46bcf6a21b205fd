"""Checks of logins: whether there is one, where, and who else can read it; never what it is."""

from __future__ import annotations

import netrc
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from hai.data.kaggle import find_login, is_kaggle, kaggle_data, kaggle_refusal, kaggle_request, login_help
from hai.doctor.findings import Finding, fine, from_error, private, problem, tilde, warning
from hai.errors import HaiError

__all__ = ["check_clouds", "check_hub", "check_kaggle", "check_kaggle_data", "check_wandb"]

_SHORTEST_WANDB_KEY: Final = 40
_CLOUDS: Final = {
    "Google Cloud": (
        ("gs", "gcs"),
        ("GOOGLE_APPLICATION_CREDENTIALS",),
        (("CLOUDSDK_CONFIG", "~/.config/gcloud", "application_default_credentials.json"),),
        "gcloud auth application-default login",
    ),
    "AWS": (
        ("s3", "s3a"),
        ("AWS_SHARED_CREDENTIALS_FILE",),
        (("", "~/.aws", "credentials"),),
        "aws configure, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    ),
}
"""Per cloud: schemes of its URLs, variables that name a file, files (variable of the folder, folder, name), mend."""


def _exposed(check: str, files: Sequence[Path]) -> Iterator[Finding]:
    """Report the files that others on this machine can read."""
    for file in files:
        bits = stat.S_IMODE(file.stat().st_mode)
        if bits & 0o077:
            yield warning(check, f"{tilde(file)} can be read by others ({bits:04o})", private(file))


def _listed(names: Sequence[str | Path]) -> list[Path]:
    found = (Path(name).expanduser() for name in names)
    return [file for file in dict.fromkeys(found) if file.is_file()]


def check_kaggle(sources: Sequence[str] = ()) -> Iterator[Finding]:
    """Check Kaggle's login: found where its own client looks, whole, private.

    Args:
        sources: paths of the config's data, some of which may be Kaggle's.
    """
    chosen = os.environ.get("KAGGLE_CONFIG_DIR")
    folders = [chosen] if chosen else ["~/.kaggle", f"{os.environ.get('XDG_CONFIG_HOME') or '~/.config'}/kaggle"]
    names = ("access_token", "access_token.txt", "credentials.json")
    files = _listed([*(f"{folder}/kaggle.json" for folder in folders), *(f"~/.kaggle/{name}" for name in names)])
    yield from _exposed("Kaggle", files)
    needed = any(is_kaggle(source) for source in sources)
    try:
        login = find_login()
    except HaiError as error:
        found = list(from_error("Kaggle", error))
        yield from found if needed else (warning("Kaggle", one.text, one.mend) for one in found)
        return
    if login is not None:
        yield fine("Kaggle", f"login from {tilde(login.origin)}")
    elif needed:
        yield warning("Kaggle", "no login, which its data mostly want", login_help())
    else:
        yield fine("Kaggle", "no login; only data of Kaggle want one")


def check_kaggle_data(source: str) -> Iterator[Finding]:
    """Ask Kaggle for data, take none, and say what a refusal means."""
    import requests

    try:
        data, login = kaggle_data(source), find_login()
    except HaiError as error:
        yield from from_error("Kaggle", error)
        return
    try:
        with kaggle_request(data, login)({}) as response:
            if response.status_code < 400:
                yield fine("Kaggle", f"{data.source} may be downloaded")
                return
            text, _, mend = kaggle_refusal(data, login, response).partition("; ")
    except requests.RequestException as error:
        text, mend = f"cannot be reached ({type(error).__name__})", "check the network and proxies"
    yield problem("Kaggle", f"{data.source}: {text}", mend)


def check_wandb(*, enabled: bool = False, mode: str = "online") -> Iterator[Finding]:
    """Check the key of Weights & Biases; trouble with it never stops a run.

    Args:
        enabled: the config sends metrics there.
        mode: the config's `logging.wandb.mode`.
    """
    server = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    file = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    key, origin = os.environ.get("WANDB_API_KEY", "").strip(), "WANDB_API_KEY"
    if not key and file.is_file():
        yield from _exposed("W&B", [file])
        try:
            found = netrc.netrc(str(file)).authenticators(urlsplit(server).hostname or "")
            key, origin = (found[2] if found else ""), tilde(file)
        except (netrc.NetrcParseError, OSError, UnicodeDecodeError):
            yield warning("W&B", f"{tilde(file)} cannot be understood", "wandb login")
    is_online = enabled and os.environ.get("WANDB_MODE", mode) == "online"
    if key and len(key) < _SHORTEST_WANDB_KEY:
        yield warning("W&B", f"the key from {origin} is too short to be one", "copy it anew: wandb login --relogin")
    elif key:
        yield fine("W&B", f"key from {origin}")
    elif is_online:
        text = "no key: the run keeps its metrics, Weights & Biases does not get them"
        yield warning("W&B", text, "wandb login, set WANDB_API_KEY, or logging.wandb.mode=offline")
    else:
        yield fine(
            "W&B", "no key; " + ("none is needed offline" if enabled else "only logging.wandb.enabled wants one")
        )


def check_clouds(places: Sequence[str]) -> Iterator[Finding]:
    """Check the credentials of clouds, as far as they lie in files and variables.

    Args:
        places: URLs and paths that a run uses; those of a cloud make its credentials needed.
    """
    for cloud, (schemes, variables, folders, mend) in _CLOUDS.items():
        needed = any(place.partition("://")[0] in schemes for place in places)
        named = [(variable, os.environ[variable]) for variable in variables if os.environ.get(variable)]
        for variable, value in named:
            if not Path(value).expanduser().is_file():
                finding = problem if needed else warning
                yield finding(cloud, f"{variable} = {tilde(value)}; no such file", f"unset {variable}, or {mend}")
        known = [f"{os.environ.get(folder) or default}/{name}" for folder, default, name in folders]
        files = _listed([*(value for _, value in named), *known])
        yield from _exposed(cloud, files)
        origins = [tilde(file) for file in files]
        if cloud == "AWS" and os.environ.get("AWS_ACCESS_KEY_ID"):
            if os.environ.get("AWS_SECRET_ACCESS_KEY"):
                origins.insert(0, "AWS_ACCESS_KEY_ID")
            else:
                text = "AWS_ACCESS_KEY_ID is set, AWS_SECRET_ACCESS_KEY is not"
                yield (problem if needed else warning)(cloud, text, "set both or neither")
        if origins:
            yield fine(cloud, f"credentials from {origins[0]}")
        elif needed:
            yield fine(cloud, "no credentials in files or variables; machines in the cloud and public data need none")


def check_hub() -> Iterator[Finding]:
    """Check the token of the Hugging Face Hub, which published weights do without."""
    home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    files = _listed([os.environ.get("HF_TOKEN_PATH") or f"{home}/token"])
    yield from _exposed("Hugging Face", files)
    if os.environ.get("HF_TOKEN") or files:
        yield fine("Hugging Face", f"token from {'HF_TOKEN' if os.environ.get('HF_TOKEN') else tilde(files[0])}")
