from pathlib import Path

import numpy as np
import pytest
import torch
from trained_run import save_image, save_run

from hai.cli import main
from hai.predict import run_prediction
from hai.trained import load_trained


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("runs"), threshold=0.5, temperature=0.25)


def test_flip_is_the_mean_over_the_image_and_its_mirror_image(run: Path) -> None:
    trained = load_trained(str(run), torch.device("cpu"))
    image = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8))
    plain, mirrored, both = trained.logits(image), trained.logits(image.flip(-1)), trained.logits(image, flip=True)
    assert both == pytest.approx((plain + mirrored) / 2, abs=1e-5)
    assert np.abs(both - plain).min() > 1e-3, "noise is not symmetric"
    assert trained.logits(image.flip(-1), flip=True) == pytest.approx(both, abs=1e-5)


def test_flip_is_off_by_default(run: Path, tmp_path: Path) -> None:
    save_image(tmp_path / "in" / "a.png", 1)
    tables = []
    for number, tta in enumerate((None, "flip")):
        output = tmp_path / f"{number}.csv"
        assert run_prediction([str(run)], [str(tmp_path / "in")], str(output), tta=tta) == 0
        tables.append(output.read_text(encoding="utf-8"))
    assert tables[0] != tables[1]


def test_dacon_s_rules_forbid_it(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_image(tmp_path / "in" / "a.png", 1)
    words = ["predict", "--checkpoint", str(run), "--input", str(tmp_path / "in"), "--output", str(tmp_path / "o.csv")]
    with pytest.raises(SystemExit) as end:
        main([*words, "--format", "dacon", "--tta", "flip"])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("--tta = flip; --format dacon allows no test-time augmentation")
    assert not (tmp_path / "o.csv").exists()
