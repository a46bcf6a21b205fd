"""What hai uses of Colab's own package, for tests: it notes what is asked of it in the file that FAKE_COLAB names."""

import json
import os
from pathlib import Path


def note(what: str) -> None:
    with open(os.environ["FAKE_COLAB"], "a", encoding="utf-8") as file:
        file.write(f"{what}\n")


def secrets() -> dict[str, str]:
    return dict(json.loads(os.environ.get("FAKE_COLAB_SECRETS", "{}")))


def here(path: str) -> Path:
    """Where a path below /content lies in a test."""
    return Path(os.environ["FAKE_COLAB"]).parent / Path(path).relative_to("/content")
