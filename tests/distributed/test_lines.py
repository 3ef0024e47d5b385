"""Lines between ranks that torchrun or SLURM has started: why one ends is known to all, whatever they are doing."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace

import pytest

from rept.distributed import watch
from rept.distributed.collectives import GO_ON, Lost
from rept.distributed.lines import Lines
from rept.distributed.signals import StopBetweenBatches
from rept.distributed.watch import RankFailed
from rept.errors import UsageError
from tests.helpers.commands import free_port

SOON = 20  # seconds; it takes a tenth


class Ranks:
    """Some ranks in threads of this process, each with a line to rank 0."""

    def __init__(self, number: int) -> None:
        port = free_port()
        self.stops = [StopBetweenBatches() for _ in range(number)]
        self.lines = [self._line(rank, number, port) for rank in range(number)]

    def _line(self, rank: int, number: int, port: int) -> Lines:
        environment = SimpleNamespace(main_address="127.0.0.1", main_port=port, global_rank=lambda: rank)
        trainer = SimpleNamespace(strategy=SimpleNamespace(cluster_environment=environment), world_size=number)
        return Lines(trainer, self.stops[rank], timedelta(seconds=SOON))

    def run(self, *work: Callable[[int], None]) -> list[BaseException | None]:
        """How each rank's work ended."""
        with ThreadPoolExecutor(len(work)) as pool:
            return list(pool.map(self._run, range(len(work)), work))

    def _run(self, rank: int, work: Callable[[int], None]) -> BaseException | None:
        try:
            with self.lines[rank].watched():
                assert self.lines[rank]._connected.wait(SOON), "no line"
                work(rank)
        except BaseException as error:
            return error
        return None

    def compute(self, rank: int) -> None:
        """Batch after batch, until told to stop."""
        deadline = time.monotonic() + SOON
        while time.monotonic() < deadline:
            time.sleep(0.02)
            self.stops[rank].on_predict_batch_end(None, None)

    def wait_for_others(self, rank: int) -> None:
        """In a connection that breaks when another ends."""
        assert self.lines[rank]._failed.wait(SOON)
        raise Lost(f"Rank {rank} lost its connection to another.")


def fails(error: BaseException) -> Callable[[int], None]:
    def work(rank: int) -> None:
        raise error

    return work


@pytest.mark.parametrize("culprit", [0, 1, 2])
def test_the_reason_of_one_rank_ends_all(culprit):
    ranks = Ranks(3)
    work = [ranks.compute, ranks.wait_for_others, ranks.compute]
    work[culprit] = fails(UsageError("There is no such file."))
    ended = ranks.run(*work)
    assert str(ended.pop(culprit)) == "There is no such file."
    for other in ended:
        assert isinstance(other, RankFailed) and other.exit_code == 2
        assert str(other) == f"Rank {culprit}: There is no such file."


def test_a_failure_that_is_no_sentence_is_told_by_its_kind():
    ranks = Ranks(2)
    _, other = ranks.run(fails(RuntimeError("out of patience\nand more")), ranks.compute)
    assert str(other) == f"Rank 0: RuntimeError: out of patience. {GO_ON}" and other.exit_code == 1


@pytest.mark.parametrize("dead", [0, 1])
def test_a_rank_that_dies_is_known_by_its_line(dead):
    ranks = Ranks(2)

    def die(rank: int) -> None:
        for line in ranks.lines[rank]._others.values():
            line.close()
        ranks.lines[rank]._over.set()
        ranks.lines[rank]._others = {}

    ended = ranks.run(*[die if rank == dead else ranks.compute for rank in (0, 1)])
    assert str(ended[1 - dead]) == f"Rank {dead} has died. {GO_ON}"


def test_where_the_ranks_found_one_another_is_there_until_the_end():
    """On SLURM rank 0 serves it, and the process group is made there later."""
    ranks = Ranks(2)

    def count(rank: int) -> None:
        time.sleep(0.2)
        assert ranks.lines[rank]._store.add("ranks", 1) <= 2

    assert ranks.run(count, count) == [None, None]


def test_ranks_may_be_through_at_different_times():
    ranks = Ranks(3)
    ended = ranks.run(*[lambda rank, pause=pause: time.sleep(pause) for pause in (0.4, 0, 0.8)])
    assert ended == [None, None, None]


def test_a_rank_that_does_not_stop_between_batches_is_ended_by_force(monkeypatch):
    monkeypatch.setattr(watch, "GRACE", 0.2)
    ranks, codes = Ranks(2), []
    forced = threading.Event()
    monkeypatch.setattr(watch.os, "_exit", lambda code: (codes.append(code), forced.set()))
    ranks.run(lambda rank: forced.wait(SOON), fails(UsageError("No.")))
    assert codes == [2]


def test_strangers_are_not_listened_to():
    ranks = Ranks(2)
    call = ranks.lines[1]._call

    def call_after_strangers(rank_0: dict) -> None:
        for words in (b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\2[]", b'\0\0\0\x1e{"token": "guessed", "rank": 1}'):
            with socket.create_connection(("127.0.0.1", rank_0["port"])) as stranger:
                stranger.sendall(words)
        call(rank_0)

    ranks.lines[1]._call = call_after_strangers
    assert ranks.run(lambda rank: time.sleep(0.2), lambda rank: None) == [None, None]
    assert set(ranks.lines[0]._others) == {1}
