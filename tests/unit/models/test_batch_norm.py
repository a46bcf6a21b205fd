"""BatchNorm over several workers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hai.config.schema import ModelConfig
from hai.models import build_model
from hai.models.batch_norm import share_statistics
from hai.models.freeze import statistics_of


@pytest.mark.parametrize("name", ["timm:mobilenetv3_small_050", "compact"])
def test_shared_statistics_change_neither_names_nor_what_a_network_computes(name: str) -> None:
    model = build_model(ModelConfig(name=name, pretrained=False), 64, seed=0).eval()
    image = torch.randn(2, 3, 64, 64)
    before, names, parameters = model(image), list(model.state_dict()), list(model.parameters())
    shared = share_statistics(model)
    torch.testing.assert_close(shared(image), before, rtol=0, atol=0)
    assert list(shared.state_dict()) == names
    assert all(one is other for one, other in zip(shared.parameters(), parameters, strict=True))
    norms = [module for module in shared.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    assert len(statistics_of(shared)) == 3 * len(norms)
