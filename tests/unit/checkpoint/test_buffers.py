import pytest
import torch

from hai.checkpoint.buffers import Buffers


def test_a_copy_does_not_follow_its_source():
    source = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor(3), "c": torch.ones(2, requires_grad=True)}
    copy = Buffers().copy(source)
    expected = {name: tensor.detach().clone() for name, tensor in source.items()}
    source["a"].fill_(-1)
    source["b"].fill_(-1)
    assert all(torch.equal(copy[name], expected[name]) and not copy[name].requires_grad for name in source)


def test_memory_is_used_again_and_follows_shape_type_and_names():
    buffers = Buffers()
    first = buffers.copy({"a": torch.zeros(3), "b": torch.zeros(3), "c": torch.zeros(3)})
    second = buffers.copy({"a": torch.ones(3), "b": torch.ones(4), "c": torch.ones(3, dtype=torch.int64)})
    assert second["a"] is first["a"]
    assert [(tensor.shape[0], tensor.dtype) for tensor in second.values()] == [
        (3, torch.float32),
        (4, torch.float32),
        (3, torch.int64),
    ]
    assert list(buffers.copy({"d": torch.ones(1)})) == ["d"]


def test_a_copy_lies_in_memory_like_its_source_and_shares_nothing_with_it():
    weight = torch.nn.Parameter(torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last))
    sources = {"weight": weight, "part": torch.arange(12).reshape(3, 4)[:, ::2]}
    copies = Buffers().copy(sources)
    assert copies["weight"].is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(copies[name], source) for name, source in sources.items())
    assert Buffers().copy({}) == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_copies_from_a_gpu_are_complete_and_pinned():
    source = {"a": torch.arange(10_000_000, device="cuda")}
    copy = Buffers().copy(source)
    assert copy["a"].is_pinned()
    assert torch.equal(copy["a"], torch.arange(10_000_000))
