"""Carrying out a sweep's pieces of work with Ray Tune: one actor for as many trials at once as there is room for.

Tune starts and reuses processes and knows nothing else: what comes next, also after one has died, is the board's to
say, what has been learned lies in the trials' run folders, and Tune's own records go to a folder that is deleted at the
end.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any, cast

import ray
from ray import tune
from ray._private import auto_init_hook
from ray.tune.search import Searcher

from hai.config.schema import RunConfig
from hai.config.sweep import SweepSettings
from hai.errors import HaiError
from hai.launch.board import Board
from hai.launch.cluster import connected, forwarded
from hai.launch.leaving import move
from hai.launch.mailbox import POLL_SECONDS, Asked, Mailbox
from hai.launch.preemption import saving
from hai.launch.room import GROWS_TO, Room, machines_of, room_for
from hai.launch.signals import StopSignals
from hai.launch.trial import failure, telling, train_trial
from hai.types import STOP, Record

__all__ = ["train_on_tune"]

_PATIENCE_SECONDS = 60.0
_GRACE_SECONDS = 15.0
_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def train_on_tune(
    board: Board,
    config: RunConfig,
    settings: SweepSettings,
    *,
    prepare: Callable[[Room, Callable[[], int]], bool],
    time_left: Callable[[], float],
    say: Callable[[str], None],
    show: Callable[[Record], None],
) -> int:
    """Train trials until the board has no more or a signal comes; returns STOP in that case, else 0.

    Args:
        board: hands out work.
        config: the base config.
        settings: of the sweep.
        prepare: computes what all trials read, given the room and what asks it to stop; False if it was stopped.
        time_left: seconds until the sweep's time limit.
        say: takes a line for people.
        show: takes the sweep's progress.

    Raises:
        HaiError: a trial cannot fit, or what `prepare` raises.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    with connected(say), StopSignals(say) as signals:
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        machines = machines_of(ray.nodes(), os.environ)  # type: ignore[no-untyped-call]
        room = room_for(settings, config.scale, machines)
        say(f"room for {room}")
        if GROWS_TO in os.environ:  # ask for all machines at once, not for the next one when the last has come
            os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(room.trials)

        def request() -> int:
            return signals.request or (STOP if time_left() <= 0 else 0)

        if not prepare(room, request):  # a signal may have come to the workers' launcher, which heard it for us
            return STOP if time_left() > 0 else 0
        own_node = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        mailbox = ray.remote(num_cpus=0, label_selector=own_node)(Mailbox).remote()
        post = _Post(mailbox, board, say)
        with tempfile.TemporaryDirectory(prefix="hai-tune-") as scratch:
            _attend(_tuner(board, post, room, scratch), post, board, signals, time_left, say=say, show=show)
        return signals.request


class _Post:
    """What trials write, handed on by whichever thread looks first and in the order in which it was written."""

    def __init__(self, mailbox: Any, board: Board, say: Callable[[str], None]) -> None:
        self.mailbox, self.has_started = mailbox, False
        self._board, self._say, self._lock = board, say, threading.Lock()

    def deliver(self) -> None:
        """Hand on all that has come; when this returns, nothing that had come before is still on its way."""
        with self._lock:
            for kind, content in ray.get(self.mailbox.take.remote()):
                if kind == "trouble":
                    self._board.note_trouble(*content)
                elif kind == "say":
                    self._say(content)
                else:
                    self.has_started = True


def _tuner(board: Board, post: _Post, room: Room, scratch: str) -> Any:
    needs: dict[str, float] = {"cpu": room.cpus, "gpu": room.gpus}
    if room.workers > 1:  # the workers claim what they need; this process only waits for them
        needs = {"cpu": 0, "memory": 1 << 20}
    trainable = tune.with_parameters(_trial, mailbox=post.mailbox, room=room, environment=forwarded())
    return tune.Tuner(
        tune.with_resources(trainable, needs),
        tune_config=tune.TuneConfig(search_alg=_Work(board, room, post.deliver), num_samples=-1, reuse_actors=True),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=scratch,
            verbose=0,
            progress_reporter=tune.CLIReporter(),  # silent; in a notebook Tune's own choice would clear the cell
            failure_config=tune.FailureConfig(max_failures=0),  # the board counts; an announced end is none to Tune
        ),
    )


class _Work(Searcher):
    """Tune's view of the board: whatever it is asked to try is the next piece of work."""

    def __init__(
        self, board: Board | None, room: Room | None = None, deliver: Callable[[], None] | None = None
    ) -> None:
        super().__init__(metric="outcome", mode="max")
        self._board, self._room, self._deliver = board, room, deliver
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> Record | None:
        """Return the next piece; None while there is no room or nothing to do yet."""
        board, room = self._board, self._room
        assert board is not None
        assert room is not None
        if len(board.running) >= room.trials:
            return None
        job = board.take(lambda config: _shaped(config, room))
        if job is None:
            return cast("Record", Searcher.FINISHED) if board.is_over() else None
        self._numbers[trial_id] = int(job["number"])
        return {"job": json.dumps(job)}

    def on_trial_complete(self, trial_id: str, result: Record | None = None, error: bool = False) -> None:
        """Pass on how a piece has ended."""
        number, board, deliver = self._numbers.pop(trial_id), self._board, self._deliver
        assert board is not None
        assert deliver is not None
        outcome = (result or {}).get("outcome")
        if error or outcome is None:
            deliver()  # what its process has said before
            board.lost(number)
        else:
            board.ended(number, json.loads(outcome))

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Keep nothing: the board does."""

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """Read nothing."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel empty: Tune writes its settings into the scratch folder."""
        return (_Work, (None,))


def _shaped(config: RunConfig, room: Room) -> RunConfig:
    scale = config.scale.model_copy(
        update={"num_workers": room.workers, "cpus_per_worker": room.cpus, "use_gpu": room.gpus > 0}
    )
    return config.model_copy(update={"scale": scale})


def _trial(job: Record, mailbox: Any = None, room: Room | None = None, environment: Record | None = None) -> None:
    """Train one piece; runs in an actor of Tune's, in a thread."""
    assert room is not None
    os.environ.update(environment or {})
    record = json.loads(job["job"])
    number, asked = record["number"], Asked(mailbox)

    def say(line: str) -> None:
        mailbox.put.remote("say", line)

    def tell(line: str) -> None:
        say(f"trial {number}: {line}")

    asked.start()
    mailbox.put.remote("started", number)
    is_alone = room.workers == 1  # the workers of a group answer notices themselves
    try:
        with saving(asked.request, tell, is_first=is_alone, leave=lambda gone: move(gone, tell)) as request:
            outcome = train_trial(
                record, num_workers=room.workers, on_gpu=room.gpus > 0, request=request, say=telling(number, say)
            )
    except HaiError as error:  # the user's to mend: starting it again would not help
        outcome = failure(error)
    except Exception as error:
        ray.get(mailbox.put.remote("trouble", [number, failure(error)["error"]]))
        raise  # the board hands the piece out again, to a fresh process, and it resumes
    finally:
        asked.end()
    tune.report({"outcome": json.dumps(outcome)})


def _attend(
    tuner: Any, post: _Post, board: Board, signals: StopSignals, time_left: Callable[[], float], *,
    say: Callable[[str], None], show: Callable[[Record], None],
) -> None:  # fmt: skip
    """Run Tune in a thread; pass on signals and troubles until it ends."""
    failure: list[BaseException] = []

    def fit() -> None:
        try:
            tuner.fit()
        except BaseException as error:
            failure.append(error)

    fitting = threading.Thread(target=fit, name="hai-fit", daemon=True)
    fitting.start()
    patience, stopped = time.monotonic() + _PATIENCE_SECONDS, float("inf")
    while True:
        is_alive, is_late = fitting.is_alive(), time_left() <= 0
        if stopped == float("inf") and (signals.request or is_late):
            stopped = time.monotonic()
            if is_late and not signals.request:
                say("the time limit has come: saving what runs")
            board.stop()
            post.mailbox.ask.remote(STOP)
        post.deliver()
        if not post.has_started and time.monotonic() > patience:
            say("still waiting for the first trial to start: for others to be done, or for machines to come")
            patience = float("inf")
        show(board.progress())
        is_due = board.running and time.monotonic() > stopped + _GRACE_SECONDS
        is_unheard = is_due and ray.get(post.mailbox.silence.remote()) > _GRACE_SECONDS
        if not is_alive or is_unheard:  # what only waits for a machine would not hear that it is to stop
            break
        time.sleep(POLL_SECONDS)
    if fitting.is_alive():  # left behind, with the first thing it asks once ours is gone it would start another Ray
        auto_init_hook.enable_auto_connect = False
    if failure and not board.is_over():  # once all is done, what Tune makes of its own records matters to nobody
        raise failure[0]
