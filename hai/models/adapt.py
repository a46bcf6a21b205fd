"""Letting parts of a pretrained backbone learn: its last blocks, or low-rank adapters."""

from __future__ import annotations

import re
from typing import Final

from torch import nn

from hai.errors import ConfigError

__all__ = ["add_lora", "names_of_last_blocks"]

_ATTENTION: Final = re.compile(r"(?:^|\.)(?:query|value|q_proj|v_proj|qkv|in_proj)$")
"""Linear layers that get adapters: queries and values, or the one layer that some networks make of all three."""


def names_of_last_blocks(network: nn.Module, count: int) -> set[str]:
    """Name the parameters of a network's last blocks and of everything behind them, such as the last norm.

    Blocks are the entries of the outermost list or sequence that holds more than half of the parameters, or else the
    network's own parts.

    Raises:
        ConfigError: there are not that many blocks.
    """
    names = [name for name, _ in network.named_parameters()]
    if count == 0:
        return set()
    prefix, blocks = _blocks(network)
    if count > len(blocks):
        raise ConfigError(f"model.train_blocks = {count}; the backbone has {len(blocks)} blocks; use at most that")
    first = f"{prefix}{blocks[-count]}."
    return set(names[next(i for i, name in enumerate(names) if name.startswith(first)) :])


def _blocks(network: nn.Module) -> tuple[str, list[str]]:
    total = sum(parameter.numel() for parameter in network.parameters())
    for name, module in network.named_modules():
        if name and isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1:
            size = sum(parameter.numel() for parameter in module.parameters())
            if 2 * size > total:
                return f"{name}.", [inner for inner, _ in module.named_children()]
    return "", [name for name, module in network.named_children() if any(True for _ in module.parameters())]


def add_lora(network: nn.Module, rank: int) -> set[str]:
    """Put low-rank adapters beside the attention layers' queries and values; at first they change nothing.

    Args:
        network: changed in place; its own parameters are frozen.
        rank: of the adapters; their output is scaled by 2.

    Returns:
        The names of the adapters' parameters.

    Raises:
        ConfigError: peft is not installed, or there is no attention layer.

    Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, section 4.1.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError(f"model.lora_rank = {rank}; needs peft; pip install 'hai[lora]'") from error
    targets = [
        name for name, module in network.named_modules() if isinstance(module, nn.Linear) and _ATTENTION.search(name)
    ]
    if not targets:
        raise ConfigError(f"model.lora_rank = {rank}; the backbone has no attention layers; use model.train_blocks")
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets), network)
    return {name for name, _ in network.named_parameters() if ".lora_" in name}
