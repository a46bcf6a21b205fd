"""The verb `hai export`: check, load the checkpoint, write what was asked for, say how to use it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hai.errors import ConfigError

if TYPE_CHECKING:
    from hai.trained import Trained

__all__ = ["run_export"]

_FORMATS: Final = ("safetensors", "onnx", "hub")


def run_export(
    checkpoint: str,
    format: str,
    output: str,
    *,
    push: str | None = None,
    public: bool = False,
    license: str | None = None,
) -> int:
    """Write a checkpoint for other programs.

    Args:
        checkpoint: REF: a run folder (its best), a checkpoint, or a URL of either.
        format: `safetensors`: a folder of weights and config, itself a REF; `onnx`: one graph; `hub`: the folder with
            a model card.
        output: the folder; of onnx a file, or a folder for `model.onnx`.
        push: OWNER/NAME on the Hugging Face Hub that `hub` goes to.
        public: a repository that is made is for everybody.
        license: identifier of the author's terms, for the model card.

    Returns:
        Exit status 0.

    Raises:
        HaiError: for wrong arguments or checkpoints.
    """
    target = _check(format, output, push, public, license)
    import torch

    from hai.trained import load_trained

    trained = load_trained(checkpoint, torch.device("cpu"))
    what = f"{trained.config.task} {trained.config.model.name} of step {trained.checkpoint.step}"
    if format == "onnx":
        _write_graph(trained, target, what)
    else:
        _write_folder(trained, target, what, format, push, public, license)
    return 0


def _check(format: str, output: str, push: str | None, public: bool, license: str | None) -> Path:
    """Check everything that needs no checkpoint, all at once; returns what to write."""
    problems = []
    if format not in _FORMATS:
        problems.append(f"--format = {format}; must be one of {', '.join(_FORMATS)}")
    for option, given in (("push", push), ("public", public), ("license", license)):
        if given and format != "hub":
            problems.append(f"--{option}; belongs to --format hub; leave it out")
    if public and not push:
        problems.append("--public; belongs to --push OWNER/NAME; leave it out")
    if problems:
        raise ConfigError("\n".join(problems))
    target = Path(output) if format == "onnx" else Path(os.path.realpath(output))
    if format == "onnx" and target.suffix != ".onnx":
        target = target / "model.onnx"
    from hai.predict import check_output, check_place

    problems = check_output(target) if format == "onnx" else check_place(target)
    if problems:
        raise ConfigError("\n".join(problems))
    if format == "onnx":
        from hai.export.graph import check_packages

        check_packages()
    else:
        from hai.export.folder import check_folder

        check_folder(target)
    if push:
        from hai.export.hub import check_login

        check_login(push)
    return target


def _write_graph(trained: Trained, target: Path, what: str) -> None:
    from hai.console import shown_bytes
    from hai.export.graph import export_onnx

    size = trained.config.data.image_size
    written = export_onnx(trained, target)
    print(
        f"wrote {target}: {what}, {shown_bytes(written.size)}; onnxruntime agrees with torch to "
        f"{written.difference:.1e} on {written.num_images} images"
    )
    print(f"input: image uint8 [N, {size}, {size}, 3], RGB; outputs: {', '.join(written.outputs)} [N]")


def _write_folder(
    trained: Trained, target: Path, what: str, format: str, push: str | None, public: bool, license: str | None
) -> None:
    from hai.console import shown_bytes
    from hai.export.card import CARD, model_card
    from hai.export.facts import keeps_backbone_outside
    from hai.export.folder import edited_text, write_folder
    from hai.export.hub import push as push_folder

    texts = {}
    if format == "hub":
        edited = edited_text(target, CARD)
        texts[CARD] = edited or model_card(trained, push or f"OWNER/{target.name}", license)
        if edited:
            print(f"kept {target / CARD}, which was changed by hand; delete it to have it written anew")
    here = Path.cwd()
    size = write_folder(trained, target, texts)
    print(f"wrote {target}: {what}, {shown_bytes(size)}; the folder is a --checkpoint")
    if target in (here, *here.parents):
        os.chdir(here)
        print("note: the current folder was replaced; a shell in it sees the new one after `cd .`")
    if keeps_backbone_outside(trained.config):
        print(f"note: its backbone {trained.config.model.name} is not inside and is taken from where training took it")
    if push:
        print(f"pushed: {push_folder(target, push, public=public)}")
    elif format == "hub":
        print(f"read {target / CARD}, then give --push OWNER/NAME to upload it")
