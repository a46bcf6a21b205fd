"""The notebooks as they are kept: without outputs, short, with a form that Colab reads."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

import hai
from hai import notebook

ROOT = Path(hai.__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FIELD = re.compile(r'([A-Z]+) = (.+?)  # @param (?:\{type:"(string|boolean)"\}|(\[.*\]) \{allow-input: true\})')


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    kept = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [{**cell, "text": "".join(cell["source"])} for cell in kept if cell["cell_type"] == kind]


def as_python(text: str) -> str:
    """A cell's code with its shell lines left out."""
    return re.sub(r"^(\s*)!.*$", r"\1pass", text, flags=re.MULTILINE)


def test_both_are_here():
    assert [path.name for path in NOTEBOOKS] == ["colab_single_node.ipynb", "tune_sweep.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_not_kept(path):
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells(path, "code"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_is_a_form_and_the_only_one_with_fields(path):
    form, *rest = cells(path, "code")
    fields = [line for line in form["text"].splitlines() if not line.startswith("#")]
    assert all(FIELD.fullmatch(line) for line in fields)
    assert form["metadata"] == {"cellView": "form"}
    assert not [cell for cell in rest if "@param" in cell["text"]]
    for line in fields:
        _, value, kind, choices = FIELD.fullmatch(line).groups()
        assert isinstance(ast.literal_eval(value), bool if kind == "boolean" else str)
        assert not choices or ast.literal_eval(value) in json.loads(choices)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_are_short_and_call_what_exists(path):
    for cell in cells(path, "code"):
        code = [line for line in cell["text"].splitlines() if line and not line.startswith("#")]
        assert len(code) <= 20
        for node in ast.walk(ast.parse(as_python(cell["text"]))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "notebook":
                assert node.attr in notebook.__all__


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_configs_in_the_form_are_here(path):
    (line,) = [line for line in cells(path, "code")[0]["text"].splitlines() if line.startswith("CONFIG")]
    assert all((ROOT / config).is_file() for config in json.loads(FIELD.fullmatch(line)[4]))


def test_by_default_they_do_not_share_a_name():
    forms = [cells(path, "code")[0]["text"] for path in NOTEBOOKS]
    names = [re.search(r'^NAME = "(.+?)"', form, re.MULTILINE)[1] for form in forms]
    assert names == ["demo", "demo-sweep"]


def fetch_code(path: Path, code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run what a notebook does in Colab to get the code from a git address, up to importing it."""
    (cell,) = [cell["text"] for cell in cells(path, "code") if cell["id"] == "code"]
    block = re.search(r"^if .*?:  # elsewhere.*?\n(.*?)    sys\.path", cell, re.DOTALL | re.MULTILINE)[1]
    python = re.sub(r"!(.*)$", lambda line: f"shell(f{line[1]!r})", block, flags=re.MULTILINE)

    def shell(line: str) -> None:
        subprocess.run(line, shell=True, cwd=folder, check=False, capture_output=True)

    monkeypatch.chdir(folder)
    names = {"CODE": code, "DATA": "demo", "STORAGE": "runs", "shell": shell, "os": os, "shlex": shlex}
    exec("if True:\n" + python, names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_code_comes_from_the_address_in_the_form_also_if_another_was_there(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        made = tmp_path / name / "hai"
        made.mkdir(parents=True)
        (made / "notebook.py").write_text(name, encoding="utf-8")
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path / name)]
        for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "made"]):
            subprocess.run([*git, *words], check=True)
    content = tmp_path / "content"
    (content / "hai-code" / "hai").mkdir(parents=True)  # as a session leaves it that took the Drive's
    fetched = content / "hai-code" / "hai" / "notebook.py"
    for name in ("one", "two", "two"):
        fetch_code(path, f"file://{tmp_path}/{name}", content, monkeypatch)
        assert fetched.read_text(encoding="utf-8") == name
    with pytest.raises(FileNotFoundError, match="CODE: no hai came from there"):
        fetch_code(path, "file:///nowhere", content, monkeypatch)
