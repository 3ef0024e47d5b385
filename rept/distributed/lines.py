"""The ranks that torchrun or SLURM has started, on one node or several: each holds a line to rank 0.

What starts them looks after the processes of its own node alone. A line tells at once why a rank ends, and by its
breaking that one has died, whatever the others are doing; rank 0 passes it on.
"""

from __future__ import annotations

import json
import secrets
import threading
from datetime import timedelta
from multiprocessing.connection import Client, Connection, Listener, wait
from typing import Any

from lightning import Trainer
from torch import distributed

from rept.distributed import watch
from rept.distributed.collectives import GO_ON
from rept.distributed.signals import StopBetweenBatches
from rept.distributed.watch import RankFailed, Watch, exit_code, reason

LONGEST = 65536  # bytes of a message
ADDRESS = "rept/lines"  # key of the store through which ranks find one another


class Lines(Watch):
    """See above. Messages are JSON: a caller's token and rank first, then how a rank ends.

    Args:
        trainer: whose environment tells the ranks and where rank 0 is.
        stop: brings this rank to an end after its batch.
        patience: how long the ranks may take to start.
    """

    def __init__(self, trainer: Trainer, stop: StopBetweenBatches, patience: timedelta) -> None:
        super().__init__(stop)
        environment: Any = trainer.strategy.cluster_environment
        self._host: str = environment.main_address
        self._port: int = environment.main_port
        self._rank, self._ranks = environment.global_rank(), trainer.world_size
        self._patience = patience
        self._others: dict[int, Connection] = {}  # by rank: of rank 0 all others, of these rank 0
        self._connected = threading.Event()
        self._store: Any = None

    def _watch(self) -> None:
        try:
            place = f"tcp://{self._host}:{self._port}"
            # Kept: on SLURM it is rank 0 that serves it, and the process group, made later, shares that server.
            self._store, *_ = next(distributed.rendezvous(place, self._rank, self._ranks, timeout=self._patience))
            if self._rank:
                self._call(json.loads(self._store.get(ADDRESS)))
                self._listen()
            else:
                self._answer()
        except (distributed.DistError, OSError, EOFError):
            return  # the ranks have not come together: the main thread meets the same, and says so

    def _call(self, rank_0: dict[str, Any]) -> None:
        self._others[0] = Client((self._host, rank_0["port"]))
        _send(self._others[0], token=rank_0["token"], rank=self._rank)
        self._connected.set()

    def _answer(self) -> None:
        """Rank 0: takes the others' calls, each with the token that only they know, and watches whoever has called."""
        token = secrets.token_hex(16)
        with Listener(("", 0), backlog=self._ranks) as listener:
            self._store.set(ADDRESS, json.dumps({"port": listener.address[1], "token": token}))
            threading.Thread(target=self._listen, daemon=True).start()
            while len(self._others) < self._ranks - 1:
                line = listener.accept()
                rank = _caller(line, token)
                if rank is None:
                    line.close()
                else:
                    self._others = self._others | {rank: line}  # another dictionary: one may be being read
        self._connected.set()

    def _listen(self) -> None:
        quiet: set[int] = set()  # ranks that are through
        while not self._over.wait(0.1):
            open_lines = {line: rank for rank, line in self._others.items() if rank not in quiet}
            for line in wait(list(open_lines), timeout=0.5):
                rank = open_lines[line]
                try:
                    said = _received(line)
                except (EOFError, OSError):
                    said = {"code": 1, "words": f"Rank {rank} has died. {GO_ON}"}
                if said["code"]:
                    self._pass_on(RankFailed(rank, said["code"], said["words"]))
                    return
                quiet.add(rank)

    def _pass_on(self, fault: RankFailed) -> None:
        if self._rank == 0:
            self._send_all(fault.exit_code, str(fault))
        self._fail(fault)

    def _tell(self, error: BaseException) -> None:
        self._connected.wait(watch.GRACE)
        self._send_all(exit_code(error), reason(self._rank, error))

    def _done(self) -> None:
        self._send_all(0, "")

    def _send_all(self, code: int, words: str) -> None:
        for line in self._others.values():
            try:
                _send(line, code=code, words=words)
            except OSError:
                continue  # it has ended already


def _send(line: Connection, **message: Any) -> None:
    line.send_bytes(json.dumps(message).encode())


def _caller(line: Connection, token: str) -> int | None:
    """The rank that calls; None where it is somebody else."""
    try:
        said = _received(line) if line.poll(watch.GRACE) else {}
        return said["rank"] if said["token"] == token else None
    except (EOFError, OSError, ValueError, LookupError, TypeError):
        return None


def _received(line: Connection) -> dict[str, Any]:
    return json.loads(line.recv_bytes(LONGEST))
