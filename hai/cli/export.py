"""The verb `hai export`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

__all__ = ["export"]


def export(
    checkpoint: Annotated[
        str, typer.Option(metavar="REF", help="A run (its best), a checkpoint, or a URL.", show_default=False)
    ],
    format_: Annotated[
        Literal["safetensors", "onnx", "hub"],
        typer.Option("--format", help="A folder of weights and config, one graph, or the folder with a model card."),
    ],
    output: Annotated[str, typer.Option(metavar="PATH", help="The folder, or the .onnx file.", show_default=False)],
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload it to the Hugging Face Hub, where only you see it.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Let everybody see a repository that --push makes.")] = False,
    license_: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="Your terms, for the model card, e.g. apache-2.0.")
    ] = None,
) -> None:
    """Write a model for other programs: safetensors, ONNX, the Hugging Face Hub."""
    from hai.export import run_export

    raise typer.Exit(run_export(checkpoint, format_, output, push=push, public=public, license=license_))
