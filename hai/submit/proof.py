"""The proof of a package: run in a fresh environment, with and without network, and compared with `hai predict`."""

from __future__ import annotations

import codecs
import csv
import io
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from hai.data.archives import is_archive, unpack
from hai.errors import ConfigError
from hai.predict.table import COLUMNS
from hai.submit.environment import bare_environment, build_environment, pinned_lines, run_command
from hai.submit.package import NOTEBOOK, REQUIREMENTS, Package
from hai.types import LABELS

__all__ = [
    "CLOSE",
    "ISOLATED",
    "Proof",
    "contest_faults",
    "draw_samples",
    "full_rows",
    "gather_inputs",
    "network_obstacle",
    "prove",
    "save_sample",
]

CLOSE: Final = 1e-5
"""What two probabilities of one file may differ by."""

_Rows = dict[str, tuple[str, str, str]]
"""Probability, prediction and error of each file of a full table."""

_WITH_LOOPBACK: Final = """
import fcntl, os, socket, struct, sys

SIOCSIFFLAGS, IFF_UP = 0x8914, 1  # ip link set lo up, which needs iproute2
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
    fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))
os.execvp(sys.argv[1], sys.argv[1:])
"""
ISOLATED: Final = ("unshare", "--map-root-user", "--net", sys.executable, "-I", "-c", _WITH_LOOPBACK)
"""Begins a command without network but the machine's own loopback, which notebooks talk over."""
_NOTEBOOK_PACKAGES: Final = ("nbclient", "nbformat", "ipykernel")
"""What a platform for notebooks has."""
_VERSIONS: Final = "import sys, torch; print('Python %d.%d' % sys.version_info[:2] + ', torch ' + torch.__version__)"
_RUN_NOTEBOOK: Final = (
    "import nbformat, nbclient; "
    "nb = nbformat.read({name!r}, as_version=4); "
    "nbclient.NotebookClient(nb, timeout=3600, kernel_name='python3').execute()"
)


@dataclass(frozen=True)
class Proof:
    """What the package did.

    Args:
        num_files: that it scored.
        seconds: of its run with the network, start of Python included.
        versions: of Python and torch that it ran on, in words.
        difference: largest one between its probabilities and those of `hai predict`.
        difference_offline: the same without network; None: this machine cannot take the network away.
        others: rows whose label or error differs.
        table: what is wrong with the contest's own table, made with a sample file.
        obstacle: what keeps this machine from taking the network away.
    """

    num_files: int
    seconds: float
    versions: str
    difference: float
    difference_offline: float | None
    others: list[str]
    table: list[str]
    obstacle: str = ""


def prove(package: Package, inputs: list[str], expected: Path, room: Path) -> Proof:
    """Run a package as its judges will.

    Args:
        package: what is tried.
        inputs: files and folders to score, absolute.
        expected: the table that `hai predict --format full` made of them.
        room: an empty folder for the environment.

    Raises:
        ConfigError: the environment cannot be made, or the package fails in it.
    """
    target, requirements = package.target, package.folder / REQUIREMENTS
    more = [] if package.format == "dacon" else list(_NOTEBOOK_PACKAGES)
    if package.format != "dacon" and target.torch is not None:  # as the platform has it
        more.append(f"torch=={target.torch}")
    python = build_environment(room / "environment", requirements, *more, python=target.python)
    if package.format == "dacon":
        requirements.write_text(pinned_lines(python, requirements.read_text(encoding="utf-8")), encoding="utf-8")
    wanted = full_rows(expected)
    began = time.monotonic()
    online = _scores(package, python, inputs, room / "online", [])
    seconds = time.monotonic() - began
    obstacle = network_obstacle()
    offline = None if obstacle else _scores(package, python, inputs, room / "offline", list(ISOLATED))
    others = [
        f"{name}: {found.get(name)}, hai predict says {row}"
        for found in (online, offline or {})
        for name, row in wanted.items()
        if found and (name not in found or found[name][1:] != row[1:])
    ]
    if package.format == "aifactory":
        others += _notebook_differs(package, python, inputs, wanted, room, [] if obstacle else list(ISOLATED))
    return Proof(
        len(wanted),
        seconds,
        run_command([str(python), "-c", _VERSIONS], bare_environment(room))[1],
        _difference(wanted, online),
        None if offline is None else _difference(wanted, offline),
        others,
        _contest_table(package, python, inputs, online, room / "contest"),
        obstacle,
    )


def _scores(package: Package, python: Path, inputs: list[str], room: Path, before: list[str]) -> _Rows:
    """Run inference.py from an empty folder, for a full table."""
    room.mkdir()
    output = room / "full.csv"
    command = [*before, str(python), str(package.folder / "inference.py"), "--format", "full"]
    _run([*command, "--output", str(output), "--input", *inputs], room)
    return full_rows(output)


def _contest_table(package: Package, python: Path, inputs: list[str], full: _Rows, room: Path) -> list[str]:
    """Run inference.py as the contest does, with a sample file in another order that names a file too many."""
    room.mkdir()
    sample, output = room / "sample.csv", room / "submission.csv"
    names = list(full)[::-1]
    names.insert(len(names) // 2, f"{'_' * max(map(len, names))}.png")
    save_sample(sample, names)
    command = [str(python), str(package.folder / "inference.py"), "--sample", str(sample)]
    _run([*command, "--output", str(output), "--input", *inputs], room)
    return contest_faults(output.read_bytes(), package.format, names, full, package.threshold)


def save_sample(path: Path, names: Sequence[str]) -> None:
    """Write a contest's sample file."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("filename",), *((name,) for name in names)])


def contest_faults(table: bytes, format: str, sample: Sequence[str], full: _Rows, threshold: float) -> list[str]:
    """Hold a contest's table against its sample file and the full table.

    Args:
        table: its bytes.
        format: dacon or aifactory.
        sample: names, in order.
        full: probability, prediction and error of each file; a name that it lacks has no file.
        threshold: on the probability, from which a label is fake.

    Returns:
        What is wrong, in words.
    """
    faults = []
    if table.startswith(codecs.BOM_UTF8) != (format == "dacon"):
        faults.append("there is no byte order mark" if format == "dacon" else "there is a byte order mark")
    header, *lines = list(csv.reader(io.StringIO(table.decode("utf-8-sig")))) or [[]]
    if tuple(header) != COLUMNS[format]:
        faults.append(f"the header is {','.join(header)}")
    if [line[0] if line else "" for line in lines] != list(sample):
        faults.append("the rows are not those of the sample file in its order")
    for name, *values in filter(None, lines):
        probability, prediction, error = full.get(name, ("", "", "no file"))
        label = _label(prediction, threshold)
        if not (values == [label] if format == "aifactory" else _is_probability(values, probability)):
            faults.append(f"{name}: {','.join(values)}; the full table has {error or f'{probability} {prediction}'}")
    return faults


def _label(prediction: str, threshold: float) -> str:
    """Return a contest's label of a row of the full table; without a prediction it is that of 0.5."""
    return str(LABELS.index(prediction) if prediction else int(threshold <= 0.5))


def _is_probability(values: list[str], probability: str) -> bool:
    """Say whether a contest's value is that of a row of the full table; without a probability it is 0.5."""
    try:
        (value,) = map(float, values)
    except ValueError:
        return False
    return abs(value - float(probability)) <= CLOSE if probability else value == 0.5


def _notebook_differs(
    package: Package, python: Path, inputs: list[str], wanted: _Rows, room: Path, before: list[str]
) -> list[str]:
    """Execute the notebook in a copy of the package with the files in data/; returns labels that differ."""
    copy = room / "notebook"
    shutil.copytree(package.folder, copy)
    gather_inputs(inputs, copy / "data", room / "unpacked")
    _run([*before, str(python), "-c", _RUN_NOTEBOOK.format(name=NOTEBOOK)], copy)
    text = (copy / "submission.csv").read_text(encoding="utf-8")
    labels = {row["filename"]: row["label"] for row in csv.DictReader(io.StringIO(text))}
    return [
        f"{NOTEBOOK}: {name}: label {labels.get(name)}, hai predict says {row[1]}"
        for name, row in wanted.items()
        if row[1] and labels.get(name) != _label(row[1], package.threshold)
    ]


def gather_inputs(inputs: list[str], folder: Path, room: Path) -> None:
    """Put files, and what is in folders and archives, into a new folder under the names that the table has.

    Args:
        inputs: as of `hai predict`.
        folder: is made.
        room: archives are unpacked below it.
    """
    folder.mkdir(parents=True)
    for number, place in enumerate(map(Path, inputs)):
        source = unpack(place, room / str(number)) if is_archive(place) else place
        if source.is_dir():
            shutil.copytree(source, folder, ignore_dangling_symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, folder / source.name)


def _run(command: list[str], folder: Path) -> None:
    home = folder / "home"
    home.mkdir(exist_ok=True)
    status, said = run_command(command, bare_environment(home), folder)
    if status:
        words = "\n".join(said.splitlines()[-30:])
        raise ConfigError(f"submit: the package fails in its own environment, exit status {status}:\n{words}")


def network_obstacle() -> str:
    """Say what keeps this machine from taking the network away; empty: nothing does."""
    if not shutil.which("unshare"):
        return "unshare is not installed"
    done = subprocess.run([*ISOLATED, "true"], capture_output=True, text=True, check=False)
    return (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1] if done.returncode else ""


def full_rows(table: Path) -> _Rows:
    """Read probability, prediction and error of each file from a full table."""
    with open(table, encoding="utf-8", newline="") as file:
        return {
            row["filename"]: (row["probability_fake"], row["prediction"], row["error"]) for row in csv.DictReader(file)
        }


def _difference(wanted: _Rows, found: _Rows) -> float:
    pairs = [(row[0], found.get(name, ("", "", ""))[0]) for name, row in wanted.items()]
    if any(bool(a) != bool(b) for a, b in pairs):
        return math.inf
    return max((abs(float(a) - float(b)) for a, b in pairs if a), default=0.0)


def draw_samples(folder: Path) -> Path:
    """Make files like a contest's, for who gives none: images of several kinds, a video, a file that is broken."""
    import av

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    waves = np.linspace(0, 6, 320)[None, :, None] + np.linspace(0, 4, 240)[:, None, None] + np.arange(3)
    picture = (127 + 90 * np.sin(waves) + rng.normal(0, 12, (240, 320, 3))).clip(0, 255).astype(np.uint8)
    for number, name in enumerate(("a.jpg", "b.png", "c.jfif", "d.jpeg", "e.webp")):
        kind = {"png": "PNG", "webp": "WEBP"}.get(name[2:], "JPEG")
        Image.fromarray(np.roll(picture, 40 * number, axis=1)).save(folder / name, kind)
    with av.open(str(folder / "f.mp4"), "w") as container:
        stream: av.VideoStream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 8 * number, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (folder / "g.mov").write_bytes(b"no video at all")
    return folder
