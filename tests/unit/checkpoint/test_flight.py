import json
import os

import pytest

from hai.checkpoint.flight import FLIGHT, Flight


def test_a_launch_that_ends_without_a_word_is_a_death_and_one_that_lands_is_none(tmp_path):
    first = Flight(tmp_path)
    assert first.deaths == []
    first.begin(0)
    for step in (0, 1, 1234567):
        first.at(step)
    assert json.loads((tmp_path / FLIGHT).read_bytes()) == [[0, 1234567]]
    second = Flight(tmp_path)
    assert second.deaths == [(0, 1234567)]
    second.begin(100)
    second.at(105)
    third = Flight(tmp_path)
    assert third.deaths == [(0, 1234567), (100, 105)]
    third.begin(100)
    third.at(101)
    third.land()
    fourth = Flight(tmp_path)
    assert fourth.deaths == [(0, 1234567), (100, 105)]
    fourth.forget()
    assert Flight(tmp_path).deaths == []
    for flight in (first, second):
        flight.land()


def test_a_launch_that_never_began_a_step_is_no_death(tmp_path):
    flight = Flight(tmp_path)
    flight.begin(7)
    assert Flight(tmp_path).deaths == []
    flight.land()


def test_a_second_beginning_starts_over(tmp_path):
    flight = Flight(tmp_path)
    flight.begin(0)
    flight.at(9)
    flight.begin(6)
    assert Flight(tmp_path).deaths == []
    flight.at(8)
    assert Flight(tmp_path).deaths == [(6, 8)]
    flight.land()


@pytest.mark.parametrize("content", [b"", b"[[1, 2", b"{}", b"[[1]]", b'[["a", "b"]]', b"\xff", b"3"])
def test_a_torn_diary_is_none(tmp_path, content):
    (tmp_path / FLIGHT).write_bytes(content)
    assert Flight(tmp_path).deaths == []


def test_the_diary_stays_short(tmp_path):
    for step in range(40):
        flight = Flight(tmp_path)
        flight.begin(step)
        flight.at(step)
        os.close(flight._file)
        flight._file = None
    assert Flight(tmp_path).deaths == [(step, step) for step in range(20, 40)]


def test_where_nothing_can_be_written_training_goes_on(tmp_path):
    flight = Flight(tmp_path / "file" / "run")
    (tmp_path / "file").write_bytes(b"")
    flight.begin(0)
    flight.at(3)
    flight.land()
