"""Processes that hang or crash cost one item each."""

import math
import signal
import time

import pytest

from actionfuse.pipeline import guard
from actionfuse.pipeline.guard import Lost, guarded_map


def test_results_come_in_order_from_several_processes():
    items = list(range(40))
    assert list(guarded_map(math.factorial, items, workers=3)) == [(k, math.factorial(k)) for k in items]
    assert list(guarded_map(math.factorial, [], workers=3)) == []


def test_a_crash_and_a_hang_cost_one_item_each():
    got = list(guarded_map(signal.raise_signal, [signal.SIGUSR1, 0, signal.SIGSEGV], workers=1))
    assert "SIGUSR1" in got[0][1].reason
    assert got[1] == (0, None)
    assert "SIGSEGV" in got[2][1].reason
    got = list(guarded_map(time.sleep, [0, 1000, 0.01], workers=2, silence_seconds=1.5))
    assert [isinstance(result, Lost) for _, result in got] == [False, True, False]
    assert "no sign of life for 1.5 s" in got[1][1].reason


def test_what_the_function_raises_is_raised_here():
    with pytest.raises(ValueError, match="factorial"):
        list(guarded_map(math.factorial, [3, -1]))
    with pytest.raises(ValueError, match="workers is 0"):
        list(guarded_map(math.factorial, [3], workers=0))


def test_a_stop_of_all_processes_is_no_silence(monkeypatch: pytest.MonkeyPatch):
    # The clock jumps within a wait, as it does for a process that is stopped and goes on: SIGSTOP, a suspended machine.
    now, stopped = time.monotonic, [0.0]

    # Not in every wait: of each a part counts as silence, and a busy machine takes many to start a child.
    jumps = [1000.0, 1000.0, 1000.0]

    def stop(connections, timeout):
        stopped[0] += jumps.pop() if jumps else 0.0
        return real(connections, min(timeout, 0.05))

    real = guard.wait
    monkeypatch.setattr(guard.time, "monotonic", lambda: now() + stopped[0])
    monkeypatch.setattr(guard, "wait", stop)
    assert list(guarded_map(time.sleep, [0, 0.1], silence_seconds=1000.0)) == [(0, None), (0.1, None)]
    assert not jumps
