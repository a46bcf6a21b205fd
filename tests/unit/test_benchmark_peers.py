"""The contest with other libraries: scripts, environments, turns, and what happens to a peer that does not run."""

import json
import re
import sys
from pathlib import Path

import pytest

import hai.benchmark
from benchmarks.peers import __main__ as suite
from benchmarks.peers import contest, environments
from benchmarks.peers.contestant import Job
from benchmarks.peers.environments import PeerError, environment

FOLDER = Path(contest.__file__).parent
PEERS = {"loader": suite.LOADERS, "augment": suite.AUGMENTATIONS, "loop": suite.LOOPS}
LICENCES = ("MIT", "BSD-2-Clause", "BSD-3-Clause", "Apache-2.0")
TOY = """
import itertools
from benchmarks.peers.contestant import serve

calls = itertools.count()

def prepare(job):
    print("what a library prints")
    return lambda: {{"steps": job.steps, "folder": str(job.folder), "factor": {factor}}}

serve(prepare)
"""


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path / "faces", tmp_path / "scratch", workers=2, recipe={}, steps=7)


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    monkeypatch.setattr(contest, "_FOLDER", tmp_path)
    for name, text in {
        "work_hai": TOY.format(factor=1),
        "work_twice": TOY.format(factor=2),
        "work_broken": "import no_such_module",
        "work_dying": TOY.format(factor="job.no_such_field"),
        "work_fleeting": TOY.format(factor="1 / (3 - next(calls))"),
    }.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")


def test_every_peer_has_a_script_and_every_script_is_run():
    wanted = {f"{work}_{peer}" for work, peers in PEERS.items() for peer in ["hai", *peers]}
    assert wanted == {path.stem for path in FOLDER.glob("*_*.py") if not path.stem.startswith("_")}
    assert "peers" in hai.benchmark.suites()


@pytest.mark.parametrize("path", sorted(FOLDER.glob("requirements/*.txt")), ids=lambda path: path.stem)
def test_environments_are_pinned_by_name_and_version_and_say_their_licence(path):
    licence, *lines = path.read_text(encoding="utf-8").splitlines()
    assert licence.removeprefix("# ").split(";")[0] in LICENCES
    assert lines
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", line) for line in lines)
    assert path.stem in set().union(*PEERS.values())


def test_contestants_measure_by_turns_and_what_they_print_does_no_harm(job, scripts):
    turns = contest.measure_by_turns(["work_hai", "work_twice"], job, repeats=3)
    assert [turn["factor"] for turn in turns["hai"]] == [1, 1, 1]
    assert [turn["factor"] for turn in turns["twice"]] == [2, 2, 2]
    assert turns["hai"][0] == {"steps": 7, "folder": str(job.folder), "factor": 1}


def test_a_peer_that_does_not_run_is_a_line(job, scripts):
    lines = []
    turns = contest.measure_by_turns(["work_hai", "work_broken", "work_dying"], job, repeats=1, say=lines.append)
    assert list(turns) == ["hai"]
    assert lines == [
        "broken does not run: ModuleNotFoundError: No module named 'no_such_module'",
        "dying does not run: AttributeError: 'Job' object has no attribute 'no_such_field'",
    ]


def test_ours_must_run(job, scripts):
    with pytest.raises(PeerError, match="broken does not run"):
        contest.measure_by_turns(["work_broken", "work_hai"], job, repeats=1)


def test_a_peer_that_dies_between_turns_is_out_and_the_others_go_on(job, scripts):
    lines = []
    work = ["work_hai", "work_fleeting", "work_twice"]
    turns = contest.measure_by_turns(work, job, repeats=4, say=lines.append)
    assert {peer: len(measured) for peer, measured in turns.items()} == {"hai": 4, "twice": 4}
    assert lines == ["fleeting does not run: ZeroDivisionError: division by zero"]
    with pytest.raises(PeerError, match="fleeting does not run"):
        contest.measure_by_turns(["work_fleeting", "work_twice"], job._replace(scratch=job.scratch / "2"), repeats=4)


def test_a_peer_that_does_something_else_is_out_before_the_turns(job, scripts):
    def wrong(measured):
        return "" if measured["factor"] == 1 else f"has factor {measured['factor']}"

    lines = []
    turns = contest.measure_by_turns(["work_hai", "work_twice"], job, repeats=1, wrong=wrong, say=lines.append)
    assert list(turns) == ["hai"]
    assert lines == ["twice has factor 2"]


def test_an_epoch_is_every_image_at_its_size():
    epoch = {"images": suite.NUM_IMAGES - 32, "batches": ["uint8 (224, 224, 3)"]}
    assert suite._wrong_epoch(epoch) == ""
    assert suite._wrong_epoch(epoch | {"images": 640}) == "loads 640 of 4000 images"
    assert (
        suite._wrong_epoch(epoch | {"batches": ["uint8 (3, 256, 256)"]})
        == "loads uint8 (3, 256, 256), not 224 x 224 px"
    )


def test_an_environment_is_made_once_and_shares_our_packages(tmp_path, monkeypatch):
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(environments, "_REQUIREMENTS", tmp_path)
    assert environment("none") == sys.executable
    (tmp_path / "empty.txt").write_text("# MIT\n", encoding="utf-8")
    calls = []
    monkeypatch.setattr(environments, "_call", lambda command, peer: calls.append(command) or _make(command))
    python = environment("empty")
    assert environment("empty") == python
    assert len(calls) == 2
    (shared,) = Path(python).parents[1].glob("lib/*/site-packages/*.pth")
    assert str(Path(pytest.__file__).parents[1]) in shared.read_text(encoding="utf-8").splitlines()


def _make(command):
    if "venv" in command:
        (Path(command[-1]) / "lib/python3/site-packages").mkdir(parents=True)


def test_a_peer_that_cannot_be_installed_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(environments, "_REQUIREMENTS", tmp_path)
    (tmp_path / "lost.txt").write_text("./nothing-1.0-py3-none-any.whl\n", encoding="utf-8")
    with pytest.raises(PeerError, match=r"lost cannot be installed: .*nothing-1.0"):
        environment("lost")


def test_records_are_ratios_within_a_turn_and_a_missing_peer_has_no_value():
    def turns(seconds):
        return [
            {"wall": s, "cpu": 2 * s, "images": suite.NUM_IMAGES, "batches": ["uint8 (3, 224, 224)"]} for s in seconds
        ]

    measured = {"hai": turns([1.0, 2.0, 1.0]), "timm": turns([4.0, 8.0, 6.0])}
    records = {record["name"]: record for record in suite._of_epochs("loader", measured, {"timm": 5.0, "ffcv": 1.2})}
    assert records["loader_timm_wall_ratio"]["value"] == 4
    assert not records["loader_timm_wall_ratio"]["holds"]
    assert records["loader_timm_cpu_ratio"]["holds"]
    assert records["loader_ffcv_wall_ratio"]["value"] is None
    assert hai.benchmark.failed_floors(list(records.values())) == ["loader_timm_wall_ratio"]
    ours = {"added": 1e-4, "bare": 1e-3, "added_cpu": 1e-4}
    loops = suite._of_loops({"hai": [ours], "lightning": [ours | {"added": 3e-4}]})
    values = {record["name"]: record["value"] for record in loops}
    assert values["loop_lightning_added_ratio"] == pytest.approx(3)
    assert values["loop_lightning_added_cpu_ratio"] == pytest.approx(1)
    assert values["loop_accelerate_added_ratio"] is None
    assert values["loop_hai_added_microseconds"] == pytest.approx(100)
    json.dumps(loops)
