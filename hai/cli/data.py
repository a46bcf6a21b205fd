"""The verbs of `hai data`: fetch data sets, look into them, divide, pack and make them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from hai.config.schema import DataConfig
    from hai.data.audit import Audit
    from hai.data.manifest import Manifest

__all__ = ["ImageDir", "data_app"]

data_app = typer.Typer(help="Fetch, look into, split, pack or make data sets.", no_args_is_help=True)

Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A folder with real/ and fake/ or one folder per tier (also under train/ val/ test/), a CSV, a pack, or a "
        "zip of any of these.",
        show_default=False,
    ),
]
DataTask = Annotated[
    Literal["auto", "detector", "ranker"],
    typer.Option("--task", help="Real and fake, or tiers and comparisons; auto: what the data look like."),
]
Tiers = Annotated[str, typer.Option(metavar="BEST,...,WORST", help="A ranker's tiers, the best first.")]
ScoreColumn = Annotated[
    str | None, typer.Option(metavar="NAME", help="A ranker's numeric column that is kept with the images.")
]
ImageDir = Annotated[str | None, typer.Option(metavar="DIR", help="Folder that the CSV's paths start from.")]


@data_app.command("fetch")
def data_fetch(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="kaggle:OWNER/DATASET, kaggle:competitions/NAME, a file or folder at s3://, gs:// or another URL, a "
            "file at https://, or an archive or folder on a mounted drive.",
            show_default=False,
        ),
    ],
    to: Annotated[
        Path, typer.Option("--to", metavar="DIR", help="The folder to make, on a local disk.", show_default=False)
    ],
) -> None:
    """Download, verify and unpack a data set, once; what was interrupted goes on."""
    from functools import partial

    from hai.console import shown_bytes
    from hai.data.fetch import fetch
    from hai.paths import is_mount
    from hai.progress import progress_bar

    if is_mount(to.absolute()):
        print(f"warning: {to} is no local disk; many small files are slow there, training reads a local folder better")
    fetched = fetch(source, to, show=partial(progress_bar, unit="bytes"))
    amount = f"{fetched.files} files, {shown_bytes(fetched.bytes)}, from {fetched.source}"
    if not fetched.is_new:
        print(f"{to}: already there, {amount}, fetched {fetched.date}; delete it to fetch it again")
        return
    print(f"wrote {to}: {amount}")
    if fetched.archives:
        print(f"warning: {fetched.archives} of the files are archives and stay packed; hai data fetch unpacks each")


@data_app.command("index")
def data_index(
    data: Data,
    image_dir: ImageDir = None,
    task: DataTask = "auto",
    tiers: Tiers = "S,A,B,C",
    score_column: ScoreColumn = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE.parquet", help="Also write the manifest: a row per image, with its hash."),
    ] = None,
) -> None:
    """Count images by source, split and label, and name every bad one."""
    from hai.data.manifest import build_manifest, save_manifest
    from hai.progress import progress_bar

    config = _data_config(data, image_dir, tiers, score_column)
    with progress_bar("reading") as progress:
        manifest = build_manifest(config, 42, task=_data_task(task, config), require=(), progress=progress)
    _tell(manifest)
    if output:
        save_manifest(manifest, output)
        print(f"wrote {output}")


@data_app.command("split")
def data_split(
    data: Data,
    output: Annotated[
        Path, typer.Option(metavar="FILE.csv", help="The table to write, at or above the images.", show_default=False)
    ],
    image_dir: ImageDir = None,
    task: DataTask = "auto",
    tiers: Tiers = "S,A,B,C",
    score_column: ScoreColumn = None,
    ratios: Annotated[str, typer.Option(metavar="TRAIN,VAL,TEST", help="Shares that sum to 1.")] = "0.8,0.1,0.1",
    seed: Annotated[int, typer.Option(min=0, help="Another seed makes another division.")] = 42,
) -> None:
    """Divide images without a split over train, val and test, groups kept together, and write the CSV."""
    from hai.data.index import split_data
    from hai.progress import progress_bar

    config = _data_config(data, image_dir, tiers, score_column, f"data.split_ratios=[{ratios}]")
    with progress_bar("reading") as progress:
        manifest = split_data(config, seed, output, task=_data_task(task, config), progress=progress)
    _tell(manifest)
    print(f"wrote {output}")


@data_app.command("audit")
def data_audit(
    data: Data,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where audit.json and report.html go; default: audit/<name of the data>/."),
    ] = None,
    image_dir: ImageDir = None,
    task: DataTask = "auto",
    tiers: Tiers = "S,A,B,C",
    score_column: ScoreColumn = None,
    seed: Annotated[int, typer.Option(min=0, help="Divides images that have no split, as in training.")] = 42,
    sample: Annotated[int, typer.Option(min=100, help="Most images whose headers and pixels are looked at.")] = 200_000,
) -> None:
    """Look for what would make a score meaningless: copies across splits, file facts that tell the label, bad files."""
    from hai.data.audit import audit_data
    from hai.progress import progress_bar
    from hai.report.audit import write_audit

    config = _data_config(data, image_dir, tiers, score_column)
    kind = _data_task(task, config)
    with progress_bar("auditing") as progress:
        audit = audit_data(config, seed, task=kind, most=sample, progress=progress)
    _tell_audit(audit)
    for path in write_audit(audit, data, output):
        print(f"wrote {path}")


@data_app.command("pack")
def data_pack(
    data: Data,
    output: Annotated[Path, typer.Option(metavar="DIR", help="The pack to write.", show_default=False)],
    image_dir: ImageDir = None,
    task: DataTask = "auto",
    tiers: Tiers = "S,A,B,C",
    score_column: ScoreColumn = None,
    seed: Annotated[int, typer.Option(min=0, help="Divides images that have no split.")] = 42,
) -> None:
    """Copy a data set's images into a few large files, which storages and disks read faster than many small ones."""
    from hai.data.index import pack_data
    from hai.progress import progress_bar

    config = _data_config(data, image_dir, tiers, score_column)
    with progress_bar("packing") as progress:
        manifest = pack_data(config, output, seed, task=_data_task(task, config), progress=progress)
    _tell(manifest)
    print(f"wrote {output}")


@data_app.command("demo")
def data_demo(
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where to make it.", show_default=False)],
    task: Annotated[Literal["detector"], typer.Option(help="For which task.")] = "detector",
    seed: Annotated[int, typer.Option(help="Another seed makes other images.")] = 42,
) -> None:
    """Make a small data set from photographs: untouched ones, and ones with a locally manipulated part."""
    from hai.data.demo import build_demo
    from hai.progress import progress_bar

    with progress_bar("making the demo data") as progress:
        build_demo(task, output, seed=seed, progress=progress)


def _data_config(data: str, image_dir: str | None, tiers: str, score_column: str | None, *settings: str) -> DataConfig:
    from hai.config.load import config_from_yaml_text
    from hai.config.text import dump_yaml

    section = {
        "sources": [{"path": data, "image_dir": image_dir}],
        "tiers": [tier.strip() for tier in tiers.split(",")],
        "score_column": score_column,
        "max_bad_fraction": 1.0,  # bad images are what one wants to see
    }
    return config_from_yaml_text(dump_yaml({"data": section}), "command line", settings).data


def _data_task(task: str, config: DataConfig) -> str:
    from hai.data.tiers import task_of

    return task_of(config) if task == "auto" else task


def _tell(manifest: Manifest) -> None:
    """Print a manifest's counts and what is wrong with its files."""
    _tell_counts(manifest)
    for line in (*(f"{problem.path}: {problem.reason}" for problem in manifest.problems), *manifest.warnings):
        print(f"warning: {line}")


def _tell_counts(manifest: Manifest) -> None:
    from hai.console import print_table

    records = manifest.table()
    columns = list(records[0]) if records else ["source", "split", *manifest.labels, "groups"]
    rows = [[record[column] for column in columns] for record in records]
    totals = [None if column == "groups" else sum(record[column] for record in records) for column in columns[2:]]
    print_table(columns, [*rows, ["all", "", *totals]])


def _tell_audit(audit: Audit) -> None:
    """Print what an audit counted, measured and found, each finding on a line of its own."""
    from hai.console import print_table

    _tell_counts(audit.manifest)
    if audit.tests:
        print("\nHow well each thing alone tells label and source (AUC with its 95 % interval; 0.5 is guessing):")
        rows = [
            [test.target, test.fact, *test.separation[:3], len(test.plan.rows), test.between] for test in audit.tests
        ]
        print_table(["of", "by", "AUC", "low", "high", "images", "between"], rows)
    print()
    for note in audit.notes:
        print(f"note: {note}")
    for line in audit.lines:
        print(f"warning: {line}")
    count = len(audit.findings)
    warned = f"{count} warning{'s' if count > 1 else ''}" if count else "nothing found"
    print(f"audited {audit.num_rows:,} files in {audit.seconds:.1f} s: {warned}")
