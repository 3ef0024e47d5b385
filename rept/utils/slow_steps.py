"""Notices steps that other work on the machine slows down, and says what to set."""

from __future__ import annotations

import os
import time
from collections import deque
from statistics import median

import torch

from rept.utils.console import say

FIRST, LATEST = 10, 5  # steps that are compared by their medians, so that a single slow one does not count
TIMES_SLOWER = 10
LOAD_OF_CORES = 1.5  # a process that uses all cores has a load of about 1
SECONDS_BETWEEN_CHECKS = 60.0  # of the load, which is an average over a minute


class SlowSteps:
    """Compares the steps of a training or a prediction with its first ones, and the machine's load with its cores.

    A step counts as slow by its seconds and by its seconds a token, as a batch can be large, or be small and take no
    less time for it. What is found is printed once.
    """

    def __init__(self) -> None:
        self._first: list[tuple[float, float]] = []  # seconds, and seconds a token
        self._latest: deque[float] = deque(maxlen=LATEST)  # how many times slower than the first ones
        self._warmed_up = self._said = False
        self._begun = 0.0
        self._checked: float | None = None

    def begin(self) -> None:
        """Marks the start of a step."""
        self._begun = time.monotonic()

    def end(self, tokens: int) -> None:
        """Marks the end of a step, whose batch had so many ``tokens``."""
        now = time.monotonic()
        taken, self._warmed_up = self._warmed_up, True
        if self._said or not taken or not tokens:  # the first step warms up
            return
        problem = self._slower(now - self._begun, tokens) or self._overloaded(now)
        if problem:
            self._said = True
            threads = torch.get_num_threads()
            fewer = f"set OMP_NUM_THREADS=1 (this process uses {threads} threads), or " if threads > 1 else ""
            say(f"{problem} If it is too slow, {fewer}run fewer processes at the same time.")

    def _slower(self, seconds: float, tokens: int) -> str:
        step = seconds, seconds / tokens
        if len(self._first) < FIRST:
            self._first.append(step)
            return ""
        usual = [median(values) for values in zip(*self._first, strict=True)]
        self._latest.append(min(now / max(before, 1e-9) for now, before in zip(step, usual, strict=True)))
        times = median(self._latest)
        if len(self._latest) < LATEST or times < TIMES_SLOWER:
            return ""
        return f"A step takes {times:.0f} times as long as the first ones: other work may have slowed down the machine."

    def _overloaded(self, now: float) -> str:
        if self._checked is None:
            self._checked = now
        if now - self._checked < SECONDS_BETWEEN_CHECKS or not hasattr(os, "getloadavg"):  # Windows has none
            return ""
        self._checked, load, cores = now, os.getloadavg()[0], _cores()
        return f"The machine has a load of {load:.1f} on {cores} cores." if load > LOAD_OF_CORES * cores else ""


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
