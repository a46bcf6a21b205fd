"""The notebooks from top to bottom: in a Colab that tests/fake_colab plays, and outside of it."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import hai

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

ROOT = Path(hai.__file__).resolve().parents[1]
FAKE = Path(__file__).parents[1] / "fake_colab"
FAST = "data.image_size=64 train.eval_batch_size=64 scale.cpus_per_worker=1 scale.use_gpu=false"


def filled(name: str, **values: Any) -> Any:
    """A notebook with other values in its form, as Colab writes them into the cell."""
    book = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    form = next(cell for cell in book.cells if cell.cell_type == "code")
    for field, value in values.items():
        form.source, count = re.subn(
            rf"^{field} = .+?(?=  # @param)",
            lambda _, f=field, v=value: f"{f} = {v!r}",
            form.source,
            flags=re.MULTILINE,
        )
        assert count == 1, field
    return book


def execute(book: Any, folder: Path, *, kernel: str = "python3", **environment: str) -> dict[str, str]:
    """Run all cells in a new kernel and return what each shows, by its id."""
    place = {"metadata": {"path": str(folder)}}
    client = nbclient.NotebookClient(book, timeout=600, kernel_name=kernel, resources=place)
    try:
        client.execute(env={**os.environ, **environment})
    except nbclient.exceptions.CellExecutionError as error:
        pytest.fail("\n".join([str(error), *(shown(cell) for cell in book.cells if cell.cell_type == "code")]))
    return {cell.id: shown(cell) for cell in book.cells if cell.cell_type == "code"}


def shown(cell: Any) -> str:
    texts = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        kinds = (data.get(kind) for kind in ("text/html", "application/javascript", "text/plain"))
        texts.append(output.get("text") or next(filter(None, kinds), ""))
    return "\n".join(texts)


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def make_kernel(folder: Path, name: str) -> Path:
    """Make a kernel whose Python has what this one has but for hai, in an environment that it may install into.

    Returns:
        The folder of the environment.
    """
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "others.pth").write_text("\n".join(others) + "\n", encoding="utf-8")
    (environment / "bin/tensorboard").symlink_to(Path(sys.executable).with_name("tensorboard"))
    spec = folder / "jupyter/kernels" / name / "kernel.json"
    spec.parent.mkdir(parents=True)
    words = [str(environment / "bin/python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": words, "display_name": name, "language": "python"}), encoding="utf-8")
    return environment


@pytest.fixture
def colab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The environment of a kernel in Colab; its Drive holds the code. TensorBoards that it started end with it."""
    own, places = make_kernel(tmp_path, "colab"), os.environ["PATH"].split(os.pathsep)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    content = tmp_path / "content"
    home = content / "drive/MyDrive/hai"
    home.mkdir(parents=True)
    for part in ("hai", "configs"):
        shutil.copytree(ROOT / part, home / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, home)
    package = home / "hai/__init__.py"
    text = package.read_text(encoding="utf-8")
    package.write_text(text.replace(hai.__version__, f"{hai.__version__}+drive"), encoding="utf-8")
    yield {
        "COLAB_RELEASE_TAG": "release-colab-external",
        "FAKE_COLAB": str(content / "asked.txt"),
        "PYTHONPATH": str(FAKE),
        "HAI_CACHE": str(tmp_path / "machine"),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # as every kernel sets it
        "JUPYTER_PLATFORM_DIRS": "1",
        "PATH": os.pathsep.join([str(own / "bin"), *(place for place in places if not Path(place, "hai").exists())]),
    }
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "tensorboard" in " ".join(process.cmdline()) and str(tmp_path) in " ".join(process.cmdline()):
                process.kill()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_colab_twice_and_the_second_session_goes_on(colab: dict[str, str], tmp_path: Path) -> None:
    content = tmp_path / "content"
    drive = content / "drive/MyDrive"
    form = {"CODE": f"{drive}/hai", "STORAGE": f"{drive}/my runs", "NAME": "first"}
    book = filled("colab_single_node.ipynb", **form, SETTINGS=f"train.max_steps=4 {FAST}")
    seen = execute(book, content, kernel="colab", **colab)
    run = drive / "my runs/first"
    assert f"+drive from {content}/hai-code" in seen["code"]
    assert (tmp_path / "environment/bin/hai").is_file()
    assert seen["logins"] == ""
    assert seen["train"].startswith("$ hai train --config configs/detector/demo.yaml --name first")
    assert "best f1_macro" in seen["train"]
    assert "\x1b" not in "".join(seen.values())
    assert "tensorboard" in seen["tensorboard"]
    assert "ERROR" not in seen["tensorboard"]
    assert "<iframe srcdoc=" in seen["evaluate"]
    assert "f1_macro" in seen["evaluate"]
    assert re.search(r"first +detector +finished +4", seen["end"])
    asked = (content / "asked.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in asked if not line.startswith("secret ")] == ["mount /content/drive", "flush and unmount"]
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert summary["step"] == 4

    shutil.rmtree(tmp_path / "machine")  # the machine is lost, the Drive is not
    again = {**form, "SETTINGS": f"train.max_steps=8 scale.launcher=in_process {FAST}", "DISCONNECT": True}
    seen = execute(filled("colab_single_node.ipynb", **again), content, kernel="colab", **colab)
    assert "resuming from step_00000004" in seen["train"]
    steps = [record["step"] for record in records(run)]
    assert steps == sorted(set(steps))
    assert steps[-1] == 8
    assert (content / "asked.txt").read_text(encoding="utf-8").split()[-1] == "unassign"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_a_sweep_outside_colab_twice_and_the_second_finds_it_done(small_faces: Path, tmp_path: Path) -> None:
    settings = f"sweep.scheduler=none sweep.num_trials=1 sweep.max_concurrent=1 train.max_steps=2 {FAST}"
    form = {"CODE": "", "DATA": str(small_faces), "STORAGE": str(tmp_path), "NAME": "found", "SETTINGS": settings}
    for turn in range(2):
        seen = execute(filled("tune_sweep.ipynb", **form), tmp_path, PYTHONPATH=str(ROOT))
        assert ("sweep found is finished" in seen["sweep"]) == bool(turn)
        assert bool(re.search("^trial 1: ", seen["sweep"], re.MULTILINE)) != bool(turn)
        assert "optim.learning_rate" in seen["result"]
        assert re.search(rf"best checkpoint: {tmp_path}/found/trials/\w+", seen["result"])
        assert "<iframe srcdoc=" in seen["result"]
        assert "not Colab" in seen["end"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_stopping_the_cell_saves_and_a_mistake_is_one_line(tiny_detector: Path, tmp_path: Path) -> None:
    train = f'["train", "--config", {str(tiny_detector)!r}, "--storage", {str(tmp_path)!r}, "scale.launcher=in_process"'
    book = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("from hai import notebook"),
            nbformat.v4.new_code_cell(f'notebook.run(*{train}, "optim.lerning_rate=1"])'),
            nbformat.v4.new_code_cell(f'notebook.run(*{train}, "train.max_steps=100000"])'),
        ]
    )
    client = nbclient.NotebookClient(
        book, timeout=300, allow_errors=True, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.create_kernel_manager()
    metrics = tmp_path / "tiny/metrics.jsonl"
    threading.Thread(target=_when, args=(metrics.exists, lambda: _interrupt(client)), daemon=True).start()
    client.execute(env={**os.environ, "PYTHONPATH": str(ROOT)})
    mistake, stopped = (cell.outputs for cell in book.cells[1:])
    assert "optim.learning_rate" in mistake[0]["data"]["text/plain"]
    assert mistake[1]["traceback"] == ["hai train ended with status 2; mend what it says above and run this cell again"]
    assert "SIGINT: saving a checkpoint" in stopped[0]["data"]["text/plain"]
    assert stopped[1]["traceback"] == ["stopped, with everything saved; run this cell again to go on"]
    summary = json.loads((tmp_path / "tiny/summary.json").read_text(encoding="utf-8"))
    assert summary["status"] == "interrupted"


def _when(condition: Callable[[], bool], act: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.1)
    act()


def _interrupt(client: Any) -> None:
    os.kill(client.km.provisioner.pid, 2)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("started", [[], ["nohup"]], ids=["as usual", "nohup"])
def test_a_command_does_not_outlive_its_kernel(tmp_path: Path, started: list[str]) -> None:
    ready = tmp_path / "ready"
    sleep = f"import time, pathlib; pathlib.Path({str(ready)!r}).touch(); time.sleep(600)"
    code = (
        "import subprocess, sys\nfrom hai import notebook\n"
        f"notebook._COMMAND = notebook._COMMAND.partition('from hai.cli')[0] + {sleep!r}\n"
        "notebook.run('sleeps', 'canary-of-the-kernel')"
    )
    kernel = subprocess.Popen(
        [*started, sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL
    )
    while not ready.exists():
        assert kernel.poll() is None
        time.sleep(0.05)
    sleeping = [child for child in psutil.Process(kernel.pid).children() if "canary-of-the-kernel" in child.cmdline()]
    assert sleeping
    kernel.kill()
    kernel.wait()
    assert psutil.wait_procs(sleeping, timeout=60)[1] == []


def test_the_form_takes_what_colab_writes() -> None:
    book = filled("colab_single_node.ipynb", NAME="a 'name'", DISCONNECT=True)
    form = next(cell for cell in book.cells if cell.cell_type == "code").source
    values = {node.targets[0].id: node.value for node in ast.parse(form).body}
    assert ast.literal_eval(values["NAME"]) == "a 'name'"
    assert ast.literal_eval(values["DISCONNECT"]) is True
