"""Squares around faces, and who is who from frame to frame."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hai.faces.boxes import Face, cut_face, square_around
from hai.faces.tracks import Sighting, appearance, link_faces


def face(left, top, right, bottom, score=0.99):
    return Face((float(left), float(top), float(right), float(bottom)), score, "mtcnn")


def test_the_square_has_the_margin_on_each_side():
    assert square_around(face(100, 100, 150, 180), 640, 480, 0.25) == (65, 80, 120)
    assert square_around(face(100, 100, 150, 180), 640, 480, 0.0) == (85, 100, 80)


@given(
    st.tuples(*[st.floats(-300, 900)] * 2),
    st.tuples(*[st.floats(1, 700)] * 2),
    st.tuples(st.integers(1, 700), st.integers(1, 700)),
    st.floats(0, 2),
)
def test_the_square_lies_in_the_image_whatever_the_box(corner, sides, size, margin):
    box = face(corner[0], corner[1], corner[0] + sides[0], corner[1] + sides[1])
    left, top, side = square_around(box, *size, margin)
    assert side >= 1
    assert 0 <= left <= size[0] - side
    assert 0 <= top <= size[1] - side


def test_a_crop_holds_the_very_pixels_unless_it_is_scaled():
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    whole = cut_face(image, face(40, 30, 80, 70), 0.0, 0)
    np.testing.assert_array_equal(whole, image[30:70, 40:80])
    assert not np.shares_memory(whole, image)
    assert cut_face(image, face(40, 30, 80, 70), 0.2, 224).shape == (224, 224, 3)


RNG = np.random.default_rng(1)
PEOPLE = {name: RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8) for name in "abc"}


def seen(position, places):
    """Put people on a wall; returns their sightings, named by the crop's first pixel."""
    wall = np.full((200, 600, 3), 127, dtype=np.uint8)
    for name, (left, top) in places.items():
        wall[top : top + 40, left : left + 40] = PEOPLE[name]
    sightings = []
    for name, (left, top) in places.items():
        found = face(left, top, left + 40, top + 40)
        sightings.append(Sighting(position, found, appearance(wall, found), np.full((1, 1, 3), ord(name), np.uint8)))
    return sightings


def names(track):
    return "".join(chr(sighting.crop[0, 0, 0]) for sighting in track.sightings)


def linked(*frames):
    return sorted(names(track) for track in link_faces([seen(at, places) for at, places in enumerate(frames)]))


def test_people_who_keep_their_places_keep_their_tracks():
    assert linked(*[{"a": (20 + at, 50), "b": (300 - at, 60)} for at in range(6)]) == ["aaaaaa", "bbbbbb"]


def test_people_who_change_places_between_frames_are_told_apart():
    assert linked({"a": (20, 50), "b": (90, 50)}, {"b": (20, 50), "a": (90, 50)}) == ["aa", "bb"]


def test_who_was_out_of_sight_is_found_again():
    assert linked({"a": (20, 50), "b": (300, 50)}, {"b": (300, 50)}, {"a": (30, 55), "b": (300, 50)}) == ["aa", "bbb"]


def test_who_moved_far_is_followed_by_looks():
    assert linked({"a": (20, 50)}, {"a": (400, 120)}) == ["aa"]
    assert linked({"a": (20, 50)}, {"b": (400, 120)}) == ["a", "b"]


def test_one_who_comes_in_does_not_take_over_a_track():
    assert linked({"a": (20, 50)}, {"a": (30, 50), "c": (55, 50)}, {"a": (40, 50), "c": (60, 50)}) == ["aaa", "cc"]


def test_the_track_with_most_to_see_comes_first():
    frames = [seen(at, {"a": (20, 50)} | ({"b": (300, 50)} if at % 2 else {})) for at in range(6)]
    assert [names(track) for track in link_faces(frames)] == ["aaaaaa", "bbb"]
    assert link_faces([[], []]) == []


@pytest.mark.parametrize("box", [(-50, -50, -10, -10), (700, 10, 740, 50), (10, 10, 10, 10)])
def test_a_box_beside_the_image_has_a_look_too(box):
    look = appearance(np.full((100, 600, 3), 127, dtype=np.uint8), face(*box))
    assert look.shape == (432,)
    assert np.isfinite(look).all()
