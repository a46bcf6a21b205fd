"""Putting an exported folder onto the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from hai.errors import ConfigError, StorageError

__all__ = ["check_login", "push"]

_STAYS: Final = "evaluation/*"
"""What `hai evaluate` writes beside an export: pictures and paths of the images that it was measured on."""


def check_login(repo: str) -> None:
    """Refuse when the hub does not know who asks.

    Raises:
        ConfigError: the repository's name is none, or nobody is logged in.
        StorageError: the hub does not answer.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise ConfigError(f"--push = {repo}; is no name of a repository; write OWNER/NAME") from None
    login = "log in with `hf auth login` or set HF_TOKEN to a token that may write, or leave --push out"
    if get_token() is None:
        raise ConfigError(f"--push = {repo}; nobody is logged in to the Hugging Face Hub; {login}")
    try:
        HfApi().whoami()
    except HfHubHTTPError as error:
        raise ConfigError(f"--push = {repo}; the Hugging Face Hub refuses ({_line(error)}); {login}") from None
    except Exception as error:  # what the hub's client raises depends on its version
        raise StorageError(f"--push = {repo}; the Hugging Face Hub cannot be reached ({_line(error)})") from None


def push(folder: Path, repo: str, *, public: bool) -> str:
    """Upload a folder without its evaluations, making the repository if there is none.

    Args:
        folder: an export.
        repo: OWNER/NAME.
        public: whether anybody may see a repository that is made now; one that exists stays as it is.

    Returns:
        Address of the page.

    Raises:
        StorageError: the hub refuses, or does not answer; the folder stays.
    """
    from huggingface_hub import HfApi

    api: Any = HfApi()
    try:
        made = api.create_repo(repo, private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id, folder_path=folder, commit_message="Export by hai", ignore_patterns=_STAYS
        )
    except Exception as error:  # as in check_login
        is_card = str(error).startswith("Invalid metadata")
        how = "mend --license, or the metadata of its README.md" if is_card else "try again"
        raise StorageError(f"--push = {repo}; {_line(error)}; {folder} is whole, {how}") from None
    return str(made)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
