"""Files per second of `hai predict` against a straightforward script that scores one file after another.

Both do the same work on the same files and their probabilities are compared (1e-5): frames spread evenly over each
video, faces found by MTCNN and followed, the same crops, the same network, the mean of the logits. The script is what
one writes first: it decodes a video, picks its frames, cuts the faces out, asks the network, and takes the next file,
with torch's own number of threads. Loading the network is counted for neither, the start of the reading processes is
counted for `hai predict`; the server that they are forked from was started before.

- `videos_ratio`, `images_ratio`: files per second of `hai predict` over those of the script, each repeat one after the
  other; the value is the median, `low` and `high` the smallest and largest.
- `limit_share`: seconds for the videos over the limit, which is half of what they took without one. At most 1.
- `limit_files_scored`: share of them that got a score by then, from fewer frames if need be.
- `*_files_per_second`: of each.

Run alone with `python -m benchmarks.predict [--quick]`. The files are made: a face that moves over a wall.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks._measure import ratios, record
from hai.checkpoint.format import Checkpoint
from hai.config.load import config_from_yaml_text
from hai.data.images import decode_image, fit_image
from hai.data.video import uniform_positions
from hai.faces.crops import crop_pictures
from hai.faces.settings import CropSettings
from hai.models import build_model
from hai.predict.files import find_rows, is_video
from hai.predict.pictures import View
from hai.predict.run import predict_files, probability_at
from hai.trained import Trained, best_device

FRAMES, SIZE = 8, 224
FLOORS = {"videos_ratio": 2.0, "images_ratio": None}
CUT = CropSettings(frames=FRAMES, image_size=SIZE)
CONFIG = (
    "task: detector\ndata: {image_size: 224, sources: [{path: nowhere}]}\nmodel: {name: compact, pretrained: false}\n"
)


def run(quick: bool) -> list[dict[str, Any]]:
    """Measure; each record that has a floor says whether it keeps it."""
    model = _model()
    with tempfile.TemporaryDirectory(prefix="hai-predict-") as name:
        sets = {
            "videos": draw_videos(Path(name) / "videos", 8 if quick else 24),
            "images": draw_images(Path(name) / "images", 24 if quick else 96),
        }
        warm = draw_videos(Path(name) / "warm", 5)
        predicted(warm, model)  # starts what processes are forked from
        scored_one_by_one(warm[:1], model)
        rates = {kind: ([], []) for kind in sets}  # type: dict[str, tuple[list[float], list[float]]]
        shares, reached = [], []
        for _ in range(1 if quick else 3):
            for kind, files in sets.items():
                ours, own = _timed(lambda files=files: predicted(files, model))
                theirs, others = _timed(lambda files=files: scored_one_by_one(files, model))
                worst = max(abs(a - b) for a, b in zip(own, others, strict=True))
                assert worst <= 1e-5, f"{kind}: probabilities differ by {worst}"
                rates[kind][0].append(len(files) / ours)
                rates[kind][1].append(len(files) / theirs)
            limit = len(sets["videos"]) / rates["videos"][0][-1] / 2
            taken, scored = _timed(lambda limit=limit: predicted(sets["videos"], model, limit))
            shares.append(taken / limit)
            reached.append(len(scored) / len(sets["videos"]))
    records = [record("limit_share", shares, most=1.0), record("limit_files_scored", reached)]
    for name, floor in FLOORS.items():
        ours_of, theirs_of = rates[name.removesuffix("_ratio")]
        records.append(record(name, ratios(ours_of, theirs_of), floor=floor))
    for kind, (ours_of, theirs_of) in rates.items():
        records.append(record(f"{kind}_files_per_second", ours_of))
        records.append(record(f"{kind}_files_per_second_of_the_script", theirs_of))
    return records


def predicted(files: list[Path], model: Trained, seconds: float = math.inf) -> list[float]:
    """Score files as the command does, in so many seconds: all of them, or those for which they suffice."""
    ends = time.monotonic() + seconds
    layout = model.layout
    view = View(layout.size, layout.geometry, layout.max_megapixels, CUT)
    with ExitStack() as stack:
        rows = find_rows([str(file) for file in files], stack, sample=None, unique=True)
        predict_files(rows, [model], [view], frames=FRAMES, how="mean", flip=False, ends=ends, stack=stack)
    found = [probability_at(row.logits[0]) for row in rows if row.logits]
    assert len(found) == len(rows) or seconds < math.inf, [row.error for row in rows]
    return found


def scored_one_by_one(files: list[Path], model: Trained) -> list[float]:
    """Score files one after another."""
    found = []
    for file in files:
        if is_video(file):
            with av.open(str(file)) as container:
                frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            pictures = [(at, frames[at]) for at in uniform_positions(len(frames), FRAMES)]
        else:
            pictures = [(0, decode_image(file.read_bytes()))]
        crops = [decode_image(crop.data) for crop in crop_pictures(pictures, CUT).crops]
        assert crops, f"{file}: no face"
        batch = torch.from_numpy(np.stack([fit_image(crop, SIZE, "resize") for crop in crops])).permute(0, 3, 1, 2)
        found.append(probability_at(float(model.logits(batch.to(model.device)).mean())))
    return found


def draw_videos(folder: Path, count: int) -> list[Path]:
    """Make clips of 3 seconds, 640x360, in which a face moves over a wall."""
    folder.mkdir()
    files = []
    for number in range(count):
        files.append(folder / f"{number}.mp4")
        with av.open(str(files[-1]), "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 640, 360, "yuv420p", 2_000_000
            for at in range(75):
                picture = _with_face(40 + 3 * at + number, 60)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
    return files


def draw_images(folder: Path, count: int) -> list[Path]:
    """Make JPEGs of 640x360 with a face."""
    folder.mkdir()
    files = [folder / f"{number}.jpg" for number in range(count)]
    for number, file in enumerate(files):
        Image.fromarray(_with_face(40 + 4 * number, 60)).save(file, quality=92)
    return files


def _with_face(left: int, top: int) -> NDArray[np.uint8]:
    import skimage.data

    shade = np.linspace(90, 150, 640)[None, :, None] + np.linspace(-10, 10, 360)[:, None, None]
    picture: NDArray[np.uint8] = np.repeat(shade, 3, axis=2).astype(np.uint8)
    face = skimage.data.astronaut()[20:220, 140:300]
    picture[top : top + 200, left : left + 160] = face[:, : 640 - left]
    return picture


def _model() -> Trained:
    config = config_from_yaml_text(CONFIG, "benchmark")
    device = best_device()
    model = build_model(config.model, SIZE, 1).to(device).eval()
    checkpoint = Checkpoint(Path("benchmark"), 0, "", {}, {}, {})
    return Trained(model, device, config, checkpoint, "benchmark", threshold=0.5, temperature=1.0)


def _timed(work: Callable[[], list[float]]) -> tuple[float, list[float]]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


if __name__ == "__main__":  # files are read in other processes, which import this one
    print(json.dumps(run("--quick" in sys.argv), indent=1))
