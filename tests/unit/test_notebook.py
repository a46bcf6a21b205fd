"""What the notebooks' cells call, with a Colab that is played by tests/fake_colab."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import hai
from hai import notebook
from hai.errors import ConfigError, DataError
from hai.packages import lacking

FAKE = Path(__file__).parents[1] / "fake_colab"
COLAB = {"numpy": "2.1.3", "pillow": "11.3.0", "torch": "2.11.0+cu128", "typing-extensions": "4.16.0"}


@pytest.fixture
def colab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that plays /content, in it the file of what was asked of Colab."""
    content = tmp_path / "content"
    (content / "drive/MyDrive").mkdir(parents=True)
    (tmp_path / "home").mkdir()
    monkeypatch.syspath_prepend(str(FAKE))
    monkeypatch.chdir(content)
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab-external")
    monkeypatch.setenv("FAKE_COLAB", str(content / "asked.txt"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_CONFIG_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, "")
    return content


def asked(content: Path) -> list[str]:
    file = content / "asked.txt"
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


@pytest.mark.parametrize(
    ("wish", "is_lacking"),
    [
        ("torch>=2.10", False),  # a local version such as +cu128 counts
        ("numpy>=2.0", False),
        ("pillow>=12.3", True),
        ("Typing_Extensions>=4", False),
        ("ray[train,tune]>=2.59", True),
        ("ray>=2.59; sys_platform == 'plan9'", False),
    ],
)
def test_what_is_there_is_not_installed_again(wish, is_lacking):
    assert bool(lacking([Requirement(wish)], COLAB)) == is_lacking


def _wheel(folder: Path, name: str, version: str, *needs: str) -> None:
    """Write the smallest wheel that pip installs."""
    info = f"{name}-{version}.dist-info"
    metadata = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {need}" for need in needs)]
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", f"__version__ = {version!r}\n")
        wheel.writestr(f"{info}/METADATA", "\n".join(["Metadata-Version: 2.1", *metadata, ""]))
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


@pytest.mark.slow
def test_pip_renews_what_it_must_and_leaves_torch_alone(tmp_path):
    import packaging
    import typing_extensions

    wheels, machine = tmp_path / "wheels", tmp_path / "machine"
    wheels.mkdir()
    for version in ("2.11.0+cu128", "2.12.0"):
        _wheel(wheels, "torch", version)
    for version in ("11.3.0", "12.4.0"):
        _wheel(wheels, "pillow", version)
    for version in ("8.0", "9.0"):
        _wheel(wheels, "click", version)
    _wheel(wheels, "ray", "2.59.0", "torch", "click>=7")
    _wheel(wheels, "ray", "2.60.0", "torch>=2.12")  # newer, but it would bring another torch
    project = tmp_path / "project"
    project.mkdir()
    (project / "pyproject.toml").write_text(
        '[project]\ndependencies = ["torch>=2.10", "pillow>=12.3", "ray[train]>=2.59"]\n', encoding="utf-8"
    )
    subprocess.run([sys.executable, "-m", "venv", str(machine)], check=True)
    python = machine / "bin/python"
    offline = {"PATH": os.environ["PATH"], "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
    there = ["torch==2.11.0+cu128", "pillow==11.3.0", "click==8.0"]
    subprocess.run([python, "-m", "pip", "install", "-q", *there], check=True, env=offline)
    borrowed = tmp_path / "borrowed"
    borrowed.mkdir()
    (borrowed / "packaging").symlink_to(Path(packaging.__file__).parent)
    (borrowed / "typing_extensions.py").symlink_to(typing_extensions.__file__)
    code = f"from hai import notebook; notebook.ROOT = __import__('pathlib').Path({str(project)!r}); notebook.install()"
    (machine / "bin/hai").touch(0o755)
    offline["PYTHONPATH"] = os.pathsep.join([str(borrowed), str(notebook.ROOT)])
    offline["PATH"] = f"{machine}/bin"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, env=offline)
    held = f"torch 2.11.0+cu128 as it was; hai {hai.__version__} from {project}\n"
    assert done.stdout == f"installed pillow 12.4.0, ray 2.59.0; {held}"
    again = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, env=offline)
    assert again.stdout == f"nothing to install; {held}"
    listed = subprocess.run([python, "-m", "pip", "freeze"], capture_output=True, text=True, check=True, env=offline)
    assert listed.stdout.split() == ["click==8.0", "pillow==12.4.0", "ray==2.59.0", "torch==2.11.0+cu128"]


def test_runs_are_kept_where_the_form_says(colab, monkeypatch):
    assert notebook.place("/content/drive/MyDrive/runs") == "/content/drive/MyDrive/runs"
    assert notebook.place("gs://bucket/runs") == "gs://bucket/runs"
    assert notebook.place("mine") == str(colab / "mine"), "fetching the code again would wipe a folder in it"
    assert notebook.place("") == str(colab / "runs")
    monkeypatch.delenv("COLAB_RELEASE_TAG")
    assert notebook.place("/content/drive/MyDrive/runs") == str(notebook.ROOT / "runs")
    assert notebook.place("mine") == str(notebook.ROOT / "mine")


def test_a_token_in_colabs_secrets_reaches_the_commands_unseen(colab, monkeypatch, capsys):
    monkeypatch.setenv("FAKE_COLAB_SECRETS", json.dumps({"KAGGLE_API_TOKEN": "canary-token"}))
    notebook.log_in("kaggle:owner/faces")
    assert os.environ["KAGGLE_API_TOKEN"] == "canary-token"
    printed = capsys.readouterr()
    assert "Colab's secret KAGGLE_API_TOKEN" in printed.out
    assert "canary" not in printed.out + printed.err


@pytest.mark.parametrize("name", ["kaggle.json", ".kaggle/kaggle.json"])
def test_kaggle_json_of_the_drive_is_taken_and_kept_to_oneself(colab, capsys, name):
    file = colab / "drive/MyDrive" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text('{"username": "me", "key": "canary"}', encoding="utf-8")
    notebook.log_in("kaggle:owner/faces")
    kept = Path("~/.kaggle/kaggle.json").expanduser()
    assert kept.read_text(encoding="utf-8") == file.read_text(encoding="utf-8")
    assert kept.stat().st_mode & 0o777 == 0o600
    assert "canary" not in capsys.readouterr().out
    assert "upload dialog" not in asked(colab)


def test_kaggle_json_is_asked_for_last(colab, monkeypatch):
    monkeypatch.setenv("FAKE_COLAB_UPLOAD", '{"username": "me", "key": "canary"}')
    notebook.log_in("kaggle:owner/faces")
    kept = Path("~/.kaggle/kaggle.json").expanduser()
    assert json.loads(kept.read_text(encoding="utf-8"))["key"] == "canary"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert asked(colab)[-1] == "upload dialog"
    notebook.log_in("kaggle:owner/faces")
    assert asked(colab).count("upload dialog") == 1


def test_without_any_login_one_line_says_what_to_do(colab):
    with pytest.raises(ConfigError, match="no login was found; create a token at"):
        notebook.log_in("kaggle:owner/faces")
    assert not Path("~/.kaggle/kaggle.json").expanduser().exists()


def test_logins_are_asked_for_only_where_they_are_needed(colab, monkeypatch):
    notebook.log_in("demo", "/content/drive/MyDrive/runs", "train.max_epochs=2")
    assert asked(colab) == []
    monkeypatch.setenv("FAKE_COLAB_SECRETS", json.dumps({"WANDB_API_KEY": "canary"}))
    monkeypatch.setenv("WANDB_API_KEY", "")
    notebook.log_in("demo", "gs://bucket/runs", "logging.wandb.enabled=true")
    assert asked(colab) == ["secret WANDB_API_KEY", "authenticate"]
    assert os.environ["WANDB_API_KEY"] == "canary"


def test_data_on_this_disk_stay_where_they_are(tmp_path):
    (tmp_path / "faces/inner/real").mkdir(parents=True)
    assert notebook.bring(str(tmp_path / "faces")) == str(tmp_path / "faces")
    assert notebook.bring(str(tmp_path / "faces"), "inner") == str(tmp_path / "faces/inner")
    with pytest.raises(DataError, match=r"faces/outer: is not there; .* holds: inner"):
        notebook.bring(str(tmp_path / "faces"), "outer")


def test_a_page_is_shown_whole_and_its_absence_said(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    (tmp_path / "report.html").write_text('<p class="a">5 > 4 &amp; "so"</p>', encoding="utf-8")
    notebook.show_page(tmp_path / "report.html")
    assert 'srcdoc="&lt;p class=&quot;a&quot;&gt;5 &gt; 4 &amp;amp; &quot;so&quot;&lt;/p&gt;"' in shown[0].data
    with pytest.raises(DataError, match="there is no such page yet"):
        notebook.show_page(tmp_path / "none.html")


def test_the_drive_is_let_go_before_the_machine(colab, monkeypatch, capsys):
    notebook.finish()
    assert asked(colab) == ["flush and unmount"]
    notebook.finish(disconnect=True)
    assert asked(colab)[1:] == ["flush and unmount", "unassign"]
    monkeypatch.delenv("COLAB_RELEASE_TAG")
    notebook.finish(disconnect=True)
    assert "not Colab" in capsys.readouterr().out
    assert len(asked(colab)) == 3
