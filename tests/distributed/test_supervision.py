"""Two real ranks of which one fails, dies, hangs or is stopped: all end soon, with its reason as the last message."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta

import pytest
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, ddp, fsdp
from lightning.pytorch.strategies import model_parallel as mp
from lightning.pytorch.strategies.launchers import subprocess_script
from torch import distributed

from rept.distributed import supervision
from rept.distributed.signals import StopBetweenBatches
from rept.distributed.supervision import supervised
from rept.errors import RESUME, RankMissing, UsageError
from rept.training.trainer import set_timeout
from tests.helpers import forks
from tests.helpers.commands import free_port
from tests.helpers.fsdp_on_cpu import FSDPOnCPU

MAX_WAIT, GRACE = 2, 2  # seconds; in production a rank has ten of the latter
RAISED = f"RuntimeError: out of patience. {RESUME}"
LOST = f"Rank 0 lost its connection to another rank. {RESUME}"
STOPPED = "Stopped by SIGTERM; what was computed is stored. "
SLOW = "(max_wait; raise it if it was only slow)."
# Exit code and last line of the run; on two nodes, of each of them.
ENDS = {
    "rank 1 raises": [(1, f"Rank 1: {RAISED}")],
    "rank 0 raises": [(1, "[rank0]: Details follow.")],
    "rank 1 is killed": [(137, f"Rank 1 was killed by SIGKILL. {RESUME}")],
    "rank 0 is killed": [(-9, f"Rank 0 has died. {RESUME}")],
    "rank 1 is paused": [(2, f"Rank 1 hangs: rank 0 waited {MAX_WAIT} s {SLOW}")],
    "rank 0 never returns": [
        (2, f"Rank 1: Rank 0, or one that it waits for, hangs: rank 1 waited {2 * MAX_WAIT} s {SLOW}")
    ],
    "rank 1 gets SIGTERM": [(143, f"Rank 1: {STOPPED}")],
    "rank 0 gets SIGTERM": [(143, STOPPED)],
    "Ctrl-C": [(130, "Stopped by SIGINT; what was computed is stored. ")],
    "rank 1 is refused": [(2, "Rank 1: There is no such file.")],
    "rank 1 is killed early": [(137, f"Rank 1 was killed by SIGKILL. {RESUME}")],
    "rank 0 is killed early": [(-9, f"Rank 0 has died. {RESUME}")],
    "node 1 raises": [(1, f"Rank 1: {RAISED}"), (1, "[rank1]: Details follow.")],
    "node 0 raises": [(1, "[rank0]: Details follow."), (1, f"Rank 0: {RAISED}")],
    "node 1 is killed": [(1, LOST), (-9, None)],
    "node 0 is killed": [(-9, None), (1, f"Rank 0 has died. {RESUME}")],
    "node 1 gets SIGTERM": [(143, f"Rank 1: {STOPPED}"), (143, STOPPED)],
    "node 0 is refused": [(2, "There is no such file."), (2, "Rank 0: There is no such file.")],
    "node 1 is killed early": [(1, "[rank0]: RuntimeError: "), (-9, None)],
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the runs are forks that are found by /proc")
@pytest.mark.parametrize("part", range(3))
def test_all_ranks_end_with_the_reason_of_the_one_that_failed(tmp_path, part):
    """A third of the faults each."""
    names = list(ENDS)[part::3]
    code, out, err = forks.finish("tests/helpers/faults.py", str(tmp_path), str(MAX_WAIT), str(GRACE), *names)
    assert code == 0, err
    found = [json.loads(line) for line in out.splitlines()]
    assert [run["name"] for run in found] == names
    for run in found:
        for (code, words), ended, log in zip(ENDS[run["name"]], run["codes"], run["logs"], strict=True):
            assert ended == code, run
            assert words is None or log.strip().splitlines()[-1].startswith(words), run
        hangs = run["name"] in ("rank 1 is paused", "rank 0 never returns")
        assert run["seconds"] < 30 + (2 * MAX_WAIT + 2 * GRACE if hangs else 0) and run["alone"] < 5, run
        assert not run["index"], "no index is written while rows are missing"
        assert run["place"] == "load" or run["shards"], "whole shards are kept"


def trainer_of(strategy: object, **more: object) -> Trainer:
    settings = {"devices": 2, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    return Trainer(strategy=strategy, **settings | more)


def test_lightning_lists_the_processes_that_it_starts(monkeypatch):
    """A release that renames the list, or watches processes by other means, fails here and not in silence."""
    observed = []
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: command)
    monkeypatch.setattr(subprocess_script, "_launch_process_observer", observed.append)
    launcher = trainer_of("ddp", devices=3).strategy.launcher
    launcher.launch(lambda: None)
    assert len(launcher.procs) == 2
    assert observed[0] is launcher.procs, "supervision empties the list to keep Lightning from killing rank 0"


@pytest.mark.parametrize(("kind", "module"), [(DDPStrategy, ddp), (FSDPOnCPU, fsdp), (ModelParallelStrategy, mp)])
def test_lightning_waits_as_long_as_it_is_set(monkeypatch, kind, module):
    for max_wait, seconds in ((90, 90), (2, 60)):
        used = []
        monkeypatch.setattr(module, "_init_dist_connection", lambda *_, timeout, used=used, **__: used.append(timeout))
        monkeypatch.setattr(module, "_setup_device_mesh", lambda *_: None, raising=False)
        trainer = trainer_of(kind())
        set_timeout(trainer, max_wait)
        trainer.strategy.connect(LightningModule())
        trainer.strategy.setup_environment()
        assert [one.total_seconds() for one in used] == [seconds]


@pytest.mark.parametrize("name", ["procs", "_timeout"])
def test_without_the_internals_of_lightning_no_run_starts(name):
    trainer = trainer_of("ddp")
    del vars(trainer.strategy.launcher if name == "procs" else trainer.strategy)[name]
    with pytest.raises(RuntimeError, match=name):
        set_timeout(trainer, 90)
        with supervised(trainer, StopBetweenBatches(), 90):
            pytest.fail("unsupervised")


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_ranks_that_do_not_run_the_whole_program_are_refused(strategy):
    with pytest.raises(UsageError, match="ddp"):
        set_timeout(trainer_of(strategy), 90)


def test_nodes_that_do_not_join_are_reported_in_a_sentence(monkeypatch):
    variables = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "TORCHELASTIC_RUN_ID": "none"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    trainer = trainer_of("ddp", devices=1, num_nodes=2)
    trainer.strategy._timeout = timedelta(seconds=1)
    with pytest.raises(RankMissing, match="Not all ranks joined within max_wait"):  # noqa: SIM117
        with supervised(trainer, StopBetweenBatches(), 90):
            pytest.fail("alone")


@pytest.mark.parametrize("local_rank", [0, 1])
def test_a_run_started_by_another_run_is_no_rank_of_it(monkeypatch, local_rank):
    monkeypatch.setenv(supervision.PARENT, "1")
    trainer = trainer_of("ddp")
    monkeypatch.setattr(type(trainer), "local_rank", local_rank)
    monkeypatch.setattr(supervision, "_failure", lambda *_: None)
    with supervised(trainer, StopBetweenBatches(), 90):
        assert supervision._orphaned() is bool(local_rank)


def test_an_orphan_ends_without_waiting_for_the_store_that_is_gone(monkeypatch, capsys):
    """Whose rank 0 was killed between two checks: a connection to its store would be tried for minutes."""
    monkeypatch.setattr(supervision, "process", lambda: (1, 2))
    monkeypatch.setattr(supervision, "TCPStore", lambda *_, **__: pytest.fail("connected"))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.setenv(supervision.PARENT, "1")  # neither this process nor its parent
    monkeypatch.setattr(os, "_exit", lambda code: sys.exit(code))
    supervision._store.cache_clear()
    with pytest.raises(SystemExit, match="1"):
        supervision._failure(trainer_of("ddp"), "key")
    assert capsys.readouterr().err.startswith("Rank 0 has died.")
    supervision._report("key", 1, RuntimeError("an effect"))


def test_a_rank_reports_once_the_store_is_open(monkeypatch):
    """Rank 0 may still load its model when another rank is refused."""
    tries = []

    def connect(*_, **__):
        tries.append(1)
        if len(tries) < 3:
            raise distributed.DistNetworkError("not open yet")
        return distributed.HashStore()

    monkeypatch.setattr(supervision, "TCPStore", connect)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.setenv(supervision.PARENT, str(os.getppid()))
    supervision._store.cache_clear()
    supervision._report("key", 1, UsageError("There is no such file."))
    reason, code = json.loads(supervision._store().get("key"))
    assert (reason, code, len(tries)) == ("Rank 1: There is no such file.", 2, 3)
    supervision._store.cache_clear()
