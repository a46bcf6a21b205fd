"""What happens before a worker starts: paths, plans, signals, the cluster's address, the size of the group."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from hai.config.schema import RunConfig, ScaleConfig
from hai.data.sources import load_source
from hai.errors import ConfigError, DataError
from hai.launch import cluster
from hai.launch.bar import TrainingBar
from hai.launch.cluster import keep_token, live_address
from hai.launch.plan import Plan, located
from hai.launch.room import Machine
from hai.launch.signals import StopSignals
from hai.types import STOP


def test_local_paths_become_absolute_and_urls_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HAI_STORAGE", raising=False)
    sources = [{"name": "a", "path": "faces", "image_dir": "~/images"}, {"name": "b", "path": "gs://bucket/faces"}]
    config = RunConfig.model_validate({"data": {"sources": sources}, "model": {"pretrained": "weights"}})
    placed = located(config)
    assert placed.storage == str(tmp_path / "runs")
    assert placed.data.sources[0].path == str(tmp_path / "faces")
    assert placed.data.sources[0].image_dir == str(Path.home() / "images")
    assert placed.data.sources[1].path == "gs://bucket/faces"
    assert placed.model.pretrained == str(tmp_path / "weights")
    monkeypatch.setenv("HAI_STORAGE", "s3://bucket/runs")
    assert located(config).storage == "s3://bucket/runs"


def test_sources_from_kaggle_and_archives_load_as_they_do_without_a_launch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "faces" / "photos").mkdir(parents=True)
    (tmp_path / "faces" / "photos" / "a.png").write_bytes(b"pixels")
    (tmp_path / "faces" / "rows.csv").write_text("path,label\na.png,fake\n")
    shutil.make_archive(str(tmp_path / "faces"), "zip", tmp_path / "faces")
    sources = [
        {"name": "kaggle", "path": "kaggle:me/faces", "image_dir": "photos"},
        {"name": "page", "path": "https://www.kaggle.com/datasets/me/faces", "image_dir": "photos"},
        {"name": "url", "path": "https://host/faces.tar.gz?key=1", "image_dir": "photos"},
        {"name": "csv", "path": "https://host/faces.csv", "image_dir": "photos"},
        {"name": "zip", "path": "faces.zip", "image_dir": "photos"},
    ]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "cache"))
    placed = located(RunConfig.model_validate({"data": {"sources": sources}})).data.sources
    assert [source.path for source in placed[:4]] == [source["path"] for source in sources[:4]]
    assert [source.image_dir for source in placed[:3]] == ["photos"] * 3
    assert placed[3].image_dir == str(tmp_path / "photos")
    monkeypatch.chdir("/")
    assert load_source(placed[4], []).path == ["a.png"]


def test_a_plan_survives_its_journey() -> None:
    plan = Plan(RunConfig(seed=7).model_dump_json(), "runs", "a", "attempt", provenance={"commit": None})
    again = Plan(**plan.record())
    assert again == plan
    assert RunConfig.model_validate_json(again.config).seed == 7


def test_the_first_signal_asks_and_the_third_ends() -> None:
    lines: list[str] = []
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals(lines.append) as signals:
        assert signals.request == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.request == STOP
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert len(lines) == 2
    assert lines[0].startswith("SIGTERM: saving a checkpoint")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_stale_cluster_is_passed_over_with_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    lines: list[str] = []
    assert live_address(lines.append) is None
    assert lines == []
    (tmp_path / "ray").mkdir()
    record = tmp_path / "ray" / "ray_current_cluster"
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        record.write_text(address, encoding="utf-8")
        assert live_address(lines.append) == address
    assert live_address(lines.append) is None
    assert address in lines[0]
    record.write_text("nonsense", encoding="utf-8")
    assert live_address(lines.append) is None


def test_another_users_cluster_is_not_joined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        address = "{}:{}".format(*server.getsockname())
        (tmp_path / "ray" / "ray_current_cluster").write_text(address, encoding="utf-8")
        assert live_address(print) == address
        monkeypatch.setattr(os, "getuid", lambda: -1)
        assert live_address(print) is None


@pytest.mark.parametrize(
    ("named", "text"),
    [
        (False, r"a Ray cluster runs here at \S+ and cannot be joined \(wrong token\); RAY_ADDRESS=local starts"),
        (True, r"RAY_ADDRESS = \S+; the cluster cannot be joined \(wrong token\); start it, unset RAY_ADDRESS"),
    ],
)
def test_a_cluster_that_refuses_is_told_as_it_was_found(
    monkeypatch: pytest.MonkeyPatch, named: bool, text: str
) -> None:
    def init(**_: object) -> None:
        raise ConnectionError("wrong token\n")

    ray = SimpleNamespace(init=init, is_initialized=lambda: False)
    monkeypatch.setattr(cluster, "_import_ray", lambda: ray)
    monkeypatch.setattr(cluster, "live_address", lambda say: "10.0.0.5:6379")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if named:
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.5:6379")
    with pytest.raises(ConfigError, match=text), cluster.connected(print):
        pass


def test_a_cluster_that_a_notebook_started_is_not_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = SimpleNamespace(_global_node=SimpleNamespace(head=True))
    ray = SimpleNamespace(_private=SimpleNamespace(worker=worker), init=lambda **_: None)
    monkeypatch.setattr(cluster, "_import_ray", lambda: ray)
    monkeypatch.setattr(cluster, "_own_node", None)
    monkeypatch.setattr(cluster, "keep_token", lambda: None)
    for name in ("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"):
        monkeypatch.setenv(name, "0")
    assert not cluster.is_own()
    cluster.start_local(print)
    assert cluster.is_own()
    worker._global_node = SimpleNamespace(head=True)  # ended, and another begun
    assert not cluster.is_own()


def test_rays_token_is_for_its_owners_eyes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / ".ray" / "auth_token"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    keep_token()
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "own"))
    keep_token()
    assert not token.parent.exists()
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    before = os.umask(0)
    try:
        keep_token()
    finally:
        os.umask(before)
    content = token.read_text(encoding="ascii")
    assert len(content) == 64
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    token.chmod(0o644)  # as Ray itself makes it
    keep_token()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert token.read_text(encoding="ascii") == content
    assert list(token.parent.iterdir()) == [token]


def test_the_group_fits_the_cluster_or_the_user_is_told() -> None:
    from hai.launch.ray_train import _scaling

    machine = [Machine(8, 2)]
    every = _scaling(ScaleConfig(), machine)
    assert (every.num_workers, every.use_gpu, every.resources_per_worker) == (2, True, {"CPU": 4, "GPU": 1})
    cpu = _scaling(ScaleConfig(use_gpu=False), machine)
    assert (cpu.num_workers, cpu.use_gpu, cpu.resources_per_worker) == (1, False, {"CPU": 8})
    elastic = _scaling(ScaleConfig(num_workers="1:4", use_gpu=False), machine)
    assert elastic.num_workers == (1, 4)
    assert elastic.resources_per_worker == {"CPU": 2}
    with pytest.raises(ConfigError, match="has 2 GPUs"):
        _scaling(ScaleConfig(num_workers=3), machine)
    with pytest.raises(ConfigError, match="has 8 CPUs"):
        _scaling(ScaleConfig(num_workers=9, use_gpu=False), machine)
    with pytest.raises(ConfigError, match="room for 0 such workers"):  # no worker spans two machines
        _scaling(ScaleConfig(num_workers=1, cpus_per_worker=5), [Machine(4, 1), Machine(4, 1)])


def test_a_workers_error_keeps_its_kind() -> None:
    from hai.launch.ray_train import _hai_error

    assert isinstance(_hai_error("DataError", "x"), DataError)
    assert str(_hai_error("Path", "text")) == "text"


def test_without_a_terminal_the_bar_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingBar() as bar:
        bar.say("[faces] a line with brackets")
        bar.show({"step": 3, "total_steps": 9, "epoch": 0.3, "loss": 0.5, "examples_per_second": 20.0, "best": None})
        bar.show({"step": 4, "total_steps": 9, "epoch": 0.4, "loss": 0.4, "examples_per_second": 20.0, "best": None})
    error = capsys.readouterr().err
    assert error == "[faces] a line with brackets\nstep 3/9, loss 0.5000, 20 examples/s\n"


@pytest.mark.parametrize(
    ("status", "saved", "exit_status"),
    [("finished", 9, 0), ("interrupted", 9, 3), ("interrupted", 8, 2), ("finished", 8, 2)],
)
def test_a_last_step_that_could_not_be_saved_is_no_success(status: str, saved: int, exit_status: int) -> None:
    from hai.config.schema import RunConfig
    from hai.launch.plan import Outcome
    from hai.launch.train import _say_end, _status

    outcome = Outcome(status, {"status": status, "step": 9, "saved_step": saved, "best": None})
    assert _status(outcome) == exit_status
    lines: list[str] = []
    _say_end(RunConfig.model_validate({"storage": "runs", "name": "run"}), outcome.summary, lines.append)
    assert (saved < 9) == any("step 9 could not be saved, the newest checkpoint is of step 8" in line for line in lines)
    assert (saved == 9 and status == "interrupted") == any("with everything saved" in line for line in lines)
