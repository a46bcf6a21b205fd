"""The folder that a contest is handed: weights, code, settings, and what starts them."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml
from jinja2 import Environment, PackageLoader

import hai
from hai.checkpoint.format import MODEL, STATE, Checkpoint, write_checkpoint
from hai.config.load import config_from_yaml_text, show_config
from hai.errors import ConfigError
from hai.export.facts import trained_checkpoint
from hai.export.folder import served_config, served_meta
from hai.faces.settings import CropSettings
from hai.submit.environment import packages_for, python_version, requirement_lines, training_packages
from hai.trained import crop_settings_of, find_trained

__all__ = ["HERE", "NOTEBOOK", "REQUIREMENTS", "SETTINGS", "Package", "Target", "build_package"]

REQUIREMENTS: Final = "env/requirements.txt"
SETTINGS: Final = "config/inference.yaml"
NOTEBOOK: Final = "task.ipynb"
_TIME_LIMITS: Final = {"dacon": "55m", "aifactory": "170m"}
"""Of the contests' 60 minutes and 3 hours; the rest is for reading the weights and for slower disks."""


class Target(NamedTuple):
    """The machine that a package is for.

    Args:
        python: interpreter of its version; None: this one.
        torch: version of torch that its driver has; None: this one, or in notebooks the platform's own.
    """

    python: str | None = None
    torch: str | None = None


HERE: Final = Target()


@dataclass(frozen=True)
class Package:
    """A package that was written.

    Args:
        folder: where it lies.
        format: dacon or aifactory.
        settings: how it scores: frames, faces, aggregate, time_limit.
        target: what it is to run on.
        threshold: on P(fake), from which a label is fake.
        num_parameters: of the network.
        weight_files: relative to the folder.
    """

    folder: Path
    format: str
    settings: dict[str, Any]
    target: Target
    threshold: float
    num_parameters: int
    weight_files: list[str]


def build_package(
    reference: str,
    folder: Path,
    format: str,
    *,
    frames: int,
    faces: str,
    aggregate: str,
    target: Target = HERE,
) -> Package:
    """Write a package into a new folder.

    Args:
        reference: REF of a detector.
        folder: an empty folder.
        format: dacon or aifactory.
        frames: of each video.
        faces: auto, always or never.
        aggregate: of the logits of a video's frames.
        target: what the package is to run on.

    Raises:
        HaiError: there is no whole checkpoint, or it needs what cannot be packed.
    """
    checkpoint, config_file = find_trained(reference)
    config = config_from_yaml_text(config_file.read_text(encoding="utf-8"), str(config_file))
    served = served_config(config)
    text = show_config(served)
    cut = _cut(checkpoint, faces)
    _check(reference, config.task, config.model.trust_remote_code, cut)
    settings = {"frames": frames, "faces": faces, "aggregate": aggregate, "time_limit": _TIME_LIMITS[format]}

    for name in ("config", "env", "src"):
        (folder / name).mkdir(parents=True)
    write_checkpoint(folder / "model", checkpoint.model, {}, served_meta(checkpoint))
    (folder / "model" / STATE).unlink()  # empty, and looks like a second file of weights
    for name in ("model/run.yaml", "config/config.yaml"):
        (folder / name).write_text(text, encoding="utf-8")
    (folder / SETTINGS).write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    _copy_code(folder / "src", cut)
    packages = packages_for(config.model)
    version = python_version(target.python) if target.python else sys.version_info[:2]
    is_image = format == "dacon"  # notebooks run where torch is installed already
    exact = is_image and target.torch is None and version == sys.version_info[:2]
    lines = requirement_lines(packages, exact=exact, torch=target.torch if is_image else None)
    num_parameters = sum(tensor.numel() for tensor in checkpoint.model.values())
    _save(folder / REQUIREMENTS, lines)
    _save(folder / "env/requirements-train.txt", requirement_lines(training_packages(), exact=is_image))
    fitted = {"threshold": 0.5, "temperature": 1.0, **checkpoint.meta.get("fitted", {})}
    facts = {
        "format": format,
        "settings": settings,
        "python": f"{version[0]}.{version[1]}",
        "hai": hai.__version__,
        "model": served.model.name,
        "image_size": config.data.image_size,
        **trained_checkpoint(checkpoint),
        "fitted": fitted,
        "cut": cut,
        "as_trained": checkpoint.meta.get("crop_settings") is not None,
        "num_parameters": num_parameters,
        "sources": [source.name for source in config.data.sources],
        "local_model": served.model.name if served.model.name.startswith("hf:./") else "",
        "began_with": served.model.pretrained if isinstance(served.model.pretrained, str) else "",
    }
    pages = Environment(
        loader=PackageLoader("hai", "submit/templates"), autoescape=False, keep_trailing_newline=True, trim_blocks=True
    )  # Python and Markdown, no HTML
    for name in ("README.md", "inference.py", "train.py", "env/Dockerfile"):
        _save(folder / name, pages.get_template(f"{Path(name).name}.jinja").render(facts))
    if format == "aifactory":
        _save(folder / NOTEBOOK, _notebook(pages, facts))
    return Package(folder, format, settings, target, fitted["threshold"], num_parameters, [f"model/{MODEL}"])


def _cut(checkpoint: Checkpoint, faces: str) -> CropSettings | None:
    """Say how the package will cut faces out."""
    if faces == "never":
        return None
    return crop_settings_of(checkpoint) or (CropSettings() if faces == "always" else None)


def _check(reference: str, task: str, remote_code: bool, cut: CropSettings | None) -> None:
    wrong = []
    if task != "detector":
        wrong.append(f"--checkpoint = {reference}; is a {task}; contests take detectors")
    if remote_code:
        wrong.append("model.trust_remote_code = true; the code would have to be fetched, and packages run offline")
    others = sorted({cut.detector, cut.fallback_detector or "mtcnn"} - {"mtcnn"}) if cut is not None else []
    if others:
        wrong.append(
            f"detector = {', '.join(others)}; its weights come from the network, and packages run offline; preprocess "
            "with mtcnn, or give --faces never for ready crops"
        )
    if wrong:
        raise ConfigError("\n".join(wrong))


def _copy_code(folder: Path, cut: CropSettings | None) -> None:
    """Copy this package, and the weights of the face detector if it is needed."""
    shutil.copytree(
        Path(hai.__file__).parent, folder / "hai", ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
    )
    if cut is None:
        return
    from hai.faces.mtcnn import load_weights

    load_weights()  # they are there, and the known ones
    for file in importlib.metadata.files("facenet-pytorch") or []:
        is_weights = file.suffix == ".pt" and file.stem in ("pnet", "rnet", "onet")
        if is_weights or file.name.startswith("LICENSE"):
            target = folder / "facenet_pytorch" / ("data" if is_weights else "") / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(os.fspath(file.locate()), target)


def _notebook(pages: Environment, facts: dict[str, Any]) -> str:
    """Write the notebook; cells are divided by lines `# %%` in its template, those of text begin with `# %% md`."""
    cells = []
    parts = pages.get_template("task.ipynb.jinja").render(facts).split("# %%")[1:]
    for number, part in enumerate(parts):
        kind, _, body = part.partition("\n")
        cell: dict[str, Any] = {
            "id": f"cell-{number}",
            "metadata": {},
            "source": body.strip().splitlines(keepends=True),
        }
        if kind.strip() == "md":
            cells.append({"cell_type": "markdown", **cell})
        else:
            cells.append({"cell_type": "code", "execution_count": None, "outputs": [], **cell})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    record = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"


def _save(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
