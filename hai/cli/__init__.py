"""The `hai` command: a verb reads its arguments and calls one function; what is heavy is imported inside the verb."""

from __future__ import annotations

import errno
import functools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

import hai
from hai.cli.benchmark import benchmark
from hai.cli.data import ImageDir, data_app
from hai.cli.doctor import doctor
from hai.cli.export import export
from hai.cli.serving import ManyValues, predict, submit
from hai.config.text import inline_yaml
from hai.errors import ConfigError, HaiError
from hai.paths import cache_folder

if TYPE_CHECKING:
    from hai.config.schema import RunConfig

__all__ = ["app", "main"]

app = typer.Typer(
    name="hai",
    help="Train a deepfake detector or an image ranker on whatever GPUs you have today, and lose nothing.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="The config's schema, and a config as it will be used.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(config_app, name="config")
app.command()(doctor)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Config keys, e.g. optim.learning_rate=3e-4 data.sources.0.path=faces."),
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit: 0 done, 1 a bug, 2 the user's input is wrong, 3 stopped on a signal, all saved."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="hai")
    except HaiError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = error.filename2 or error.filename or f"the output, {cache_folder()} or temporary files"
        print(f"{where}: {error.strerror}; make room and run the same command again", file=sys.stderr)
        sys.exit(2)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"hai {hai.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


@app.command()
def train(
    overrides: Overrides = None,
    config: Annotated[
        str | None, typer.Option(metavar="FILE", help="YAML config; with --resume it may be left out.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; default: the config file's name.")] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="PATH_OR_URL", help="Where runs are kept; default: HAI_STORAGE, else runs/.")
    ] = None,
    workers: Annotated[str | None, typer.Option(metavar="N or MIN:MAX", help="Worker processes, one GPU each.")] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="URL", help="Go on with a run or checkpoint that was kept elsewhere.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done; start nothing.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Start over; the old run is kept aside.")] = False,
    wait_for_upload: Annotated[
        bool, typer.Option("--wait-for-upload", help="Stay until everything is confirmed on the storage.")
    ] = False,
) -> None:
    """Train a model. The same command again goes on where the run stopped."""
    from hai.config.load import load_config

    given = {"name": name, "storage": storage}
    settings = [*(overrides or []), *(f"{key}={inline_yaml(value, 10**6)}" for key, value in given.items() if value)]
    if workers:
        settings.append(f"scale.num_workers={workers}")
    if config:
        run, run_name = load_config(config, settings), Path(config).stem
    elif resume:
        run, run_name = _config_of_run(resume, settings)
    else:
        raise ConfigError("train: --config is missing; give a config, e.g. --config configs/detector/baseline.yaml")

    from hai.launch.train import run_training

    raise typer.Exit(
        run_training(
            run,
            resume=resume,
            dry_run=dry_run,
            restart=restart,
            wait_for_upload=wait_for_upload,
            config_name=run_name,
        )
    )


@app.command()
def tune(
    config: Annotated[str, typer.Option(metavar="FILE", help="YAML file of a sweep.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Keys of the base config, sweep.KEY=VALUE, space.KEY={kind: [...]}."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the sweep; default: the file's name.")] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="PATH_OR_URL", help="Where it is kept; default: HAI_STORAGE, else runs/.")
    ] = None,
) -> None:
    """Try many values of a config and keep the best. The same command again goes on where the sweep stopped."""
    from hai.config.sweep import load_sweep

    sweep = load_sweep(config, overrides or [])

    from hai.launch.sweep import run_sweep

    place = storage or sweep.base.storage or os.environ.get("HAI_STORAGE") or "runs"
    raise typer.Exit(run_sweep(sweep, name=name or sweep.base.name or Path(config).stem, storage=place))


def _config_of_run(reference: str, settings: list[str]) -> tuple[RunConfig, str]:
    """Read the config that a run folder, or that of a checkpoint in it, keeps; and the run's name."""
    from hai.checkpoint.find import split_reference
    from hai.checkpoint.reach import reach
    from hai.checkpoint.records import CONFIG
    from hai.checkpoint.remote import locate
    from hai.config.load import config_from_yaml_text

    parent, name = split_reference(reference)
    for storage, run in ((parent, name), split_reference(split_reference(parent)[0])):
        where = f"{storage}/{run}/{CONFIG}"
        place = locate(storage, run)
        if place.remote is not None:
            content = reach(where, functools.partial(place.remote.read, CONFIG))
        else:
            content = (place.path / CONFIG).read_bytes() if (place.path / CONFIG).is_file() else None
        if content is not None:
            text = content.decode("utf-8")
            return config_from_yaml_text(text, where, ["storage=null", *settings]), run
    raise ConfigError(f"--resume = {reference}; must be a run folder or a checkpoint in one; or give its --config too")


@app.command()
def embed(
    config: Annotated[str, typer.Option(metavar="FILE", help="YAML config of a ranker.", show_default=False)],
    overrides: Overrides = None,
    workers: Annotated[str | None, typer.Option(metavar="N or MIN:MAX", help="Worker processes, one GPU each.")] = None,
) -> None:
    """Encode a ranker's images once, ahead of training, and keep their features. The same command again goes on."""
    from hai.config.load import load_config

    settings = [*(overrides or []), *([f"scale.num_workers={workers}"] if workers else [])]
    run = load_config(config, settings)

    from hai.launch.train import run_embedding

    raise typer.Exit(run_embedding(run))


@app.command()
def evaluate(
    checkpoint: Annotated[
        str, typer.Option(metavar="REF", help="A run (its best), a checkpoint, or a URL of either.", show_default=False)
    ],
    data: Annotated[
        str, typer.Option(metavar="DATA", help="Folder, CSV, pack or zip of labelled images.", show_default=False)
    ],
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Which split.")] = "test",
    output: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where to write; default: <run>/evaluation/<split>/.")
    ] = None,
    image_dir: ImageDir = None,
    robustness: Annotated[
        bool, typer.Option("--robustness", help="Also measure compressed, blurred, noisy, smaller, darker images.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Measure a checkpoint on labelled images: evaluation.json, predictions.csv, report.html."""
    from hai.evaluation import run_evaluation

    raise typer.Exit(
        run_evaluation(
            checkpoint,
            data,
            split=split,
            output=output,
            image_dir=image_dir,
            robustness=robustness,
            overrides=overrides or [],
        )
    )


app.command(cls=ManyValues)(predict)
app.command(cls=ManyValues)(submit)


@app.command()
def compare(
    checkpoint: Annotated[
        str, typer.Option(metavar="REF", help="A run (its best), a checkpoint, or a URL.", show_default=False)
    ],
    images: Annotated[
        list[str] | None, typer.Argument(metavar="LEFT RIGHT", help="Two image files.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
    pairs: Annotated[
        str | None, typer.Option(metavar="FILE.csv", help="Compare every pair of a table with columns left and right.")
    ] = None,
    output: Annotated[str | None, typer.Option(metavar="FILE.csv", help="The table to write for --pairs.")] = None,
    image_dir: ImageDir = None,
) -> None:
    """Say which of two images is the better one, and how surely."""
    from hai.ranking import run_comparison

    raise typer.Exit(
        run_comparison(checkpoint, images or [], as_json=as_json, pairs=pairs, output=output, image_dir=image_dir)
    )


@app.command()
def rank(
    checkpoint: Annotated[
        str, typer.Option(metavar="REF", help="A run (its best), a checkpoint, or a URL.", show_default=False)
    ],
    input_: Annotated[
        str, typer.Option("--input", metavar="FOLDER", help="Images, searched deeply.", show_default=False)
    ],
    output: Annotated[str, typer.Option(metavar="FILE.csv", help="The table to write.", show_default=False)],
) -> None:
    """Put images in order, the best first: filename,score,tier."""
    from hai.ranking import run_ranking

    raise typer.Exit(run_ranking(checkpoint, input_, output))


@app.command()
def preprocess(
    input_: Annotated[
        str,
        typer.Option(
            "--input",
            metavar="RAW",
            help="Folder of videos and images: real/ and fake/, FaceForensics++, DFDC or Celeb-DF.",
            show_default=False,
        ),
    ],
    output: Annotated[
        str, typer.Option(metavar="DIR", help="Where the crops go; the same command again goes on.", show_default=False)
    ],
    detector: Annotated[Literal["mtcnn", "retinaface", "mediapipe"], typer.Option(help="What finds faces.")] = "mtcnn",
    fallback_detector: Annotated[
        Literal["mtcnn", "retinaface", "mediapipe"] | None,
        typer.Option(help="What is asked where the detector finds no face in a frame."),
    ] = None,
    face_margin: Annotated[float, typer.Option(help="Added on each side, as a share of the face's longer side.")] = 0.2,
    image_size: Annotated[int, typer.Option(help="Height and width of a crop, pixels; 0: as it is.")] = 224,
    num_workers: Annotated[
        int | None, typer.Option(min=1, help="Files in work at once; default: one for each core.")
    ] = None,
    split_ratio: Annotated[float, typer.Option(help="Share of train in what has no official split.")] = 0.8,
    frames: Annotated[int, typer.Option(help="Frames of each video, evenly spread.")] = 16,
    faces: Annotated[
        Literal["largest", "all"], typer.Option(help="Whom to cut out: who has most to see, or everybody.")
    ] = "largest",
    format_: Annotated[
        Literal["jpg", "png"], typer.Option("--format", help="png loses nothing and takes five times the space.")
    ] = "jpg",
    quality: Annotated[int, typer.Option(help="Of JPEG.")] = 95,
    split_files: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the official split files; default: the data's own.")
    ] = None,
    folders: Annotated[
        Literal["auto", "sources", "people"],
        typer.Option(help="What the folders in real/ are; auto: people if there are more than 8."),
    ] = "auto",
    detector_model: Annotated[
        str | None, typer.Option(metavar="FILE", help="The model file that mediapipe needs.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed makes another division.")] = 42,
) -> None:
    """Cut the faces out of videos and images and divide them, so that nobody is in two splits."""
    from hai.faces.preprocess import Request
    from hai.faces.settings import build_settings

    settings = build_settings(
        detector=detector,
        fallback_detector=fallback_detector,
        detector_model=detector_model,
        frames=frames,
        faces=faces,
        margin=face_margin,
        image_size=image_size,
        format=format_,
        quality=quality,
    )
    request = Request(Path(input_), Path(output), settings, split_ratio, seed, split_files, folders)

    from hai.launch.preprocess import run_preprocess

    raise typer.Exit(run_preprocess(request, num_workers=num_workers))


app.command()(export)


@app.command()
def runs(
    storage: Annotated[
        str | None, typer.Option(metavar="PATH_OR_URL", help="Where runs are kept; default: HAI_STORAGE, else runs/.")
    ] = None,
) -> None:
    """List the runs of a storage."""
    from hai.checkpoint.runs import list_runs
    from hai.console import print_table, shown

    place = storage or os.environ.get("HAI_STORAGE") or "runs"
    rows = []
    for run in list_runs(place):
        best = f"{run.best['metric']} {shown(run.best['value'])} at step {run.best['step']}" if run.best else None
        rows.append([run.name, run.task, run.status, run.step, best, run.last_saved])
    if rows:
        print_table(["run", "task", "status", "step", "best", "last saved"], rows)
    else:
        print(f"no runs in {place}")


app.command()(benchmark)


@config_app.command("schema")
def config_schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="As a page to read.")] = False,
) -> None:
    """Print the JSON Schema of the config, from which editors complete and check the YAML."""
    from hai.config.fields import config_reference
    from hai.config.fields import config_schema as schema

    print(config_reference() if markdown else json.dumps(schema(), indent=1), end="" if markdown else "\n")


@config_app.command("show")
def config_show(
    file: Annotated[str, typer.Argument(metavar="FILE", show_default=False)], overrides: Overrides = None
) -> None:
    """Print a config with every key and its value."""
    from hai.config.load import load_config, show_config

    print(show_config(load_config(file, overrides or [])), end="")
