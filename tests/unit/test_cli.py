import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hai.benchmark
import hai.launch.train
import hai.predict
from hai.cli import main
from hai.config import config_schema, load_config, show_config
from hai.config.text import parse_yaml
from hai.data.manifest import load_manifest

ROOT = Path(hai.__file__).resolve().parents[1]
BASELINE = str(ROOT / "configs/detector/baseline.yaml")


def status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
def launched(monkeypatch):
    """What `train` hands to the launcher; nothing is trained."""
    calls = []
    monkeypatch.setattr(hai.launch.train, "run_training", lambda config, **rest: calls.append((config, rest)) or 3)
    return calls


def test_the_schema_and_the_reference_are_printed(capsys):
    assert status("config", "schema") == 0
    assert json.loads(capsys.readouterr().out) == config_schema()
    assert status("config", "schema", "--markdown") == 0
    assert capsys.readouterr().out == (ROOT / "docs/config.md").read_text(encoding="utf-8")


def test_a_full_disk_is_one_line(capsys, monkeypatch):
    def write(*_, **__):
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")

    monkeypatch.setattr(hai.launch.train, "run_training", write)
    assert status("train", "--config", BASELINE) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "No space left on device; make room and run the same command again" in told
    monkeypatch.setattr(hai.launch.train, "run_training", lambda *_, **__: Path("/nowhere/at/all").stat())
    with pytest.raises(FileNotFoundError):  # a bug keeps its traceback
        main(["train", "--config", BASELINE])


def test_a_config_is_shown_as_it_will_be_used(capsys):
    assert status("config", "show", BASELINE, "optim.learning_rate=3e-4") == 0
    shown, problems = parse_yaml(capsys.readouterr().out, "")
    assert not problems
    assert (shown["optim"]["learning_rate"], shown["train"]["max_epochs"], shown["scale"]["use_gpu"]) == (
        3e-4,
        100,
        None,
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["config", "show", "nowhere.yaml"], "nowhere.yaml: no such config file"),
        (["train"], "train: --config is missing"),
        (["train", "--config", BASELINE, "--workers", "3:1"], "command line: scale.num_workers = '3:1'; must be"),
        (["train", "--config", BASELINE, "--name", "a b"], "command line: name = a b; must be text matching"),
        (["train", "--config", BASELINE, "optim.lr=1"], "command line: optim.lr = 1; unknown key; did you mean optim."),
        (["train", "--resume", "nowhere"], "--resume = nowhere; must be a run folder or a checkpoint in one"),
        (["benchmark", "nothing"], "benchmark: suite = nothing; must be one of this checkout's suites"),
        (
            ["data", "split", "x", "--output", "y.csv", "--ratios", "1,2"],
            "command line: data.split_ratios = [1, 2]; must",
        ),
        (["data", "index", "nowhere"], "source data: path = nowhere; there is no such file or folder"),
    ],
)
def test_a_mistake_is_one_line_on_standard_error_and_status_2(arguments, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert status(*arguments) == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert printed.err.startswith(told)
    assert len(printed.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [(["trian"], "Did you mean 'train'"), (["train", "--confg", "x"], "--config"), (["data", "spilt"], "'split'")],
)
def test_a_wrong_verb_or_option_is_status_2_and_names_the_nearest(arguments, nearest, capsys):
    assert status(*arguments) == 2
    assert nearest in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(monkeypatch):
    def broken(*_: object, **__: object) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr(hai.launch.train, "run_training", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["train", "--config", BASELINE])


def test_options_of_train_become_config_and_the_launchers_status_is_the_commands(launched):
    arguments = [
        "--name",
        "123",
        "--storage",
        "a: b",
        "--workers",
        "1:4",
        "--dry-run",
        "--restart",
        "--wait-for-upload",
    ]
    assert status("train", "seed=7", "--config", BASELINE, *arguments, "train.max_epochs=2") == 3
    ((config, rest),) = launched
    assert (config.name, config.storage, config.scale.num_workers) == ("123", "a: b", "1:4")
    assert (config.seed, config.train.max_epochs) == (7, 2)
    flags = {"resume": None, "dry_run": True, "restart": True, "wait_for_upload": True, "config_name": "baseline"}
    assert rest == flags


@pytest.mark.parametrize("form", ["--input a b --checkpoint r s", "--checkpoint r --input a --checkpoint s --input b"])
def test_predict_takes_several_inputs_and_checkpoints(form, monkeypatch):
    calls = []
    monkeypatch.setattr(hai.predict, "run_prediction", lambda *given, **options: calls.append((given, options)) or 0)
    assert status("predict", *form.split(), "--output", "o.csv", "--format", "dacon", "--time-limit", "60m") == 0
    options = {"format": "dacon", "frames": 16, "faces": "auto", "aggregate": "mean", "time_limit": "60m"}
    options |= {"sample": None, "tta": None, "detector_model": None}
    assert calls == [((["r", "s"], ["a", "b"], "o.csv"), options)]


def test_a_run_can_be_resumed_without_its_config_file(launched, tmp_path):
    kept = load_config(BASELINE, ["storage=elsewhere", "train.max_epochs=5"])
    step = tmp_path / "old" / "checkpoints" / "step_00000010"
    step.mkdir(parents=True)
    (tmp_path / "old" / "run.yaml").write_text(show_config(kept), encoding="utf-8")
    for reference in (tmp_path / "old", step):
        assert status("train", "--resume", f"{reference}/", "train.max_epochs=9") == 3
    for config, rest in launched:
        assert (config.storage, config.train.max_epochs, config.optim) == (None, 9, kept.optim)
        assert rest["config_name"] == "old"


@pytest.mark.parametrize("job", sorted(path.stem for path in (ROOT / "ray_jobs").glob("*.py")))
def test_jobs_are_the_verbs_from_any_folder(job, tmp_path):
    command = [sys.executable, str(ROOT / "ray_jobs" / f"{job}.py"), "--helpp"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=tmp_path)
    assert done.returncode == 2
    assert f"Usage: hai {job}" in done.stderr


SUITE = """
def run(quick):
    value = 1.0 if quick else 3.0
    return [{"name": "speed", "value": value, "low": 0.9, "high": None, "floor": 2.0, "holds": value >= 2.0}]
"""


def test_a_benchmark_prints_and_writes_its_numbers_and_fails_below_a_floor(tmp_path, capsys, monkeypatch):
    (tmp_path / "toy.py").write_text(SUITE, encoding="utf-8")
    monkeypatch.setattr(hai.benchmark, "_FOLDER", tmp_path)
    assert status("benchmark", "toy", "--json", str(tmp_path / "out" / "toy.json")) == 0
    assert " ".join(capsys.readouterr().out.split()) == "name value low high floor holds speed 3 0.9 - 2 True"
    record = json.loads((tmp_path / "out" / "toy.json").read_text(encoding="utf-8"))
    assert {"commit", "hardware", "command", "date", "results"} <= record.keys()
    assert record["results"][0]["value"] == 3.0
    assert status("benchmark", "toy", "--quick") == 1
    assert "below their floors: speed" in capsys.readouterr().err


def test_all_suites_run_apart_and_one_that_fails_costs_only_itself(tmp_path, capsys, monkeypatch):
    (tmp_path / "loader.py").write_text("def run(quick):\n    raise SystemExit(3)\n", encoding="utf-8")
    (tmp_path / "step.py").write_text(SUITE, encoding="utf-8")
    (tmp_path / "chaos.py").write_text("raise SystemExit(4)\n", encoding="utf-8")
    monkeypatch.setattr(hai.benchmark, "_FOLDER", tmp_path)
    monkeypatch.setattr(
        hai.benchmark,
        "_HAI",
        f"""import pathlib, hai.benchmark
hai.benchmark._FOLDER = pathlib.Path({str(tmp_path)!r})
{hai.benchmark._HAI}""",
    )
    written = tmp_path / "all.json"
    assert status("benchmark", "all", "--json", str(written)) == 1
    assert "below their floors: loader: failed" in capsys.readouterr().err
    record = json.loads(written.read_text(encoding="utf-8"))
    assert [result["name"] for result in record["results"]] == ["loader: failed", "step: speed"]
    assert [suite["suite"] for suite in record["suites"]] == ["loader", "step"]
    assert all(suite["cpu_seconds"] > 0 for suite in record["suites"])


@pytest.fixture
def photos(tmp_path):
    """Twelve images in six groups of two, and one file that is no image."""
    random = np.random.default_rng(0)
    rows = []
    for i in range(12):
        label = ("real", "fake")[i % 2]
        (tmp_path / "photos" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 32, 3), dtype=np.uint8)).save(tmp_path / f"photos/{label}/{i}.png")
        rows.append([f"{label}/{i}.png", label, f"g{i // 4}{label}"])
    (tmp_path / "photos/real/bad.png").write_bytes(b"no image")
    with open(tmp_path / "photos/labels.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["path", "label", "group"], *rows, ["real/bad.png", "real", ""]])
    return tmp_path / "photos"


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_index_counts_images_and_names_bad_ones(photos, capsys, tmp_path):
    assert status("data", "index", str(photos / "labels.csv"), "--output", str(tmp_path / "index.parquet")) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["source", "split", "real", "fake", "groups"]
    assert ["all", "6", "6", "-"] in [line.split() for line in out.splitlines()]
    assert sum(line.startswith("warning: real/bad.png: ") for line in out.splitlines()) == 1
    manifest = load_manifest(tmp_path / "index.parquet")
    assert (len(manifest), len(set(manifest.group)), set(manifest.width), set(manifest.height)) == (12, 6, {32}, {40})


def test_split_keeps_groups_together_and_its_table_reads_back_the_same(photos, capsys):
    first, second = photos / "split.csv", photos / "again.csv"
    assert status("data", "split", str(photos / "labels.csv"), "--output", str(first), "--ratios", "0.4,0.3,0.3") == 0
    rows = table(first)
    assert all((photos / row["path"]).is_file() for row in rows)
    assert len({(row["group"], row["split"]) for row in rows}) == len({row["group"] for row in rows}) == 6
    assert {row["split"] for row in rows} == {"train", "val", "test"}
    assert status("data", "split", str(first), "--output", str(second), "--seed", "9") == 0
    assert {(row["path"], row["split"]) for row in table(second)} == {(row["path"], row["split"]) for row in rows}


def test_a_pack_holds_what_it_was_made_of(photos, tmp_path, capsys):
    assert status("data", "pack", str(photos / "labels.csv"), "--output", str(tmp_path / "pack")) == 0
    for name, data in (("a", photos / "labels.csv"), ("b", tmp_path / "pack")):
        assert status("data", "index", str(data), "--output", str(tmp_path / name)) == 0
    one, two = load_manifest(tmp_path / "a"), load_manifest(tmp_path / "b")
    assert one.identity == two.identity
    assert [one.read(i) for i in range(12)] == [two.read(i) for i in range(12)]


def test_runs_are_listed(tmp_path, capsys):
    assert status("runs", "--storage", str(tmp_path)) == 0
    assert capsys.readouterr().out == f"no runs in {tmp_path}\n"
    best = {"metric": "val/f1_macro", "value": 0.91234, "step": 20, "checkpoint": "step_00000020"}
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "run.yaml").write_text(show_config(load_config(BASELINE)), encoding="utf-8")
    summary = json.dumps({"status": "finished", "step": 30, "best": best})
    (tmp_path / "faces" / "summary.json").write_text(summary, encoding="utf-8")
    assert status("runs", "--storage", str(tmp_path)) == 0
    row = " ".join(capsys.readouterr().out.splitlines()[1].split())
    assert row == "faces detector finished 30 val/f1_macro 0.9123 at step 20 -"
