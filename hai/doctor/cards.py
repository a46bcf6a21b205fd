"""Checks of the GPUs: driver, cards, whether this torch has code for them, and who else uses them."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hai.console import shown_bytes
from hai.doctor.findings import Finding, fine, problem, warning

__all__ = [
    "Card",
    "TorchBuild",
    "build_with_kernels",
    "check_cards",
    "check_on_torch",
    "has_kernels",
    "read_cards",
    "torch_build",
    "visible_cards",
]

_FIELDS: Final = "index,uuid,name,memory.total,memory.used,driver_version,compute_cap"
_DRIVERS: Final = {12: 525, 13: 580}
"""The oldest driver of Linux for each major version of CUDA. Source: NVIDIA, CUDA Compatibility, minor versions."""
_OLDEST_OF_13: Final = (7, 5)
"""The oldest capability that CUDA 13 compiles for. Source: NVIDIA, CUDA 13.0 release notes."""
_SHARED_FROM: Final = 1e9  # what a card's own desktop and idle contexts may take


@dataclass(frozen=True)
class Card:
    """A GPU as its driver describes it; memory in bytes, capability (8, 9) for sm_89."""

    index: int
    uuid: str
    name: str
    memory: float
    used: float
    driver: str
    capability: tuple[int, int]

    @property
    def architecture(self) -> str:
        """Return the capability as compilers write it."""
        return "sm_{}{}".format(*self.capability)


@dataclass(frozen=True)
class TorchBuild:
    """The torch that is installed: its version, and the CUDA it was built for; None: for CPUs."""

    version: str
    cuda: str | None


def torch_build() -> TorchBuild | None:
    """Read which torch is installed without importing it; None: there is none."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return None
    try:
        text = (Path(found.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    values = {name: re.search(rf"^{name}\b.*= '([^']+)'", text, re.MULTILINE) for name in ("__version__", "cuda")}
    version, cuda = values["__version__"], values["cuda"]
    return TorchBuild(version[1] if version else "?", cuda[1] if cuda else None)


def read_cards(command: Sequence[str] = ("nvidia-smi",)) -> tuple[list[Card], str]:
    """Ask the driver for its GPUs.

    Returns:
        The cards, and what is wrong with the driver; nothing of either where there is none.
    """
    query = [*command, f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, encoding="utf-8", timeout=30, check=False)
    except FileNotFoundError:
        return [], ""
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"nvidia-smi does not answer ({type(error).__name__})"
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        return [], said[0] if said else f"nvidia-smi fails with status {done.returncode}"
    return [card for line in done.stdout.splitlines() if (card := _card(line)) is not None], ""


def _card(line: str) -> Card | None:
    fields = [field.strip() for field in line.split(",")]
    try:
        index, uuid, name, total, used, driver, capability = fields
        major, minor = capability.split(".")
        sizes = [float(value) * 2**20 for value in (total, used)]
        return Card(int(index), uuid, name, sizes[0], sizes[1], driver, (int(major), int(minor)))
    except ValueError:  # "[N/A]", as in a card that is divided
        return None


def visible_cards(cards: list[Card], wanted: str | None) -> tuple[list[Card], list[str]]:
    """Choose the cards that a value of CUDA_VISIBLE_DEVICES shows, in its order, as CUDA does.

    Returns:
        The cards, and the names that mean none; CUDA passes over these and all that follow.
    """
    if wanted is None:
        return cards, []
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    chosen: list[Card] = []
    for position, name in enumerate(names):
        if name.isdecimal():
            found = [card for card in cards if card.index == int(name)]
        else:
            found = [card for card in cards if name.startswith("GPU-") and card.uuid.startswith(name)]
        if not found:
            return chosen, names[position:]
        chosen += found[:1]
    return chosen, []


def check_cards(
    cards: list[Card], trouble: str, build: TorchBuild | None, wanted: str | None = None, order: str | None = None
) -> Iterator[Finding]:
    """Check what can be known without torch: the driver, which cards are visible, the build of torch, other users.

    Args:
        cards: all that the driver knows.
        trouble: what is wrong with the driver.
        build: the installed torch.
        wanted: CUDA_VISIBLE_DEVICES.
        order: CUDA_DEVICE_ORDER.
    """
    if build is None:
        yield problem("torch", "is not installed", "pip install torch torchvision")
        return
    yield fine("torch", f"{build.version}, built for " + (f"CUDA {build.cuda}" if build.cuda else "CPUs"))
    if trouble:
        yield problem("GPU", f"the driver does not work: {trouble}", "load or install the NVIDIA driver, or reboot")
        return
    if not cards:
        yield fine("GPU", "none: runs compute on the CPU")
        return
    shown, lost = visible_cards(cards, wanted)
    if lost and lost[0].startswith("MIG-"):
        yield fine("GPU", f"CUDA_VISIBLE_DEVICES = {wanted}: a part of a divided card, whose memory is not known here")
    elif lost and lost != ["-1"]:
        known = ", ".join(str(card.index) for card in cards)
        yield problem(
            "GPU",
            f"CUDA_VISIBLE_DEVICES = {wanted}: {lost[0]} names no GPU, so it and what follows are not used",
            f"name some of {known}",
        )
    elif not shown:
        text = f"CUDA_VISIBLE_DEVICES = {wanted!r} hides all {len(cards)} GPUs"
        yield warning("GPU", f"{text}: runs compute on the CPU", "unset CUDA_VISIBLE_DEVICES, or name one")
    is_numbered = any(name.strip().isdecimal() for name in (wanted or "").split(","))
    if is_numbered and order != "PCI_BUS_ID" and len({card.name for card in cards}) > 1:
        text = (
            f"CUDA_VISIBLE_DEVICES = {wanted}: CUDA counts the fastest card first, not as nvidia-smi and this list do"
        )
        yield warning("GPU", text, "also set CUDA_DEVICE_ORDER=PCI_BUS_ID")
    if build.cuda is None:
        mend = "install a torch that is built for CUDA, or hide the GPUs: CUDA_VISIBLE_DEVICES=-1"
        yield problem("torch", f"{build.version} is built for CPUs, and here is a {cards[0].name}", mend)
    yield from _driver(cards[0].driver, build)
    for card in shown:
        text = f"{card.index}: {card.name}, {shown_bytes(card.memory)}, {card.architecture}"
        if build.cuda and _major(build.cuda) >= 13 and card.capability < _OLDEST_OF_13:
            text += f": torch {build.version} has no code for it, as nothing that is built with CUDA {build.cuda}"
            yield problem("GPU", text, build_with_kernels(card.capability))
        else:
            yield fine("GPU", text)
        if card.used > _SHARED_FROM:
            taken = f"{shown_bytes(card.used)} of {shown_bytes(card.memory)}"
            mend = "end them (nvidia-smi lists them), or choose other cards with CUDA_VISIBLE_DEVICES"
            yield warning("GPU", f"{card.index}: other programs hold {taken}", mend)


def _driver(driver: str, build: TorchBuild) -> Iterator[Finding]:
    if build.cuda is None:
        return
    least = _DRIVERS.get(_major(build.cuda))
    if least is None or not _major(driver):
        return
    if _major(driver) < least:
        mend = "update the driver" + ("" if least <= 525 else ", or install torch 2.14 or older in its cu126 build")
        yield problem("driver", f"{driver} is too old for CUDA {build.cuda}, which wants {least} or newer", mend)
    else:
        yield fine("driver", f"{driver}, good for CUDA {build.cuda}")


def _major(version: str) -> int:
    """Return the first number of a version; 0 if it begins with none."""
    first = version.partition(".")[0]
    return int(first) if first.isdecimal() else 0


def has_kernels(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Say whether code for some architectures runs on a card.

    Machine code `sm_XY` runs on cards of the same major version from that minor version on, `sm_XYa` on that version
    alone; `compute_XY` is translated for any newer card.

    Source: CUDA C++ Programming Guide, Binary Compatibility and PTX Compatibility.
    """
    for architecture in architectures:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", architecture)
        if found is None:
            continue
        kind, version, suffix = found[1], (int(found[2]), int(found[3])), found[4]
        if suffix == "a":
            fits = capability == version
        elif kind == "compute":
            fits = capability >= version
        else:
            fits = capability[0] == version[0] and capability[1] >= version[1]
        if fits:
            return True
    return False


def build_with_kernels(capability: tuple[int, int]) -> str:
    """Name the build of torch that has code for a card.

    Source: "PyTorch CUDA Support Matrix" in RELEASE.md of PyTorch 2.9 to 2.15: CUDA 12.6 has sm_50 to sm_90 and ends
    with torch 2.14; CUDA 13 has sm_75 to sm_120.
    """
    if capability >= (7, 5):
        return "install the newest torch in its default build, which is for CUDA 13 (sm_75 to sm_120)"
    if capability >= (5, 0):
        return "install torch 2.10 to 2.14 in the cu126 build, the last for Maxwell, Pascal and Volta (sm_50 to sm_72)"
    return "hide it (CUDA_VISIBLE_DEVICES=-1): no torch that hai works with has code for so old a card"


def check_on_torch(shown: list[Card]) -> Iterator[Finding]:
    """Check on torch itself: whether it sees the cards, has code for them, and computes on each."""
    import torch

    if not shown:
        return
    listed = torch._C._cuda_getArchFlags() if hasattr(torch._C, "_cuda_getArchFlags") else None
    architectures = str(listed or "").split()
    for card in shown:
        if architectures and not has_kernels(card.capability, architectures):
            text = f"{card.index}: torch {torch.__version__} has no code for {card.name} ({card.architecture}); it has "
            yield problem("GPU", text + ", ".join(architectures), build_with_kernels(card.capability))
    seen, told = _cuda_error()
    if told:
        yield problem("GPU", f"torch cannot use CUDA: {told}", "mend what is said above, or reboot")
        return
    if seen < len(shown):
        yield problem(
            "GPU", f"the driver shows {len(shown)} cards, torch sees {seen}", "restart this program or machine"
        )
    for number in range(seen):
        found = torch.cuda.get_device_properties(number)
        name = f"{found.name} (cuda:{number})"
        try:
            one = torch.ones(64, 64, device=torch.device("cuda", number))
            is_right = bool((one @ one == 64).all())
        except RuntimeError as error:
            text = f"{name} does not compute: {str(error).strip().splitlines()[0]}"
            mend = build_with_kernels((found.major, found.minor)) if "kernel image" in text else "reboot"
            yield problem("GPU", text, mend)
            continue
        if not is_right:
            yield problem("GPU", f"{name} computes wrongly", "do not use it; have it replaced")


def _cuda_error() -> tuple[int, str]:
    """Start CUDA; return how many cards it sees, and what is wrong if it does not start."""
    import warnings

    import torch

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return torch.cuda.device_count(), ""
    said = [str(one.message) for one in heard]
    if not said and torch.version.cuda is not None:
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            said = [str(error)]
    return 0, (said or ["it was built without"])[0].strip().splitlines()[0]
