"""The verbs that put a trained detector to work on what a contest hands out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

__all__ = ["ManyValues", "predict", "submit"]


class ManyValues(TyperCommand):
    """A verb whose repeatable options also take several values after one name: `--input a b c`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give every further value the name that it stands behind."""
        names = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        words: list[str] = []
        name, has_value = "", False
        for word in args:
            if word.startswith("-"):
                name, has_value = word, False
            elif name in names and has_value:
                words.append(name)
            else:
                has_value = True
            words.append(word)
        return super().parse_args(ctx, words)


def predict(
    checkpoint: Annotated[
        list[str], typer.Option(metavar="REF", help="A run (its best), a checkpoint, or a URL.", show_default=False)
    ],
    input_: Annotated[
        list[str],
        typer.Option("--input", metavar="PATH", help="Images, videos, folders of them or zips.", show_default=False),
    ],
    output: Annotated[str, typer.Option(metavar="FILE.csv", help="The table to write.", show_default=False)],
    format_: Annotated[
        Literal["full", "dacon", "aifactory"], typer.Option("--format", help="Columns of the table.")
    ] = "full",
    sample: Annotated[
        str | None, typer.Option(metavar="FILE", help="A contest's sample file, whose names and order are taken.")
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="Frames of each video, evenly spread.")] = 16,
    faces: Annotated[
        Literal["auto", "always", "never"],
        typer.Option(help="Cut faces out first; auto: as the training images were cut."),
    ] = "auto",
    aggregate: Annotated[
        Literal["mean", "median", "topk", "max"],
        typer.Option(help="What becomes of the logits of a video's frames; topk: mean of the highest quarter."),
    ] = "mean",
    time_limit: Annotated[
        str | None, typer.Option(metavar="TIME", help="Finish with a whole table within this time, e.g. 60m.")
    ] = None,
    tta: Annotated[
        Literal["flip"] | None, typer.Option(help="Average with the mirrored image; twice the time, not for dacon.")
    ] = None,
    detector_model: Annotated[
        str | None, typer.Option(metavar="FILE", help="Mediapipe's model, if it cut the training images and has moved.")
    ] = None,
) -> None:
    """Score images and videos: the probability that each one is fake."""
    from hai.predict import end_process, run_prediction

    end_process(
        run_prediction(
            checkpoint,
            input_,
            output,
            format=format_,
            sample=sample,
            frames=frames,
            faces=faces,
            aggregate=aggregate,
            time_limit=time_limit,
            tta=tta,
            detector_model=detector_model,
        )
    )


def submit(
    checkpoint: Annotated[
        str, typer.Option(metavar="REF", help="A run (its best), a checkpoint, or a URL.", show_default=False)
    ],
    format_: Annotated[
        Literal["dacon", "aifactory"], typer.Option("--format", help="The contest's form.", show_default=False)
    ],
    output: Annotated[
        str, typer.Option(metavar="PATH", help="A new or empty folder, or a new .zip.", show_default=False)
    ],
    input_: Annotated[
        list[str] | None, typer.Option("--input", metavar="PATH", help="Files to try it on; default: a few made ones.")
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="Frames of each video.")] = 16,
    faces: Annotated[Literal["auto", "always", "never"], typer.Option(help="As for predict.")] = "auto",
    aggregate: Annotated[Literal["mean", "median", "topk", "max"], typer.Option(help="As for predict.")] = "mean",
    python: Annotated[
        str | None, typer.Option(metavar="PYTHON", help="Try it with this interpreter, of the contest's version.")
    ] = None,
    torch: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Try it with this torch, which the contest's driver can run.")
    ] = None,
    proof: Annotated[
        bool, typer.Option("--proof/--no-proof", help="Run it in a fresh environment, with and without network.")
    ] = True,
) -> None:
    """Make a contest's package of a checkpoint, and prove that it runs offline with the same scores."""
    from hai.submit import run_submission

    raise typer.Exit(
        run_submission(
            checkpoint,
            output,
            format=format_,
            inputs=input_ or [],
            frames=frames,
            faces=faces,
            aggregate=aggregate,
            python=python,
            torch=torch,
            proof=proof,
        )
    )
