"""The exceptions for what a user can put right: expected X, got Y, what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class InputError(ValueError):
    """A setting, a file, a folder, an image or a network is not what it should be.

    Notebooks show its message alone; a traceback would say nothing more.
    """

    def _render_traceback_(self) -> list[str]:  # the hook IPython asks before it formats a traceback
        return [f"{type(self).__name__}: {self}"]


class ResourceError(InputError):
    """The machine ran out of something: device memory, disk space, a lock held by another process."""


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocator had no more to give, the device's or the CPU's."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextmanager
def explained_memory_errors(setting: str, value: int) -> Iterator[None]:
    """Turn a device out of memory into a message that names the setting to lower."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise ResourceError(
            f"{setting} {value or 'auto'} does not fit into the device's memory. Set a smaller one."
        ) from error
