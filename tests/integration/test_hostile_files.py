"""Files that would run code if anything believed them, and names that would if a page did."""

from __future__ import annotations

import html.parser
from pathlib import Path

import pytest
from ranked_run import save_ranker
from trained_run import save_image, save_run

from benchmarks.faults.malice import try_malice
from hai.evaluation import evaluate_checkpoint
from hai.score_scale import Scale

EVIL = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg onload=alert(1)>",
    "</pre></style></title><script src=//evil.example/x.js></script>",
    "{{ 7 * 7 }}{% for x in y %}",
    "=HYPERLINK(1)",
    "$\\frac{$",
]


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_no_malicious_file_runs_code(tmp_path: Path, every: int) -> None:
    found = try_malice(tmp_path / "malice", every=every)
    assert found["executed"] == []
    assert found["crashed"] == []
    assert found["tried"] >= 30


class Page(html.parser.HTMLParser):
    """What a browser would make of a page: elements, attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links |= {str(value) for name, value in attrs if name in ("src", "href", "action", "xlink:href")}

    def handle_data(self, data: str) -> None:
        self.text += data


def assert_harmless(report: Path, shown: list[str]) -> None:
    text = report.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.tags & {"script", "iframe", "object", "embed", "form", "input", "base", "link", "foreignobject"}
    assert not {name for name in page.attributes if name.startswith("on")}
    assert all(link.startswith(("data:image/", "#")) for link in page.links)
    assert "default-src 'none'" in text
    for evil in shown:
        assert evil in page.text, "it should be there, as text"


def test_names_that_are_markup_are_text_on_a_detectors_page(tmp_path: Path) -> None:
    lines = ["path,label,group,source"]
    for number, evil in enumerate(EVIL * 2):
        name = f"{number} {evil.replace('/', '_').replace(chr(92), '')}.png"
        save_image(tmp_path / "data" / name, number)
        cells = (name, ("real", "fake")[number % 2], f"{number} {evil}", evil)
        lines.append(",".join('"' + cell.replace('"', '""') + '"' for cell in cells))
    (tmp_path / "data" / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    run = save_run(tmp_path, "a&lt;b <script>alert(2)<script>")
    evaluate_checkpoint(str(run), str(tmp_path / "data"))
    sources = [f"data/{evil}" for evil in EVIL]
    assert_harmless(run / "evaluation" / "test" / "report.html", [*sources, "a&lt;b <script>alert(2)<script>"])


def test_tiers_that_are_markup_are_text_on_a_rankers_page(tmp_path: Path) -> None:
    lines = ["image_id,filename,tier,votes"]
    for number in range(3 * len(EVIL)):
        save_image(tmp_path / "data" / f"{number}.png", number)
        tier = EVIL[number % len(EVIL)].replace('"', '""')
        lines.append(f'{number},{number}.png,"{tier}",{number}')
    (tmp_path / "data" / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    run = save_ranker(tmp_path, "run", Scale(1.0, 0.0, (0.5, 0.4, 0.3, 0.2, 0.1, 0.0)))
    config = (run / "run.yaml").read_text(encoding="utf-8")
    named = ", ".join("'" + tier.replace("'", "''") + "'" for tier in EVIL)
    (run / "run.yaml").write_text(config.replace("[gold, silver, bronze]", f"[{named}]"), encoding="utf-8")
    evaluate_checkpoint(str(run), str(tmp_path / "data"))
    assert_harmless(run / "evaluation" / "test" / "report.html", [f"called {evil}" for evil in EVIL])
