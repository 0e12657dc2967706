import asyncio
import threading

import pytest
import torch

from ddviz.jobs import Cancelled, Token, Worker


def never(error: object) -> None:
    raise AssertionError(error)


def test_a_watched_network_is_counted_and_unchanged():
    token = Token()
    network = token.watch(lambda x: 2 * x)
    assert torch.equal(network(torch.ones(3, 2)), 2 * torch.ones(3, 2))
    network(torch.ones(5, 2))
    assert token.evaluations == 8


def test_a_cancelled_token_stops_the_next_call():
    token = Token()
    network = token.watch(lambda x: x)
    network(torch.ones(1))
    token.cancel()
    with pytest.raises(Cancelled):
        network(torch.ones(1))
    assert token.evaluations == 1


def test_progress_is_reported_now_and_then_not_every_time():
    reports: list[int] = []
    token = Token(reports.append)
    for _ in range(1000):
        token.count(1)
    assert reports[0] == 1 and len(reports) < 500 and token.evaluations == 1000


def test_newer_work_cancels_older_whose_result_is_never_delivered():
    worker, gate, got = Worker(), threading.Event(), []

    def slow(token: Token) -> str:
        gate.wait(10)
        token.count(1)
        return "old"

    worker.start(slow, got.append, never)
    older = worker._thread
    worker.start(lambda token: "new", got.append, never)
    worker.wait()
    gate.set()
    assert older is not None
    older.join(10)
    assert got == ["new"] and not older.is_alive()


def test_work_that_ends_just_after_it_was_cancelled_is_not_delivered():
    worker, gate = Worker(), threading.Event()
    worker.start(lambda token: gate.wait(10), never, never)
    worker.cancel()
    gate.set()
    worker.wait()
    assert not worker.busy


def test_a_failure_arrives_and_so_does_one_in_showing_the_result():
    worker, failures = Worker(), []
    worker.start(lambda token: 1 / 0, never, failures.append)
    worker.wait()
    worker.start(lambda token: 1, lambda result: [][result], failures.append)
    worker.wait()
    assert [type(failure) for failure in failures] == [ZeroDivisionError, IndexError]


def test_waiting_includes_work_that_a_result_starts():
    for _ in range(300):  # a race would show now and then
        worker, got = Worker(), []
        worker.start(lambda t: 1, lambda one, w=worker, g=got: w.start(lambda t: one + 1, g.append, never), never)
        worker.wait()
        assert got == [2]


def test_results_come_back_on_the_thread_of_the_event_loop():
    async def main() -> tuple[int, int]:
        worker, came = Worker(), asyncio.Event()
        threads = []

        def done(_result: object) -> None:
            threads.append(threading.get_ident())
            came.set()

        worker.start(lambda token: threads.append(threading.get_ident()), done, never)
        await asyncio.wait_for(came.wait(), 10)
        return threads[0], threads[1]

    worked, delivered = asyncio.run(main())
    assert delivered == threading.get_ident() != worked
