from __future__ import annotations

import io
import sys

import pytest

from hai import progress
from hai.console import shown_bytes
from hai.progress import progress_bar


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (999_600, "1 MB"),
        (1_230_000_000, "1.23 GB"),
        (5e15, "5e+03 TB"),
    ],
)
def test_bytes_for_people(count, text):
    assert shown_bytes(count) == text


def test_plain_lines_say_speed_and_remaining_time(monkeypatch, capsys):
    clock = iter([0.0, 4.0, 10.0, 12.0, 30.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress_bar("downloading", "bytes") as show:
        for done in (500_000_000, 600_000_000, 700_000_000, 750_000_000, 800_000_000):
            show(done, 10_000_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "downloading: 700 MB/10 GB, 20 MB/s, ETA 7:45",
        "downloading: 800 MB/10 GB, 5 MB/s, ETA 30:40",
    ]


def test_plain_lines_without_a_total_or_speed(monkeypatch, capsys):
    clock = iter([0.0, 10.0, 20.0, 21.0, 31.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress_bar("reading") as show:
        for done, total in ((0, 0), (50, 0), (50, 100), (5, 10_000_000), (15, 10_000_000)):
            show(done, total)  # the fourth starts over
    assert capsys.readouterr().err.splitlines() == [
        "reading: 50 images, 5/s",
        "reading: 50/100 images, 0/s",
        "reading: 15/10000000 images, 1/s, ETA 2777:46:25",
    ]


def test_slow_work_has_a_speed(monkeypatch, capsys):
    clock = iter([0.0, 20.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress_bar("scoring", "files") as show:
        show(0, 30)
        show(3, 30)
    assert capsys.readouterr().err == "scoring: 3/30 files, 0.15/s, ETA 3:00\n"


def test_a_bar_on_a_terminal_does_not_count_what_was_there(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress_bar("downloading", "bytes") as show:
        show(5_000_000_000, 10_000_000_000)
        show(5_000_001_000, 10_000_000_000)
    said = terminal.getvalue()
    assert "5.0/10.0 GB" in said
    assert "GB/s" not in said
