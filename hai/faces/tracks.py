"""Following faces through the frames of a video, so that the crops of one person are not mixed with another's."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hai.data.images import fit_image
from hai.faces.boxes import Face

__all__ = ["Sighting", "Track", "appearance", "link_faces"]

_NEAR: Final = 1.0
"""Distance between the centres, in sides, up to which a face may be the next one of a track whatever it looks like."""
_ALIKE: Final = 0.6
"""Correlation of appearances from which it may be farther away."""
_GROWTH: Final = math.log(2.0)
_THUMBNAIL: Final = 12
_WEIGHT: Final = 2.0
"""What appearance counts against distance: two people who cross within the pause between frames are told apart."""


@dataclass(frozen=True)
class Sighting:
    """A face in one frame."""

    position: int
    """Number of the frame among those looked at."""
    face: Face
    look: NDArray[np.float32]
    """What `appearance` says."""
    crop: NDArray[np.uint8]
    """[size, size, 3]."""


@dataclass
class Track:
    """The sightings of one person, in order of time, at most one a frame."""

    sightings: list[Sighting] = field(default_factory=list)

    @property
    def size(self) -> float:
        """Return how much there is to see of the person: the sum of the sides of all sightings."""
        return sum(sighting.face.side for sighting in self.sightings)


def appearance(image: NDArray[np.uint8], face: Face) -> NDArray[np.float32]:
    """Sum up what a face looks like: a tiny colour picture as a vector of length 1 without its mean, [432]."""
    left, top, right, bottom = (round(edge) for edge in face.box)
    part = image[max(top, 0) : max(bottom, top + 1, 1), max(left, 0) : max(right, left + 1, 1)]
    if not part.size:
        return np.zeros(3 * _THUMBNAIL**2, dtype=np.float32)
    values = fit_image(part.copy(), _THUMBNAIL, "resize").astype(np.float32).ravel()
    values -= values.mean()
    unit: NDArray[np.float32] = values / max(float(np.linalg.norm(values)), 1e-6)
    return unit


def link_faces(frames: list[list[Sighting]]) -> list[Track]:
    """Join the sightings of each person over the frames, the best matches first.

    A face goes on with a track if it is about as large and either near the track's last place or alike. Who was out of
    sight for a while is found again in the same way.

    Args:
        frames: sightings of each frame.

    Returns:
        All tracks, the one with most to see first.
    """
    tracks: list[Track] = []
    for sightings in frames:
        costs = [
            (cost, number, place)
            for number, track in enumerate(tracks)
            for place, sighting in enumerate(sightings)
            if (cost := _cost(track.sightings[-1], sighting)) is not None
        ]
        taken, placed = set[int](), set[int]()
        for _, number, place in sorted(costs):
            if number not in taken and place not in placed:
                tracks[number].sightings.append(sightings[place])
                taken.add(number)
                placed.add(place)
        tracks += [Track([sighting]) for place, sighting in enumerate(sightings) if place not in placed]
    return sorted(tracks, key=lambda track: -track.size)


def _cost(last: Sighting, now: Sighting) -> float | None:
    """Return how unlikely it is that two sightings are of one person; None if they cannot be."""
    distance = math.dist(last.face.centre, now.face.centre) / max(1.0, (last.face.side + now.face.side) / 2)
    growth = abs(math.log(max(now.face.side, 1.0) / max(last.face.side, 1.0)))
    alike = float(last.look @ now.look)
    if growth > _GROWTH or (distance > _NEAR and alike < _ALIKE):
        return None
    return distance + growth + _WEIGHT * (1 - alike)
