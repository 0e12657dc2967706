"""Work in the background of a notebook: it can be watched and cancelled, and newer work cancels older.

A network is the one thing that all costly work calls again and again. So work is counted and stopped there: wrapped by
a `Token`, a network counts its evaluations and raises `Cancelled` at the first call after `cancel`.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

T = TypeVar("T")
_SECONDS = 0.1  # between two reports of progress


class Cancelled(Exception):
    """The work was cancelled."""


class Token:
    """The handle of one piece of work. evaluations: noisy images that its networks have seen so far."""

    def __init__(self, report: Callable[[int], None] | None = None):
        self.evaluations = 0
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._report, self._reported = report, 0.0

    @property
    def cancelled(self) -> bool:
        """Whether the work was told to stop."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Stop the work at its next call of a network."""
        self._cancelled.set()

    def watch(self, network: Callable[[Tensor], Tensor]) -> nn.Module:
        """The same network, counted and stopped by this token."""
        return _Watched(network, self)

    def count(self, evaluations: int) -> None:
        """Note evaluations that were made.

        Raises: Cancelled after `cancel`.
        """
        if self.cancelled:
            raise Cancelled
        with self._lock:  # networks may be called by several threads
            self.evaluations += evaluations
            now = time.monotonic()
            due = self._report is not None and now >= self._reported + _SECONDS
            self._reported = now if due else self._reported
        if due and self._report:
            self._report(self.evaluations)


class _Watched(nn.Module):
    def __init__(self, network: Callable[[Tensor], Tensor], token: Token):
        super().__init__()
        self.network, self._token = network, token

    def forward(self, x: Tensor) -> Tensor:
        self._token.count(len(x))
        return self.network(x)


class Worker:
    """A place for one piece of work at a time. Results come back on the event loop that made the worker, if one runs.

    Without an event loop (a plain script, a test) they come on the thread that did the work.
    """

    def __init__(self) -> None:
        self._token, self._thread = Token(), None
        self._lock = threading.RLock()  # one delivery at a time, and none of cancelled work
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None

    @property
    def busy(self) -> bool:
        """Whether work is under way."""
        return self._thread is not None and self._thread.is_alive()

    def start(
        self,
        work: Callable[[Token], T],
        done: Callable[[T], None],
        failed: Callable[[BaseException], None],
        report: Callable[[int], None] | None = None,
    ) -> None:
        """Cancel what runs and start `work` in the background, then call `done` or `failed`; neither if cancelled."""
        self.cancel()
        token = Token(lambda evaluations: self._deliver(token, report, evaluations) if report else None)
        thread = threading.Thread(target=self._run, args=(token, work, done, failed), daemon=True)
        with self._lock:  # the thread may be done, and its result start the next one, before this line ends
            self._token = token
            thread.start()
            self._thread = thread

    def cancel(self) -> None:
        """Stop what runs; nothing of it is delivered any more."""
        with self._lock:
            self._token.cancel()

    def wait(self, seconds: float = 60) -> None:
        """Wait until the newest work is done and, where no event loop runs, delivered; also work that this starts."""
        until = time.monotonic() + seconds
        while (thread := self._thread) is not None and thread.is_alive() and (left := until - time.monotonic()) > 0:
            thread.join(left)

    def _run(self, token: Token, work: Callable[[Token], Any], done: Callable, failed: Callable) -> None:
        def finish(result: object) -> None:
            try:
                done(result)
            except Exception as error:
                failed(error)

        try:
            result = work(token)
        except Cancelled:
            return
        except BaseException as error:  # shown to the user, whatever it is: nobody else would see it
            self._deliver(token, failed, error)
        else:
            self._deliver(token, finish, result)

    def _deliver(self, token: Token, receive: Callable[[Any], None], value: object) -> None:
        def deliver() -> None:
            with self._lock:
                if not token.cancelled:
                    receive(value)

        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(deliver)
        else:
            deliver()
