import errno
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ranked_run import save_ranker
from trained_run import image_bytes, save_image, save_network, save_run

import hai
from hai.checkpoint.format import load_checkpoint, write_checkpoint
from hai.checkpoint.records import save_json
from hai.cli import main
from hai.config.load import config_from_yaml_text
from hai.config.schema import ModelConfig
from hai.errors import CheckpointError, ConfigError, StorageError
from hai.evaluation import run_evaluation
from hai.export import run_export
from hai.export.card import model_card
from hai.export.facts import Origin, origin_of
from hai.faces.settings import CropSettings
from hai.models.scorer import build_scorer
from hai.ranking import load_ranker
from hai.score_scale import Scale
from hai.trained import load_trained

CPU = torch.device("cpu")
FITTED = {"threshold": 0.6, "threshold_low": 0.5, "threshold_high": 0.7, "temperature": 2.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("runs"), overrides=("data.sources.0.name=studio",), **FITTED)


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("exports") / "detector"
    assert run_export(str(run), "safetensors", str(target)) == 0
    return target


def pixels(size: int = 32) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).integers(0, 256, (5, 3, size, size), dtype=np.uint8))


# -- the folder --------------------------------------------------------------------------------------------------------


def test_the_folder_gives_the_same_scores_and_holds_no_trace_of_the_machine(run: Path, folder: Path) -> None:
    here, there = load_trained(str(run), CPU), load_trained(str(folder), CPU)
    assert (here.logits(pixels()) == there.logits(pixels())).all()
    assert (there.threshold, there.temperature, there.calibration) == (0.6, 2.0, here.calibration)
    names = {path.name for path in folder.iterdir()}
    assert names == {"MANIFEST.json", "config.json", "model.safetensors", "run.yaml", "state.json", "state.safetensors"}
    for name in names:
        content = (folder / name).read_bytes()
        assert str(run.parent).encode() not in content
        assert b"nowhere" not in content, "the path of a source"
    assert there.config.data.sources[0].name == "studio"


def test_a_network_of_a_local_folder_leaves_no_trace_of_it_and_loads_without(tmp_path: Path) -> None:
    network = save_network(tmp_path / "alice" / "vit")
    cut = CropSettings(detector="mediapipe", detector_model=str(tmp_path / "alice" / "face.tflite"))
    local = (f"model.name=hf:{network}", "model.pretrained=false")
    run = save_run(tmp_path / "runs", overrides=local, crop_settings=cut)
    found = load_checkpoint(next((run / "checkpoints").iterdir()))
    assert str(network) not in json.dumps(found.meta)
    old, target = tmp_path / "old", tmp_path / "out"
    architecture = {**found.meta["architecture"], "_name_or_path": str(network)}  # as transformers' own description is
    write_checkpoint(old, found.model, {}, {**found.meta, "architecture": architecture})
    shutil.copyfile(run / "run.yaml", old / "run.yaml")
    run_export(str(old), "hub", str(target))
    expected = load_trained(str(run), CPU).logits(pixels())
    shutil.rmtree(network)
    for path in target.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path
    again = load_trained(str(target), CPU)
    assert (again.logits(pixels()) == expected).all()
    assert again.crop_settings is not None
    assert again.crop_settings.detector_model == "face.tflite"
    assert again.config.model.name == json.loads((target / "config.json").read_text(encoding="utf-8"))["model"]
    assert again.config.model.name == "hf:./vit"
    assert origin_of(again.config.model.model_copy(update={"pretrained": True})) == Origin("", "")


def test_config_json_says_what_other_programs_need(run: Path, folder: Path) -> None:
    facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert facts["hai"] == hai.__version__
    assert (facts["task"], facts["model"]) == ("detector", "compact")
    assert facts["image"]["size"] == 32
    assert facts["image"]["geometry"] == "resize"
    assert facts["labels"] == ["real", "fake"]
    assert (facts["threshold"], facts["threshold_interval"], facts["temperature"]) == (0.6, [0.5, 0.7], 2.0)
    assert facts["checkpoint"] == {"step": 3, "sha256": load_trained(str(run), CPU).checkpoint.sha256}


def test_the_folder_loads_without_ray(folder: Path, tmp_path: Path) -> None:
    image = save_image(tmp_path / "a.png", 1)
    code = textwrap.dedent(
        f"""
        import sys, torch
        from hai.predict import load_picture
        from hai.trained import load_trained
        trained = load_trained({str(folder)!r}, torch.device("cpu"))
        picture = load_picture(__import__("pathlib").Path({str(image)!r}), trained.layout)
        print(trained.logits(torch.from_numpy(picture).permute(2, 0, 1)[None])[0])
        assert "ray" not in sys.modules
        """
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert np.isfinite(float(done.stdout))


def test_an_export_can_be_exported_again_and_remembers_its_checkpoint(run: Path, folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    run_export(str(folder), "safetensors", str(again))
    facts, before = (json.loads((place / "config.json").read_text(encoding="utf-8")) for place in (again, folder))
    assert facts == before
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_a_card_that_was_changed_by_hand_stays(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = tmp_path / "card" / "README.md"
    for license in (None, "mit"):
        run_export(str(run), "hub", str(card.parent), license=license)
        assert "kept" not in capsys.readouterr().out
    assert "license: mit" in card.read_text(encoding="utf-8")
    card.write_text("my own words", encoding="utf-8")
    for _ in range(2):
        run_export(str(run), "hub", str(card.parent))
        assert card.read_text(encoding="utf-8") == "my own words"
        assert f"kept {card}, which was changed by hand" in capsys.readouterr().out
    card.unlink()
    run_export(str(run), "hub", str(card.parent))
    assert card.read_text(encoding="utf-8").startswith("---\n")


def test_a_damaged_export_is_refused(folder: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    content = bytearray((damaged / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (damaged / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: sha256"):
        load_trained(str(damaged), CPU)


def test_an_earlier_export_is_replaced_and_nothing_else_is(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    run_export(str(run), "safetensors", str(target))
    names = {path.name for path in target.iterdir()}
    (target / "run.yaml").write_text("changed")
    run_export(str(run), "safetensors", str(target))
    assert {path.name for path in target.iterdir()} == names
    load_trained(str(target), CPU)
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing is left beside it"
    precious = tmp_path / "photos"
    save_image(precious / "a.png", 1)
    with pytest.raises(ConfigError, match=r"--output = .*photos; exists and is no export"):
        run_export(str(run), "safetensors", str(precious))
    assert (precious / "a.png").exists()


def test_what_others_put_into_an_export_stays(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    run_export(str(run), "hub", str(target))
    others = {"LICENSE": b"mine", "pictures/roc.png": b"\x89PNG", ".git/objects/ab/cd": b"packed"}
    for name, content in others.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(content)
    (target / "link").symlink_to("LICENSE")

    def refuses(*_: object, **__: object) -> None:
        raise OSError("no hard links here")

    for link in (os.link, refuses):
        monkeypatch.setattr("os.link", link)
        run_export(str(run), "safetensors", str(target))
        assert {name: (target / name).read_bytes() for name in others} == others
        assert (target / "link").readlink() == Path("LICENSE")
        assert not (target / "README.md").exists(), "a card that nobody changed belongs to the export before"
    (target / "README.md").write_text("my own words", encoding="utf-8")
    run_export(str(run), "safetensors", str(target))
    assert (target / "README.md").read_text(encoding="utf-8") == "my own words"


def test_an_export_that_cannot_take_its_place_leaves_the_earlier_one(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, rename = tmp_path / "out", os.rename
    run_export(str(run), "safetensors", str(target))
    (target / "LICENSE").write_text("mine")

    def fails(source: Path, place: Path) -> None:
        if Path(place) == target and Path(source).name == "export":
            raise OSError("disk gone")
        rename(source, place)

    monkeypatch.setattr("os.rename", fails)
    with pytest.raises(
        StorageError, match=r"--output = .*out; cannot be written \(disk gone\), what was there is as it"
    ):
        run_export(str(run), "safetensors", str(target))
    assert (target / "LICENSE").read_text() == "mine"
    load_trained(str(target), CPU)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_mount_point_stays_as_it_is(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, rename = tmp_path / "out", os.rename
    run_export(str(run), "safetensors", str(target))
    (target / "LICENSE").write_text("mine")

    def busy(source: Path, place: Path) -> None:
        if Path(source) == target:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        rename(source, place)

    monkeypatch.setattr("os.rename", busy)
    with pytest.raises(StorageError, match=r"--output = .*out; cannot be written \(.* busy\), .* a folder inside it$"):
        run_export(str(run), "safetensors", str(target))
    assert (target / "LICENSE").read_text() == "mine"
    load_trained(str(target), CPU)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("words", [".", "../out", "{tmp_path}/link"])
def test_the_current_folder_is_replaced_however_it_is_named(
    words: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (tmp_path / "link").symlink_to(target)
    monkeypatch.chdir(target)
    run_export(str(run), "hub", words.format(tmp_path=tmp_path))
    assert Path.cwd() == target
    (target / "LICENSE").write_text("mine")
    run_export(str(run), "hub", words.format(tmp_path=tmp_path))
    assert Path("LICENSE").read_text() == "mine"
    assert "OWNER/out" in Path("README.md").read_text(encoding="utf-8")
    assert "note: the current folder was replaced" in capsys.readouterr().out
    load_trained(".", CPU)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "link"}


def test_a_folder_that_cannot_be_replaced_is_said_before_the_model_is_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    shutil.copytree(folder, target)

    def refuses(**options: object) -> None:
        assert options["dir"] == tmp_path
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuses)
    with pytest.raises(ConfigError, match=r"--output = .*out; the folder that it lies in cannot be written \(Perm"):
        run_export("nowhere", "safetensors", str(target))


def test_all_wrong_options_are_named_at_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["export", "--checkpoint", "x", "--format", "onnx", "--output", str(tmp_path / "m.onnx")]
    with pytest.raises(SystemExit) as end:
        main([*words, "--push", "a/b", "--license", "mit"])
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(";")[0] for line in lines] == ["--push", "--license"]


def test_a_ranker_s_folder_compares_as_its_run_does(tmp_path: Path) -> None:
    run = save_ranker(tmp_path, "taste", Scale(temperature=0.5, center=0.1, thresholds=(0.2, 0.0)))
    target = tmp_path / "out"
    run_export(str(run), "safetensors", str(target))
    left, right = image_bytes(1), image_bytes(2)
    assert load_ranker(target, "cpu").compare(left, right) == load_ranker(run, "cpu").compare(left, right)
    facts = json.loads((target / "config.json").read_text(encoding="utf-8"))
    assert facts["tiers"] == ["gold", "silver", "bronze"]
    assert facts["scale"]["temperature"] == 0.5


def test_a_ranker_on_a_local_network_is_the_same_without_its_folder(tmp_path: Path) -> None:
    network = save_network(tmp_path / "alice" / "vit")
    run = save_ranker(tmp_path, "taste", Scale(), f"model.name=hf:{network}")
    target = tmp_path / "out"
    run_export(str(run), "safetensors", str(target))
    assert all(str(tmp_path).encode() not in path.read_bytes() for path in target.iterdir())
    config = config_from_yaml_text((run / "run.yaml").read_text(encoding="utf-8"), "run.yaml")
    trained = build_scorer(config, 32).eval()
    trained.load_state_dict(load_trained(str(run), CPU).model.state_dict())
    shutil.rmtree(network)
    batch = {"image": torch.rand(2, 3, 32, 32), "index": torch.arange(2)}
    assert torch.equal(load_trained(str(target), CPU).model(batch), trained(batch))


def test_a_backbone_that_is_needed_keeps_its_folder(tmp_path: Path) -> None:
    network = save_network(tmp_path / "vit")
    run = save_ranker(tmp_path, "taste", Scale(), f"model.name=hf:{network}", "model.freeze_backbone=true")
    run_export(str(run), "safetensors", str(tmp_path / "out"))
    assert load_trained(str(tmp_path / "out"), CPU).config.model.name == f"hf:{network}"


# -- the card ----------------------------------------------------------------------------------------------------------


def front_matter(card: str) -> dict[str, object]:
    found = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(found, dict)
    return found


def evaluation(sha256: str) -> dict[str, object]:
    metrics = {
        "f1_macro": {"value": 0.8123, "low": 0.71, "high": 0.9},
        "roc_auc": {"value": 0.9, "low": 0.8, "high": 1},
    }
    return {
        "n": 120,
        "num_groups": 30,
        "metrics": metrics,
        "per_source": [{"source": "studio"}],
        "checkpoint": {"sha256": sha256},
        "data": {"split": "test"},
    }


def test_the_card_is_filled_from_the_run(run: Path, tmp_path: Path) -> None:
    own = tmp_path / "bright"
    shutil.copytree(run, own)
    trained = load_trained(str(own), CPU)
    save_json(own / "evaluation" / "test" / "evaluation.json", evaluation(trained.checkpoint.sha256))
    card = model_card(trained, "someone/bright", "apache-2.0")
    data = front_matter(card)
    assert (data["license"], data["library_name"], data["pipeline_tag"]) == (
        "apache-2.0",
        "hai",
        "image-classification",
    )
    (index,) = data["model-index"]  # type: ignore[misc]
    assert [metric["value"] for metric in index["results"][0]["metrics"]] == [0.8123, 0.9]
    assert "| f1_macro | 0.8123 | 0.710 to 0.900 |" in card
    assert "on 120 images in 30 independent groups, the split test." in card
    assert "0.600 (95 % interval 0.500 to 0.700)" in card
    assert "random weights" in card
    assert trained.checkpoint.sha256[:12] in card
    assert str(tmp_path) not in card
    for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        compile(code, "card", "exec")
        assert "someone/bright" in code


def test_an_evaluation_of_another_checkpoint_does_not_count(run: Path, tmp_path: Path) -> None:
    own = tmp_path / "bright"
    shutil.copytree(run, own)
    save_json(own / "evaluation" / "test" / "evaluation.json", evaluation("0" * 64))
    card = model_card(load_trained(str(own), CPU), "someone/bright")
    data = front_matter(card)
    assert "model-index" not in data
    assert "license" not in data
    assert "0.8123" not in card
    assert "| f1_macro | 0.7500 |" in card
    assert "chosen on these images" in card
    assert "has chosen no licence" in card


@pytest.mark.parametrize("measured", ["run", "export"])
def test_an_evaluation_counts_for_the_run_and_for_its_export(measured: str, run: Path, tmp_path: Path) -> None:
    own, export = tmp_path / "bright", tmp_path / "export"
    shutil.copytree(run, own)
    run_export(str(own), "safetensors", str(export))
    data = tmp_path / "data"
    for key in range(8):
        save_image(data / ("fake" if key % 2 else "real") / f"{key}.png", key)
    run_evaluation(str({"run": own, "export": export}[measured]), str(data))
    if measured == "run":
        shutil.copytree(own / "evaluation", export / "evaluation")
    card = model_card(load_trained(str(export), CPU), "someone/bright")
    assert "Measured by `hai evaluate` on 8 images" in card
    assert "model-index" in front_matter(card)


def test_what_was_never_fitted_is_called_the_default(run: Path, tmp_path: Path) -> None:
    fresh = save_run(tmp_path, "fresh")
    text = (
        "0.500 an image is called fake, the default: nothing was fitted, as the checkpoint was saved before any evaluat"
    )
    assert text in model_card(load_trained(str(fresh), CPU), "someone/fresh")
    assert "both were fitted to the validation split" in model_card(load_trained(str(run), CPU), "someone/bright")


@pytest.mark.parametrize(
    ("name", "pretrained", "expected"),
    [
        ("compact", True, None),
        ("dual_branch_v2", False, None),
        ("dual_branch_v2", True, Origin("timm/efficientnet_b4.ra2_in1k", "apache-2.0")),
        ("timm:vit_base_patch14_dinov2.lvd142m", True, Origin("timm/vit_base_patch14_dinov2.lvd142m", "apache-2.0")),
        ("timm:resnet18", "weights.safetensors", Origin("", "")),
    ],
)
def test_where_weights_come_from(name: str, pretrained: bool | str, expected: Origin | None) -> None:
    assert origin_of(ModelConfig(name=name, pretrained=pretrained)) == expected


def test_terms_of_published_weights_are_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hai.export.card.origin_of", lambda _: Origin("timm/some.weights", "cc-by-nc-4.0"))
    card = model_card(load_trained(str(run), CPU), "someone/bright")
    assert front_matter(card)["base_model"] == "timm/some.weights"
    assert (
        "[timm/some.weights](https://huggingface.co/timm/some.weights), whose terms, `cc-by-nc-4.0`, hold too" in card
    )
