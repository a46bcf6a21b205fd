"""The packages of contests: what is in them, what they refuse, what is said of them. Running them is a slow test."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import yaml
from ranked_run import save_ranker
from trained_run import save_image, save_network, save_run

from hai.checkpoint.format import load_checkpoint, write_checkpoint
from hai.errors import CheckpointError, ConfigError, DataError, StorageError
from hai.faces.settings import CropSettings
from hai.score_scale import Scale
from hai.submit.environment import (
    bare_environment,
    packages_for,
    pinned_lines,
    python_version,
    requirement_lines,
    run_command,
    training_packages,
)
from hai.submit.package import Package, Target, build_package
from hai.submit.proof import ISOLATED, Proof, contest_faults, draw_samples, full_rows, network_obstacle, save_sample
from hai.submit.run import check_rules, run_submission
from hai.trained import load_trained


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("runs"), threshold=0.505, temperature=0.25)


def build(run: Path, folder: Path, format: str = "dacon", faces: str = "auto") -> Package:
    folder.mkdir()
    return build_package(str(run), folder, format, frames=5, faces=faces, aggregate="median")


def test_a_package_holds_what_the_rules_ask_for(run: Path, tmp_path: Path) -> None:
    package = build(run, tmp_path / "package")
    top = sorted(path.name for path in package.folder.iterdir())
    assert top == ["README.md", "config", "env", "inference.py", "model", "src", "train.py"]
    assert sorted(path.name for path in (package.folder / "env").iterdir()) == [
        "Dockerfile",
        "requirements-train.txt",
        "requirements.txt",
    ]
    assert sorted(path.name for path in (package.folder / "model").iterdir()) == [
        "MANIFEST.json",
        "model.safetensors",
        "run.yaml",
        "state.json",
    ]
    settings = yaml.safe_load((package.folder / "config/inference.yaml").read_text(encoding="utf-8"))
    assert settings == {"frames": 5, "faces": "auto", "aggregate": "median", "time_limit": "55m"}
    assert not list((package.folder / "src").rglob("__pycache__"))
    assert not (package.folder / "src/facenet_pytorch").exists()
    readme = (package.folder / "README.md").read_text(encoding="utf-8")
    assert "temperature 0.25; the threshold is 0.505" in readme
    assert "{{" not in readme + (package.folder / "env/Dockerfile").read_text(encoding="utf-8")


def test_the_model_of_a_package_is_the_checkpoint(run: Path, tmp_path: Path) -> None:
    import torch

    package = build(run, tmp_path / "package")
    packed, own = (load_trained(str(path), torch.device("cpu")) for path in (package.folder / "model", run))
    assert packed.checkpoint.meta["exported"] == {"step": 3, "sha256": own.checkpoint.sha256}
    assert own.checkpoint.sha256 in (package.folder / "README.md").read_text(encoding="utf-8")
    assert torch.equal(*(next(one.model.parameters()) for one in (packed, own)))
    assert (packed.threshold, packed.temperature) == (0.505, 0.25)
    assert package.num_parameters == sum(tensor.numel() for tensor in own.model.state_dict().values())


def test_a_damaged_best_checkpoint_is_named_before_another_is_packed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save_run(tmp_path / "runs")
    best = run / "checkpoints" / "step_00000005"
    shutil.copytree(best.with_name("step_00000003"), best)
    os.truncate(best / "model.safetensors", 1)
    (run / "best.json").write_text(json.dumps({"step": 5}), encoding="utf-8")
    package = build(run, tmp_path / "package")
    assert load_checkpoint(package.folder / "model", state=False).meta["exported"]["step"] == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("refused checkpoint step_00000005: ")
    assert line.endswith("; using step_00000003")


def test_a_package_holds_no_trace_of_the_machine_that_made_it(tmp_path: Path) -> None:
    sources = "data.sources=[{name: clips, path: /mnt/me/clips}, {name: stills, path: /mnt/me/stills.csv}]"
    run = save_run(tmp_path / "runs", overrides=(sources, "storage=/mnt/me/runs"))
    text = (run / "run.yaml").read_text(encoding="utf-8")
    (run / "run.yaml").write_text(text.replace("pretrained: true", "pretrained: /mnt/me/weights.safetensors"))
    folder = build(run, tmp_path / "package").folder
    files = [path for path in folder.rglob("*") if path.is_file() and "src" not in path.parts]
    for path in files:
        assert b"/mnt/me" not in path.read_bytes(), path
        assert str(tmp_path).encode() not in path.read_bytes(), path
    command = "data.sources.0.path=clips data.sources.1.path=stills model.pretrained=weights.safetensors\n```\n"
    assert command in (folder / "README.md").read_text(encoding="utf-8")
    config = yaml.safe_load((folder / "config/config.yaml").read_text(encoding="utf-8"))
    assert [source["name"] for source in config["data"]["sources"]] == ["clips", "stills"]
    assert config["model"]["pretrained"] == "weights.safetensors"


def test_a_package_of_a_local_network_holds_no_trace_of_its_folder(tmp_path: Path) -> None:
    import torch

    network = save_network(tmp_path / "alice" / "vit")
    cut = CropSettings(detector="mediapipe", detector_model=str(tmp_path / "alice" / "face.tflite"))
    local = (f"model.name=hf:{network}", "model.pretrained=false")
    run = save_run(tmp_path / "runs", overrides=local, crop_settings=cut)
    folder = build(run, tmp_path / "package", faces="never").folder
    shutil.rmtree(network)
    for path in folder.rglob("*"):
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes(), path
    assert " model.name=hf:./vit\n```" in (folder / "README.md").read_text(encoding="utf-8")
    packed = load_trained(str(folder / "model"), torch.device("cpu"))
    assert packed.crop_settings is not None
    assert packed.crop_settings.detector_model == "face.tflite"


def test_python_files_of_a_package_compile_and_name_what_exists(run: Path, tmp_path: Path) -> None:
    import ast

    folder = build(run, tmp_path / "package", "aifactory").folder
    for name in ("inference.py", "train.py"):
        tree = ast.parse((folder / name).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hai"):
                assert (folder / "src" / Path(*node.module.split("."))).with_suffix(".py").exists() or (
                    folder / "src" / Path(*node.module.split(".")) / "__init__.py"
                ).exists()


def test_the_notebook_is_valid_and_empty(run: Path, tmp_path: Path) -> None:
    folder = build(run, tmp_path / "package", "aifactory").folder
    text = (folder / "task.ipynb").read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code[0].source == "%pip install -q -r env/requirements.txt"
    assert 'format="aifactory"' in code[2].source
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert json.loads(text)["cells"][0]["cell_type"] == "markdown"


def test_the_face_detector_comes_along_with_its_licence(raw: Path, tmp_path: Path) -> None:
    run = save_run(tmp_path / "runs", crop_settings=CropSettings(margin=0.3))
    source = build(run, tmp_path / "package").folder / "src/facenet_pytorch"
    found = sorted(path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file())
    assert found == ["LICENSE.md", "data/onet.pt", "data/pnet.pt", "data/rnet.pt"]
    assert "margin of 0.3, as for training" in (source.parents[1] / "README.md").read_text(encoding="utf-8")
    assert not (build(run, tmp_path / "never", faces="never").folder / "src/facenet_pytorch").exists()


def test_what_cannot_run_offline_is_refused(tmp_path: Path) -> None:
    run = save_run(tmp_path / "runs", crop_settings=CropSettings(detector="retinaface"))
    with pytest.raises(ConfigError, match=r"detector = retinaface; its weights come from the network"):
        build(run, tmp_path / "package")
    ranker = save_ranker(tmp_path / "runs", "ranker", Scale())
    with pytest.raises(ConfigError, match="is a ranker; contests take detectors"):
        build(ranker, tmp_path / "other")


def test_faces_cut_by_settings_of_another_version_are_refused_in_a_line(tmp_path: Path) -> None:
    run = save_run(tmp_path / "runs", crop_settings=CropSettings())
    (folder,) = (run / "checkpoints").iterdir()
    found = load_checkpoint(folder)
    other = tmp_path / "other"
    write_checkpoint(other, found.model, {}, {**found.meta, "crop_settings": {"of_tomorrow": 1}})
    (other / "run.yaml").write_bytes((run / "run.yaml").read_bytes())
    with pytest.raises(CheckpointError, match="settings that this version does not have"):
        build(other, tmp_path / "package")
    assert build(other, tmp_path / "never", faces="never").folder.is_dir()


def test_inputs_are_laid_out_for_the_notebook_under_the_names_of_the_table(tmp_path: Path) -> None:
    from contextlib import ExitStack

    from hai.predict import find_files
    from hai.submit.proof import gather_inputs

    for name in ("folder/a/b.png", "c.png"):
        save_image(tmp_path / name, 1)
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.write(tmp_path / "c.png", "inner/d.png")
    inputs = [str(tmp_path / name) for name in ("folder", "c.png", "more.zip")]
    gather_inputs(inputs, tmp_path / "data", tmp_path / "room")
    with ExitStack() as stack:
        named = [name for given in inputs for name, _ in find_files(given, stack)]
        assert sorted(named) == [name for name, _ in find_files(str(tmp_path / "data"), stack)]


def test_requirements_are_pinned_for_docker_and_open_for_notebooks() -> None:
    from hai.config.schema import ModelConfig

    names = packages_for(ModelConfig(name="compact"))
    assert "timm" not in names
    assert {"timm", "torchvision"} <= set(packages_for(ModelConfig(name="dual_branch")))
    exact = requirement_lines(names, exact=True).splitlines()
    assert all(re.fullmatch(r"[a-z-]+==[\w.]+", line) for line in exact)
    least = requirement_lines(names, exact=False).splitlines()
    assert {"torch>=2.5", "numpy>=1.26"} <= set(least), "a platform's own versions stay"
    assert len(least) == len(exact)
    of_driver = requirement_lines(["torch", "torchvision", "av"], exact=False, torch="2.7.1").splitlines()
    assert of_driver[:2] == ["torch==2.7.1", "torchvision"]
    assert of_driver[2].startswith("av>=")
    assert "ray[train,tune]" in training_packages()
    with pytest.raises(ConfigError, match="no-such-package is not installed here"):
        requirement_lines(["no-such-package"], exact=True)


def test_a_package_is_made_for_the_python_of_the_contest(run: Path, tmp_path: Path) -> None:
    assert python_version(sys.executable) == sys.version_info[:2]
    with pytest.raises(ConfigError, match=r"--python = no-python; is no Python that runs here"):
        python_version("no-python")
    old = tmp_path / "python3.8"
    old.write_text("#!/bin/sh\necho 3 8\n", encoding="utf-8")
    old.chmod(0o755)
    with pytest.raises(ConfigError, match=r"is Python 3\.8; scoring needs 3\.10 or newer"):
        run_submission(str(run), str(tmp_path / "out"), format="dacon", python=str(old))
    old.write_text("#!/bin/sh\necho 3 10\n", encoding="utf-8")
    folder = tmp_path / "package"
    folder.mkdir()
    target = Target(str(old), "2.7.1")
    build_package(str(run), folder, "dacon", frames=5, faces="auto", aggregate="mean", target=target)
    assert "FROM python:3.10-slim" in (folder / "env/Dockerfile").read_text(encoding="utf-8")
    lines = (folder / "env/requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if "==" in line] == ["torch==2.7.1"]


def test_versions_of_an_environment_are_pinned() -> None:
    found = pinned_lines(Path(sys.executable), "numpy>=1\nPillow>=2\n").splitlines()
    assert [line.partition("==")[0] for line in found] == ["numpy", "pillow"]
    assert all(re.fullmatch(r"[a-z]+==[\w.]+", line) for line in found)


def test_nothing_of_the_user_reaches_the_proof(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.setenv("KAGGLE_KEY", "secret")
    assert set(bare_environment(tmp_path)) & {"PYTHONPATH", "KAGGLE_KEY"} == set()
    assert bare_environment(tmp_path)["HOME"] == str(tmp_path)


def test_what_commands_say_is_kept_and_none_lasts_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [sys.executable, "-c", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"]
    status, said = run_command(words, {})
    assert status == 3
    assert set(said.split()) == {"out", "err"}
    monkeypatch.setattr("hai.submit.environment._MOST_SECONDS", 0.05)
    with pytest.raises(ConfigError, match="has not ended within an hour; try the package on fewer files"):
        run_command([sys.executable, "-c", "import time; time.sleep(30)"], {})


def test_rules_tell_what_holds_and_what_was_not_shown(run: Path, tmp_path: Path) -> None:
    package = build(run, tmp_path / "package")
    found = {rule.name: rule for rule in check_rules(package, None)}
    assert found["single model"].holds
    unknown = {"no network", "own environment", "columns", "frames as images", "time", "size"}
    assert {name for name, rule in found.items() if rule.holds is None} == unknown
    good = Proof(7, 3.0, "", 1e-7, 2e-7, [], [])
    found = {rule.name: rule for rule in check_rules(package, good)}
    assert all(rule.holds is not False for rule in found.values())
    assert {name for name, rule in found.items() if rule.holds is None} == {"frames as images", "time", "size"}
    (bad_table,) = (rule for rule in check_rules(package, replace(good, table=["no mark"])) if rule.holds is False)
    assert (bad_table.name, bad_table.what) == ("columns", "no mark")
    for bad in (
        replace(good, difference=2e-5),
        replace(good, difference_offline=1e-3),
        replace(good, difference_offline=None, others=["a: fake"]),
    ):
        assert [rule.name for rule in check_rules(package, bad) if rule.holds is False] == [
            "same scores as hai predict"
        ]
    (package.folder / "model/second.safetensors").write_bytes(b"")
    assert {rule.name: rule.holds for rule in check_rules(package, None)}["single model"] is False


TALK = """
import socket
with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
    print("here")
try:
    socket.create_connection(("192.0.2.1", 9))
except OSError:
    print("not there")
"""


def test_only_loopback_is_left_without_network_and_nothing_need_be_installed_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rn", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no unshare here")
    assert network_obstacle() == ""
    (tmp_path / "unshare").symlink_to(unshare)
    monkeypatch.setenv("PATH", str(tmp_path))
    words = [*ISOLATED, sys.executable, "-c", TALK]
    assert run_command(words, bare_environment(tmp_path)) == (0, "here\nnot there")


def test_what_keeps_the_network_is_told(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert network_obstacle() == "unshare is not installed"
    (tmp_path / "unshare").write_text("#!/bin/sh\necho unshare: not permitted >&2\nexit 1\n", encoding="utf-8")
    (tmp_path / "unshare").chmod(0o755)
    assert network_obstacle() == "unshare: not permitted"
    proof = Proof(7, 3.0, "", 1e-7, None, [], [], network_obstacle())
    (rule,) = [rule for rule in check_rules(build(run, tmp_path / "package"), proof) if rule.name == "no network"]
    assert (rule.holds, rule.what) == (None, "the network cannot be taken away: unshare: not permitted")


FULL = {"a.png": ("0.25", "real", ""), "b.png": ("0.75", "fake", ""), "c.mov": ("", "", "cannot be decoded")}
SAMPLE = ["c.mov", "b.png", "gone.png", "a.png"]
DACON = "\ufefffilename,prob\nc.mov,0.5\nb.png,0.75\ngone.png,0.5\na.png,0.25\n"
AIFACTORY = "filename,label\nc.mov,0\nb.png,1\ngone.png,0\na.png,0\n"


@pytest.mark.parametrize(
    ("format", "table", "faults"),
    [
        ("dacon", DACON, []),
        ("dacon", DACON.replace("0.75", "0.750001"), []),
        ("aifactory", AIFACTORY, []),
        ("dacon", DACON[1:], ["there is no byte order mark"]),
        ("aifactory", "\ufeff" + AIFACTORY, ["there is a byte order mark"]),
        ("dacon", DACON.replace("prob", "probability"), ["the header is filename,probability"]),
        ("dacon", DACON.replace("b.png,0.75\n", ""), ["the rows are not those of the sample file in its order"]),
        ("dacon", DACON + "a.png,0.25\n", ["the rows are not those of the sample file in its order"]),
        ("dacon", DACON.replace("0.75", "0.76"), ["b.png: 0.76; the full table has 0.75 fake"]),
        ("dacon", DACON.replace("c.mov,0.5", "c.mov,0"), ["c.mov: 0; the full table has cannot be decoded"]),
        ("dacon", DACON.replace("gone.png,0.5", "gone.png,"), ["gone.png: ; the full table has no file"]),
        ("aifactory", AIFACTORY.replace("b.png,1", "b.png,0"), ["b.png: 0; the full table has 0.75 fake"]),
        ("aifactory", AIFACTORY.replace("c.mov,0", "c.mov,1"), ["c.mov: 1; the full table has cannot be decoded"]),
        ("aifactory", AIFACTORY.replace("gone.png,0", "gone.png,1"), ["gone.png: 1; the full table has no file"]),
        ("dacon", "\ufeff", ["the header is ", "the rows are not those of the sample file in its order"]),
    ],
)  # fmt: skip
def test_a_contest_s_table_is_held_against_its_sample(format: str, table: str, faults: list[str]) -> None:
    assert contest_faults(table.encode(), format, SAMPLE, FULL, 0.505) == faults


def test_what_is_unusable_has_the_label_of_one_half_at_the_threshold() -> None:
    table = AIFACTORY.replace("c.mov,0", "c.mov,1").replace("gone.png,0", "gone.png,1").encode()
    assert contest_faults(table, "aifactory", SAMPLE, FULL, 0.5) == []
    assert len(contest_faults(AIFACTORY.encode(), "aifactory", SAMPLE, FULL, 0.5)) == 2


@pytest.mark.parametrize("format", ["dacon", "aifactory"])
def test_the_tables_of_hai_predict_are_what_contests_take(run: Path, tmp_path: Path, format: str) -> None:
    from hai.predict import run_prediction

    source, full, sample, table = (str(tmp_path / name) for name in ("in", "full.csv", "sample.csv", "table.csv"))
    for number, name in enumerate(("a.png", "b.png")):
        save_image(tmp_path / "in" / name, number)
    (tmp_path / "in" / "c.mov").write_bytes(b"no video")
    run_prediction([str(run)], [source], full)
    save_sample(Path(sample), SAMPLE)
    run_prediction([str(run)], [source], table, format=format, sample=sample)
    content, rows = Path(table).read_bytes(), full_rows(Path(full))
    assert contest_faults(content, format, SAMPLE, rows, 0.505) == []
    assert contest_faults(content, format, SAMPLE[::-1], rows, 0.505)


def test_all_wrong_arguments_are_named_at_once(run: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ConfigError) as caught:
        run_submission(
            str(run), str(tmp_path / "full"), format="zip", inputs=["gone"], frames=0, faces="some", aggregate="sum",
            torch="new",
        )  # fmt: skip
    starts = [line.split(";")[0].split(" = ")[0] for line in str(caught.value).split("\n")]
    assert starts == ["--format", "--output", "--faces", "--aggregate", "--frames", "--torch", "--input"]


@pytest.mark.parametrize("format", ["dacon", "aifactory"])
def test_names_that_a_contest_s_table_cannot_hold_are_refused_before_the_proof(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    monkeypatch.setattr("hai.submit.run.prove", lambda *args: pytest.fail("minutes of work"))
    days = [str(save_image(tmp_path / day / "001.png", 1).parent) for day in ("day1", "day2")]
    with pytest.raises(DataError, match=r"^--input: name that occurs in more than one input: 001\.png; .*; give one"):
        run_submission(str(run), str(tmp_path / "package"), format=format, inputs=days)
    assert not (tmp_path / "package").exists()


@pytest.mark.parametrize("name", ["samples", "package.zip"])
def test_a_package_without_proof_is_written_all_the_same(run: Path, tmp_path: Path, capsys, name: str) -> None:  # type: ignore[no-untyped-def]
    assert run_submission(str(run), str(tmp_path / name), format="dacon", proof=False) == 0
    said = capsys.readouterr().out
    assert "not run (--no-proof)" in said
    assert said.endswith(f"wrote {tmp_path / name}\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def fail_to_make(output: Path, error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be renamed to a path."""
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        if Path(target) == output:
            raise error
        real(source, target)

    monkeypatch.setattr("os.replace", replace)


def test_an_empty_folder_is_filled_from_inside_as_it_may_be_a_mounted_disk(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "volume"
    output.mkdir()
    fail_to_make(output, OSError(errno.EBUSY, os.strerror(errno.EBUSY)), monkeypatch)
    assert run_submission(str(run), str(output), format="dacon", proof=False) == 0
    found = sorted(path.name for path in output.iterdir())
    assert found == ["README.md", "config", "env", "inference.py", "model", "src", "train.py"]


def test_an_empty_folder_that_cannot_be_written_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(ConfigError, match=r"^--output = .*; the folder cannot be written; choose another$"):
        run_submission(str(run), str(tmp_path), format="dacon", proof=False)


@pytest.mark.parametrize("name", ["package", "package.zip"])
@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), shutil.Error([("a", "b", "No space left on device")])],
    ids=["one file", "many files"],
)
def test_a_package_that_cannot_be_put_in_place_is_kept_elsewhere(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: OSError,
    name: str,
) -> None:
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "cache"))
    fail_to_make(tmp_path / name, error, monkeypatch)
    with pytest.raises(StorageError) as caught:
        run_submission(str(run), str(tmp_path / name), format="dacon", proof=False)
    (kept,) = (tmp_path / "cache" / "submit").iterdir()
    reason = f"--output = {tmp_path / name}; cannot be written (No space left on device)"
    assert str(caught.value) == f"{reason}; the whole package is the folder {kept} instead"
    assert load_checkpoint(kept / "model", state=False).meta["exported"]["step"] == 3
    assert "not run (--no-proof)" in capsys.readouterr().out, "what was found is told all the same"
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_made_samples_are_of_several_kinds(tmp_path: Path) -> None:
    from hai.predict.pictures import Job, View, load_pictures

    files = sorted(draw_samples(tmp_path / "samples").iterdir())
    found = [load_pictures(View(32, "resize", 40.0), Job(0, path, 4)) for path in files]
    assert [len(pictures.pixels) for pictures in found] == [1, 1, 1, 1, 1, 4, 0]
    assert found[-1].error
