"""How much memory a training step takes, and so how many examples fit at once on which card.

A step is carried out on tensors that have a type and a shape but no content (`FakeTensorMode`), in milliseconds an
operation and without a GPU, while every storage that comes and goes is counted. Two sizes of a micro-batch give a line,
bytes = fixed + each * size. What is counted: weights, gradients, kept and passing activations, the copies of weights
that mixed precision makes, the optimizer's averages, averaged weights, an image's copies on the way to the network.
What is not: the context of CUDA and the workspaces of its libraries, for which a gigabyte is set aside, and room lost
between blocks, for which a tenth is. So it is an estimate, rather a little too high; `measured` carries a step out.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from hai.config.schema import RunConfig
from hai.errors import ConfigError
from hai.types import Batch

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Need", "Needs", "measured", "needs_of"]

_SIZES: Final = (4, 8)
_SIZES_OF_FEATURES: Final = (512, 1024)
_RESERVE: Final = 1e9
_SHARE: Final = 0.9
_IMAGE_COPIES: Final = 4
"""Float copies of an image that its random changes hold at once, besides the network's input."""


@dataclass(frozen=True)
class Need:
    """Memory of a worker, bytes: `fixed + each * micro-batch`, and never less than `least`, which encoding takes."""

    fixed: float
    each: float
    least: float = 0.0

    def at(self, size: int) -> float:
        """Return what a micro-batch takes, bytes."""
        return max(self.least, self.fixed + self.each * size)

    def most(self, memory: float) -> int:
        """Return how many examples fit at once into a card's memory, bytes."""
        room = _SHARE * memory - _RESERVE
        return 0 if self.at(1) > room else math.floor((room - self.fixed) / self.each)


@dataclass(frozen=True)
class Needs:
    """What a config takes.

    Args:
        mixed: with activations of 16 bits.
        full: with activations of 32 bits.
        checkpoint: size of a checkpoint on disk, bytes.
        image_size: height and width of the network's input, pixels.
    """

    mixed: Need
    full: Need
    checkpoint: float
    image_size: int


def needs_of(config: RunConfig) -> Needs:
    """Work out the memory that a config's step takes; published weights are not fetched, data not read.

    Raises:
        ConfigError: the model cannot be built.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step = _Step(config)
        sizes = _SIZES_OF_FEATURES if step.width else _SIZES
        peaks: dict[tuple[bool, int], float] = {}
        with FakeTensorMode(), _Ledger() as ledger:
            step.settle()
            precisions = {True: torch.bfloat16, False: None}  # of fp16 everything has the same size
            for is_mixed, precision in precisions.items():
                for size in sizes:
                    peaks[is_mixed, size] = _peak(ledger, partial(step.run, size, precision))
            leasts = {is_mixed: _peak(ledger, partial(step.encode, precisions[is_mixed])) for is_mixed in precisions}
    copies = 0 if step.width else _IMAGE_COPIES * 4 * 3 * step.image_size**2
    found = {}
    for is_mixed in precisions:
        low, high = (peaks[is_mixed, size] for size in sizes)
        each = max((high - low) / (sizes[1] - sizes[0]), 1.0)
        fixed = low - each * sizes[0] + step.extra_bytes
        found[is_mixed] = Need(fixed, each + copies, leasts[is_mixed])
    return Needs(found[True], found[False], step.checkpoint_bytes, step.image_size)


def measured(config: RunConfig, size: int) -> tuple[int, float]:
    """Carry out a step on the first GPU, with half the micro-batch wherever memory runs out.

    Args:
        config: of the run; its published weights are not fetched.
        size: micro-batch to begin with.

    Returns:
        The micro-batch that fits, and the most memory that it took, bytes, the optimizer's included.

    Raises:
        ConfigError: the model cannot be built, or one example does not fit.
        RuntimeError: the GPU fails.
    """
    import torch

    from hai.memory import free_memory, is_out_of_memory
    from hai.precision import precision_on

    device = torch.device("cuda", 0)
    precision = precision_on(device, config.train.mixed_precision)
    step = _Step(config, device)
    step.settle()
    while size:
        try:
            torch.cuda.reset_peak_memory_stats(device)
            step.run(size, precision)
            step.run(size, precision)
            step.encode(precision)
            torch.cuda.synchronize(device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            size //= 2
        else:
            return size, torch.cuda.max_memory_reserved(device) + step.extra_bytes
        free_memory(device)
    raise ConfigError(
        f"model.name = {config.model.name}: not one example fits on this GPU; "
        "set model.gradient_checkpointing=true or lower data.image_size"
    )


class _Step:
    """Forward, a loss and backward into gradients that are there already, as in a step's second micro-batch.

    Args:
        config: of the run.
        device: where to compute; None: nowhere, on pretended tensors of a CPU.
    """

    def __init__(self, config: RunConfig, device: torch.device | None = None) -> None:
        import torch

        from hai.models.encoder import build_encoder, rounded_image_size
        from hai.models.freeze import set_frozen, train_mode
        from hai.models.scorer import Scorer, is_frozen
        from hai.tasks import build_task
        from hai.tasks.ranker import keeps_embeddings

        bare = config.model_copy(update={"model": config.model.model_copy(update={"pretrained": False})})
        self.config, self._is_pretended = bare, device is None
        self._device = device or torch.device("cpu")
        self._task = build_task(bare)
        size = bare.data.image_size
        self.image_size = rounded_image_size(bare.model, size) if bare.task == "ranker" else size
        with torch.device("meta" if device is None else "cpu"):
            self.model = self._task.build_model()
            is_scorer = isinstance(self.model, Scorer) and is_frozen(bare.model)
            self._encoder = build_encoder(bare.model, self.image_size, bare.seed).eval() if is_scorer else None
        self.width = int(cast(Scorer, self.model).architecture["width"]) if is_scorer and keeps_embeddings(bare) else 0
        frozen = self._task.backbone(self.model) if is_frozen(bare.model) else set()
        set_frozen(self.model, frozen, True)
        train_mode(self.model, frozen)

    def settle(self) -> None:
        """Take the memory of weights and gradients."""
        import torch

        self._place(self.model)
        if not self.width:
            self._place(self._encoder)
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None

    def run(self, size: int, precision: torch.dtype | None) -> None:
        """Forward and backward `size` examples."""

        with self._autocast(precision):
            outputs = self._task.outputs(self.model, self._batch(size))
        outputs.float().square().mean().backward()  # type: ignore[no-untyped-call]

    def _batch(self, size: int) -> Batch:
        import torch

        batch = {"index": torch.arange(size, device=self._device)}
        if self.width:
            return {**batch, "embedding": torch.zeros(size, self.width, device=self._device)}
        image = self._images(size)
        if self._encoder is None:
            return {**batch, "image": image}
        with torch.no_grad():
            return {**batch, "embedding": self._encoder(image).float()}

    def encode(self, precision: torch.dtype | None) -> None:
        """Encode as many images as are encoded at once, where features are kept."""
        if not self.width or self._encoder is None:
            return
        import torch

        from hai.embeddings import encoding_batch_size

        self._place(self._encoder)
        with torch.no_grad(), self._autocast(precision):
            self._encoder(self._images(encoding_batch_size(self.image_size, "cuda")))

    def _images(self, size: int) -> torch.Tensor:
        import torch

        return torch.zeros(size, 3, self.image_size, self.image_size, device=self._device)

    def _autocast(self, precision: torch.dtype | None) -> torch.autocast:
        import torch

        kind = torch.bfloat16 if precision is None else precision
        return torch.autocast(self._device.type, kind, enabled=precision is not None)

    def _place(self, module: nn.Module | None) -> None:
        """Move a module to the device, or give it pretended tensors for those without storage."""
        if module is None:
            return
        if not self._is_pretended:
            module.to(self._device)
            return
        import torch

        made: dict[int, Any] = {}  # some modules share their weights
        for part in module.modules():
            for tensors in (part._parameters, part._buffers):
                for name, tensor in tensors.items():
                    if tensor is None or tensor.device.type != "meta":
                        continue
                    if id(tensor) not in made:
                        new: Any = torch.empty(tensor.shape, dtype=tensor.dtype)
                        is_learning = isinstance(tensor, torch.nn.Parameter)
                        made[id(tensor)] = torch.nn.Parameter(new, tensor.requires_grad) if is_learning else new
                    cast(Any, tensors)[name] = made[id(tensor)]

    @property
    def extra_bytes(self) -> float:
        """Return what an optimizer and averaged weights take beside weights and gradients, bytes."""
        learning = sum(_bytes(parameter) for parameter in self.model.parameters() if parameter.requires_grad)
        return learning * self._averages + (self._state_bytes if self.config.train.ema_decay else 0.0)

    @property
    def checkpoint_bytes(self) -> float:
        """Return what a checkpoint takes on disk, bytes."""
        return self._state_bytes + self.extra_bytes

    @property
    def _averages(self) -> int:
        return 2 if self.config.optim.name == "adamw" else 1

    @property
    def _state_bytes(self) -> float:
        return float(sum(_bytes(value) for value in self.model.state_dict().values()))


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _peak(ledger: Any, work: Callable[[], object]) -> float:
    """Return the most bytes that were in use while some work was done."""
    ledger.peak = ledger.now
    work()
    return float(ledger.peak)


@contextmanager
def _Ledger() -> Iterator[Any]:  # noqa: N802  torch's base class is not imported before it is used
    """Count the bytes of all storages that operations in the block allocate: `now` and `peak`."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.now = self.peak = 0
            self._sizes: dict[int, int] = {}

        def _forget(self, key: int) -> None:
            self.now -= self._sizes.pop(key)

        def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
            result = function(*arguments, **(options or {}))
            for value in tree_leaves(result):
                if isinstance(value, torch.Tensor):
                    storage = value.untyped_storage()
                    key = storage._cdata
                    if key not in self._sizes:
                        self._sizes[key] = storage.nbytes()
                        self.now += storage.nbytes()
                        weakref.finalize(storage, self._forget, key)
            self.peak = max(self.peak, self.now)
            return result

    with Ledger() as ledger:
        yield ledger
