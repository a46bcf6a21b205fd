"""`hai doctor` as its users run it: light where it says so, silent about secrets, honest about Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray_runs import Cluster

from benchmarks.faults.ray_kills import start_head
from hai.doctor.cluster import join_cluster
from hai.launch.room import Machine

LOADED = """
import json, sys
from hai.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    loaded = {name.split(".")[0] for name in sys.modules}
    heavy = loaded & {"torch", "torchvision", "ray", "transformers", "timm", "wandb"}
    sys.stderr.write(json.dumps([end.code, sorted(heavy)]))
"""
SECRETS = {
    "KAGGLE_USERNAME": "canaryuser", "KAGGLE_KEY": "canary-kaggle-5a5a5a5a", "HF_TOKEN": "canary-hf-6b6b6b6b",
    "WANDB_API_KEY": "canary-wandb-" + "7c" * 20, "AWS_ACCESS_KEY_ID": "canary-aws-id-8d8d",
    "AWS_SECRET_ACCESS_KEY": "canary-aws-9e9e9e9e", "RAY_AUTH_TOKEN": "canary-ray-" + "0f" * 20,
}  # fmt: skip


def doctor(home: Path, *arguments: str, **environment: str) -> tuple[int, str, list[str]]:
    """Return the exit status, what is printed, and which heavy packages were imported."""
    command = [sys.executable, "-c", LOADED, "doctor", *arguments]
    around = {**os.environ, "HOME": str(home), "RAY_AUTH_MODE": "token", **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=around, encoding="utf-8")
    status, heavy = json.loads(done.stderr.splitlines()[-1])
    return status, done.stdout, heavy


def found(text: str, check: str) -> list[dict[str, Any]]:
    return [one for one in json.loads(text)["findings"] if one["check"] == check]


def test_quick_is_light_finds_what_is_in_the_way_and_shows_no_secret(tiny_detector: Path, tmp_path: Path) -> None:
    storage = str(tmp_path / "runs")
    arguments = ["--quick", "--config", str(tiny_detector), "--storage", storage]
    status, text, heavy = doctor(tmp_path, *arguments, "--json", **SECRETS)
    assert (status, heavy) == (0, []), text
    assert [one["text"] for one in found(text, "Kaggle")] == ["login from KAGGLE_USERNAME and KAGGLE_KEY"]
    assert not [value for value in SECRETS.values() if value in text]
    assert json.loads(text)["problems"] == 0
    assert not (tmp_path / "runs").exists()

    status, shown, heavy = doctor(tmp_path, *arguments, "data.sources.0.path=/nowhere", "scale.use_gpu=true", **SECRETS)
    assert (status, heavy) == (2, [])
    lines = [line.split() for line in shown.splitlines()]
    assert [line[1] for line in lines if line[:1] == ["problem"]] == ["data", "workers"]
    assert shown.count("-> ") == sum(line[0] in ("problem", "warning") for line in lines if line), "each has its mend"
    assert "2 problems would stop a run" in shown
    assert not [value for value in SECRETS.values() if value in shown]


def test_a_config_that_is_wrong_is_a_problem_with_every_mistake(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("optim: {learning_rat: 1}\ntrain: {max_epochs: -1}\n", encoding="utf-8")
    status, text, _ = doctor(tmp_path, "--quick", "--json", "--config", str(wrong), "--storage", str(tmp_path))
    assert status == 2
    assert len(found(text, "config")) == 2
    assert "did you mean optim.learning_rate?" in found(text, "config")[0]["mend"]


@pytest.mark.slow
def test_a_config_is_measured_and_the_cards_that_it_fits_on_are_listed(tiny_detector: Path, tmp_path: Path) -> None:
    arguments = ["--config", str(tiny_detector), "--storage", str(tmp_path), "scale.launcher=in_process"]
    status, text, _ = doctor(tmp_path, *arguments, "--json")
    assert status == 0, text
    advice = json.loads(text)["advice"]
    assert [row["card"] for row in advice["rented"]] == ["T4 16 GB", "L4 24 GB", "A100 40 GB", "A100 80 GB"]
    assert [row["precision"] for row in advice["rented"]] == ["fp16", "bf16", "bf16", "bf16"]
    assert all(row["settings"] == [] and row["most"] > 16 for row in [*advice["rented"], advice["here"]])
    status, shown, _ = doctor(tmp_path, *arguments, "data.image_size=2048", "train.global_batch_size=512")
    (t4,) = [line for line in shown.splitlines() if line.startswith("T4")]
    assert "train.micro_batch_size=" in t4
    assert status == 0, shown


@pytest.mark.slow
def test_the_size_of_a_checkpoint_is_foretold(tiny_detector: Path, unbroken: Path) -> None:
    newest = max((unbroken / "checkpoints").glob("step_*"))
    size = sum(file.stat().st_size for file in newest.glob("*.safetensors"))
    code = (
        "import sys; from hai.config.load import load_config; from hai.doctor.fit import needs_of; "
        "print(needs_of(load_config(sys.argv[1])).checkpoint)"
    )
    # a step without data starts threads of torch, after which this process could not fork
    other = subprocess.run([sys.executable, "-c", code, tiny_detector], capture_output=True, text=True, check=False)
    assert other.returncode == 0, other.stderr
    assert float(other.stdout) == pytest.approx(size, rel=0.05)


@pytest.mark.ray
def test_the_cluster_that_a_run_would_use_is_joined(ray_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster.address)
    (finding,), machines = join_cluster()
    assert finding.status == "ok", finding.text
    assert f"using the Ray cluster at {ray_cluster.address}; has 2 CPUs, 0 GPUs" in finding.text
    assert machines == [Machine(2, 0)]


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[str]:
    """The address of a cluster that asks for a token."""
    head = start_head(tmp_path / "start.txt", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0123456789abcdef" * 4)
    yield head.address
    head.process.terminate()
    head.process.wait()


@pytest.mark.ray
@pytest.mark.slow
def test_a_wrong_token_is_told_and_not_shown(guarded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = "fedcba9876543210" * 4
    for name, value in {"RAY_ADDRESS": guarded, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": wrong}.items():
        monkeypatch.setenv(name, value)
    (finding,), machines = join_cluster()
    assert finding.status == "problem"
    assert f"RAY_ADDRESS = {guarded}" in finding.text
    assert "RAY_AUTH_MODE" in finding.mend
    assert wrong not in str(finding)
    assert machines == []
