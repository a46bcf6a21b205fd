"""The model card of a repository on the Hugging Face Hub, filled in from the run."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any, Final

import hai
from hai.checkpoint.records import SUMMARY, parse_json
from hai.checkpoint.runs import read_run_file
from hai.config.load import show_config
from hai.export.facts import Origin, keeps_backbone_outside, origin_of, shown_model, trained_checkpoint
from hai.export.folder import served_config
from hai.masking import without_secrets
from hai.provenance import hardware_text
from hai.types import Record

if TYPE_CHECKING:
    from hai.trained import Trained

__all__ = ["CARD", "model_card"]

CARD: Final = "README.md"
_EVALUATION: Final = "evaluation/test/evaluation.json"
_SHOWN: Final = {
    "detector": ("f1_macro", "roc_auc", "accuracy", "equal_error_rate", "expected_calibration_error"),
    "ranker": ("pair_accuracy", "srcc", "kendall_tau", "tier_accuracy"),
}
_TITLES: Final = {"detector": "Deepfake detector", "ranker": "Image ranker"}
_PURPOSE: Final = {
    "detector": "It gives the probability that a face crop is synthetic or manipulated.",
    "ranker": "It gives an image a score, higher is better, and the probability that it beats another.",
}
_LIMITS: Final = {
    "detector": "It knows the manipulations, cameras and compressions of its training data and errs on others, often "
    "confidently. A score is a hint for a person who looks further, no proof about anybody.",
    "ranker": "It repeats the taste of those who graded its training data, on images like theirs.",
}


def model_card(trained: Trained, repo: str, license: str | None = None) -> str:
    """Write the card: metadata that the hub reads, then use, results, training, limits and terms.

    Args:
        trained: the model.
        repo: OWNER/NAME that the card is for.
        license: identifier of the terms that the author chose; None: none was chosen.
    """
    task, name, model = trained.config.task, repo.rpartition("/")[2], shown_model(trained.config.model)
    origin = origin_of(trained.config.model)
    evaluation = _test_evaluation(trained)
    metadata = _metadata(trained, name, license, origin, evaluation)
    parts = [
        f"# {name}",
        f"{_TITLES[task]} on `{model}`, trained with hai {hai.__version__}. {_PURPOSE[task]}",
        "## Use",
        _use(trained, repo),
        "## Results",
        _results(trained, evaluation),
        "## Training",
        _training(trained),
        "## Limits",
        _LIMITS[task],
        "## Terms",
        _terms(license, origin, [source.name for source in trained.config.data.sources]),
        "## Config",
        f"<details><summary>run.yaml</summary>\n\n```yaml\n{show_config(served_config(trained.config))}```\n\n</details>",
    ]
    return f"---\n{metadata}\n---\n\n" + without_secrets("\n\n".join(parts)) + "\n"


def _metadata(
    trained: Trained, name: str, license: str | None, origin: Origin | None, evaluation: Record | None
) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    task = trained.config.task
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type="other",
            dataset_name=_data_name(evaluation),
            dataset_split=evaluation["data"]["split"],
            metric_type=metric,
            metric_value=round(evaluation["metrics"][metric]["value"], 4),
        )
        for metric in _SHOWN[task]
        if evaluation is not None and evaluation["metrics"].get(metric, {}).get("value") is not None
    ]
    data: Any = ModelCardData(
        license=license,
        library_name="hai",
        pipeline_tag="image-classification" if task == "detector" else None,
        tags=["deepfake-detection"] if task == "detector" else ["image-ranking"],
        base_model=origin.repo if origin is not None and origin.repo else None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml()).rstrip("\n")


def _test_evaluation(trained: Trained) -> Record | None:
    """Read what `hai evaluate` has said of this very checkpoint on the test split."""
    found = parse_json(read_run_file(trained.run, _EVALUATION)) or {}
    same = (trained.checkpoint.sha256, trained_checkpoint(trained.checkpoint)["sha256"])
    return found if found.get("checkpoint", {}).get("sha256") in same else None


def _data_name(evaluation: Record | None) -> str:
    sources = [row["source"] for row in (evaluation or {}).get("per_source", [])]
    return ", ".join(sources) or "images"


def _use(trained: Trained, repo: str) -> str:
    if trained.config.task == "ranker":
        lines = ["from hai import load_ranker", "ranker = load_ranker(snapshot_download(REPO))"]
        last = 'print(ranker.compare("left.jpg", "right.jpg"))'
    else:
        lines = ["from hai import load", "detector = load(snapshot_download(REPO))"]
        last = 'print(detector(["image.jpg"]))  # probability of fake'
    code = "\n".join(["from huggingface_hub import snapshot_download", *lines, last]).replace("REPO", json.dumps(repo))
    verb = "rank" if trained.config.task == "ranker" else "predict"
    shell = (
        f"hf download {shlex.quote(repo)} --local-dir model\n"
        f"hai {verb} --checkpoint model --input FOLDER --output scores.csv"
    )
    return f"```python\n{code}\n```\n\n```bash\n{shell}\n```\n\n{_input(trained)}"


def _input(trained: Trained) -> str:
    data = trained.config.data
    how = {
        "resize": "squashed to",
        "pad": "scaled, on black, to",
        "crop": "cut at native resolution, in the middle, to",
    }[data.geometry]
    text = f"Images are {how} {data.image_size} x {data.image_size} pixels."
    if trained.config.task == "detector":
        fitted = trained.calibration
        interval = (
            f" (95 % interval {fitted.threshold_low:.3f} to {fitted.threshold_high:.3f})"
            if fitted.threshold_low is not None and fitted.threshold_high is not None
            else ""
        )
        origin = (
            f", and logits are divided by the temperature {fitted.temperature:.3f}; both were fitted to the validation "
            "split."
            if fitted.is_fitted
            else ", the default: nothing was fitted, as the checkpoint was saved before any evaluation."
        )
        text += f" From a probability of {fitted.threshold:.3f}{interval} an image is called fake{origin}"
    if keeps_backbone_outside(trained.config):
        text += (
            f" The repository holds what was learned; the backbone `{shown_model(trained.config.model)}` is fetched "
            "from where it is published."
        )
    return text


def _results(trained: Trained, evaluation: Record | None) -> str:
    task, meta = trained.config.task, trained.checkpoint.meta
    if evaluation is not None:
        rows = [
            f"| {name} | {metric['value']:.4f} | {metric['low']:.3f} to {metric['high']:.3f} |"
            for name in _SHOWN[task]
            if (metric := evaluation["metrics"].get(name)) and None not in metric.values()
        ]
        table = "\n".join([f"| metric on {_data_name(evaluation)} | value | 95 % interval |", "|---|---|---|", *rows])
        size = f"{evaluation['n']:,} images"
        if evaluation["num_groups"] != evaluation["n"]:
            size += f" in {evaluation['num_groups']:,} independent groups"
        return f"{table}\n\nMeasured by `hai evaluate` on {size}, the split {evaluation['data']['split']}."
    measured = {name: meta.get("metrics", {}).get(name) for name in _SHOWN[task]}
    if not any(value is not None for value in measured.values()):
        best = meta.get("best") or {}
        measured = {best["metric"]: best["value"]} if "metric" in best else {}
    rows = [f"| {name} | {value:.4f} |" for name, value in measured.items() if value is not None]
    if not rows:
        return "None are stored with the checkpoint."
    table = "\n".join(["| metric on the validation split | value |", "|---|---|", *rows])
    return f"{table}\n\nThe checkpoint was chosen on these images, so the numbers flatter; others have not been tried."


def _training(trained: Trained) -> str:
    summary = parse_json(read_run_file(trained.run, SUMMARY)) or {}
    checkpoint = trained_checkpoint(trained.checkpoint)
    facts = [
        f"- Data: {', '.join(source.name for source in trained.config.data.sources) or 'not named'}",
        f"- Step {checkpoint['step']:,}, checkpoint sha256 `{checkpoint['sha256'][:12]}`, seed {trained.config.seed}",
    ]
    if summary.get("hardware"):
        facts.append(f"- Hardware: {hardware_text(summary['hardware'])}")
    if summary.get("commit"):
        facts.append(f"- Commit: `{summary['commit']}`")
    if summary.get("versions"):
        facts.append("- Versions: " + ", ".join(f"{name} {value}" for name, value in summary["versions"].items()))
    return "\n".join(facts)


def _terms(license: str | None, origin: Origin | None, sources: list[str]) -> str:
    own = f"The author's terms are `{license}`." if license else "The author has chosen no licence yet."
    if origin is None:
        weights = "Training began with random weights, so no terms of others are attached to them."
    elif not origin.repo:
        weights = "Training began with weights from a file of the author's, whose terms hold too."
    else:
        page = f"[{origin.repo}](https://huggingface.co/{origin.repo})"
        named = f"whose terms, `{origin.license}`, hold too" if origin.license else "whose terms, on its page, hold too"
        weights = f"Training began with the published weights {page}, {named}."
    data = f" The terms of the training data ({', '.join(sources)}) hold besides." if sources else ""
    return f"{own} {weights}{data}"
