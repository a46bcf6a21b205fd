"""A sweep around its trials: what is refused, tried again, and left behind; a trial's value is made up."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest

import hai
from hai.checkpoint.remote import locate
from hai.config.sweep import load_sweep
from hai.distributed import Workers
from hai.errors import ConfigError, NonFiniteError, StorageError
from hai.launch import trial as trials
from hai.launch.board import Board
from hai.launch.plan import Plan
from hai.launch.room import Room
from hai.launch.sweep import _train_here
from hai.launch.tune import _Work
from hai.sweep.folder import SweepFolder
from hai.sweep.records import parse_trials
from hai.sweep.strategy import Strategy
from hai.tasks.ranker import RankerTask
from hai.types import SAVE, Record

SWEEP = """
task: ranker
data: {{sources: [{{name: art, path: "{art}"}}], image_size: 32}}
model: {{name: compact, pretrained: false, freeze_backbone: false}}
scale: {{launcher: in_process, use_gpu: false}}
train: {{max_epochs: 3}}
space: {{optim.learning_rate: {{loguniform: [1e-4, 1e-1]}}}}
sweep: {{num_trials: 2, scheduler: none, evaluate_test: false}}
"""
Trainer = Callable[[Record], Record]


@pytest.fixture
def sweep(small_art: Path, tmp_path: Path) -> Path:
    table = (small_art / "metadata.csv").read_text(encoding="utf-8")
    (tmp_path / "metadata.csv").write_text(table, encoding="utf-8")
    (tmp_path / "images").symlink_to(small_art / "images")
    path = tmp_path / "heads.yaml"
    path.write_text(SWEEP.format(art=tmp_path / "metadata.csv"), encoding="utf-8")
    return path


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the trials that were trained; each comes out well."""
    return play(monkeypatch, lambda job: {"status": "finished", "step": 6, "value": 0.5 + job["number"] / 100})


def play(monkeypatch: pytest.MonkeyPatch, train: Trainer) -> list[int]:
    asked: list[int] = []

    def train_trial(job: Record, **_: object) -> Record:
        asked.append(job["number"])
        return train(job)

    monkeypatch.setattr(trials, "train_trial", train_trial)
    return asked


def status(folder: Path) -> str:
    return str(json.loads((folder / "heads" / "summary.json").read_text(encoding="utf-8"))["status"])


def test_trials_are_compared_on_the_same_data(sweep: Path, trained: list[int], tmp_path: Path) -> None:
    assert hai.tune(sweep, storage=tmp_path).best
    table = tmp_path / "metadata.csv"
    whole = table.read_text(encoding="utf-8")
    table.write_text("\n".join(whole.splitlines()[:-1]) + "\n", encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"data: the sweep has \w{12}\.\.\., the sources now give \w{12}\.\.\.;.*\n.*--name"
    ):
        hai.tune(sweep, "sweep.num_trials=3", storage=tmp_path)
    table.write_text(whole, encoding="utf-8")
    hai.tune(sweep, "sweep.num_trials=3", storage=tmp_path)
    assert trained == [0, 1, 2, 3]


@pytest.mark.parametrize("on_url", [False, True])
def test_a_run_and_a_sweep_do_not_share_a_name(sweep: Path, trained: list[int], tmp_path: Path, on_url: bool) -> None:
    storage = f"memory://{tmp_path.name}" if on_url else str(tmp_path / "kept")
    files, root = fsspec.core.url_to_fs(storage)
    run = tmp_path / "run.yaml"
    run.write_text(sweep.read_text(encoding="utf-8").partition("space:")[0], encoding="utf-8")
    files.makedirs(f"{root}/taken")
    files.put_file(str(run), f"{root}/taken/run.yaml")
    with pytest.raises(ConfigError, match=r"^taken is a run; --name NAME starts a sweep beside it$"):
        hai.tune(sweep, name="taken", storage=storage)
    assert [name.rpartition("/")[2] for name in files.find(f"{root}/taken")] == ["run.yaml"]
    assert hai.tune(sweep, storage=storage).best
    left = files.find(f"{root}/heads")
    for restart in (False, True):
        with pytest.raises(ConfigError, match=r"^heads is a sweep; --name NAME starts a run beside it$"):
            hai.train(run, name="heads", storage=storage, restart=restart)
    assert files.find(f"{root}/heads") == left
    assert hai.tune(sweep, storage=storage).status == "finished"


def test_a_metric_that_no_evaluation_has_is_refused_before_a_trial(
    sweep: Path, trained: list[int], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"sweep\.metric = srrc; evaluations have .*pair_accuracy.*srcc"):
        hai.tune(sweep, "sweep.metric=srrc", storage=tmp_path)
    assert trained == []
    assert len(hai.tune(sweep, "sweep.metric=srcc", storage=tmp_path).trials) == 3


def test_what_may_be_mended_is_tried_again_when_the_sweep_goes_on(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(job: Record) -> Record:
        if job["number"] == 1:
            raise StorageError("gs://bucket: does not answer")
        if job["number"] == 2:
            raise NonFiniteError("loss = NaN")
        return {"status": "finished", "value": 0.5}

    first = play(monkeypatch, train)
    sweep_of = hai.tune(sweep, storage=tmp_path)
    assert (first, [trial.status for trial in sweep_of.trials]) == ([0, 1, 2], ["finished", "failed", "failed"])
    again = play(monkeypatch, lambda _: {"status": "finished", "value": 0.6})
    sweep_of = hai.tune(sweep, storage=tmp_path)
    assert (again, [trial.status for trial in sweep_of.trials]) == ([1], ["finished", "finished", "failed"])
    assert "trial 1 failed (gs://bucket: does not answer); trying it again" in "".join(capsys.readouterr())


def test_an_error_that_nobody_foresaw_costs_its_trial_alone(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(plan: Plan, *_: object) -> Record:
        if len(started := [*tmp_path.glob("heads/trials/*")]) == 2:
            raise KeyError("s3://user:canary-secret@bucket/x")
        return {"status": "finished", "step": 6 + len(started)}

    monkeypatch.setattr(trials, "_train_here", train)
    monkeypatch.setattr(trials, "_evaluations", lambda *_, **__: [(1, 1.0, 0.5)])
    with pytest.raises(ConfigError, match="no trial has a value"):  # none has a best checkpoint
        hai.tune(sweep, storage=tmp_path)
    folder = SweepFolder(locate(str(tmp_path), "heads"), "", print)
    first, broken, last = folder.load_trials()
    assert (first.status, broken.status, last.status) == ("finished", "failed", "finished")
    assert broken.may_retry
    log = (tmp_path / "heads" / broken.folder / "log.txt").read_text(encoding="utf-8")
    for text in (broken.error, log):
        assert "Traceback (most recent call last)" in text
        assert "KeyError: 's3://***@bucket/x'" in text
    assert folder.load_summary()["num_failed"] == 1


@pytest.mark.parametrize("on_gpu", [True, False])
def test_in_this_process_features_are_computed_where_trials_train(sweep: Path, on_gpu: bool) -> None:
    asked: list[str] = []

    class Task:
        def prepare(self, workers: Workers, **_: object) -> bool:
            asked.append(workers.device.type)
            return False

    loaded = load_sweep(sweep, [f"scale.use_gpu={on_gpu}"])
    assert _train_here(None, loaded, Task(), lambda: 1.0, SimpleNamespace(say=print)) == 0  # type: ignore[arg-type]
    assert asked == ["cuda" if on_gpu else "cpu"]


def test_in_this_process_a_notice_is_answered_with_a_checkpoint(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def train_trial(job: Record, *, request: Callable[[], int], **_: object) -> Record:
        (tmp_path / "leave").touch()
        while job["number"] == 0 and not asked:
            asked.extend(filter(None, [request()]))
        asked.extend(filter(None, [request()]))
        return {"status": "finished", "step": 6, "value": 0.5}

    monkeypatch.setenv("HAI_NOTICE_FILE", str(tmp_path / "leave"))
    monkeypatch.setattr(trials, "train_trial", train_trial)
    assert hai.tune(sweep, storage=tmp_path).status == "finished"
    assert asked == [SAVE]


def test_trouble_at_the_end_leaves_a_sweep_that_goes_on(
    sweep: Path, trained: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate(*_: object, **__: object) -> Record:
        raise StorageError("gs://bucket: does not answer")

    monkeypatch.setattr("hai.evaluation.evaluate_checkpoint", evaluate)
    with pytest.raises(StorageError):
        hai.tune(sweep, "sweep.evaluate_test=true", storage=tmp_path)
    assert status(tmp_path) == "interrupted"
    assert (tmp_path / "heads" / "best.yaml").read_text(encoding="utf-8").startswith("# Trial 2 of the sweep heads")
    measured = {"metrics": {"pair_accuracy": {"value": 0.7, "low": 0.6, "high": 0.8}}, "n": 8, "num_groups": 4}
    monkeypatch.setattr("hai.evaluation.evaluate_checkpoint", lambda *_, **__: measured)
    hai.tune(sweep, "sweep.evaluate_test=true", storage=tmp_path)
    assert status(tmp_path) == "finished"
    assert trained == [0, 1, 2]


def board_of(sweep: Path, folder: Path, heard: list[str], max_failures: int) -> Board:
    loaded = load_sweep(sweep)
    return Board(
        Strategy(loaded, 3.0), SweepFolder(locate(str(folder), "heads"), "", print), metric="srcc", mode="max",
        keys=list(loaded.space), common={"storage": str(folder)}, max_failures=max_failures, say=heard.append,
    )  # fmt: skip


def handed_out(board: Board) -> int | None:
    job = board.take(lambda config: config)
    return None if job is None else int(job["number"])


def test_work_whose_process_died_is_handed_out_again_as_often_as_asked(sweep: Path, tmp_path: Path) -> None:
    heard: list[str] = []
    board = board_of(sweep, tmp_path, heard, max_failures=2)
    taken = []
    for _ in range(3):
        taken.append(handed_out(board))
        board.lost(0)
    assert taken == [0, 0, 0]
    assert heard[:2] == [
        "trial 0: its process has died; most likely memory has run out; starting it again from its newest checkpoint"
    ] * 2  # fmt: skip
    assert "memory has run out (failure 3, scale.max_failures = 2)" in heard[2]
    assert (board.trials[0].status, board.trials[0].may_retry) == ("failed", True)
    assert handed_out(board) == 1
    board.ended(1, {"status": "paused", "step": 2, "value": 0.5, "last": 0.5})
    assert not board.running


def test_a_count_of_failures_begins_anew_with_the_next_piece(sweep: Path, tmp_path: Path) -> None:
    board = board_of(sweep, tmp_path, [], max_failures=1)
    for outcome in ("interrupted", "finished"):
        assert handed_out(board) == 0
        board.lost(0)
        assert handed_out(board) == 0
        board.ended(0, {"status": outcome, "step": 6, "value": 0.5})
    assert board.trials[0].status == "finished"


def test_work_is_handed_out_for_ever_where_that_is_asked_for(sweep: Path, tmp_path: Path) -> None:
    board = board_of(sweep, tmp_path, [], max_failures=-1)
    for _ in range(20):
        assert handed_out(board) == 0
        board.lost(0)


def test_after_a_stop_what_was_lost_waits_for_the_next_time(sweep: Path, tmp_path: Path) -> None:
    heard: list[str] = []
    board = board_of(sweep, tmp_path, heard, max_failures=3)
    assert handed_out(board) == 0
    board.stop()
    board.lost(0)
    assert heard[-1].endswith("run out; the same command goes on with it")
    assert (handed_out(board), board.is_over(), board.has_more()) == (None, True, True)
    assert board.trials[0].status == "pending"


def test_a_failure_is_told_with_its_reason_and_no_secret(sweep: Path, tmp_path: Path) -> None:
    heard: list[str] = []
    board = board_of(sweep, tmp_path, heard, max_failures=1)
    for _ in range(2):
        assert handed_out(board) == 0
        board.note_trouble(0, "RuntimeError: see s3://user:canary-secret@bucket/x\nTraceback ...")
        board.lost(0)
    assert heard[0] == "trial 0: RuntimeError: see s3://***@bucket/x; starting it again from its newest checkpoint"
    error = parse_trials((tmp_path / "heads" / "trials.csv").read_text(encoding="utf-8"))[0].error
    assert error.startswith("RuntimeError: see s3://***@bucket/x (failure 2, scale.max_failures = 1)\nTraceback")
    assert "canary" not in "".join(heard)


def test_what_a_process_wrote_is_read_before_its_end_is_noted(sweep: Path, tmp_path: Path) -> None:
    heard: list[str] = []
    board = board_of(sweep, tmp_path, heard, max_failures=1)
    room = Room(trials=1, workers=1, cpus=1, gpus=0.0)
    work = _Work(board, room, lambda: board.note_trouble(0, "OSError: the card has fallen off"))
    job = work.suggest("a")
    assert job is not None
    assert json.loads(job["job"])["number"] == 0
    assert work.suggest("b") is None  # there is no room
    work.on_trial_complete("a", error=True)
    assert heard == ["trial 0: OSError: the card has fallen off; starting it again from its newest checkpoint"]
    again = work.suggest("b")
    assert again == job
    work.on_trial_complete("b", {"outcome": json.dumps({"status": "finished", "step": 6, "value": 0.5})})
    assert board.trials[0].status == "finished"


def test_a_sweep_out_of_time_shows_what_it_has_and_is_not_finished(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr("hai.launch.sweep.time", SimpleNamespace(monotonic=lambda: clock[0]))

    def train(job: Record) -> Record:
        clock[0] += 50.0
        return {"status": "finished", "step": 6, "value": 0.5}

    asked = play(monkeypatch, train)
    for turn, status_then in enumerate(["interrupted", "finished"]):
        found = hai.tune(sweep, "sweep.time_limit_minutes=1.5", storage=tmp_path)
        assert (found.status, status(tmp_path)) == (status_then, status_then)
        assert ("the time limit has come before the end" in "".join(capsys.readouterr())) != bool(turn)
        assert (tmp_path / "heads" / "report.html").exists()
    assert asked == [0, 1, 2]


def test_too_little_time_is_called_that(sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, lambda _: {"status": "interrupted", "step": 3})
    with pytest.raises(ConfigError, match="no trial has a value\nthe time limit came before the first evaluation"):
        hai.tune(sweep, "sweep.time_limit_minutes=1e-9", storage=tmp_path)
    assert status(tmp_path) == "interrupted"


def test_a_trial_that_went_on_from_another_has_no_credit_for_what_that_had_reached(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of real trainings whose every evaluation comes out worse than the one before, whoever makes it."""
    values = itertools.count(-1, -1)
    metrics = RankerTask.metrics
    monkeypatch.setattr(
        RankerTask, "metrics", lambda task, found: {**metrics(task, found), task.metric: 0.9 + next(values) / 100}
    )
    pbt = ["sweep.scheduler=pbt", "sweep.include_base=false", "train.max_epochs=2", "scale.cpus_per_worker=1"]
    found = hai.tune(sweep, *pbt, "sweep.evaluate_test=false", storage=tmp_path)
    first, second, child = found.trials
    assert child.parent == f"{first.id}/step_{first.history[0][0]:08d}"
    assert [trial.value for trial in found.trials] == [trial.history[0][1] for trial in found.trials]
    assert [step for step, _ in child.history] == [2 * first.history[0][0]]
    assert child.value < second.value < first.value
    assert found.best_checkpoint.endswith(first.id)


def test_of_a_trials_lines_those_are_passed_on_that_people_must_know() -> None:
    heard: list[str] = []
    tell = trials.telling(7, heard.append)
    for line in (
        "epoch 1, step 3/9: val ...",
        "storage: not on gs://b: step_00000003",
        "starting from step 0 on 1 worker",
    ):
        tell(line)
    assert heard == ["trial 7: storage: not on gs://b: step_00000003"]
