"""All checks in their order, and what they add up to for a config."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hai.config.load import load_config
from hai.config.schema import RunConfig
from hai.config.sweep import is_sweep, load_sweep
from hai.cpus import num_cpus
from hai.data.kaggle import is_kaggle
from hai.data.remote import is_url
from hai.doctor.advice import Advice, advise
from hai.doctor.cards import Card, check_cards, check_on_torch, read_cards, torch_build, visible_cards
from hai.doctor.cluster import check_ray, join_cluster
from hai.doctor.credentials import check_clouds, check_hub, check_kaggle, check_kaggle_data, check_wandb
from hai.doctor.findings import Finding, fine, from_error, problem
from hai.doctor.machine import check_compiled, check_folders, check_machine, check_packages
from hai.doctor.storage import check_place, check_room_for_checkpoints
from hai.errors import HaiError
from hai.launch.room import Machine
from hai.masking import without_secrets
from hai.provenance import provenance
from hai.types import Record

__all__ = ["Diagnosis", "diagnose"]


@dataclass
class Diagnosis:
    """What was found.

    Args:
        findings: in the order of the checks.
        advice: what fits and what to set, where a config was given and its memory was worked out.
    """

    findings: list[Finding] = field(default_factory=list)
    advice: Advice | None = None

    @property
    def problems(self) -> list[Finding]:
        """Return what would stop a run."""
        return [finding for finding in self.findings if finding.status == "problem"]

    def record(self) -> Record:
        """Return everything as JSON."""
        return {
            "problems": len(self.problems),
            "findings": [finding.record() for finding in self.findings],
            "advice": self.advice.record() if self.advice else None,
            **provenance(),
        }


def diagnose(
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    storage: str | None = None,
    quick: bool = False,
    tell: Callable[[Finding], None] = lambda finding: None,
) -> Diagnosis:
    """Look at everything that a run needs.

    Args:
        config: YAML file of a run, or of a sweep, of whose base data, storage, scale and memory are looked at too.
        overrides: `key=value`, as for `train`.
        storage: folder or URL of runs; default: the config's, HAI_STORAGE, else runs/.
        quick: start neither torch nor Ray, work no memory out, and ask no service but the storage.
        tell: takes each finding as it is made.
    """
    diagnosis = Diagnosis()

    def take(findings: Iterable[Finding]) -> bool:
        """Note findings; return whether none of them is a problem."""
        before = len(diagnosis.problems)
        for finding in findings:
            diagnosis.findings.append(finding)
            tell(finding)
        return len(diagnosis.problems) == before

    take(check_packages())
    take(check_compiled())
    take(check_machine())
    take(check_folders())
    shown, works = _look_at_cards(take, quick)
    run: RunConfig | None = None
    if config is not None:
        try:
            run = load_sweep(config, overrides).base if is_sweep(config) else load_config(config, overrides)
            kind = f"base of a {run.task} sweep" if is_sweep(config) else run.task
            take([fine("config", without_secrets(f"{config}: {kind}, {run.model.name}"))])
        except HaiError as error:
            take(from_error("config", error))
    machines = [Machine(num_cpus(), len(shown) if works else 0)]
    if take(check_ray()) and not quick and not (run and run.scale.launcher == "in_process"):
        findings, joined = join_cluster()
        take(findings)
        machines = joined or machines
    place = storage or (run.storage if run else None) or os.environ.get("HAI_STORAGE") or "runs"
    is_there = take(check_place(place))
    sources = [source.path for source in run.data.sources] if run else []
    if run:
        take(_check_sources(run, quick))
    take(check_kaggle(sources))
    wandb = run.logging.wandb if run else None
    take(check_wandb(enabled=wandb.enabled, mode=wandb.mode) if wandb else check_wandb())
    take(check_clouds([place, *sources]))
    take(check_hub())
    if run:
        findings, diagnosis.advice = advise(run, machines, shown if works else [], quick=quick)
        take(findings)
        if is_there and diagnosis.advice is not None:
            take(check_room_for_checkpoints(place, diagnosis.advice.checkpoint_bytes, run.checkpoint.keep))
    return diagnosis


def _look_at_cards(take: Callable[[Iterable[Finding]], bool], quick: bool) -> tuple[list[Card], bool]:
    """Return the visible cards, and whether torch can use them."""
    cards, trouble = read_cards()
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    works = take(check_cards(cards, trouble, torch_build(), wanted, os.environ.get("CUDA_DEVICE_ORDER")))
    shown, _ = visible_cards(cards, wanted)
    if not quick and works:
        works = take(check_on_torch(shown))
    return shown, works


def _check_sources(run: RunConfig, quick: bool) -> Iterator[Finding]:
    if not run.data.sources:
        yield problem("data", "data.sources is empty", "give one: data.sources.0.path=PATH")
    for number, source in enumerate(run.data.sources):
        if is_kaggle(source.path):
            if not quick:
                yield from check_kaggle_data(source.path)
        elif is_url(source.path):
            if not quick:
                yield from _check_url(source.path)
        elif Path(source.path).expanduser().exists():
            yield fine("data", f"{source.name}: {source.path}")
        else:
            mend = f"name what is there: data.sources.{number}.path=PATH"
            yield problem("data", f"{source.name}: {source.path}: no such file or folder", mend)


def _check_url(url: str) -> Iterator[Finding]:
    from hai.checkpoint.reach import reach
    from hai.data.remote import open_url

    def exists() -> bool:
        filesystem, path = open_url(url)
        return bool(filesystem.exists(path))

    try:
        is_there = reach(url, exists)
    except HaiError as error:
        yield from from_error("data", error)
        return
    shown = without_secrets(url)
    yield (
        fine("data", f"{shown}: there") if is_there else problem("data", f"{shown}: nothing is there", "check its name")
    )
