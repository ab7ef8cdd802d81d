"""Trackers through Accelerate: what a run says to them, by steps and by tests."""

from __future__ import annotations

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from toy_training import toy_recipe

from actionfuse.train.engine import Trainer
from actionfuse.train.log import read_metrics


def test_a_tracker_gets_the_recipe_and_every_number(root, tmp_path, monkeypatch):
    told: list = []

    class Told(GeneralTracker):
        name, requires_logging_directory = "told", False

        def __init__(self, run_name, **_):
            super().__init__()
            told.append(("run", run_name))

        @property
        def tracker(self):
            return told

        def store_init_configuration(self, values):
            told.append(("config", values))

        def log(self, values, step=None, **_):
            told.append((step, values))

        def finish(self):
            told.append(("finish", None))

    # what Accelerate's init_trackers does for a class of its own, by name
    import actionfuse.train.engine as engine

    make = engine.Accelerator
    monkeypatch.setattr(engine, "Accelerator", lambda **options: make(**{**options, "log_with": Told("actionfuse")}))
    Trainer(toy_recipe(root, run__epochs=2, run__trackers=["all"]), tmp_path, quiet=True).run()
    assert told[0] == ("run", "actionfuse") and "name: toy" in dict(told)["config"]["recipe"]
    assert told[-1] == ("finish", None)
    rows = [row for row in read_metrics(tmp_path) if row["kind"] in ("step", "test")]
    logged = [(step, values) for step, values in told if isinstance(step, int)]
    assert len(logged) == len(rows)
    for (step, values), row in zip(logged, rows, strict=True):
        assert step == row["step"]
        assert values == {k: v for k, v in row.items() if k not in ("kind", "epoch", "step")}


def test_tensorboard_files_hold_the_losses(root, tmp_path):
    loaders = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert "tensorboard" in LOGGER_TYPE_TO_CLASS
    Trainer(toy_recipe(root, run__epochs=1, run__trackers=["tensorboard"]), tmp_path, quiet=True).run()
    found = loaders.EventAccumulator(str(tmp_path / "actionfuse")).Reload()
    steps = [row for row in read_metrics(tmp_path) if row["kind"] == "step"]
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [
        (row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in steps
    ]


@pytest.mark.parametrize(
    "name, said", [("tensorbord", "there are .*tensorboard"), ("swanlab", "is not installed here")]
)
def test_trackers_that_are_not_there_are_refused(root, tmp_path, monkeypatch, name, said):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(ValueError, match=f"run.trackers names '{name}'.*{said}"):
        Trainer(toy_recipe(root, run__trackers=[name]), tmp_path, quiet=True)
