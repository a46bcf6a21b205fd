"""What to set for a config on this machine, and what fits on the cards that people rent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from hai.config.schema import RunConfig
from hai.console import shown_bytes
from hai.doctor.cards import Card
from hai.doctor.findings import Finding, fine, from_error, problem, warning
from hai.doctor.machine import free_memory
from hai.errors import ConfigError
from hai.launch.room import Group, Machine, plan_group
from hai.types import Record

if TYPE_CHECKING:
    from hai.doctor.fit import Need, Needs

__all__ = ["RENTED", "Advice", "Row", "advise", "even_micro_batch"]

RENTED: Final = (
    ("T4 16 GB", 15.6e9, (7, 5)),
    ("L4 24 GB", 23.7e9, (8, 9)),
    ("A100 40 GB", 42.3e9, (8, 0)),
    ("A100 80 GB", 85.1e9, (8, 0)),
)
"""Name, memory as torch reports it, bytes, and capability of the cards that Colab and the clouds lend."""


@dataclass(frozen=True)
class Row:
    """How a config fits on one card.

    Args:
        card: its name.
        memory: bytes.
        precision: fp16, bf16 or fp32.
        takes: bytes of a step with the whole of a worker's share.
        most: examples that fit at once.
        settings: what to put behind the command; None: it does not fit at all, empty: it fits as it is.
    """

    card: str
    memory: float
    precision: str
    takes: float
    most: int
    settings: tuple[str, ...] | None


@dataclass(frozen=True)
class Advice:
    """What to set.

    Args:
        share: examples of a step that fall to one worker.
        image_size: pixels.
        workers: processes, one GPU each where there are GPUs.
        use_gpu: whether they compute on GPUs.
        here: how the config fits on this machine.
        rented: how it fits, as one worker, on cards that people rent.
        checkpoint_bytes: size of a checkpoint.
    """

    share: int
    image_size: int
    workers: int
    use_gpu: bool
    here: Row
    rented: tuple[Row, ...]
    checkpoint_bytes: float

    def record(self) -> Record:
        """Return the advice as JSON."""
        return asdict(self)


def advise(
    config: RunConfig, machines: list[Machine], cards: Sequence[Card], *, quick: bool = False
) -> tuple[list[Finding], Advice | None]:
    """Work out workers, precision and micro-batch of a config.

    Args:
        config: of the run.
        machines: of the cluster, or this one.
        cards: of this machine, usable.
        quick: only check the workers; torch stays out.

    Returns:
        Findings, and the advice if the memory was worked out.
    """
    try:
        group = plan_group(config.scale, machines)
    except ConfigError as error:
        return list(from_error("workers", error)), None
    workers = f"{group.most}" if group.least == group.most else f"{group.least} to {group.most}"
    kind = "a GPU" if group.use_gpu else "the CPU"
    findings = [fine("workers", f"{workers}, each on {kind} with {group.cpus} CPUs")]
    if quick:
        return findings, None
    from hai.doctor.fit import needs_of

    try:
        needs = needs_of(config)
    except ConfigError as error:
        return [*findings, *from_error("model", error)], None
    except RuntimeError as error:  # a network that looks at its numbers cannot be carried out without any
        text = f"{config.model.name} cannot be worked out ({_first_line(error)})"
        return [*findings, warning("fit", text, "just begin: where memory runs out, the micro-batch halves")], None
    share = -(-config.train.global_batch_size // group.least)
    here = _here(config, needs, share, group, cards)
    batch = config.train.global_batch_size
    rented = tuple(_row(config, needs, batch, name, memory, sm) for name, memory, sm in RENTED)
    findings += _judge(config, here, share, cards if group.use_gpu else ())
    advice = Advice(share, needs.image_size, group.most, group.use_gpu, here, rented, needs.checkpoint)
    return findings, advice


def _here(config: RunConfig, needs: Needs, share: int, group: Group, cards: Sequence[Card]) -> Row:
    if group.use_gpu and cards:
        card = min(cards, key=lambda one: one.memory)
        return _row(config, needs, share, card.name, card.memory, card.capability)
    if group.use_gpu:  # the GPUs are a cluster's, of a kind that is not known here
        return _row(config, needs, share, "the cluster's GPUs, as a T4", *RENTED[0][1:])
    memory = (free_memory() or 8e9) / group.most
    return _fitted(config, needs.full, "fp32", share, "this machine's CPU", memory)


def _row(config: RunConfig, needs: Needs, share: int, name: str, memory: float, capability: tuple[int, int]) -> Row:
    from hai.precision import precision_of

    precision = precision_of(capability, config.train.mixed_precision)
    label = {"None": "fp32", "torch.float16": "fp16", "torch.bfloat16": "bf16"}[str(precision)]
    return _fitted(config, needs.full if precision is None else needs.mixed, label, share, name, memory)


def _fitted(config: RunConfig, need: Need, precision: str, share: int, name: str, memory: float) -> Row:
    most = need.most(memory)
    settings: tuple[str, ...] | None = ()
    if most < 1:
        settings = None if config.model.gradient_checkpointing else ("model.gradient_checkpointing=true",)
        if need.least and need.at(1) == need.least:
            settings = None  # encoding images takes it, which nothing makes smaller
    elif most < share:
        settings = (f"train.micro_batch_size={even_micro_batch(share, most)}",)
    return Row(name, memory, precision, need.at(share), most, settings)


def even_micro_batch(share: int, most: int) -> int:
    """Return the size of the micro-batches into which the loop divides a share if at most `most` examples fit."""
    return -(-share // -(-share // most))


def _judge(config: RunConfig, here: Row, share: int, cards: Sequence[Card]) -> list[Finding]:
    """Say how the config fits here, by a step on the GPU where there is one."""
    asked = min(config.train.micro_batch_size or share, share)
    text = f"a step of {share} takes about {shown_bytes(here.takes)} of {shown_bytes(here.memory)} on {here.card}"
    findings: list[Finding] = []
    if config.train.mixed_precision == "bf16" and any(card.capability < (8, 0) for card in cards):
        told = f"train.mixed_precision = bf16: {here.card} has no bf16 of its own and computes it slowly"
        findings.append(warning("precision", told, "set train.mixed_precision=true before the run begins"))
    if cards:
        return [*findings, *_try(config, min(asked, max(here.most, 1)), share)]
    if here.settings is None:
        mend = "lower data.image_size or take a smaller model"
        return [*findings, problem("fit", f"{text}: not one example fits", mend)]
    if here.settings and asked > here.most:
        return [*findings, warning("fit", f"{text}: {here.most} fit at once", " ".join(here.settings))]
    return [*findings, fine("fit", text)]


def _try(config: RunConfig, size: int, share: int) -> list[Finding]:
    from hai.doctor.fit import measured

    try:
        fits, taken = measured(config, size)
    except ConfigError as error:
        return list(from_error("fit", error))
    except RuntimeError as error:
        return [
            problem("GPU", f"a training step fails: {_first_line(error)}", "mend what is said above, or use the CPU")
        ]
    text = f"{fits} examples at once take {shown_bytes(taken)} of the GPU, measured"
    if fits < min(config.train.micro_batch_size or share, share):
        return [warning("fit", text, f"train.micro_batch_size={even_micro_batch(share, fits)}")]
    return [fine("fit", text)]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
