"""What training does on GPUs and among processes, as far as it can be shown without them."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from types import SimpleNamespace

import accelerate
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from fake_cuda import backward, devices, fake_cuda
from toy_training import toy_recipe
from toy_videos import video_recipe

from actionfuse.backbones import contract
from actionfuse.cli import main
from actionfuse.pipeline import samples
from actionfuse.pipeline.samples import collate
from actionfuse.train import build, engine, world
from actionfuse.train.batches import mix, to_device
from actionfuse.train.build import build_dataset, build_model, load_split, make_task, stream_specs
from actionfuse.train.engine import Preempted, Trainer
from actionfuse.train.model import ActionModel
from actionfuse.train.optim import Ema, build_optimizer, param_groups
from actionfuse.train.plan import GIB, Bench, card_here, make_plan, random_batch
from actionfuse.train.recipe import dump_recipe
from actionfuse.train.step import Step

META, CPU = torch.device("meta"), torch.device("cpu")
PAST = {"task__kind": "anticipation", "task__tau_a": 0.5, "task__tau_o": 1.0, "sampling__rule": "last"}


def test_tests_of_the_cpu_see_no_gpu():
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "" and not torch.accelerator.is_available()


@pytest.mark.parametrize("kind", ["cross_entropy", "bce"])
def test_a_batch_is_moved_without_a_look_at_its_numbers(root, kind):
    """A tensor of the meta device has no numbers, so whoever looks at one fails: a GPU would be waited for."""
    recipe = toy_recipe(root)
    split = load_split(recipe, "train")
    model = build_model(recipe, split.classes)
    dataset = build_dataset(recipe, split, model, make_task(recipe.task), training=True)
    raw = collate([dataset[n] for n in range(4)])
    raw["past_labels"] = {"verb": torch.zeros(4, 3, dtype=torch.int64)}
    batch = to_device(raw, META, kind, model.head.classes)
    for part in (batch.inputs, batch.targets, batch.labels, batch.past):
        assert part and all(x.device == META for x in part.values())
    assert batch.past["verb"].shape[:2] == (4, 3)
    batch.past.clear()  # with it, those of which all is known are looked for
    batch.masks["rgb"] = torch.ones(4, 3, dtype=torch.bool, device=META)
    mixed = mix(batch, 0.4, model.head.classes, 0, 0, 0)
    assert {x.device for part in (mixed.inputs, mixed.masks, mixed.targets) for x in part.values()} == {META}


def test_weights_of_classes_lie_beside_the_model(root):
    recipe = toy_recipe(root, loss__balance="loss")
    model = build_model(recipe, load_split(recipe, "train").classes).to(META)
    assert Step(model, recipe, {"verb": torch.ones(3)}).class_weights["verb"].device == META


STEPS = [
    (toy_recipe, {"loss__balance": "loss", "optim__label_smoothing": 0.1, "optim__name": "sgd"}),
    (toy_recipe, {"loss__kind": "bce", "head__name": "mimo", "head__options": {"width": 16, "heads": 2}}),
    (toy_recipe, {**PAST, "loss__last_action": 1.0, "head__transition": True}),
    (toy_recipe, {**PAST, "head__name": "afft_sa", "head__options": {"past": True}, "loss__past": 1.0}),
    (video_recipe, {"streams__rgb__partial_bn": True, "loss__distance": {"weight": 0.1, "per_class": 2}}),
]


@pytest.mark.parametrize(("make", "changes"), STEPS)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_a_step_is_the_gpus_alone(make, changes, precision, monkeypatch):
    """Model, losses, optimiser and averages on a CUDA device that computes nothing (see fake_cuda.py)."""
    recipe = make(Path("nowhere"), **changes)
    monkeypatch.setattr(build, "feature_width", lambda _, stream: {"rgb": 8, "flow": 6}[stream])
    with torch.device("meta"):
        model = build_model(recipe, {"verb": ("a", "b", "c"), "noun": ("w", "x", "y", "z")})
    raw = random_batch(recipe, stream_specs(recipe, model.input_specs), model, 4)
    if "loss__past" in changes or "loss__last_action" in changes:
        raw["past_labels"] = {task: torch.zeros(4, 3, dtype=torch.int64) for task in model.classes}
    batch = to_device(raw, CPU, recipe.loss.kind, model.head.classes)
    contract._gain_and_shift.cache_clear()
    with fake_cuda(model) as copies:
        inputs, masks, targets, past = (
            {name: torch.empty(x.shape, dtype=x.dtype, device="cuda") for name, x in part.items()}
            for part in (batch.inputs, raw["masks"], batch.targets, batch.past)
        )
        step = Step(model, recipe, {"verb": torch.ones(3)} if recipe.loss.balance == "loss" else {}).train()
        optimizer = build_optimizer(param_groups(model, recipe.optim, recipe.streams), recipe.optim)
        averages = Ema(model, 0.9)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()  # makes its state
        for kept in ({}, masks):
            with torch.autocast("cuda", precision, enabled=precision != torch.float32):
                step(inputs, None, kept, targets, past)  # constants are sent over once
                copies.found.clear()
                out = step(inputs, None, kept, targets, past)
            gradients = backward(out["loss"])
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            assert all(id(parameter) in gradients for parameter in trained)  # DDP waits for all of them
            assert devices(out, list(gradients.values())) == {"cuda"} and out["loss"].dtype == torch.float32
        optimizer.step()
        averages.update(model)
        with averages.applied(model):
            assert devices(model.state_dict(), averages.average) == {"cuda"}
        assert not copies.found
    contract._gain_and_shift.cache_clear()


@pytest.mark.parametrize("network", ["tsn:test_resnet", "tsn:test_efficientnet"])
def test_synchronised_norms_are_the_norms_that_they_were(videos, network):
    """With the activations that some of timm's have inside, and in eval mode where the recipe says so."""
    recipe = video_recipe(videos, streams__rgb__backbone=network, streams__rgb__partial_bn=True)
    torch.manual_seed(0)
    model = build_model(recipe, load_split(recipe, "train").classes)
    clips = {"rgb": torch.randint(256, (2, 3, 32, 32, 3), dtype=torch.uint8)}
    state = model.state_dict()
    with torch.no_grad():
        before = model.eval()(clips).logits["verb"]
        model.synchronise_norms()
        after = model.eval()(clips).logits["verb"]
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)
    assert all(value is x or value.data_ptr() == x.data_ptr() for value, x in _pairs(model.state_dict(), state))
    model.train()
    norms = [m for m in model.backbones["rgb"].modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert len(norms) > 2 and all(isinstance(norm, torch.nn.SyncBatchNorm) for norm in norms)
    assert [norm.training for norm in norms] == [True] + [False] * (len(norms) - 1)


def _pairs(one, two):
    assert one.keys() == two.keys()
    return [(one[key], two[key]) for key in one]


def test_norms_of_several_processes_are_synchronised(videos, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(ActionModel, "synchronise_norms", lambda self: asked.append(self))
    trainer = Trainer(video_recipe(videos, run__sync_bn=True), tmp_path, quiet=True)
    assert not asked  # one process
    trainer.world = 2
    trainer._prepare(trainer.model)
    assert asked == [trainer.model]


def test_processes_wait_longer_for_one_another_than_nccl_would(root, tmp_path, monkeypatch):
    told = {}
    monkeypatch.setattr(accelerate, "PartialState", lambda **options: told.update(options))
    world.join_world()
    assert told == {"cpu": True, "timeout": world.PATIENCE} and world.PATIENCE.total_seconds() > 600
    accelerator, seen = engine.Accelerator, {}

    def note(**options):
        seen.update({key: value for each in options["kwargs_handlers"] for key, value in each.to_kwargs().items()})
        return accelerator(**options)

    monkeypatch.setattr(engine, "Accelerator", note)
    Trainer(toy_recipe(root), tmp_path, quiet=True)
    assert seen == {"timeout": world.PATIENCE}


def test_a_run_of_sgd_without_momentum_goes_on(root, tmp_path):
    recipe = toy_recipe(root, optim__name="sgd", optim__momentum=0.0, run__epochs=2)
    Trainer(recipe, tmp_path / "whole", quiet=True).run()
    trainer = Trainer(recipe, tmp_path / "stopped", quiet=True)
    trainer._anyone_stops = lambda: trainer.progress.step == 8
    with pytest.raises(Preempted):
        trainer.run()
    Trainer(recipe, tmp_path / "stopped", quiet=True).run()
    one, two = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "stopped"))
    assert one == two


def test_plans_read_batches_as_training_does(root, monkeypatch):
    given = []
    make = samples.make_loader

    def note(*args, **options):
        given.append(inspect.signature(make).bind(*args, **options).arguments.get("device"))
        return make(*args, **options)

    monkeypatch.setattr(samples, "make_loader", note)
    make_plan(toy_recipe(root), steps=1)
    assert given == [torch.device("cpu")]


def test_what_a_gpu_tells_of_its_memory_makes_the_plan(root, monkeypatch):
    """Peaks of three sizes of batches, of which the last has no room."""
    made, runs = Bench.__init__, []

    def on_gpu(self, recipe, model):
        made(self, recipe, model)
        self.cuda = True

    def run(self, raw, hooks=None):
        runs.append(len(raw["id"]))
        if runs[-1] == 6:
            raise torch.OutOfMemoryError("as if")

    def peak():
        lasting = Bench.fixed(bench[0], 1)
        return sum(lasting.values()) - lasting["averages"] + 5000 + 1000 * runs[-1]

    bench: list[Bench] = []
    monkeypatch.setattr(Bench, "__init__", lambda self, *args: bench.append(self) or on_gpu(self, *args))
    monkeypatch.setattr(Bench, "run", run)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", peak)
    for name in ("reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    plan = make_plan(toy_recipe(root), synthetic=True, steps=1)
    assert (plan.device, plan.counted, plan.out_of_memory, plan.fits) == ("a card", True, True, False)
    assert plan.measured_batches == (2, 4) and plan.segment_bytes == 1000
    assert plan.fixed["kept of any batch"] == 5000 and plan.fixed["averages"] > 0
    assert runs[:5] == [2, 2, 4, 4, 6]


def test_plans_are_for_the_gpu_that_is_here(monkeypatch):
    assert card_here() == 24 * GIB
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(total_memory=139 * GIB))
    assert card_here() == 139 * GIB


def test_a_gpu_that_is_too_small_is_told_what_helps(root, tmp_path, monkeypatch, capsys):
    def crowded(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB.")

    monkeypatch.setattr(Trainer, "_one_step", crowded)
    (tmp_path / "r.yaml").write_text(dump_recipe(toy_recipe(root, run__micro_batch=3)))
    assert main(["train", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "run"), "--quiet"]) == 1
    told = capsys.readouterr().err
    assert "Tried to allocate 20 MiB" in told and "run.micro_batch (now 3;" in told


def test_compiling_without_a_compiler_is_refused_at_once(root, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="there is no C compiler here"):
        Trainer(toy_recipe(root, run__compile=True), tmp_path / "run", quiet=True)
    world.check_compile(False)
    monkeypatch.setenv("CC", "/opt/bin/cc")
    world.check_compile(True)


def test_fp16_scales_losses_and_its_scale_is_kept(root, tmp_path, monkeypatch):
    """Accelerate makes a scaler on GPUs alone, so it is given one here that works on a CPU."""
    recipe = toy_recipe(root, run__epochs=2, run__precision="fp16", optim__clip_norm=1.0)
    prepare = Trainer._prepare

    def with_scaler(self, model):
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=5)
        self.accelerator.native_amp = True
        prepare(self, model)

    AcceleratorState._reset_state()  # Accelerate has one precision for a process
    monkeypatch.setattr(Trainer, "_prepare", with_scaler)
    try:
        Trainer(recipe, tmp_path / "whole", quiet=True).run()
        stopped = Trainer(recipe, tmp_path / "stopped", quiet=True)
        stopped._anyone_stops = lambda: stopped.progress.step == 8
        with pytest.raises(Preempted):
            stopped.run()
        again = Trainer(recipe, tmp_path / "stopped", quiet=True)
        # 8 steps, of which every fifth doubles it
        assert again.accelerator.scaler is not None and again.accelerator.scaler.get_scale() == 2.0**11
        again.run()
        one, two = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "stopped"))
        assert one == two
    finally:
        AcceleratorState._reset_state()


def test_the_image_of_gpus_is_the_only_one_that_compose_needs_there():
    """Whoever has built the image for GPUs has not built the one for CPUs."""
    folder = Path(__file__).resolve().parents[2] / "docker"
    base, over = (
        yaml.safe_load((folder / name).read_text())["services"] for name in ("compose.yaml", "compose.gpu.yaml")
    )
    for name in ("node0", *base["node0"]["depends_on"]):
        assert over[name]["image"] == "${ACTIONFUSE_IMAGE:-actionfuse}"
