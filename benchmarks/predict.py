"""Files per second of `hai predict` against straightforward scripts that score one file after another.

All do the same work on the same files: frames spread evenly over each video, faces found by MTCNN, cut out with the
same margin through the same codec, the same network, the mean of the logits. Both scripts are what one writes first:
decode a video, pick its frames, cut the faces out, ask the network, take the next file, with torch's own number of
threads. One finds faces with the package that MTCNN's weights come from, facenet-pytorch. The other calls hai's own
functions, so that what is left of the ratio is what reading ahead, processes and common batches bring. Loading networks
is counted for nobody; the start of the reading processes is counted for `hai predict`, but not that of the server they
are forked from.

- `videos_over_script`, `images_over_script`: files per second of `hai predict` over those of the script with
  facenet-pytorch, each repeat one after the other; the value is the median, `low` and `high` the smallest and largest.
- `videos_over_own_parts`, `images_over_own_parts`: the same against the script of hai's functions.
- `difference_*`: largest between the probabilities of `hai predict` and of a script.
- `limit_share`: seconds for the videos over the limit, which is half of what they took without one. At most 1.
- `limit_files_scored`: share of them that got a score by then, from fewer frames if need be.
- `*_files_per_second`: of each.

Run alone with `python -m benchmarks.predict [--quick]`. The files are made: a face that moves over a wall.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks._measure import main, ratios, record
from hai.checkpoint.format import Checkpoint
from hai.config.load import config_from_yaml_text
from hai.data.images import decode_image, fit_image
from hai.data.video import uniform_positions
from hai.faces.boxes import Face, cut_face
from hai.faces.crops import crop_pictures, encode_crop
from hai.faces.settings import CropSettings
from hai.models import build_model
from hai.predict.files import find_rows, is_video
from hai.predict.pictures import View
from hai.predict.run import predict_files, probability_at, work_seconds
from hai.trained import Trained, best_device

Picture = NDArray[np.uint8]
Find = Callable[[list[Picture]], list[bytes]]

FRAMES, SIZE = 8, 224
FLOORS = {"videos_over_script": 2.0}
MOST_DIFFERENCE = {"script": 1e-3, "own_parts": 1e-5}
"""facenet-pytorch's boxes are hai's to 0.01 pixels, so the square around one may be rounded to the next pixel."""
CUT = CropSettings(frames=FRAMES, image_size=SIZE)
CONFIG = (
    "task: detector\ndata: {image_size: 224, sources: [{path: nowhere}]}\nmodel: {name: compact, pretrained: false}\n"
)


def run(quick: bool) -> list[dict[str, Any]]:
    """Measure; each record that has a floor says whether it keeps it."""
    model = _model()
    faces_by = {"script": find_by_package(), "own_parts": find_by_hai}
    with tempfile.TemporaryDirectory(prefix="hai-predict-") as name:
        sets = {
            "videos": draw_videos(Path(name) / "videos", 8 if quick else 24),
            "images": draw_images(Path(name) / "images", 24 if quick else 96),
        }
        warm = draw_videos(Path(name) / "warm", 5)
        predicted(warm, model)  # starts what processes are forked from
        for find in faces_by.values():
            scored_one_by_one(warm[:1], model, find)
        rates: dict[str, list[float]] = defaultdict(list)
        differences: dict[str, list[float]] = defaultdict(list)
        shares, reached = [], []
        for _ in range(1 if quick else 3):
            for kind, files in sets.items():
                seconds, own = _timed(lambda files=files: predicted(files, model))
                rates[kind].append(len(files) / seconds)
                for script, find in faces_by.items():
                    seconds, others = _timed(lambda files=files, find=find: scored_one_by_one(files, model, find))
                    rates[f"{kind}_{script}"].append(len(files) / seconds)
                    differences[script].append(max(abs(a - b) for a, b in zip(own, others, strict=True)))
            limit = len(sets["videos"]) / rates["videos"][-1] / 2
            taken, scored = _timed(lambda limit=limit: predicted(sets["videos"], model, limit))
            shares.append(taken / limit)
            reached.append(len(scored) / len(sets["videos"]))
    records = [record("limit_share", shares, most=1.0), record("limit_files_scored", reached)]
    for script, most in MOST_DIFFERENCE.items():
        records.append(record(f"difference_{script}", differences[script], most=most))
        for kind in sets:
            name = f"{kind}_over_{script}"
            records.append(record(name, ratios(rates[kind], rates[f"{kind}_{script}"]), floor=FLOORS.get(name)))
    return records + [record(f"{name}_files_per_second", values) for name, values in rates.items()]


def predicted(files: list[Path], model: Trained, seconds: float = math.inf) -> list[float]:
    """Score files as the command does within a limit: all of them, or those for which it suffices."""
    ends = time.monotonic() + work_seconds(seconds) if math.isfinite(seconds) else math.inf
    layout = model.layout
    view = View(layout.size, layout.geometry, layout.max_megapixels, CUT)
    with ExitStack() as stack:
        rows = find_rows([str(file) for file in files], stack, sample=None, unique=True)
        predict_files(rows, [model], [view], frames=FRAMES, how="mean", flip=False, ends=ends, stack=stack)
    found = [probability_at(row.logits[0]) for row in rows if row.logits]
    assert len(found) == len(rows) or seconds < math.inf, [row.error for row in rows]
    return found


def scored_one_by_one(files: list[Path], model: Trained, find: Find) -> list[float]:
    """Score files one after another, with faces found by one of the functions below."""
    found = []
    for file in files:
        if is_video(file):
            with av.open(str(file)) as container:
                frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            pictures = [frames[at] for at in uniform_positions(len(frames), FRAMES)]
        else:
            pictures = [decode_image(file.read_bytes())]
        crops = [decode_image(data) for data in find(pictures)]
        assert crops, f"{file}: no face"
        batch = torch.from_numpy(np.stack([fit_image(crop, SIZE, "resize") for crop in crops])).permute(0, 3, 1, 2)
        found.append(probability_at(float(model.logits(batch.to(model.device)).mean())))
    return found


def find_by_hai(pictures: list[Picture]) -> list[bytes]:
    """Cut the faces out of the frames of a file [H, W, 3]; returns encoded crops."""
    return [crop.data for crop in crop_pictures(enumerate(pictures), CUT).crops]


def find_by_package() -> Find:
    """Do as `find_by_hai`, with the same network in facenet-pytorch: the best face of each frame."""
    from facenet_pytorch import MTCNN

    detector = MTCNN(min_face_size=CUT.min_face, select_largest=False)

    def find(pictures: list[Picture]) -> list[bytes]:
        crops = []
        for picture in pictures:
            boxes, scores = detector.detect(Image.fromarray(picture))
            if boxes is not None and scores[0] >= CUT.min_score:
                face = Face(tuple(boxes[0].tolist()), float(scores[0]), "mtcnn")
                crops.append(encode_crop(cut_face(picture, face, CUT.margin, CUT.image_size), CUT))
        return crops

    return find


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
    main(run)
