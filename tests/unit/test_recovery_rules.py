import pytest
import torch

from hai import recovery
from hai.config.schema import RunConfig
from hai.errors import NonFiniteError
from hai.memory import is_out_of_memory
from hai.recovery import (
    build_rollback,
    is_fatal,
    memory_record,
    merge_rollbacks,
    micro_batch_size,
    named,
    refuse_rollback,
)

CPU = torch.device("cpu")


def config_of(micro_batch_size: int | None = None) -> RunConfig:
    return RunConfig.model_validate({"train": {"global_batch_size": 64, "micro_batch_size": micro_batch_size}})


def test_the_fourth_step_of_a_launch_that_is_not_finite_ends_it():
    error = NonFiniteError("step 9: loss = NaN", 9)
    rollbacks = [build_rollback(step, ["a", f"b{step}"], "now") for step in (3, 5, 7)]
    earlier = [build_rollback(step, ["c"], "yesterday") for step in (1, 2)]
    refuse_rollback([*earlier, *rollbacks], "now", error)
    with pytest.raises(NonFiniteError, match=r"steps 3, 5, 7, 9, rolled back 3 times; in all their batches: a; the"):
        refuse_rollback([*earlier, *rollbacks, build_rollback(9, ["a"], "now")], "now", error)
    with pytest.raises(NonFiniteError, match=r"rolled back 3 times; the newest"):
        refuse_rollback([*rollbacks, build_rollback(9, ["z"], "now")], "now", error)


def test_rollbacks_are_kept_once_a_step_and_in_order():
    one, two, again = (build_rollback(step, [name], None) for step, name in ((4, "a"), (2, "b"), (4, "c")))
    assert merge_rollbacks([one], [two, again]) == [two, again]


def test_many_examples_are_counted():
    assert named(["a", "b"]) == "a, b"
    assert named([str(number) for number in range(10)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"


def test_the_smallest_of_what_is_asked_for_and_what_fits():
    assert micro_batch_size(config_of(), None, None, CPU) == 64
    assert micro_batch_size(config_of(16), None, None, CPU) == 16
    assert micro_batch_size(config_of(), None, 8, CPU) == 8
    remembered = memory_record(config_of(), 4, CPU)
    assert micro_batch_size(config_of(), remembered, 8, CPU) == 4
    assert micro_batch_size(config_of(16), remembered, None, CPU) == 16  # asked for anew


@pytest.mark.parametrize(
    ("then", "now", "size"), [(16.0, 16.0, 4), (16.0, 40.0, 64), (40.0, 16.0, 4), (None, 16.0, 64)]
)
def test_a_larger_card_is_tried_anew(monkeypatch, then, now, size):
    monkeypatch.setattr(recovery, "device_gigabytes", lambda device: then)
    remembered = memory_record(config_of(), 4, CPU)
    monkeypatch.setattr(recovery, "device_gigabytes", lambda device: now)
    assert micro_batch_size(config_of(), remembered, None, CPU) == size


@pytest.mark.parametrize(
    ("deaths", "start", "step"),
    [
        ([], 6, None),
        ([(6, 8)], 6, None),
        ([(6, 8), (6, 8)], 6, 8),
        ([(6, 8), (6, 9)], 6, None),
        ([(6, 9), (6, 8), (3, 8), (6, 8)], 6, 8),
        ([(6, 8), (6, 8)], 3, None),
    ],
)
def test_two_deaths_in_a_row_in_one_step_are_fatal(deaths, start, step):
    assert is_fatal(deaths, start) == step


def test_running_out_of_memory_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 46)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert is_out_of_memory(
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`")
    )
    assert is_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"))
    assert is_out_of_memory(RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"))
    assert is_out_of_memory(RuntimeError("GET was unable to find an engine to execute this computation"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(OSError("can't allocate memory"))
