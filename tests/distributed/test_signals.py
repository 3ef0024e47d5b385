"""Signals: at once outside a prediction, after the batch within one, at once the second time."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from rept.distributed.signals import StopBetweenBatches
from rept.errors import Stopped
from rept.run.pipeline import attribute


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_outside_a_prediction_a_signal_acts_at_once(number, code):
    stop = StopBetweenBatches()
    with pytest.raises(Stopped) as caught, stop.handlers():
        os.kill(os.getpid(), number)
    assert caught.value.exit_code == code
    assert signal.Signals(number).name in str(caught.value)


def test_within_a_prediction_the_batch_is_finished_first():
    stop, finished = StopBetweenBatches(), []
    with stop.handlers():
        stop.on_predict_start(None, None)
        os.kill(os.getpid(), signal.SIGTERM)
        finished.append("batch")
        with pytest.raises(Stopped):
            stop.on_predict_batch_end(None, None)
    assert finished == ["batch"]


def test_the_second_signal_acts_at_once():
    stop = StopBetweenBatches()
    with pytest.raises(Stopped), stop.handlers():
        stop.on_predict_start(None, None)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)


def test_the_previous_handlers_are_restored():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopBetweenBatches().handlers():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_run_outside_the_main_thread_leaves_the_signals_alone(material, tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with ThreadPoolExecutor(1) as threads:
        run = threads.submit(attribute, material.config(tmp_path / "run", "tokens.hits=0"), show_result=False)
    assert len(run.result().hits(0)) == 8
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
