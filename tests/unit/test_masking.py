from __future__ import annotations

import json
import traceback

import pytest

from hai.config.load import config_from_yaml_text, show_config
from hai.errors import StorageError
from hai.masking import has_login, masked, without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "a: 1\nsecret_key: xyz\npath: gs://u:v@bucket/x?sig=1\n",
            "a: 1\nsecret_key: ***\npath: gs://***@bucket/x?sig=***\n",
        ),
        ("logging.wandb.api_key = abc; unknown key", "logging.wandb.api_key = *** unknown key"),
        ("KAGGLE_KEY=abc", "KAGGLE_KEY=***"),
        (
            '{"url": "https://h/x.zip?X-Amz-Signature=a%2Fb&part=2"}',
            '{"url": "https://h/x.zip?X-Amz-Signature=***&part=***"}',
        ),
        ("must hold `key: value` lines, tokens: 5", "must hold `key: value` lines, tokens: 5"),
        ("hf://datasets/a/b@main/c.png and me@host", "hf://datasets/a/b@main/c.png and me@host"),
    ],
)
def test_secrets_are_masked_and_nothing_else(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_values_of_secret_variables_are_masked_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "abc/def+12345")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA12345678")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "short")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/etc/my/key.json")
    text = "the server said abc/def+12345, abc%2Fdef%2B12345, AKIA12345678, short and /etc/my/key.json"
    assert without_secrets(text) == "the server said ***, ***, ***, short and /etc/my/key.json"


def test_errors_of_the_package_hold_no_secrets() -> None:
    error = StorageError("https://me:pw@host/x?sig=1 cannot be reached")
    assert str(error) == "https://***@host/x?sig=*** cannot be reached"
    assert "pw@" not in "".join(traceback.format_exception(error))


def test_a_masked_config_is_still_a_config() -> None:
    config = config_from_yaml_text("data: {sources: [{path: 'https://h/x.zip?Signature=abc&Expires=9'}]}")
    text = show_config(config)
    assert "abc" not in text
    again = config_from_yaml_text(text)
    assert again.data.sources[0].path == "https://h/x.zip?Signature=***&Expires=***"
    assert json.loads(json.dumps(masked(config.model_dump()))) == again.model_dump()


def test_logins_in_urls() -> None:
    assert has_login("s3://key:secret@bucket/x")
    assert has_login("https://token@host")
    assert not has_login("gs://bucket/a@b/c.png")
    assert not has_login("me@host/x")
