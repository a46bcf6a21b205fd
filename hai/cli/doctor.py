"""The verb `doctor`."""

from __future__ import annotations

import json
import logging
from typing import Annotated

import typer

__all__ = ["doctor"]


def doctor(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Config keys, as for `train`; with --config.")
    ] = None,
    config: Annotated[
        str | None, typer.Option(metavar="FILE", help="Also say what this config needs, and on which cards it fits.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="PATH_OR_URL", help="Where runs are kept; default: HAI_STORAGE, else runs/.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Start neither torch nor Ray: seconds; no memory, no code for the GPU.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Say what this machine can do, what is in the way of a run, and how to mend it; status 2 if something is."""
    from hai.doctor import diagnose
    from hai.doctor.page import print_end, print_finding
    from hai.errors import ConfigError

    logging.getLogger().addHandler(logging.NullHandler())  # what libraries say between the findings
    if overrides and config is None:
        raise ConfigError(f"doctor: {overrides[0]}; belongs to a config; give it with --config FILE")
    if as_json:
        diagnosis = diagnose(config, overrides or [], storage=storage, quick=quick)
        print(json.dumps(diagnosis.record(), indent=1, ensure_ascii=False))
    else:
        diagnosis = diagnose(config, overrides or [], storage=storage, quick=quick, tell=print_finding)
        print_end(diagnosis, config)
    raise typer.Exit(2 if diagnosis.problems else 0)
