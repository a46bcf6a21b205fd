"""Model inputs on a CPU: the same bits as the batch at once, whatever the threads; memory that comes back."""

import threading

import pytest
import torch

from hai.data.augment import apply_changes, augment, draw_changes, normalise
from hai.data.inputs import ModelInputs
from tests.unit.data.test_augment import ALL, pictures


@pytest.fixture(autouse=True)
def torch_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 4, 5, 23])
def test_inputs_are_the_augmented_and_normalised_batch(num_threads, count):
    picture, index = pictures(max(count, 1))[:count], torch.arange(count)
    before = picture.clone()
    expected = normalise(augment(picture, index, ALL, seed=5, epoch=2))
    torch.set_num_threads(num_threads)
    made = ModelInputs()(picture, draw_changes(index, ALL, seed=5, epoch=2))
    assert torch.equal(made, expected)
    assert made.is_contiguous()
    assert torch.equal(picture, before)
    assert torch.equal(ModelInputs()(picture, []), normalise(picture))


def test_threads_of_torch_stay_as_they_are():
    torch.set_num_threads(3)
    ModelInputs()(pictures(16), [])
    seen = [torch.get_num_threads()]
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen == [3, 3]


def test_another_number_of_threads_counts_from_the_next_batch_on():
    inputs, picture = ModelInputs(), pictures(16)
    for num_threads in (2, 1, 3):
        torch.set_num_threads(num_threads)
        assert torch.equal(inputs(picture, []), normalise(picture))
        assert torch.get_num_threads() == num_threads


def test_memory_is_used_again_but_never_while_it_is_looked_at():
    inputs, picture = ModelInputs(), pictures(8)
    first = inputs(picture, [])
    kept, address = first[2:3], first.data_ptr()
    del first
    second = inputs(255 - picture, [])
    assert second.data_ptr() != address
    assert torch.equal(kept, normalise(picture[2:3]))
    del kept
    assert inputs(picture, []).data_ptr() == address


def test_gradients_flow_through_a_model_of_inputs():
    changes = draw_changes(torch.arange(8), ALL, seed=5, epoch=2)
    made = ModelInputs()(pictures(8), changes)
    weight = torch.ones(1, 3, 3, 3, requires_grad=True)
    torch.nn.functional.conv2d(made, weight).sum().backward()
    assert weight.grad is not None
    image = pictures(2).float().requires_grad_()
    normalise(image * 1).sum().backward()  # with constants first made where no gradients were wanted
    assert image.grad is not None


def test_an_error_in_a_thread_is_raised():
    def fail(value):
        raise ValueError("no such change")

    changes = draw_changes(torch.arange(16), ALL, seed=5, epoch=2)
    broken = [change._replace(change=fail, parameters=()) for change in changes[:1]]
    torch.set_num_threads(2)
    with pytest.raises(ValueError, match="no such change"):
        ModelInputs()(pictures(16), broken)
    assert apply_changes(pictures(16), changes).shape == (16, 3, 48, 48)
