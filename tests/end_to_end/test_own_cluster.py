"""A run that starts a Ray of its own on one machine: what listens, and what it needs of a network."""

from __future__ import annotations

import ipaddress
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray_runs import (
    SMOOTH,
    kill_survivors,
    newest_step,
    output,
    start,
    steps,
    summary,
    wait_until,
)

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

ALONE = {"RAY_ADDRESS": "local", "RAY_AUTH_MODE": "token"}


@pytest.fixture(autouse=True)
def no_survivors() -> Iterator[None]:
    yield
    kill_survivors()


def _listening(process: psutil.Process) -> Iterator[tuple[str, str]]:
    """Every address at which a process or what it has started takes connections or datagrams."""
    for one in [process, *process.children(recursive=True)]:
        try:
            for socket in one.net_connections(kind="inet"):
                if socket.status in (psutil.CONN_LISTEN, psutil.CONN_NONE) and socket.laddr:
                    yield one.name(), socket.laddr.ip
        except psutil.NoSuchProcess:
            continue


def _is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


@pytest.mark.slow
def test_a_single_machine_listens_on_loopback_only_and_asks_for_a_token(tiny_detector: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    longer = ["train.max_steps=2000", "train.eval_every_epochs=500", "scale.cpus_per_worker=1"]
    process = start(tiny_detector, tmp_path, "--workers", "2", *longer, HOME=str(home), **ALONE)
    wait_until(lambda: newest_step(tmp_path / "tiny") > 0, process, tmp_path)
    found = set(_listening(psutil.Process(process.pid)))
    names = {name for name, _ in found}
    assert {"gcs_server", "raylet"} <= names
    assert any("RayTrainWorker" in name for name in names)
    assert {(name, address) for name, address in found if not _is_loopback(address)} == set()
    token = home / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert len(token.read_text(encoding="ascii")) == 64
    assert [path.name for path in token.parent.iterdir()] == ["auth_token"]
    process.terminate()
    assert process.wait(timeout=120) == 3, output(tmp_path)
    assert token.read_text(encoding="ascii") not in output(tmp_path)


@pytest.mark.slow
def test_a_run_without_any_network_ends_as_one_with_it(small_faces: Path, tmp_path: Path) -> None:
    cut = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "cut"]
    if not shutil.which("unshare") or subprocess.run([*cut, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine makes no network namespaces")
    config = tmp_path / "smooth.yaml"
    config.write_text(SMOOTH.format(faces=small_faces), encoding="utf-8")
    settings = ["train.max_steps=30", "train.eval_every_epochs=5", "logging.wandb.enabled=true"]
    online = {"WANDB_MODE": "online", "WANDB_API_KEY": "a" * 40, "HF_HUB_OFFLINE": "0"}
    process = start(config, tmp_path, *settings, through=cut, **ALONE, **online)
    assert process.wait(timeout=500) == 0, output(tmp_path)
    run = tmp_path / "smooth"
    assert summary(run)["status"] == "finished"
    assert steps(run) == list(range(1, 31))
    assert (run / "report.html").stat().st_size > 10_000
    assert "Weights & Biases" in output(tmp_path)
    assert "Traceback" not in output(tmp_path)
