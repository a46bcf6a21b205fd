"""A machine dies in the middle of a run; another one, which has nothing of it, goes on, given only where the run is."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from ray_runs import kill_survivors, records, started, tensors

import hai
from hai.checkpoint.format import MANIFEST, step_of
from hai.checkpoint.remote import Bucket, Mount, Remote, is_bucket
from hai.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore")]

CODE = Path(hai.__file__).resolve().parents[1]
STORAGES = {
    "disk": "{folder}/disk/runs",
    "drive": "{folder}/content/drive/My Drive/hai runs",
    "gs": "gs://bucket/hai runs",
    "s3": "s3://bucket/hai runs",
}


@dataclass
class Machine:
    """A host with folders of its own: home, cache, working folder, and a copy of the images somewhere."""

    folder: Path
    faces: Path

    def __post_init__(self) -> None:
        for name in ("home", "cache", "desk"):
            (self.folder / name).mkdir(parents=True)
        shutil.copytree(self.faces, self.folder / "pictures")
        self.output = self.folder.with_suffix(".txt")

    def train(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `hai train` there on its own copy of the images."""
        command = [sys.executable, str(CODE / "tests" / "machine.py"), "train", *arguments]
        command += [f"data.sources.0.path={self.folder / 'pictures'}"]
        environment = {
            **os.environ,
            "PYTHONPATH": str(CODE),
            "HOME": str(self.folder / "home"),
            "HAI_CACHE": str(self.folder / "cache"),
            "HAI_TEST_MACHINE": self.folder.name,
            "HAI_TEST_DRIVE": str(self.folder.parent / "content" / "drive"),
            "FSSPEC_GCS_TOKEN": "anon",
        }
        with open(self.output, "a", encoding="utf-8") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, text=True, env=environment, cwd=self.folder / "desk"
            )
        started.append(process)
        return process

    def die(self, process: subprocess.Popen[str]) -> None:
        """Take the machine away with all its folders."""
        process.send_signal(signal.SIGKILL)
        process.wait()
        shutil.rmtree(self.folder)

    @property
    def said(self) -> str:
        return self.output.read_text(encoding="utf-8")


def saved_steps(remote: Remote) -> list[int]:
    """The checkpoints whose last file is there."""
    found = {name: step_of(name) for name in remote.names("tiny/checkpoints")}
    return [step for name, step in found.items() if step and MANIFEST in remote.names(f"tiny/checkpoints/{name}")]


def wait_for_a_checkpoint(remote: Remote, machine: Machine, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not saved_steps(remote):
        assert process.poll() is None, f"ended early:\n{machine.said}"
        assert time.monotonic() < deadline, f"nothing was saved:\n{machine.said}"
        time.sleep(0.05)


def table(storage: str, capsys: pytest.CaptureFixture[str]) -> Sequence[str]:
    """The words of the only row of `hai runs`."""
    with pytest.raises(SystemExit) as end:
        main(["runs", "--storage", storage])
    assert end.value.code == 0
    _, row = capsys.readouterr().out.strip().splitlines()
    return str(row).split()


@pytest.fixture(autouse=True)
def nothing_survives() -> Iterator[None]:
    yield
    kill_survivors()


@pytest.mark.parametrize("kind", STORAGES)
def test_another_machine_goes_on_given_only_the_url(
    kind: str,
    tiny_detector: Path,
    small_faces: Path,
    unbroken: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if kind in ("gs", "s3"):
        request.getfixturevalue("gcs" if kind == "gs" else "s3")
    storage = STORAGES[kind].format(folder=tmp_path)
    remote: Remote = Bucket(storage) if is_bucket(storage) else Mount(Path(storage))
    here = "scale.launcher=in_process"

    first = Machine(tmp_path / "first", small_faces)
    process = first.train("--config", str(tiny_detector), "--storage", storage, here)
    wait_for_a_checkpoint(remote, first, process)
    first.die(process)
    known = max(saved_steps(remote))
    assert table(storage, capsys)[:2] == ["tiny", "detector"]

    second = Machine(tmp_path / "second", small_faces)
    process = second.train("--resume", f"{storage}/tiny", "--storage", storage, "--wait-for-upload")
    assert process.wait(timeout=400) == 0, second.said
    (resumed,) = [int(line.split("step_")[1][:8]) for line in second.said.splitlines() if "resuming from" in line]
    assert resumed >= known
    assert "apart from" not in second.said
    assert table(storage, capsys)[:4] == ["tiny", "detector", "finished", "60"]

    fetched = tmp_path / "fetched"
    (fetched / "checkpoints" / "step_00000060").mkdir(parents=True)
    for name in ("metrics.jsonl", *(f"checkpoints/step_00000060/{part}.safetensors" for part in ("model", "state"))):
        remote.fetch(f"tiny/{name}", fetched / name)
    assert tensors(fetched) == tensors(unbroken), "as if no machine had died"
    assert [record["step"] for record in records(fetched)] == [record["step"] for record in records(unbroken)]

    if kind == "s3":
        third = Machine(tmp_path / "third", small_faces)
        process = third.train("--resume", f"{storage}/tiny/checkpoints/step_00000060", "train.max_steps=64")
        assert process.wait(timeout=400) == 0, third.said
        assert f"apart from {storage}/tiny/checkpoints/step_00000060 where it comes from" in third.said
        assert f"add --storage '{storage}' to go on in that place" in third.said
        summary = json.loads((third.folder / "desk" / "runs" / "tiny" / "summary.json").read_text(encoding="utf-8"))
        assert (summary["status"], summary["step"]) == ("finished", 64)
        assert table(storage, capsys)[:4] == ["tiny", "detector", "finished", "60"], "where it comes from, as it was"
