"""Packages run by themselves: in environments made from their own requirements, without network."""

import shutil
import subprocess

import pytest
from trained_run import save_run

from hai.errors import ConfigError
from hai.faces.settings import CropSettings
from hai.submit import run_submission


@pytest.mark.slow
@pytest.mark.parametrize("form", ["dacon", "aifactory"])
def test_a_package_scores_as_hai_predict_does(raw, tmp_path, capsys, form):
    run = save_run(tmp_path / "runs", crop_settings=CropSettings(image_size=96), temperature=0.25)
    files = [str(raw / name) for name in ("real/person1.mp4", "fake/FaceSwap/nobody.mp4", "real/broken.mp4")]
    try:
        status = run_submission(str(run), str(tmp_path / "package"), format=form, inputs=files, frames=3)
    except ConfigError as error:
        if "the fresh environment cannot be made" not in str(error):
            raise
        pytest.skip(f"no index of packages can be reached: {str(error)[-300:]}")
    said = capsys.readouterr().out
    assert status == 0, said
    assert "NO" not in said.split("rule", 1)[1]
    assert "env/requirements.txt is enough, 3 files" in said
    can_cut = shutil.which("unshare") and not subprocess.run(["unshare", "-rn", "true"], check=False).returncode
    assert ("runs under unshare -rn" in said) == bool(can_cut)
    assert (tmp_path / "package" / "task.ipynb").exists() == (form == "aifactory")
