"""Pushing to the Hugging Face Hub, against a server on this machine that speaks its protocol."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from trained_run import save_run

from hai.errors import ConfigError, StorageError
from hai.export import run_export

TOKEN = "hf_" + "abcdefgh" * 4


class Hub(ThreadingHTTPServer):
    """Keeps what is committed, as the hub does with small files."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.private: bool | None = None
        self.fault = ""


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None: ...

    def answer(self, record: object, status: int = 200) -> None:
        content = json.dumps(record).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer({"error": "Invalid credentials in Authorization header"}, 401)
        elif self.path == "/api/whoami-v2":
            self.answer({"name": "someone", "type": "user", "auth": {}})
        else:
            self.answer({"id": "someone/bright", "sha": "0" * 40, "siblings": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            wish = json.loads(body)  # clients before 2.0 say `private`
            self.server.private = wish.get("private", wish.get("visibility") == "private")
            self.answer({"url": f"http://127.0.0.1:{self.server.server_port}/someone/bright", "id": "1"})
        elif self.path == "/api/validate-yaml" and self.server.fault:
            self.answer({"errors": [{"message": self.server.fault}]}, 400)
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif "/commit/" in self.path:
            for line in body.splitlines():
                record = json.loads(line)
                if record["key"] == "file":
                    self.server.files[record["value"]["path"]] = base64.b64decode(record["value"]["content"])
            url = f"http://127.0.0.1:{self.server.server_port}/someone/bright/commit/{'0' * 40}"
            self.answer({"success": True, "commitOid": "0" * 40, "commitUrl": url})
        else:
            self.answer({})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("runs"), threshold=0.4, temperature=1.5)


def push(run: Path, target: Path, *, public: bool = False) -> None:
    run_export(str(run), "hub", str(target), push="someone/bright", public=public)


def test_the_folder_arrives_whole_and_is_private(
    hub: Hub, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push(run, tmp_path / "out")
    assert hub.files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "run.yaml"} <= hub.files.keys()
    assert hub.private is True
    assert "/someone/bright" in capsys.readouterr().out.splitlines()[-1]


def test_evaluations_stay_behind_and_the_rest_goes_along(hub: Hub, run: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    run_export(str(run), "hub", str(target))
    others = {"LICENSE": b"mine", "pictures/evaluation/roc.png": b"\x89PNG"}
    private = {"evaluation/test/predictions.csv": b"photos/alice.png", "evaluation/test/report.html": b"<img>"}
    for name, content in (others | private).items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(content)
    push(run, target)
    assert {name: hub.files[name] for name in others} == others
    assert not hub.files.keys() & private.keys()
    assert {name: (target / name).read_bytes() for name in private} == private


def test_a_card_that_the_hub_refuses(hub: Hub, run: Path, tmp_path: Path) -> None:
    hub.fault = '"license" must be one of [apache-2.0, mit]'
    with pytest.raises(StorageError) as seen:
        push(run, tmp_path / "out")
    assert str(seen.value) == (
        f"--push = someone/bright; Invalid metadata in README.md. - {hub.fault}; {tmp_path / 'out'} is whole, mend "
        "--license, or the metadata of its README.md"
    )


def test_a_repository_is_public_on_demand(hub: Hub, run: Path, tmp_path: Path) -> None:
    push(run, tmp_path / "out", public=True)
    assert hub.private is False


def test_a_token_that_the_hub_does_not_know(
    hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "z" * 32)
    with pytest.raises(ConfigError, match=r"--push = someone/bright; the .* Hub refuses .*hf auth login") as seen:
        push(run, tmp_path / "out")
    assert "zzzz" not in str(seen.value)
    assert not (tmp_path / "out").exists(), "said before any work is done"


def test_nobody_is_logged_in(hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match="nobody is logged in"):
        push(run, tmp_path / "out")


def test_a_name_that_is_none(hub: Hub, run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no name of a repository"):
        run_export(str(run), "hub", str(tmp_path / "out"), push="a/b/c")


def test_a_hub_out_of_reach(hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="cannot be reached"):
        push(run, tmp_path / "out")
