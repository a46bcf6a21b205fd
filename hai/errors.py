"""The exception tree: everything that a user can cause and mend.

```
HaiError                  one line for the user, exit status 2
├── ConfigError           a config file, an override or a command line is wrong
├── DataError             a source, a manifest, a pack or an image is wrong
├── CheckpointError       a checkpoint or a run folder cannot be used
├── StorageError          a storage path cannot be read or written
└── NonFiniteError        training produced NaN or Inf
```

A message reads *where: what = value; rule; how to mend*. Several problems of one kind are reported together, one a
line. Anything that is not a `HaiError` is a bug and keeps its traceback.
"""

from hai.masking import without_secrets

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "HaiError",
    "NonFiniteError",
    "OutOfMemoryError",
    "StorageError",
]


class HaiError(Exception):
    """A problem that the user can mend; its text is complete without a traceback, and holds no secret."""

    def __str__(self) -> str:
        return without_secrets(super().__str__())

    def _render_traceback_(self) -> list[str]:
        """Tell a notebook to show the text alone, as the command line does."""
        return str(self).splitlines()


class ConfigError(HaiError):
    """A config file, an override or a command line is wrong."""


class DataError(HaiError):
    """A source, a manifest, a pack or an image is wrong."""


class CheckpointError(HaiError):
    """A checkpoint or a run folder cannot be used."""


class StorageError(HaiError):
    """A storage path cannot be read or written."""


class NonFiniteError(HaiError):
    """Training produced NaN or Inf in a step, whose number it knows."""

    def __init__(self, text: str, step: int = -1) -> None:
        super().__init__(text)
        self.step = step


class OutOfMemoryError(HaiError):
    """A worker's memory does not hold its micro-batch, whose size it knows."""

    def __init__(self, text: str, micro_batch_size: int = 1) -> None:
        super().__init__(text)
        self.micro_batch_size = micro_batch_size
