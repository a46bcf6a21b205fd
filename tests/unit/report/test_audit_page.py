import html.parser
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hai.config.schema import DataConfig, SourceConfig
from hai.data.audit import audit_data
from hai.provenance import provenance
from hai.report.audit import audit_page, write_audit


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.names, self.sources = [], []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a set with every kind of finding, and names that want to be markup."""
    folder = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    for split, count in (("train", 30), ("val", 12)):
        for label in ("real", "fake"):
            (folder / split / label).mkdir(parents=True)
            for k in range(count):
                coarse = rng.integers(30, 180, (6, 6, 3)).astype(np.uint8) + np.uint8(50 * (label == "fake"))
                image = Image.fromarray(coarse).resize((70 + 8 * (label == "fake"),) * 2, Image.Resampling.BICUBIC)
                image.save(folder / split / label / f"{k}<script>.jpg", quality=70 if label == "fake" else 90)
    for k in range(3):
        name = f"{k}<script>.jpg"
        with Image.open(folder / "train" / "real" / name) as image:
            image.save(folder / "val" / "real" / f"again{k}.jpg", quality=50)
        (folder / "val" / "fake" / f"copy{k}.jpg").write_bytes((folder / "train" / "fake" / name).read_bytes())
    Image.new("L", (20, 20), 90).save(folder / "train" / "real" / "speck.png")
    (folder / "train" / "real" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    audit = audit_data(DataConfig(sources=[SourceConfig(path=str(folder))]))
    return audit, audit_page(audit, "some/set", "set", provenance(["hai", "data", "audit", "some/set"]))


def test_it_is_one_file_that_names_every_finding(page):
    audit, text = page
    tags = Tags()
    tags.feed(text)
    assert not {"script", "link", "iframe", "object"} & set(tags.names)
    assert all(source.startswith("data:image/") or source.startswith("#") for source in tags.sources)
    plain = html.unescape(re.sub(r"<[^>]+>", "", text))
    assert len(audit.findings) >= 6
    for line in audit.lines:
        assert line in plain


def test_it_shows_shortcuts_pairs_and_what_cannot_be_used(page):
    _, text = page
    for heading in (
        "What tells the label",
        "Label by dimensions",
        "Label by 8x8 thumbnail",
        "Copies across splits",
        "Near-duplicates across splits",
        "Smallest images",
        "Not usable",
    ):
        assert f"<h2>{heading}" in text, heading
    assert "70x70" in text
    assert "image-rendering: pixelated" in text
    assert text.count("<img") > 20
    assert "broken.jpg" in text


def test_a_set_with_nothing_wrong_says_so(tmp_path):
    rng = np.random.default_rng(5)
    for split in ("train", "val", "test"):
        for label in ("real", "fake"):
            (tmp_path / split / label).mkdir(parents=True)
            for k in range(14):
                coarse = rng.integers(30, 220, (6, 6, 3)).astype(np.uint8)
                image = Image.fromarray(coarse).resize((70, 70), Image.Resampling.BICUBIC)
                image.save(tmp_path / split / label / f"{k}.jpg")
    audit = audit_data(DataConfig(sources=[SourceConfig(path=str(tmp_path))]))
    assert audit.lines == []
    text = audit_page(audit, "clean", "clean", provenance(["hai"]))
    assert "nothing found" in text
    assert "No file fact and no thumbnail tells the label" in text


def test_every_set_has_a_folder_of_its_own(page, tmp_path, monkeypatch):
    audit, _ = page
    (tmp_path / "celeb.v1" / "real").mkdir(parents=True)
    (tmp_path / "celeb.v2").mkdir()
    (tmp_path / "celeb.v1" / "labels.csv").touch()
    (tmp_path / "celeb.v1" / "some.csv").touch()
    monkeypatch.chdir(tmp_path / "celeb.v1" / "real")
    monkeypatch.setattr("hai.report.audit.audit_page", lambda *_: "")  # what it says is tested above
    names = {
        str(tmp_path / "celeb.v1"): "celeb.v1",
        "../../celeb.v2/": "celeb.v2",
        "..": "celeb.v1",
        ".": "real",
        "../labels.csv": "celeb.v1",
        "../some.csv": "some",
        "gs://bucket/celeb.v3/": "celeb.v3",
        "https://host/some.zip?signature=a/b": "some",
        "/": "data",
    }
    for data, name in names.items():
        assert write_audit(audit, data)[0] == Path("audit", name, "audit.json"), data
