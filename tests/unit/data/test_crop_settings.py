"""How images were cut out travels with them: folder, CSV, archive, pack, saved manifest, data sets of a task."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from hai.config.load import config_from_yaml_text
from hai.config.schema import DataConfig, SourceConfig
from hai.data.manifest import build_manifest, load_manifest, save_manifest
from hai.data.pack import build_pack
from hai.errors import DataError
from hai.faces.settings import PREPROCESS, CropSettings, as_record, build_settings, load_settings
from hai.tasks.detector import DetectorTask

SETTINGS = CropSettings(margin=0.35, image_size=112)


@pytest.fixture
def crops(small_faces: Path, tmp_path: Path) -> Path:
    shutil.copytree(small_faces, tmp_path / "crops")
    _tell(tmp_path / "crops", SETTINGS)
    return tmp_path / "crops"


def _tell(folder: Path, settings: CropSettings) -> None:
    (folder / PREPROCESS).write_text(json.dumps({"settings": as_record(settings)}), encoding="utf-8")


def _data(*paths: Path) -> DataConfig:
    return DataConfig(sources=[SourceConfig(name=f"s{at}", path=str(path)) for at, path in enumerate(paths)])


def test_every_form_of_a_source_keeps_them(crops: Path, small_faces: Path, tmp_path: Path) -> None:
    manifest = build_manifest(_data(crops), 1)
    assert manifest.crop_settings == as_record(SETTINGS)
    plain = build_manifest(_data(small_faces), 1)
    assert plain.crop_settings is None
    assert manifest.identity == plain.identity
    pack = build_pack(manifest, tmp_path / "pack")
    shutil.make_archive(str(tmp_path / "crops"), "zip", crops)
    (crops / "table.csv").write_text("path,label\n", encoding="utf-8")
    names = [path.relative_to(crops).as_posix() for path in crops.rglob("*.jpg")]
    lines = [f"{name},{'real' if 'real/' in name else 'fake'}" for name in names]
    (crops / "table.csv").write_text("path,label\n" + "\n".join(lines) + "\n", encoding="utf-8")
    for source in (pack, tmp_path / "crops.zip", crops / "table.csv"):
        assert build_manifest(_data(source), 1).crop_settings == as_record(SETTINGS), source
    save_manifest(manifest, tmp_path / "m.parquet")
    assert load_manifest(tmp_path / "m.parquet").crop_settings == as_record(SETTINGS)
    save_manifest(plain, tmp_path / "m.parquet")
    assert load_manifest(tmp_path / "m.parquet").crop_settings is None


def test_sources_that_were_cut_differently_are_told(crops: Path, tmp_path: Path, small_faces: Path) -> None:
    shutil.copytree(crops, tmp_path / "other")
    _tell(tmp_path / "other", replace(SETTINGS, margin=0.1))
    manifest = build_manifest(_data(crops, tmp_path / "other"), 1)
    assert manifest.crop_settings == as_record(SETTINGS)
    assert [line for line in manifest.warnings if "different settings of hai preprocess" in line] == [
        "sources s0 and s1 were cut out by different settings of hai preprocess; hai predict will cut faces as s0 was"
    ]
    both = build_manifest(_data(small_faces, crops), 1)
    assert both.crop_settings == as_record(SETTINGS)


def test_crops_that_are_not_finished_are_refused(crops: Path) -> None:
    (crops / "table.csv").write_text("path,label\n", encoding="utf-8")
    record = {"settings": as_record(SETTINGS), "status": "running"}
    (crops / PREPROCESS).write_text(json.dumps(record), encoding="utf-8")
    for path in (crops, crops / "table.csv"):
        with pytest.raises(
            DataError, match=f"source s0: {crops} is not finished; run the same hai preprocess command again"
        ):
            build_manifest(_data(path), 1)
    (crops / PREPROCESS).write_text(json.dumps(record | {"status": "finished"}), encoding="utf-8")
    assert build_manifest(_data(crops), 1).crop_settings == as_record(SETTINGS)


def test_the_hash_of_a_detector_s_model_travels_along(crops: Path, tmp_path: Path) -> None:
    (tmp_path / "face.tflite").write_bytes(b"a model")
    settings = build_settings(detector="mediapipe", detector_model=os.path.relpath(tmp_path / "face.tflite"))
    assert settings.detector_model == str(tmp_path / "face.tflite")
    sha256 = hashlib.sha256(b"a model").hexdigest()
    _tell(crops, settings)
    told = json.loads((crops / PREPROCESS).read_text(encoding="utf-8"))
    assert load_settings(crops / PREPROCESS).detector_sha256 is None
    told["detectors"] = [{"name": "mtcnn"}, {"name": "mediapipe", "sha256": {"face.tflite": sha256}}]
    (crops / PREPROCESS).write_text(json.dumps(told), encoding="utf-8")
    kept = build_manifest(_data(crops), 1).crop_settings
    assert kept == {**as_record(settings), "detector_sha256": sha256}


def test_a_damaged_file_is_a_warning(crops: Path) -> None:
    (crops / PREPROCESS).write_text("{", encoding="utf-8")
    manifest = build_manifest(_data(crops), 1)
    assert manifest.crop_settings is None
    assert any("hai predict --faces auto will cut nothing" in line for line in manifest.warnings)


def test_a_task_hands_them_to_its_checkpoints(crops: Path) -> None:
    config = config_from_yaml_text(
        f"task: detector\ndata: {{image_size: 32, sources: [{{path: {crops}}}]}}\nmodel: {{name: compact}}\n", "x.yaml"
    )
    assert DetectorTask(config).build_datasets().crop_settings == as_record(SETTINGS)
