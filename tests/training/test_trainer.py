"""Trainers, and the processes that they are for."""

from __future__ import annotations

import pytest

from tests.helpers import forks
from tests.helpers.commands import free_port


@pytest.mark.parametrize("command", ["attribute.py", "train.py"])
def test_processes_of_torchrun_without_a_trainer_for_them_are_refused(command, tmp_path):
    given = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none", "GROUP_RANK": "0"}
    given |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        forks.start(command, "trainer.accelerator=cpu", f"out={tmp_path / 'run'}", RANK=rank, LOCAL_RANK=rank, **given)
        for rank in ("0", "1")
    ]
    for process in ranks:
        _, error = process.communicate()
        assert process.returncode == 2 and len(error.splitlines()) == 1
        assert "the 2 processes that torchrun has started, but got one for 1: set trainer.devices=2" in error
    assert not [*tmp_path.rglob("*.safetensors"), *tmp_path.rglob("*.h5")]
