from __future__ import annotations

import os
from pathlib import Path

import pytest

from hai.doctor.cards import (
    Card,
    TorchBuild,
    build_with_kernels,
    check_cards,
    has_kernels,
    read_cards,
    torch_build,
    visible_cards,
)
from hai.doctor.findings import Finding

CUDA13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
CUDA12 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
BUILD = TorchBuild("2.15.0+cu132", "13.2")
LISTED = """\
0, GPU-aaaa-1, Tesla T4, 15360, 3, 580.82.07, 7.5
1, GPU-bbbb-2, NVIDIA A100-SXM4-40GB, 40960, 2048, 580.82.07, 8.0
2, GPU-cccc-3, NVIDIA divided, [N/A], [N/A], 580.82.07, 9.0
"""


def driver(folder: Path, script: str) -> list[str]:
    """A program that stands in for nvidia-smi."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)
    return [str(program)]


@pytest.fixture
def cards(tmp_path: Path) -> list[Card]:
    found, trouble = read_cards(driver(tmp_path, f"cat <<'END'\n{LISTED}END"))
    assert trouble == ""
    return found


def said(findings: list[Finding], status: str) -> list[str]:
    return [finding.text for finding in findings if finding.status == status]


def test_the_drivers_table_is_read(cards: list[Card]) -> None:
    assert [(card.index, card.name, card.capability) for card in cards] == [
        (0, "Tesla T4", (7, 5)),
        (1, "NVIDIA A100-SXM4-40GB", (8, 0)),
    ]
    assert cards[0].memory == 15360 * 2**20
    assert cards[0].architecture == "sm_75"


def test_no_driver_is_no_trouble_and_a_broken_one_is(tmp_path: Path) -> None:
    assert read_cards([str(tmp_path / "nothing")]) == ([], "")
    text = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    cards, trouble = read_cards(driver(tmp_path, f'echo "{text}"; exit 9'))
    assert (cards, trouble) == ([], text)
    (finding,) = [one for one in check_cards(cards, trouble, BUILD) if one.status == "problem"]
    assert text in finding.text
    assert finding.mend


@pytest.mark.parametrize(
    ("wanted", "indices", "lost"),
    [
        (None, [0, 1], []),
        ("", [], []),
        ("1", [1], []),
        ("1,0", [1, 0], []),
        ("GPU-bbbb", [1], []),
        ("0,7,1", [0], ["7", "1"]),
        ("-1", [], ["-1"]),
    ],
)
def test_visible_cards_are_those_that_cuda_takes(
    cards: list[Card], wanted: str | None, indices: list[int], lost: list[str]
) -> None:
    shown, unknown = visible_cards(cards, wanted)
    assert ([card.index for card in shown], unknown) == (indices, lost)


def test_a_card_that_is_not_there_stops_a_run_and_hidden_ones_are_told(cards: list[Card]) -> None:
    found = list(check_cards(cards, "", BUILD, "0,7"))
    assert said(found, "problem") == ["CUDA_VISIBLE_DEVICES = 0,7: 7 names no GPU, so it and what follows are not used"]
    hidden = list(check_cards(cards, "", BUILD, "-1"))
    assert said(hidden, "problem") == []
    assert any("hides all 2 GPUs" in text for text in said(hidden, "warning"))


def test_a_part_of_a_divided_card_is_no_trouble(cards: list[Card]) -> None:
    found = list(check_cards(cards, "", BUILD, "MIG-8f0a"))
    assert not said(found, "problem")
    assert not said(found, "warning")
    assert any("a part of a divided card" in text for text in said(found, "ok"))


def test_numbers_of_unlike_cards_need_the_order_of_the_bus(cards: list[Card]) -> None:
    mends = [one.mend for one in check_cards(cards, "", BUILD, "0") if one.status == "warning"]
    assert "also set CUDA_DEVICE_ORDER=PCI_BUS_ID" in mends
    assert not said(list(check_cards(cards, "", BUILD, "0", "PCI_BUS_ID")), "warning")
    assert not said(list(check_cards(cards, "", BUILD, "GPU-aaaa")), "warning")


def test_what_others_hold_on_a_card_is_told(cards: list[Card]) -> None:
    (text,) = said(list(check_cards(cards, "", BUILD)), "warning")
    assert text.startswith("1: other programs hold 2.15 GB")


def test_a_build_for_cpus_beside_a_card_and_an_old_driver_stop_a_run(cards: list[Card]) -> None:
    (text,) = said(list(check_cards(cards, "", TorchBuild("2.15.0+cpu", None))), "problem")
    assert "built for CPUs, and here is a Tesla T4" in text
    old = [Card(0, "GPU-x", "Tesla T4", 16e9, 0.0, "535.104.05", (7, 5))]
    (finding,) = [one for one in check_cards(old, "", BUILD) if one.status == "problem"]
    assert finding.text == "535.104.05 is too old for CUDA 13.2, which wants 580 or newer"
    assert "cu126" in finding.mend
    assert not said(list(check_cards(old, "", TorchBuild("2.14.0+cu126", "12.6"))), "problem")


def test_a_card_that_this_cuda_has_left_behind_is_named_without_torch() -> None:
    volta = [Card(0, "GPU-x", "Tesla V100", 16e9, 0.0, "580.1", (7, 0))]
    (finding,) = [one for one in check_cards(volta, "", BUILD) if one.status == "problem"]
    assert "Tesla V100" in finding.text
    assert "2.15.0+cu132 has no code for it" in finding.text
    assert "cu126" in finding.mend
    assert not said(list(check_cards(volta, "", TorchBuild("2.14.0+cu126", "12.6"))), "problem")


@pytest.mark.parametrize(
    ("capability", "architectures", "fits"),
    [
        ((7, 5), CUDA13, True),
        ((8, 9), CUDA13, True),  # sm_86 runs on sm_89
        ((9, 0), CUDA13, True),
        ((12, 1), CUDA13, True),
        ((13, 0), CUDA13, True),  # translated from compute_120
        ((7, 0), CUDA13, False),
        ((6, 0), CUDA13, False),
        ((7, 0), CUDA12, True),
        ((6, 1), CUDA12, True),
        ((3, 7), CUDA12, False),
        ((10, 0), CUDA12, False),
        ((9, 0), ["sm_90a"], True),
        ((9, 1), ["sm_90a"], False),
        ((8, 0), ["sm_86"], False),
        ((8, 0), [], False),
    ],
)
def test_kernels_run_on_cards_of_their_family(
    capability: tuple[int, int], architectures: list[str], fits: bool
) -> None:
    assert has_kernels(capability, architectures) is fits


def test_the_build_that_has_kernels_is_named() -> None:
    assert "cu126" in build_with_kernels((7, 0))
    assert "cu126" in build_with_kernels((6, 0))
    assert "newest torch" in build_with_kernels((12, 0))
    assert "hide it" in build_with_kernels((3, 7))


def test_the_installed_torch_is_read_without_importing_it() -> None:
    import importlib.metadata

    build = torch_build()
    assert build is not None
    assert build.version.partition("+")[0] == importlib.metadata.version("torch").partition("+")[0]


@pytest.mark.slow
def test_torch_itself_names_a_card_without_code_and_says_why_cuda_does_not_start() -> None:
    import torch

    from hai.doctor.cards import check_on_torch

    if torch.cuda.is_available() or torch.version.cuda is None:
        pytest.skip("wants a torch for CUDA on a machine without")
    volta = Card(0, "GPU-x", "Tesla V100", 16e9, 0.0, "580.1", (7, 0))
    found = list(check_on_torch([volta]))
    assert all(one.status == "problem" and one.mend for one in found)
    text = " ".join(one.text for one in found)
    assert "torch cannot use CUDA" in text
    if not torch.version.cuda.startswith("12"):
        assert "has no code for Tesla V100 (sm_70)" in text
        assert "cu126" in found[0].mend
    assert list(check_on_torch([])) == []
    assert os.environ.get("CUDA_VISIBLE_DEVICES") is None
