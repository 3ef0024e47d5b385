"""Slow steps are noticed, with a clock and a load that the tests set."""

from __future__ import annotations

import os

import pytest
import torch

from rept.config.compose import compose
from rept.config.schema import TrainConfig
from rept.run.pipeline import attribute
from rept.training.finetune import train_model
from rept.utils import slow_steps as module
from rept.utils.slow_steps import FIRST, LATEST, SlowSteps

TOKENS = 2000


class Machine:
    """Steps on a machine whose clock and load are set."""

    def __init__(self) -> None:
        self.now, self.load = 0.0, 0.5
        self.steps = SlowSteps()

    def monotonic(self) -> float:
        return self.now

    def run(self, seconds: float, tokens: int = TOKENS, times: int = 1) -> None:
        for _ in range(times):
            self.steps.begin()
            self.now += seconds
            self.steps.end(tokens)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(module, "time", made)
    monkeypatch.setattr(os, "getloadavg", lambda: (made.load, 9.0, 9.0))
    monkeypatch.setattr(module, "_cores", lambda: 2)
    return made


def test_steps_that_take_ten_times_as_long_are_reported_once(machine: Machine, capsys) -> None:
    machine.run(9.0)  # warms up
    machine.run(0.03, times=FIRST)
    machine.run(0.29, times=50)  # below ten times
    assert capsys.readouterr().out == ""
    machine.run(0.36, times=50)
    assert capsys.readouterr().out == (
        "A step takes 12 times as long as the first ones: other work may have slowed down the machine. If it is too "
        "slow, run fewer processes at the same time.\n"
    )


def test_a_few_slow_steps_are_no_trend(machine: Machine, capsys) -> None:
    machine.run(0.03, times=FIRST + 1)
    for _ in range(20):
        machine.run(3.0, times=LATEST // 2)
        machine.run(0.03, times=LATEST)
    assert capsys.readouterr().out == ""


def test_larger_and_smaller_batches_are_not_slow(machine: Machine, capsys) -> None:
    machine.run(0.03, times=FIRST + 1)
    machine.run(0.6, tokens=20 * TOKENS, times=20)
    machine.run(0.03, tokens=TOKENS // 100, times=20)  # costs that do not depend on the number of tokens
    assert capsys.readouterr().out == ""


def test_a_load_above_the_cores_is_reported_once(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    machine.load = 2.9  # this process's own two threads, and little else
    machine.run(1.0, times=200)
    assert capsys.readouterr().out == ""
    machine.load = 11.3
    machine.run(1.0, times=200)
    assert capsys.readouterr().out == (
        "The machine has a load of 11.3 on 2 cores. If it is too slow, set OMP_NUM_THREADS=1 (this process uses 2 "
        "threads), or run fewer processes at the same time.\n"
    )


def test_a_system_without_a_load_is_not_asked(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.delattr(os, "getloadavg")
    machine.run(1.0, times=200)
    assert capsys.readouterr().out == ""


def test_training_and_extraction_watch_their_steps(material, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(SlowSteps, "end", lambda self, tokens: seen.append(tokens))
    attribute(material.config(tmp_path / "run"), show_result=False)
    assert len(seen) > 2 and all(tokens <= 256 for tokens in seen)
    seen.clear()
    data = ["datamodule.rows=40", "datamodule.poisoned=3", "datamodule.queries=1"]
    settings = [*data, "model.width=16", "model.layers=1", "trainer.max_epochs=1", "trainer.accelerator=cpu"]
    train_model(compose(TrainConfig, [*settings, f"out={tmp_path / 'model'}"]), behaviours=[])
    assert len(seen) == 3 and all(seen)
