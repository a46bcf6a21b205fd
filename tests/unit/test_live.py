"""What a terminal shows after a program wrote to it, and bars in a notebook's output."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from hai import live
from hai.launch.bar import TrainingBar
from hai.live import Screen, build_console
from hai.progress import progress_bar


@pytest.mark.parametrize(
    ("written", "seen"),
    [
        ("one\r\ntwo\r\n", "one\ntwo"),
        ("10 %\r50 %\r100 %\r\nend", "100 %\nend"),
        ("a long line\rshort", "shortg line"),
        ("a long line\r\x1b[2Kshort", "short"),
        ("kept gone\r\x1b[4C\x1b[0K", ""),
        ("kept gone\x1b[6G\x1b[K", "kept"),
        ("first\r\nsecond\r\n\x1b[1A\x1b[2Kagain", "first\nagain"),
        ("\x1b[1mbold\x1b[0m \x1b[38;5;200mred\x1b[m", "bold red"),
        ("\x1b[?25lhidden cursor\x1b[?25h", "hidden cursor"),
        ("\x1b]8;id=1;https://example.org\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("one\r\ntwo\r\nthree\x1b[2A\r\x1b[J", ""),
        ("ab\bc", "ac"),
        ("한국어 \x1b[31m안내\x1b[0m", "한국어 안내"),
    ],
)
def test_a_screen_shows_what_a_terminal_would(written, seen):
    whole, pieces = Screen(), Screen()
    whole.write(written)
    for character in written:
        pieces.write(character)
    assert pieces.text == whole.text == seen


def test_a_screen_keeps_the_newest_lines_of_a_long_output():
    screen = Screen()
    for number in range(5000):
        screen.write(f"line {number}\r\n\rbar {number}\r\x1b[2K")
    lines = screen.text.split("\n")
    assert len(lines) <= 500
    assert lines[-1] == "line 4999"


def test_bars_of_rich_leave_their_lines_and_nothing_else():
    screen = Screen()

    class Terminal(io.StringIO):
        def write(self, text: str) -> int:
            screen.write(text.replace("\n", "\r\n"))
            return len(text)

    console = Console(file=Terminal(), force_terminal=True, width=80, _environ={"TERM": "xterm"})
    with Progress(console=console, transient=True, auto_refresh=False) as bar:
        first, second = bar.add_task("first", total=10), bar.add_task("second", total=10)
        bar.refresh()
        console.print("a line above the bars")
        bar.update(first, completed=5)
        bar.update(second, completed=5)
        bar.refresh()
        assert screen.text.split("\n")[0] == "a line above the bars"
        assert "50%" in screen.text.split("\n")[2]
    assert screen.text == "a line above the bars"


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What stands in a cell's output: for each block the texts that it has had."""
    blocks: list[list[str]] = []

    class Handle:
        def __init__(self, block: list[str]) -> None:
            self.update = lambda content, raw: block.append(content["text/plain"])

    def display(content: dict[str, str], raw: bool, display_id: bool) -> Any:
        blocks.append([content["text/plain"]])
        return Handle(blocks[-1])

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr("hai.live.in_notebook", lambda: True)
    monkeypatch.setattr("hai.progress.in_notebook", lambda: True)
    return blocks


def test_training_in_a_notebook_is_one_block_with_a_bar_below_its_lines(cell):
    with TrainingBar() as bar:
        bar.say("data: train 1320")
        bar.show({"step": 10, "total_steps": 40, "epoch": 0.5, "loss": 0.5})
        bar._bar.refresh()
        assert "10/40 steps" in cell[0][-1]
        bar.say("resumed at step 10")
    assert len(cell) == 1
    assert cell[0][-1] == "data: train 1320\nresumed at step 10"


def test_a_job_in_a_notebook_has_a_bar(cell):
    with progress_bar("reading") as show:
        show(0, 100)
        show(60, 100)
        deadline = time.monotonic() + 30
        while "60/100 images" not in cell[0][-1] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "60/100 images" in cell[0][-1]
    assert len(cell) == 1
    assert cell[0][-1] == ""


def test_without_a_notebook_nothing_is_drawn_in_one():
    assert not live.in_notebook()
    assert build_console().file.__class__ is not live.NotebookTerminal
