"""Decode processes that are killed while they start: replaced without blaming the video, but not for ever."""

from pathlib import Path

import pytest
from videos import write_counting_video

from actionfuse.extract import workers
from actionfuse.extract.plan import ClipPlan, Task

PLAN = ClipPlan(name="x", stream="rgb", frames=4, stride=4, fps=None, resize_side=48, crop=48)


@pytest.fixture
def task(tmp_path: Path) -> Task:
    path = write_counting_video(tmp_path / "count.mp4", 50, (48, 48), 25)
    return Task("key", str(path), None, None, "pyav", 0, (0,))


def test_a_process_killed_while_it_starts_is_replaced(task: Task) -> None:
    with workers.Pool((PLAN,), workers=1) as pool:
        pool.submit(0, (task,))
        pool._workers[0].process.kill()
        rows, found = 0, None
        while found is None:
            for event in pool.events(timeout_seconds=1.0):
                assert not isinstance(event, workers.Lost)
                if isinstance(event, workers.Clips):
                    rows += len(event.rows)
                    pool.free(event)
                elif isinstance(event, workers.Opened):
                    assert (event.key, event.span.stop_seconds) == ("key", pytest.approx(2.0))
                else:
                    (found,) = event.outcomes
    assert not found.error and rows == 13


def test_processes_that_never_start_are_an_error(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    start = workers.Pool._start

    def killed(pool: workers.Pool) -> workers._Worker:
        worker = start(pool)
        worker.process.kill()
        return worker

    monkeypatch.setattr(workers.Pool, "_start", killed)
    with workers.Pool((PLAN,), workers=1) as pool:
        pool.submit(0, (task,))
        with pytest.raises(RuntimeError, match="before it was ready .*SIGKILL"):
            while True:
                list(pool.events(timeout_seconds=1.0))


def test_processes_on_standby_are_taken_and_the_rest_is_ended(task: Task) -> None:
    with workers.Standby(2) as standby:
        first, second = [started.process for started in standby._started]
        with workers.Pool((PLAN,), workers=2, standby=standby) as pool:
            pool.submit(0, (task,))
            assert pool._workers[0].process is first
            found = []
            while not found:
                for event in pool.events(timeout_seconds=1.0):
                    if isinstance(event, workers.Clips):
                        pool.free(event)
                    elif isinstance(event, workers.Decoded):
                        found = event.outcomes
            assert found[0].rows == {0: 13} and not found[0].error
        assert second.poll() is None  # it waits for a setup
    assert first.poll() is not None and second.poll() is not None
