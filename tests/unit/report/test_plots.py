import functools
import re
import xml.etree.ElementTree as ElementTree

import numpy as np

from hai.report import plots


def _history(count: int) -> list[dict[str, object]]:
    return [{"step": step, "train/loss": 1.0 / (1 + step), "val/f1_macro": None} for step in range(count)]


@functools.cache
def _all_plots() -> dict[str, str]:
    label, score = np.arange(50) % 2, np.linspace(0, 1, 50)
    bins = np.linspace(0.05, 0.95, 10)
    drawn = {
        "train": plots.training_plot(_history(100), {"train/loss": "training"}, title="loss", key="train", best_step=7),
        "roc": plots.curve_plot(
            [0, 0.5, 1], [0, 0.9, 1], key="roc", labels=("x", "y"), curve="AUC 0.7", operating_point=(0.5, 0.9),
            chance=((0, 1), (0, 1)),
        ),
        "bins": plots.reliability_plot(bins, bins, np.arange(10), key="bins"),
        "score": plots.score_plot(label, score, 0.4, key="score"),
    }  # fmt: skip
    return {key: svg for key, svg in drawn.items() if svg is not None}


def test_plots_are_svg_in_the_pages_colours_with_ids_of_their_own() -> None:
    drawn = _all_plots()
    assert len(drawn) == 4
    for key, svg in drawn.items():
        root = ElementTree.fromstring(svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root.attrib["role"] == "img"
        assert "width" not in root.attrib, "the page decides how wide a plot is"
        ids = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
        assert ids
        assert all(name.startswith(f"{key}-") for name in ids)
        assert len(set(ids)) == len(ids)
        references = re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", svg)
        assert set(references) <= set(ids)
        assert "#0a0b0" not in svg, "a colour that stands for a variable was left"
        assert "var(--" in svg
        assert "<style" not in svg


def test_plots_are_the_same_every_time() -> None:
    assert plots.score_plot(np.arange(50) % 2, np.linspace(0, 1, 50), 0.4, key="score") == _all_plots()["score"]


def test_text_stays_text() -> None:
    assert ">AUC 0.7</text>" in _all_plots()["roc"]
    rate = plots.training_plot(
        [{"step": step, "rate": 0.0015 * step} for step in range(3)], {"rate": "rate"}, title="rate", key="r"
    )
    assert rate is not None
    assert ">0.0015</text>" in rate, "tick labels keep their digits"


def test_large_inputs_make_small_plots() -> None:
    rng = np.random.default_rng(0)
    many = np.sort(rng.random(200_000))
    roc = plots.curve_plot(
        many, np.sqrt(many), key="a", labels=("x", "y"), curve="c", operating_point=None, chance=((0, 1), (0, 1))
    )
    assert len(roc) < 100_000
    curve = plots.training_plot(_history(50_000), {"train/loss": "training"}, title="loss", key="b")
    assert curve is not None
    assert len(curve) < 60_000


def test_metrics_without_values_are_left_out() -> None:
    history = [{"step": 1, "a": float("nan"), "b": None}, {"step": 2, "a": float("inf")}]
    assert plots.training_plot(history, {"a": "a", "b": "b"}, title="a", key="a") is None
    assert plots.training_plot([], {"a": "a"}, title="a", key="a") is None


def test_smoothing_is_a_centred_mean() -> None:
    values = np.random.default_rng(0).normal(size=523)
    half = 5
    expected = [values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))]
    np.testing.assert_allclose(plots._smooth(values), expected, rtol=1e-9)


def test_wilson_interval_against_a_published_example() -> None:
    # Agresti and Coull (1998), Approximate is better than "exact": 0 of 10 gives [0, 0.278], 5 of 10 [0.237, 0.763].
    low, high = plots.wilson(np.array([0.0, 0.5]), np.array([10.0, 10.0]))
    np.testing.assert_allclose(low, [0.0, 0.237], atol=1e-3)
    np.testing.assert_allclose(high, [0.278, 0.763], atol=1e-3)


def test_score_plot_counts_the_mistakes() -> None:
    svg = plots.score_plot([0, 0, 0, 1, 1], [0.1, 0.5, 0.9, 0.5, 0.2], 0.5, key="s")
    assert "2 of 3 real images on the wrong side" in svg
    assert "1 of 2 fake images on the wrong side" in svg


def test_one_class_and_no_images_are_drawn() -> None:
    assert "0 of 0 fake images" in plots.score_plot([0, 0], [0.2, 0.4], 0.5, key="s")
    assert plots.reliability_plot([], [], [], key="r").startswith("<svg")
