"""Training: it learns, it goes on to the same bits however it was stopped, it says what is wrong."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from toy_training import toy_recipe, write_toy

from actionfuse.cli import main
from actionfuse.train import checkpoint, engine
from actionfuse.train.engine import NotFinite, Preempted, Trainer
from actionfuse.train.log import RunLog, read_metrics
from actionfuse.train.model import load_model
from actionfuse.train.recipe import dump_recipe
from actionfuse.train.world import check_sync_bn, check_world


def train(recipe, folder):
    trainer = Trainer(recipe, folder, quiet=True)
    return trainer.run()


def state_of(run: Path) -> dict:
    """Everything that a run ends with, but for the clock."""
    last = checkpoint.latest_checkpoint(run)
    assert last is not None
    training = checkpoint.read_training(last)
    return {
        "log": (run / "metrics.jsonl").read_bytes(),
        "averages": load_file(last / "model.safetensors"),
        "best": load_file(run / "best" / "model.safetensors"),
        "training": training,
    }


@pytest.fixture(scope="module")
def undisturbed(root, tmp_path_factory):
    """What a run ends with that nobody stopped, by the changes of its recipe; each is trained once."""
    known = {}

    def of(**changes):
        if repr(changes) not in known:
            folder = tmp_path_factory.mktemp("undisturbed")
            train(toy_recipe(root, **changes), folder)
            known[repr(changes)] = state_of(folder)
        return known[repr(changes)]

    return of


def equal(first, second, path=""):
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), path
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for key in first:
            equal(first[key], second[key], f"{path}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), path
        for i, (a, b) in enumerate(zip(first, second, strict=True)):
            equal(a, b, f"{path}[{i}]")
    else:
        assert first == second, path


def test_it_learns_and_the_model_loads(root, tmp_path):
    results = train(toy_recipe(root, run__epochs=12), tmp_path)
    assert results["verb/top1_accuracy"] > 0.8 and results["noun/top1_accuracy"] > 0.8
    losses = [row["loss"] for row in read_metrics(tmp_path) if row["kind"] == "step"]
    assert losses[-1] < 0.5 * losses[0]
    model = load_model(tmp_path)
    assert model.class_names["verb"] == ("a", "b", "c") and not model.training
    best = json.loads((tmp_path / "best" / "metrics.json").read_text())
    assert best["results"]["verb/top1_accuracy"] == max(
        row["verb/top1_accuracy"] for row in read_metrics(tmp_path) if row["kind"] == "test"
    )


def _train_and_die(recipe, folder, at_step):
    torch.set_num_threads(1)
    write = engine.RunLog.step

    def step(self, row, **times):
        write(self, row, **times)
        if row["step"] == at_step:
            os.kill(os.getpid(), signal.SIGKILL)

    engine.RunLog.step = step
    train(recipe, folder)


@pytest.mark.parametrize(("at_step", "save_steps"), [(15, None), (9, 4), (16, 3)])
@pytest.mark.parametrize("options", [{}, {"augment__mixup": 0.4, "optim__name": "sgd", "augment__repeats": 2}])
def test_killed_and_resumed_is_the_same_run(root, tmp_path, undisturbed, at_step, save_steps, options):
    options = {"head__options": {"dropout": 0.3}, **options}
    recipe = toy_recipe(root, run__save_steps=save_steps, **options)
    child = multiprocessing.get_context("fork").Process(target=_train_and_die, args=(recipe, tmp_path, at_step))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    train(recipe, tmp_path)
    equal(undisturbed(**options), state_of(tmp_path))


def test_a_damaged_checkpoint_costs_steps_and_no_bits(root, tmp_path, undisturbed):
    recipe = toy_recipe(root, run__save_steps=4, run__keep=3)
    train(recipe, tmp_path)
    last = checkpoint.latest_checkpoint(tmp_path)
    (last / "training.pt").write_bytes(b"half")
    with pytest.warns(UserWarning, match="damaged"):
        train(recipe, tmp_path)
    equal(undisturbed(), state_of(tmp_path))


def test_a_signal_saves_and_the_same_call_goes_on(root, tmp_path, undisturbed):
    recipe = toy_recipe(root)
    trainer = Trainer(recipe, tmp_path, quiet=True)
    write = trainer.log.step

    def step(row, **times):
        write(row, **times)
        if row["step"] == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.log.step = step
    with pytest.raises(Preempted):
        trainer.run()
    assert trainer.progress.step == 8 and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    train(recipe, tmp_path)
    equal(undisturbed(), state_of(tmp_path))


def test_a_signal_in_a_test_is_not_lost(root, tmp_path, undisturbed, monkeypatch):
    trainer = Trainer(toy_recipe(root), tmp_path, quiet=True)
    tick = trainer._tick

    def ask(segments):
        if trainer.progress.epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        tick(segments)

    with monkeypatch.context() as stopping:
        stopping.setattr(trainer, "_tick", ask)
        with pytest.raises(Preempted):
            trainer.run()
    assert (trainer.progress.epoch, trainer.progress.in_epoch) == (1, trainer.steps_per_epoch)
    trainer.run()  # as after Ctrl-C in a notebook
    equal(undisturbed(), state_of(tmp_path))


GROUP = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from toy_training import toy_recipe
from actionfuse.train.engine import Preempted, Trainer
trainer = Trainer(toy_recipe(Path(sys.argv[2]), run__workers=2, run__epochs=200), Path(sys.argv[3]), quiet=True)
step = trainer.log.step
def tell(row, **times):
    step(row, **times)
    print(row["step"], flush=True)
trainer.log.step = tell
try:
    trainer.run()
except Preempted:
    sys.exit(75)
"""


def test_a_signal_to_the_whole_group_leaves_the_workers_to_their_parent(root, tmp_path):
    script = [sys.executable, "-c", GROUP, Path(__file__).parent.parent, root, tmp_path / "run"]
    child = subprocess.Popen(list(map(str, script)), stdout=subprocess.PIPE, start_new_session=True, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) >= 3:
            os.killpg(child.pid, signal.SIGTERM)
            break
    child.stdout.read()
    assert child.wait() == 75
    assert checkpoint.latest_checkpoint(tmp_path / "run") is not None


def test_micro_batches_give_the_same_steps(root, tmp_path):
    train(toy_recipe(root), tmp_path / "whole")
    train(toy_recipe(root, run__micro_batch=2), tmp_path / "parts")
    first, second = (
        [row["loss"] for row in read_metrics(tmp_path / name) if row["kind"] == "step"] for name in ("whole", "parts")
    )
    assert first == pytest.approx(second, rel=1e-4)


@pytest.fixture
def any_precision():
    """Accelerate has one precision for a process."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def test_gradients_are_computed_outside_autocast(root, tmp_path, any_precision):
    trainer = Trainer(toy_recipe(root, run__epochs=1, run__precision="bf16", run__micro_batch=2), tmp_path, quiet=True)
    forward, backward = [], []
    head = trainer.model.head
    head.register_forward_hook(lambda *_: forward.append(torch.is_autocast_enabled("cpu")))
    next(head.parameters()).register_hook(lambda _: backward.append(torch.is_autocast_enabled("cpu")))
    trainer.run()
    assert forward[0] and len(backward) == 18 and not any(backward)


def test_another_recipe_is_refused_in_the_same_folder(root, tmp_path):
    train(toy_recipe(root, run__epochs=1), tmp_path)
    with pytest.raises(ValueError, match="optim.lr: 0.01 is now 0.02"):
        Trainer(toy_recipe(root, run__epochs=1, optim__lr=0.02), tmp_path, quiet=True)
    Trainer(toy_recipe(root, run__epochs=1, run__workers=1), tmp_path, quiet=True)


def test_a_run_goes_on_with_data_that_lie_elsewhere(root, tmp_path):
    streams = {s: {"features": f"{{root}}/{s}", "clip": {"frames": 3, "fps": 4}} for s in ("rgb", "flow")}
    train(toy_recipe(root, run__epochs=1, streams=streams), tmp_path / "run")
    shutil.copytree(root, tmp_path / "scratch")
    moved = toy_recipe(tmp_path / "scratch", run__epochs=1, streams=streams, about__row="another word")
    assert Trainer(moved, tmp_path / "run", quiet=True).progress.epoch == 1


def test_nan_stops_with_the_segments_names(tmp_path):
    root = write_toy(tmp_path / "toy", nan_video=2)
    with pytest.raises(NotFinite, match="loss is nan.*segments of this process: .*train-2-"):
        train(toy_recipe(root), tmp_path / "run")


def test_broken_segments_are_told_and_too_many_end_the_run(root, tmp_path):
    recipe = toy_recipe(root, data__options={"missing": 2}, data__max_broken_share=0.1, run__epochs=2)
    train(recipe, tmp_path / "few")
    told = [row for row in read_metrics(tmp_path / "few") if row["kind"] == "broken"]
    assert [row["segments"] for row in told] == [["train-0-0", "train-0-1"]] * 2
    recipe = toy_recipe(root, data__options={"missing": 12}, data__max_broken_share=0.1)
    with pytest.raises(ValueError, match="segments cannot be read, more than"):
        train(recipe, tmp_path / "many")


def test_a_world_that_is_not_the_one_asked_for_is_refused(monkeypatch):
    check_world(1, 1)
    with pytest.raises(ValueError, match="--processes asks for 2 processes, but training runs in 1"):
        check_world(1, 2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="WORLD_SIZE asks for 4"):
        check_world(1, None)


def test_batch_norms_over_processes_need_gpus():
    check_sync_bn(True, 1, "cpu")
    check_sync_bn(True, 2, "cuda")
    check_sync_bn(False, 2, "cpu")
    with pytest.raises(ValueError, match="run on GPUs alone"):
        check_sync_bn(True, 2, "cpu")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optim__batch": 7, "run__micro_batch": 2}, "micro_batch is 2; it must divide the 7"),
        ({"optim__batch": 100}, "optim.batch is 100, but an epoch has 36"),
        ({"data__tasks": ["verbs"]}, "data.tasks names verbs"),
        ({"loss__balance": "class", "loss__balance_task": "x"}, "loss.balance_task is 'x'"),
        ({"loss__balance_task": "verb"}, "loss.balance_task is set, but loss.balance is none"),
        ({"loss__weights": {"verbb": 1.0}}, "loss.weights names 'verbb', which is not predicted; did you mean 'verb'"),
        ({"optim__label_smoothing": {"action": 0.1}}, "optim.label_smoothing names 'action', which is not predicted"),
        ({"optim__schedule": "step"}, "optim.milestones are empty"),
        ({"optim__milestones": [1]}, "optim.milestones are for the schedule step"),
        ({"optim__schedule": "constant", "optim__min_lr": 0.1}, "optim.min_lr is for the schedule cosine"),
        ({"optim__nesterov": True}, "optim.nesterov is for sgd"),
        ({"task__test_tau_a": [1.0]}, "task.test_tau_a is for anticipation"),
        ({"task__fraction": 0.5}, "are for early_recognition"),
        ({"run__monitor": "nothing"}, "run.monitor is 'nothing'"),
        ({"inputs": "pixels"}, "streams.rgb.backbone is not set"),
    ],
)
def test_wrong_recipes_are_told(root, tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        train(toy_recipe(root, run__epochs=1, **changes), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()  # before the first step


def test_too_little_to_read_is_no_wrong_call(root, tmp_path, capsys):
    recipe = toy_recipe(root, data__options={"missing": 12}, data__max_broken_share=0.1, run__epochs=1)
    (tmp_path / "r.yaml").write_text(dump_recipe(recipe))
    assert main(["train", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "run"), "--quiet"]) == 1
    assert "12 of 36 segments cannot be read" in capsys.readouterr().err
    assert main(["train", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "r.yaml")]) == 2
    assert "is a file; name a folder" in capsys.readouterr().err


def test_ddps_warning_is_left_out_where_layouts_do_not_differ(capsys):
    text = "Grad strides do not match bucket view strides. This is not an error.\ngrad.sizes() = [{}], strides() = [9]"
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert main(["train", "--list"]) == 0
        for sizes in ("512, 256, 1, 1", "8, 4, 1, 1, 1", "512, 256, 3, 3"):
            warnings.warn(text.format(sizes), stacklevel=1)
    assert ["512, 256, 3, 3" in str(each.message) for each in seen] == [True]


def test_metrics_that_were_removed_are_not_filled_up(tmp_path):
    log = RunLog(tmp_path, main=True)
    log.open(100)
    log.write({"loss": 1.0})
    assert log.flush() == len(b'{"loss": 1.0}\n') and read_metrics(tmp_path) == [{"loss": 1.0}]


def test_a_run_that_is_done_says_so(root, tmp_path, capsys):
    for said in ("36 segments, 6 steps of 6 an epoch", "trained to the end before: 1 epochs, 6 steps"):
        Trainer(toy_recipe(root, run__epochs=1), tmp_path).run()
        assert said in capsys.readouterr().err


def test_compiled_steps_train_alike_and_go_on_to_the_same_bits(root, tmp_path, monkeypatch):
    """Traced as torch.compile traces, but run by torch: to make machine code takes a minute."""
    compiled = []

    def compile_step(module):
        compiled.append(module)
        module._compiled_call_impl = torch.compile(module._call_impl, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_step)
    recipe = toy_recipe(root, run__epochs=2, run__compile=True)
    train(toy_recipe(root, run__epochs=2), tmp_path / "plain")
    train(recipe, tmp_path / "whole")
    with monkeypatch.context() as stopping:
        stopping.setattr(engine.Trainer, "_anyone_stops", lambda self: self.progress.step == 8)
        with pytest.raises(Preempted):
            train(recipe, tmp_path / "stopped")
    train(recipe, tmp_path / "stopped")
    assert len(compiled) == 3 and isinstance(compiled[0], torch.nn.Module)
    equal(state_of(tmp_path / "whole"), state_of(tmp_path / "stopped"))
    for one, two in zip(read_metrics(tmp_path / "plain"), read_metrics(tmp_path / "whole"), strict=True):
        for key, value in one.items():
            assert two[key] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value), key


SCRIPT = """
import shutil, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from toy_training import toy_recipe
from actionfuse.train.engine import Trainer
recipe = toy_recipe(Path(sys.argv[2]), run__epochs=int(sys.argv[4]), data__options={"missing": 1})
run = Path(sys.argv[3])
for name in ("first.jsonl", "again.jsonl"):
    trainer = Trainer(recipe, run, processes=2, quiet=True)
    trainer.run()
    if trainer.rank == 0:
        shutil.copy(run / "metrics.jsonl", run / name)
    torch.distributed.barrier()
"""


def test_two_processes_are_one(root, tmp_path):
    """The same losses and results as one process, also where it goes on alone after the first epoch."""
    (tmp_path / "script.py").write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    tests = Path(__file__).parent.parent
    done = subprocess.run(
        [*torchrun, tmp_path / "script.py", tests, root, tmp_path / "two", "2"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    train(toy_recipe(root, run__epochs=2, data__options={"missing": 1}), tmp_path / "one")
    one, two = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two")
    assert [row["kind"] for row in one] == [row["kind"] for row in two]
    for first, second in zip(one, two, strict=True):
        for key, value in first.items():
            assert second[key] == (pytest.approx(value, rel=1e-5, abs=1e-6) if isinstance(value, float) else value)
    # the same call once more: nothing is left to do, and nothing is doubled
    assert (tmp_path / "two" / "first.jsonl").read_bytes() == (tmp_path / "two" / "again.jsonl").read_bytes()
