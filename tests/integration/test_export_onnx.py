"""ONNX graphs of every kind of network against torch."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ranked_run import save_ranker
from trained_run import image_bytes, save_run

import hai
from hai.errors import CheckpointError, ConfigError
from hai.export import run_export
from hai.export.graph import TOLERANCE, _difference, check_images
from hai.score_scale import Scale
from hai.trained import load_trained

CPU = torch.device("cpu")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("runs"), threshold=0.5, temperature=0.05)


@pytest.fixture(scope="module")
def graph(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("graphs") / "detector.onnx"
    assert run_export(str(run), "onnx", str(target)) == 0
    return target


def test_a_graph_scores_without_torch_and_without_hai(run: Path, graph: Path, tmp_path: Path) -> None:
    """The five lines of docs/export.md, with an image of the model's own size."""
    file = tmp_path / "face.png"
    file.write_bytes(image_bytes(4, size=(32, 32)))
    code = textwrap.dedent(
        f"""
        import sys
        import numpy as np, onnxruntime
        from PIL import Image
        session = onnxruntime.InferenceSession({str(graph)!r})
        image = np.asarray(Image.open({str(file)!r}).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR))
        probability_fake, logit = session.run(None, {{"image": image[None]}})
        assert not {{"torch", "hai"}} & set(sys.modules)
        print(probability_fake[0], logit[0])
        """
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    probability, logit = map(float, done.stdout.split())
    image = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None]
    (expected,) = load_trained(str(run), CPU).logits(image)
    assert logit == pytest.approx(expected, abs=TOLERANCE)
    assert probability == pytest.approx(1 / (1 + np.exp(-expected)), abs=TOLERANCE)


def test_a_graph_holds_no_path_of_the_machine(graph: Path) -> None:
    content = graph.read_bytes()
    for folder in (Path(hai.__file__).parents[1], Path(torch.__file__).parents[1], graph.parent):
        assert str(folder).encode() not in content


def test_metadata_hold_the_facts(run: Path, graph: Path) -> None:
    import onnxruntime

    facts = json.loads(onnxruntime.InferenceSession(str(graph)).get_modelmeta().custom_metadata_map["hai"])
    assert facts["image"]["size"] == 32
    assert (facts["threshold"], facts["temperature"]) == (0.5, 0.05)


def test_a_graph_of_other_weights_is_found_out(graph: Path, tmp_path: Path) -> None:
    other = load_trained(str(save_run(tmp_path, "other", seed=2, threshold=0.5, temperature=0.05)), CPU)
    with pytest.raises(CheckpointError, match=r"logit of compact differs from torch by .*nothing was written"):
        _difference(other, graph, check_images(32), "logit")


@pytest.mark.parametrize(
    ("name", "size"),
    [("dual_branch_v2", 64), ("dual_branch", 64), ("timm:vit_tiny_patch16_224", 224)],
)
def test_graphs_of_networks_agree(name: str, size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = (f"model.name={name}", "model.pretrained=false", f"data.image_size={size}")
    run = save_run(tmp_path, overrides=options, threshold=0.5, temperature=1.0)
    assert run_export(str(run), "onnx", str(tmp_path / "out")) == 0
    assert (tmp_path / "out" / "model.onnx").is_file()
    assert "onnxruntime agrees with torch" in capsys.readouterr().out


def test_a_ranker_s_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnxruntime

    run = save_ranker(tmp_path, "taste", Scale())
    assert run_export(str(run), "onnx", str(tmp_path / "taste.onnx")) == 0
    assert "outputs: score, spread [N]" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(tmp_path / "taste.onnx"))
    score, spread = session.run(None, {"image": check_images(32).numpy()})
    assert score.shape == spread.shape == (4,)
    assert (spread > 0).all(), "three heads"


def test_missing_packages_are_named(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"--format = onnx; needs onnxscript; pip install 'hai\[export\]'"):
        run_export(str(run), "onnx", str(tmp_path / "m.onnx"))
