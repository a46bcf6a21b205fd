import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import hai
from hai.provenance import command_line, describe_hardware, git_commit, hardware_text, provenance


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["/x/.venv/bin/hai", "train", "--name", "a b"], "hai train --name 'a b'"),
        (["ray_jobs/train.py", "--config", "c.yaml"], "python ray_jobs/train.py --config c.yaml"),
        (["/x/hai/__main__.py", "runs"], "python -m hai runs"),
        (["hai", "--token", "abc", "--name", "b"], "hai --token *** --name b"),
        (["hai", "--api-key=abc"], "hai --api-key=***"),
        (["hai", "logging.wandb.api_key=abc d"], "hai logging.wandb.api_key=***"),
        (["hai", "x={password: abc, size: 3}"], "hai 'x={password: ***, size: 3}'"),
        (["hai", "s3://me:pw@host/b?X-Signature=1&part=2"], "hai 's3://***@host/b?X-Signature=***&part=***'"),
        (["hai", "model.tokens=5", "a=1e-4"], "hai model.tokens=5 a=1e-4"),
        ([], ""),
    ],
)
def test_command_line_is_one_shell_line_without_secrets(words: list[str], line: str) -> None:
    assert command_line(words) == line


def test_home_folder_is_not_named() -> None:
    home = str(Path.home())
    assert command_line(["hai", f"{home}/my data", f"{home}s"]) == f"hai ~/'my data' {home}s"


def test_record_says_versions_and_machine_and_loads_no_torch() -> None:
    code = "import sys, json, hai.provenance as p; print(json.dumps(p.provenance())); assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, encoding="utf-8")
    assert f'"hai": "{hai.__version__}"' in result.stdout
    record = provenance(["hai"])
    assert record["command"] == "hai"
    assert record["versions"]["numpy"] == np.__version__
    assert record["hardware"]["num_cpus"] >= 1
    assert record["hardware"]["cpu"] in hardware_text(record["hardware"])


def test_hardware_counts_equal_gpus() -> None:
    hardware = describe_hardware() | {"gpus": ["A100", "A100", "T4"]}
    assert hardware_text(hardware).startswith("2 x A100, 1 x T4, ")


def test_commit_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "hai"
    package.mkdir()
    for name in ("__init__", "types", "provenance", "masking", "cpus"):
        package.joinpath(f"{name}.py").write_bytes(Path(hai.__file__).with_name(f"{name}.py").read_bytes())
    code = "import hai.provenance as p; print(p.git_commit())"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"PYTHONPATH": str(tmp_path), "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CEILING_DIRECTORIES": "/"}

    def commit() -> str:
        python = [sys.executable, "-P", "-c", code]
        return subprocess.run(python, capture_output=True, text=True, check=True, env=environment).stdout.strip()

    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, env=environment)

    assert commit() == "None"
    git("init")
    git("add", "hai")
    git("commit", "-m", "a")
    first = commit()
    assert len(first) == 40
    with open(package / "types.py", "a", encoding="utf-8") as file:
        file.write("# changed\n")
    assert commit() == f"{first}+changes"
    other = tmp_path / "lib"
    other.mkdir()
    package.rename(other / "hai")
    environment["PYTHONPATH"] = str(other)
    assert commit() == "None", "installed inside a checkout that is not its own"


def test_commit_here_is_a_commit_or_none() -> None:
    commit = git_commit()
    assert commit is None or len(commit.removesuffix("+changes")) == 40
