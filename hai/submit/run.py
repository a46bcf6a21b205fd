"""The verb `submit`: a package written, proven, and held against the rules of its contest."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from hai.console import print_table, shown_bytes
from hai.errors import ConfigError, StorageError
from hai.paths import cache_folder, cache_room
from hai.predict.files import check_output
from hai.predict.run import option_faults
from hai.predict.table import COLUMNS
from hai.submit.environment import python_version
from hai.submit.package import NOTEBOOK, Package, Target, build_package
from hai.submit.proof import CLOSE, Proof, draw_samples, prove

__all__ = ["Rule", "check_rules", "run_submission"]

_FORMATS: Final = ("dacon", "aifactory")


class Rule(NamedTuple):
    """What a contest asks for, and whether the package has it; None: not shown here."""

    name: str
    holds: bool | None
    what: str


def run_submission(
    checkpoint: str,
    output: str,
    *,
    format: str,
    inputs: Sequence[str] = (),
    frames: int = 16,
    faces: str = "auto",
    aggregate: str = "mean",
    python: str | None = None,
    torch: str | None = None,
    proof: bool = True,
) -> int:
    """Write a package and prove that it runs by itself, offline, with the scores of `hai predict`.

    Args:
        checkpoint: REF of a detector.
        output: a folder that is new or empty, or a new .zip.
        format: dacon or aifactory.
        inputs: files to try it on; default: a few that are made.
        frames: of each video.
        faces: auto, always or never.
        aggregate: of the logits of a video's frames.
        python: interpreter of the version that the contest's machine has; default: this one.
        torch: version of torch that runs there; default: this one's, or in notebooks whatever the platform has.
        proof: run it in a fresh environment.

    Returns:
        Exit status: 0, or 1 where a rule does not hold; the package is there all the same.

    Raises:
        HaiError: for wrong arguments or checkpoints, or a package that fails.
    """
    target = Path(os.path.abspath(output))
    _check(target, format, inputs, frames, faces, aggregate, torch)
    if python is not None:
        python_version(python)
    with cache_room("submit") as name:
        room = Path(name)
        folder = room / "package"
        folder.mkdir()
        package = build_package(
            checkpoint, folder, format, frames=frames, faces=faces, aggregate=aggregate, target=Target(python, torch)
        )
        found = _prove(package, checkpoint, inputs, room) if proof else None
        for compiled in list(folder.rglob("__pycache__")):  # the proof's Python has left them
            shutil.rmtree(compiled)
        rules = check_rules(package, found)
        try:
            _put(folder, target)
        except OSError as error:
            raise StorageError(_kept_elsewhere(folder, target, error)) from None
        finally:
            print_table(["rule", "holds", "what was found"], [[one.name, _word(one.holds), one.what] for one in rules])
    print(f"wrote {target}")
    return int(any(rule.holds is False for rule in rules))


def _check(
    target: Path, format: str, inputs: Sequence[str], frames: int, faces: str, aggregate: str, torch: str | None
) -> None:
    wrong = []
    if format not in _FORMATS:
        wrong.append(f"--format = {format}; must be one of {', '.join(_FORMATS)}")
    if not target.exists():
        wrong += check_output(target)
    elif target.is_dir() and not os.access(target, os.R_OK | os.W_OK | os.X_OK):
        wrong.append(f"--output = {target}; the folder cannot be written; choose another")
    elif target.suffix == ".zip" or not _is_empty_folder(target):
        wrong.append(f"--output = {target}; is there already; name a new folder, or remove it")
    wrong += [f"--{fault}" for fault in option_faults(frames, faces, aggregate)]
    if torch is not None and not re.fullmatch(r"\d+\.\d+\.\d+", torch):
        wrong.append(f"--torch = {torch}; must be a version such as 2.7.1")
    wrong += [f"--input = {name}; no such file or folder" for name in inputs if not Path(name).exists()]
    if wrong:
        raise ConfigError("\n".join(wrong))


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _put(folder: Path, target: Path) -> None:
    """Make the target of a folder: at once if it is new, from inside if it is an empty folder, perhaps a mounted one.

    Raises:
        OSError: it cannot be written.
    """
    is_inside = _is_empty_folder(target)
    place = target if is_inside else target.parent
    with tempfile.TemporaryDirectory(prefix=".hai-", dir=place, ignore_cleanup_errors=True) as name:
        part = Path(name) / "part"
        if target.suffix == ".zip":
            part = Path(shutil.make_archive(str(part), "zip", folder))
        else:
            shutil.copytree(folder, part)
        moves = [(path, target / path.name) for path in part.iterdir()] if is_inside else [(part, target)]
        for source, to in moves:
            os.replace(source, to)


def _kept_elsewhere(folder: Path, target: Path, error: OSError) -> str:
    """Keep the work of minutes where the output's disk has failed; returns what to say."""
    kept = cache_folder() / "submit" / target.name
    reason = error.args[0][0][-1] if isinstance(error, shutil.Error) else error.strerror or error
    line = f"--output = {target}; cannot be written ({reason})"
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept = Path(tempfile.mkdtemp(prefix=f"{target.name}-", dir=kept.parent))
        os.replace(folder, kept)
    except OSError:
        return f"{line}, nor can {kept}; make room and try again"
    return f"{line}; the whole package is the folder {kept} instead"


def _prove(package: Package, checkpoint: str, inputs: Sequence[str], room: Path) -> Proof:
    """Score the files as the user would, then as the judges will."""
    from hai.predict.run import run_prediction

    files = [os.path.abspath(name) for name in inputs] or [str(draw_samples(room / "samples"))]
    expected = room / "expected.csv"
    settings = {name: value for name, value in package.settings.items() if name != "time_limit"}
    # in the contest's format: what its table cannot hold is refused before minutes go into an environment
    run_prediction([checkpoint], files, str(expected), format=package.format, **settings)
    return prove(package, files, expected.with_suffix(".full.csv"), room)


def check_rules(package: Package, proof: Proof | None) -> list[Rule]:
    """Hold a package against what both contests ask for."""
    files = [path for path in package.folder.rglob("*") if path.is_file()]
    weights = [package.folder / name for name in package.weight_files]
    size, of_weights = (shown_bytes(sum(path.stat().st_size for path in group)) for group in (files, weights))
    one_model = len(list((package.folder / "model").glob("*.safetensors"))) == 1
    rules = [
        Rule(
            "single model",
            one_model,
            f"{', '.join(package.weight_files)}, {package.num_parameters:,} parameters; no ensemble, no test-time "
            "augmentation",
        ),
        Rule("frames as images", None, f"{package.settings['frames']} of each video, made to be scored one by one"),
        Rule(
            "size",
            None,
            f"{size} in {len(files)} files, weights {of_weights}; compare with the contest's page",
        ),
        _columns_rule(package, proof),
        _time_rule(package, proof),
    ]
    if proof is None:
        return [*rules, Rule("own environment", None, "not run (--no-proof)"), Rule("no network", None, "not run")]
    offline = proof.difference_offline
    rules += [
        Rule("own environment", True, f"env/requirements.txt is enough, {proof.num_files} files, {proof.versions}"),
        Rule(
            "no network",
            None if offline is None else True,
            f"the network cannot be taken away: {proof.obstacle}" if offline is None else "runs under unshare -rn",
        ),
        Rule(
            "same scores as hai predict",
            max(proof.difference, offline or 0.0) <= CLOSE and not proof.others,
            "; ".join(proof.others[:3]) or f"largest difference {max(proof.difference, offline or 0.0):.1g}",
        ),
    ]
    if package.format == "aifactory":
        rules.append(Rule("notebook", not proof.others, f"{NOTEBOOK} executed from top to bottom, data in ./data/"))
    return rules


def _columns_rule(package: Package, proof: Proof | None) -> Rule:
    columns = ",".join(COLUMNS[package.format]) + (", with BOM" if package.format == "dacon" else "")
    if proof is None:
        return Rule("columns", None, columns)
    found = "; ".join(proof.table[:3]) or f"{columns}; rows as in a sample file, one of them without a file"
    return Rule("columns", not proof.table, found)


def _time_rule(package: Package, proof: Proof | None) -> Rule:
    limit = package.settings["time_limit"]
    kept = f"made to stay within --time-limit {limit}, with fewer frames if it must"
    measured = f"; {proof.num_files} files in {proof.seconds:.0f} s here, start included" if proof is not None else ""
    return Rule("time", None, kept + measured)


def _word(holds: bool | None) -> str:
    return "not shown" if holds is None else "yes" if holds else "NO"
