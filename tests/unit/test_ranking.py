"""A trained ranker at work: the same number everywhere, every unusable file named."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ranked_run import save_ranker
from trained_run import image_bytes, save_image, save_run

import hai
from hai.cli import main
from hai.errors import ConfigError, DataError
from hai.ranking import Ranker, load_ranker
from hai.score_scale import Scale


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_ranker(tmp_path_factory.mktemp("runs"), "ranked", Scale(0.5, 0.0, (0.1, -0.1)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("art")
    for number in range(5):
        save_image(root / "sub" / f"{number}.png", number, size=(40 + number, 33))
    (root / "broken.jpg").write_bytes(b"no image")
    return root


def status(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_file_its_bytes_and_its_pixels_have_the_same_score(run: Path, folder: Path) -> None:
    path = folder / "sub" / "1.png"
    pixels = np.asarray(Image.open(path))
    alone = next(load_ranker(run).score([path]))
    turned = pixels[::-1].copy()[::-1]
    many = list(load_ranker(str(run)).score([path.read_bytes(), folder / "sub" / "2.png", pixels, str(path), turned]))
    assert alone == many[0] == many[2] == many[3] == many[4]
    assert alone != many[1]
    assert alone.tier in ("gold", "silver", "bronze")
    assert alone.spread > 0


def test_what_is_no_image_is_said(run: Path, folder: Path) -> None:
    ranker = load_ranker(run)
    empty = np.zeros((0, 4, 3), np.uint8)
    bad = [folder / "broken.jpg", folder / "gone.png", np.zeros((4, 4)), empty]
    found = list(ranker.score([*bad, folder / "sub" / "0.png"]))
    assert [bool(one.error) for one in found] == [True, True, True, True, False]
    assert found[2].error.startswith("pixels are float64 [4, 4]; must be uint8")
    with pytest.raises(DataError, match=r"broken.jpg: .*\n.*gone.png: cannot be read"):
        ranker.compare(folder / "broken.jpg", folder / "gone.png")


def test_one_image_needs_no_list(run: Path, folder: Path) -> None:
    ranker, path = load_ranker(run), folder / "sub" / "1.png"
    with Image.open(path) as picture:
        pixels = np.array(picture)
        alone = [list(ranker.score(image)) for image in (path, str(path), path.read_bytes(), pixels, picture)]
        assert alone == [list(ranker.score([picture]))] * 5
        assert ranker.compare(picture, pixels).winner == "tie"
    assert len(list(ranker.score(np.stack([pixels, pixels])))) == 2
    assert [one.error[:22] for one in ranker.score(pixels[..., 0])] == ["pixels are uint8 [33, "]
    assert ranker.rank(str(path)) == ranker.rank(path) == ranker.rank(iter([path])) == [(str(path), alone[0][0])]


def test_a_ranker_is_called_as_a_detector_is(run: Path, folder: Path) -> None:
    ranker, paths = hai.load(run, "cpu"), [folder / "sub" / "1.png", folder / "sub" / "2.png"]
    assert isinstance(ranker, Ranker)
    assert ranker(paths).tolist() == [one.score for one in ranker.score(paths)]
    assert ranker(str(paths[0])).tolist() == ranker(paths)[:1].tolist()
    assert ranker([]).shape == (0,)
    with pytest.raises(DataError, match=r"^\S+broken.jpg: .*\nimage 2: not an image"):
        ranker([folder / "broken.jpg", paths[0], b"nothing"])


def test_names_that_are_no_utf_8_are_written_in_backslashes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left, right = (os.fsdecode(os.fsencode(tmp_path) + name) for name in (b"/caf\xe9.png", b"/th\xe9.png"))
    for key, name in enumerate((left, right)):
        save_image(Path(name), key)
    checkpoint, told = ["--checkpoint", run], []
    for words in (
        ["rank", *checkpoint, "--input", tmp_path, "--output", tmp_path / "ranking.csv"],
        ["compare", *checkpoint, left, right],
        ["compare", *checkpoint, left, right, "--json"],
    ):
        assert status(*words) == 0
        told.append(capsys.readouterr().out)
    assert {row["filename"] for row in table(tmp_path / "ranking.csv")} == {r"caf\udce9.png", r"th\udce9.png"}
    assert r"\udce9.png -> " in told[0]
    assert r"caf\udce9.png" in told[1]
    assert json.loads(told[2])["left"] == left


def test_comparing_is_antisymmetric(run: Path, folder: Path) -> None:
    ranker = load_ranker(run)
    one, two = folder / "sub" / "0.png", folder / "sub" / "3.png"
    there, back = ranker.compare(one, two), ranker.compare(two, one)
    assert {there.winner, back.winner} == {"left", "right"}
    assert there.difference == -back.difference
    assert there.probability_left == pytest.approx(1 - back.probability_left)
    assert there.confidence == pytest.approx(back.confidence)
    assert there.confidence > 0.5
    assert ranker.compare(one, one).winner == "tie"


def test_compare_says_it_in_a_sentence_and_as_json(run: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left, right = folder / "sub" / "0.png", folder / "sub" / "3.png"
    expected = load_ranker(run).compare(left, right)
    assert status("compare", "--checkpoint", run, left, right, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["score_left"] == expected.score_left
    assert found["probability_left"] == expected.probability_left
    assert found["winner"] == expected.winner
    assert status("compare", "--checkpoint", run, left, right) == 0
    better, worse = (left, right) if expected.winner == "left" else (right, left)
    sentence = capsys.readouterr().out
    assert sentence.startswith(f"{better} beats {worse} with probability {expected.confidence:.2f} (scores ")
    assert sentence.count("tiers") == 1


def test_compare_many(run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = folder / "pairs.csv"
    pairs.write_text("left,right\nsub/0.png,sub/1.png\nsub/1.png,broken.jpg\nsub/2.png,sub/2.png\n", encoding="utf-8")
    assert status("compare", "--checkpoint", run, "--pairs", pairs, "--output", tmp_path / "out.csv") == 0
    rows = table(tmp_path / "out.csv")
    assert list(rows[0]) == [
        "left", "right", "score_left", "score_right", "winner", "probability_left", "difference", "error",
    ]  # fmt: skip
    single = load_ranker(run).compare(folder / "sub/0.png", folder / "sub/1.png")
    assert (rows[0]["score_left"], rows[0]["winner"]) == (f"{single.score_left:.9g}", single.winner)
    assert rows[1]["error"].startswith("broken.jpg: ")
    assert rows[1]["winner"] == ""
    assert rows[2]["winner"] == "tie"
    assert "2 comparisons, 1 with unusable images" in capsys.readouterr().out


def test_rank_puts_the_best_first(run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("rank", "--checkpoint", run, "--input", folder, "--output", tmp_path / "ranking.csv") == 0
    rows = table(tmp_path / "ranking.csv")
    assert list(rows[0])[:3] == ["filename", "score", "tier"]
    scored = [row for row in rows if not row["error"]]
    assert [row["filename"] for row in rows[len(scored) :]] == ["broken.jpg"]
    values = [float(row["score"]) for row in scored]
    assert values == sorted(values, reverse=True)
    assert len(values) == 5
    ranker = load_ranker(run)
    assert [row["score"] for row in scored] == [
        f"{one.score:.9g}" for one in ranker.score(folder / row["filename"] for row in scored)
    ]
    ranked = ranker.rank([folder / row["filename"] for row in reversed(scored)])
    assert [name for name, _ in ranked] == [str(folder / row["filename"]) for row in scored]
    captured = capsys.readouterr()
    assert f"5 images, the best {scored[0]['filename']}" in captured.out
    assert "unusable: broken.jpg: " in captured.err


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (["compare", "one.png"], ["compare: 1 images; give LEFT and RIGHT", "compare: one.png; no such file"]),
        (["compare", "a.png", "b.png"], ["compare: a.png; no such file", "compare: b.png; no such file"]),
        (["compare", "--pairs", "p.csv"], ["compare: --pairs FILE.csv goes with --output FILE.csv"]),
        (["rank", "--input", "nowhere", "--output", "x/out.csv"], ["--input = nowhere; no such file or folder"]),
    ],
)
def test_wrong_arguments_are_all_told_before_a_model_is_loaded(
    arguments: list[str],
    lines: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert status(arguments[0], "--checkpoint", "no/run", *arguments[1:]) == 2
    told = capsys.readouterr().err.splitlines()
    assert [line[: len(start)] for line, start in zip(told, lines, strict=True)] == lines


def test_faults_of_a_table_are_listed(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pairs.csv").write_text("left,right\na.png,\n,b.png\n", encoding="utf-8")
    arguments = ["--pairs", tmp_path / "pairs.csv", "--output", tmp_path / "out.csv"]
    assert status("compare", "--checkpoint", run, *arguments) == 2
    told = capsys.readouterr().err.splitlines()
    assert [line.rpartition("pairs.csv:")[2] for line in told] == ["2: right is empty", "3: left is empty"]
    assert not (tmp_path / "out.csv").exists()


def test_a_detector_is_no_ranker_and_a_ranker_no_detector(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    detector = save_run(tmp_path)
    (tmp_path / "one.png").write_bytes(image_bytes(1))
    with pytest.raises(ConfigError, match="is a detector, not a ranker; use hai predict"):
        load_ranker(detector)
    arguments = ["--input", tmp_path / "one.png", "--output", tmp_path / "out.csv"]
    assert status("predict", "--checkpoint", run, *arguments) == 2
    assert "is a ranker; use hai rank or hai compare" in capsys.readouterr().err
