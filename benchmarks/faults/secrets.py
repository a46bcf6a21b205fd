"""Canary secrets everywhere a user has some; a run, an evaluation and errors must not write one of them anywhere."""

from __future__ import annotations

import base64
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from benchmarks.faults.pictures import draw_faces
from benchmarks.faults.web import File, WebServer

__all__ = ["leak_secrets"]

_CONFIG = """
task: detector
data: {image_size: 32}
model: {name: compact, pretrained: false}
train: {max_epochs: 1, global_batch_size: 16}
logging: {wandb: {enabled: true, mode: offline}}
scale: {launcher: in_process, use_gpu: false, cpus_per_worker: 1}
"""

_DRIVER = """
import json, sys, traceback
from pathlib import Path
from kagglesdk import kaggle_env
from hai.cli import main
kaggle_env._env_to_endpoint[kaggle_env.KaggleEnv.PROD] = sys.argv[3]
ends = []
for words in json.loads(Path(sys.argv[1]).read_text()):
    there, sys.argv = sys.argv, ["hai", *words]
    try:
        main()
    except SystemExit as end:
        ends.append(end.code or 0)
    except BaseException:
        traceback.print_exc()
        ends.append(1)
    finally:
        sys.argv = there
Path(sys.argv[2]).write_text(json.dumps(ends))
"""  # one process for all commands, as each would load torch again


def leak_secrets(folder: Path, *, thorough: bool = False) -> dict[str, Any]:
    """Train, evaluate and fail with secrets in the environment, the home folder, URLs and config keys; then look.

    Args:
        folder: an empty one to work in.
        thorough: also try a bucket at Google, with a key that is none.

    Returns:
        `secrets`: how many there are; `places`: files that were searched, with their names and what was printed;
        `leaked`: a line `secret: place` for each one found, as it is, quoted as in URLs or in base 64; `failed`: a
        line for each command that did not end as it should.
    """
    secrets: dict[str, str] = {}

    def secret(name: str) -> str:
        return secrets.setdefault(name, uuid.uuid4().hex + ("/+" if "AWS" in name else uuid.uuid4().hex[:8]))

    folder = Path(folder).absolute()
    given, work, cache = folder / "given", folder / "work", folder / "cache"
    for path in (given, work, cache):
        path.mkdir(parents=True)
    environment = {**os.environ, **_environment(given / "home", secret), "HAI_CACHE": str(cache)}
    for name in ("HAI_STORAGE", "RAY_ADDRESS", "WANDB_MODE"):
        environment.pop(name, None)
    (given / "tiny.yaml").write_text(_CONFIG, encoding="utf-8")
    draw_faces(given / "faces", 16)
    archive = Path(shutil.make_archive(str(given / "faces"), "zip", given / "faces"))
    with _server(archive.parent) as host, WebServer() as kaggle:
        kaggle.files["/kaggle/me/faces"] = File(archive.read_bytes(), breaks=[10_000])
        kaggle.logins = [f"Bearer {secret('KAGGLE_API_TOKEN')}"]
        signed = f"X-Amz-Credential={secret('credential')}&X-Amz-Signature={secret('signature')}"
        data = f"http://{host}/faces.zip?{signed}"
        commands = list(_commands(str(given / "tiny.yaml"), host, data, signed, secret))
        if thorough:  # waits for half a minute
            commands.append((2, ["evaluate", "--checkpoint", "gs://bucket/runs/run", "--data", data]))
        (given / "commands.json").write_text(json.dumps([words for _, words in commands]), encoding="utf-8")
        with open(work / "output.txt", "wb") as output:
            process = [
                sys.executable,
                "-c",
                _DRIVER,
                str(given / "commands.json"),
                str(folder / "ends.json"),
                kaggle.url,
            ]
            root = str(Path(__file__).resolve().parents[2])
            environment["PYTHONPATH"] = root
            subprocess.run(process, cwd=work, env=environment, stdout=output, stderr=output, timeout=600, check=True)
    ends = json.loads((folder / "ends.json").read_text(encoding="utf-8"))
    failed = [
        f"hai {' '.join(words)[:80]}: status {end} instead of {status}"
        for (status, words), end in zip(commands, ends, strict=True)
        if end != status
    ]
    places = [path for part in (work, cache, given / "home") for path in part.rglob("*")]
    searched = [path for path in places if path.is_file() and path not in _own_files(given / "home")]
    forms = {name: _forms(value) for name, value in secrets.items()}
    leaked = []
    for path in searched:
        content = path.read_bytes() + os.fsencode(str(path.relative_to(folder)))
        leaked += [f"{name}: {path}" for name, found in forms.items() if any(form in content for form in found)]
    return {"secrets": len(secrets), "places": len(searched), "leaked": leaked, "failed": failed}


def _environment(home: Path, secret: Any) -> dict[str, str]:
    """Give a user every kind of secret; returns their environment."""
    names = ("KAGGLE_KEY", "KAGGLE_USERNAME", "KAGGLE_API_TOKEN", "WANDB_API_KEY", "HF_TOKEN", "RAY_AUTH_TOKEN")
    names += ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    key = {"type": "service_account", "client_email": "me@project", "token_uri": "http://127.0.0.1:9/token"}
    key |= {"private_key_id": secret("google key id"), "private_key": f"-----BEGIN {secret('google key')}"}
    kaggle = {"username": secret("kaggle.json name"), "key": secret("kaggle.json key")}
    netrc = f"machine api.wandb.ai login user password {secret('netrc')}\n"
    for path, text in zip(_own_files(home), (json.dumps(key), json.dumps(kaggle), netrc), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
    return {
        **{name: secret(name) for name in names},
        "HOME": str(home),
        "GOOGLE_APPLICATION_CREDENTIALS": str(_own_files(home)[0]),
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_MAX_ATTEMPTS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


def _own_files(home: Path) -> list[Path]:
    return [home / "google.json", home / ".kaggle" / "kaggle.json", home / ".netrc"]


def _commands(config: str, host: str, data: str, signed: str, secret: Any) -> Iterator[tuple[int, list[str]]]:
    """Yield commands with the exit status that each must have."""
    source = f"data.sources=[{{path: '{data}'}}]"
    login = f"{secret('user')}:{secret('password')}"
    train = ["train", "--config", config, "--storage", "runs", "--name", "run"]
    yield 0, ["config", "show", config, source]
    yield 0, [*train, source]
    yield 0, [*train, source]
    yield 0, ["evaluate", "--checkpoint", "runs/run", "--data", data, "--split", "val"]
    yield 0, ["runs", "--storage", "runs"]
    for name, source in (("web", data), ("kaggle", "kaggle:me/faces")):
        yield 0, ["data", "fetch", source, "--to", f"fetched/{name}"]
    for source in ("kaggle:competitions/none", f"http://{host}/gone.zip?{signed}", f"https://{login}@{host}/faces.zip"):
        yield 2, ["data", "fetch", source, "--to", "fetched/none"]
    yield 2, ["data", "fetch", f"http://127.0.0.1:9/x.zip?{signed}", "--to", "fetched/none"]
    yield 2, ["config", "show", config, f"data.sources=[{{path: 'https://{login}@{host}/faces.zip'}}]"]
    yield 2, ["config", "show", config, f"logging.wandb.api_key={secret('config key')}"]
    yield 2, ["config", "show", config, f"logging.wandb.key: {secret('broken line')}"]
    yield 2, ["train", "--config", config, "--storage", f"s3://{login}@bucket/runs", source]
    yield 2, ["runs", "--storage", f"s3://{login}@bucket/runs"]
    yield 2, [*train[:4], f"memory://{signed}/?{signed}", f"data.sources=[{{path: 'http://{host}/gone.zip?{signed}'}}]"]
    yield 2, [*train[:3], f"data.sources=[{{path: 'http://127.0.0.1:9/x.csv?{signed}'}}]"]
    yield 2, [*train[:3], source, "model.name=hf:nobody/nothing"]
    yield 2, ["runs", "--storage", "s3://bucket/runs"]
    yield 2, ["evaluate", "--checkpoint", f"https://{login}@{host}/run?{signed}", "--data", data]
    yield 2, ["evaluate", "--checkpoint", "runs/run", "--data", f"http://{host}/gone.zip?{signed}"]


@contextmanager
def _server(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _forms(value: str) -> set[bytes]:
    """Return what a secret looks like in a file: as it is, quoted, and in base 64 at any position of a longer text."""
    coded = {base64.b64encode(b"x" * shift + value.encode())[(4 if shift else 0) : -4] for shift in range(3)}
    return {value.encode(), quote(value, safe="").encode(), *coded}
