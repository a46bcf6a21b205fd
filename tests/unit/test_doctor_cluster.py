from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.faults.ray_kills import free_port
from hai.doctor.cluster import check_authentication, check_ports, check_ray, join_cluster
from hai.doctor.findings import Finding
from hai.errors import ConfigError
from hai.launch.cluster import connected, start_local

TOKEN = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith(("RAY_AUTH", "RAY_ADDRESS")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    assert TOKEN not in str(finding)
    return finding


def test_a_dead_address_stops_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    (finding,) = [one for one in check_ray() if one.status == "problem"]
    assert finding.text == f"RAY_ADDRESS = {address}: nothing answers there"
    assert "unset RAY_ADDRESS" in finding.mend


def test_a_port_that_another_program_holds_is_told() -> None:
    free = free_port()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        told, rest = check_ports({"`ray start --head`": taken, "TensorBoard": free})
    assert told.status == "warning"
    assert told.text == f"{taken}, which `ray start --head` takes, is in use by another program"
    assert f"--port={taken + 1}" in told.mend
    assert (rest.status, rest.text) == ("ok", f"{free} free")


def test_the_token_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(check_authentication()).text.startswith("none yet")
    file = home / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text(TOKEN, encoding="ascii")
    file.chmod(0o644)
    open_to_all = only(check_authentication())
    assert (open_to_all.status, open_to_all.mend) == ("warning", "chmod 600 ~/.ray/auth_token")
    file.chmod(0o600)
    assert only(check_authentication()).text == "~/.ray/auth_token, 0600"
    file.write_text("\n", encoding="ascii")
    assert only(check_authentication()).status == "problem"
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    assert only(check_authentication()).text == "in RAY_AUTH_TOKEN"


def test_a_token_that_is_asked_for_and_missing_stops_a_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "nothing"))
    assert only(check_authentication()).text == "~/nothing: no such file or directory"
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert only(check_authentication()).status == "problem"


def test_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "tokens")
    wrong = only(check_authentication())
    assert (wrong.status, wrong.text) == ("problem", "RAY_AUTH_MODE = tokens; must be token or disabled")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert only(check_authentication()).status == "ok"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert only(check_authentication()).status == "warning"


def test_a_ray_that_does_not_come_up_in_time_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    (finding,), machines = join_cluster(limit_s=0.2)
    assert finding.status == "problem"
    assert "within 0 s" in finding.text
    assert machines == []
    monkeypatch.delenv("RAY_ADDRESS")
    (finding,), machines = join_cluster(limit_s=0.2)
    assert finding.status == "warning", "an own one on a machine that is busy now: a run may still have it"
    assert "within 0 s" in finding.text
    assert machines == []


def test_where_jobs_are_sent_is_no_cluster_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://localhost:8265")
    (finding,) = [one for one in check_ray() if one.status == "problem"]
    assert "`ray job submit`" in finding.text
    assert finding.mend.startswith("unset RAY_ADDRESS")
    with pytest.raises(ConfigError, match="no cluster to join; unset RAY_ADDRESS"), connected(print):
        pass


def test_a_machine_that_is_too_slow_for_ray_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def init(**_: object) -> None:
        raise RuntimeError("The current node timed out during startup")

    ray = SimpleNamespace(init=init, shutdown=lambda: None)
    monkeypatch.setattr("hai.launch.cluster._import_ray", lambda: ray)
    with pytest.raises(ConfigError, match=r"did not start within its 30 s, three times; .*in_process"):
        start_local(told.append)
    assert told == ["Ray did not start within its 30 s; trying again"] * 2
