"""What a recipe needs: counted right, told in words, with advice that holds."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from kitchen import tiny_kitchen
from toy_training import TINY_SWIN, toy_recipe

from actionfuse.backbones import video_swin
from actionfuse.cli import main
from actionfuse.fusion import head_options
from actionfuse.train.build import build_model, load_split, stream_specs
from actionfuse.train.plan import GIB, KNOWN, Bench, Kept, advice, describe, make_plan, random_batch
from actionfuse.train.recipe import dump_recipe, list_recipes, load_recipe

SMALL = ["streams.rgb.backbone=tsn:test_resnet", "streams.rgb.clip.crop=32", "streams.rgb.clip.side=32"]


def test_kept_memory_is_counted_once_and_without_weights():
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Sigmoid(), torch.nn.Linear(8, 2))
    kept = Kept(model)
    x = torch.randn(16, 4)
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
        model(x).sum().backward()
    # the input, and the sigmoid's output, which two layers keep
    assert kept.bytes == (16 * 4 + 16 * 8) * 4


def test_a_plan_of_stored_features(root):
    recipe = toy_recipe(root)
    plan = make_plan(recipe, steps=2, processes=2)
    model = build_model(recipe, load_split(recipe, "train").classes)
    weights = sum(p.numel() for p in model.parameters()) * 4
    assert plan.fixed["weights"] == plan.fixed["gradients"] == plan.fixed["averages"] == weights
    assert plan.fixed["optimiser"] == 2 * weights  # AdamW keeps two numbers for each
    assert plan.fixed["buffers of parallel training"] == weights
    assert (plan.micro_batch, plan.accumulated, plan.segments, plan.epochs) == (3, 1, 36, 4)
    assert plan.measured_batches == (2, 3) and plan.segment_bytes > 0 and plan.segment_seconds > 0
    assert 0 <= plan.waiting_share < 1
    assert plan.epoch_seconds == pytest.approx(36 * plan.segment_seconds / (1 - plan.waiting_share) / 2)
    assert plan.fits and any("fits 24 GiB" in line for line in describe(plan))


def test_what_is_kept_grows_with_the_batch_and_less_with_sgd(root):
    recipe = toy_recipe(root, head__name="mif_parallel", head__options={"width": 16, "heads": 2})
    whole = make_plan(recipe, synthetic=True, steps=1)
    assert whole.measured_batches == (2, 4) and whole.micro_batch == 6
    # Two sizes tell the third.
    model = build_model(recipe, {task: tuple("abcd") for task in ("verb", "noun")})
    batch = random_batch(recipe, stream_specs(recipe, {}), model, 6)
    assert {name: tuple(x.shape) for name, x in batch["streams"].items()} == {"rgb": (6, 3, 8), "flow": (6, 3, 6)}
    model = build_model(recipe, {"action": tuple(map(str, range(100)))})
    batch = random_batch(recipe, stream_specs(recipe, {}), model, 6)
    told = whole.fixed["kept of any batch"] + 6 * whole.segment_bytes
    assert Bench(recipe, model).memory(batch) == pytest.approx(told, rel=0.02)
    assert whole.waiting_share == 0 and whole.segments is None and whole.epoch_seconds is None
    assert any("give --segments" in line for line in describe(whole))
    sgd = make_plan(toy_recipe(root, optim__name="sgd", optim__ema=0.0), synthetic=True, steps=1, segments=50)
    assert sgd.fixed["optimiser"] == sgd.fixed["weights"] and sgd.fixed["averages"] == 0
    assert sgd.segments == 50 and sgd.fixed["buffers of parallel training"] == 0


def test_advice_is_what_makes_it_fit(root):
    plan = make_plan(toy_recipe(root), synthetic=True, steps=1)
    plan = replace(plan, micro_batch=6, accumulated=2, fixed_bytes=GIB, segment_bytes=GIB, overhead_bytes=GIB)
    roomy, tight, hopeless = (replace(plan, card_bytes=size * GIB) for size in (20, 5, 2))
    assert roomy.fits and roomy.largest_micro_batch == 12 and advice(roomy) == ["there is room for run.micro_batch=12"]
    assert not tight.fits and tight.largest_micro_batch == 3 and "run.micro_batch=3" in advice(tight)[0]
    assert replace(tight, micro_batch=3, accumulated=4).fits and "bf16" in advice(tight)[-1]
    assert hopeless.largest_micro_batch == 0 and advice(hopeless)[0] == "no micro-batch fits"
    heavy = replace(hopeless, uncheckpointed=("rgb",), precision="bf16")
    assert advice(heavy)[1:] == ["try streams.rgb.checkpointing=true: less memory, more time"]
    assert not replace(roomy, out_of_memory=True).fits
    slow = advice(replace(roomy, waiting_share=0.75, workers=2))
    assert any("run.workers=8" in line for line in slow)


def test_checkpointing_keeps_less():
    small = [
        "streams.rgb.clip.crop=32",
        "streams.rgb.clip.side=32",
        "optim.batch=2",
        "streams.rgb.backbone=tsn:test_resnet",
    ]
    plain = make_plan(load_recipe("kitchen_rgb", small), synthetic=True, steps=1)
    assert plain.uncheckpointed == ("rgb",)
    saved = make_plan(load_recipe("kitchen_rgb", [*small, "streams.rgb.checkpointing=true"]), synthetic=True, steps=1)
    assert saved.uncheckpointed == ()
    assert saved.fixed_bytes + 2 * saved.segment_bytes < plain.fixed_bytes + 2 * plain.segment_bytes


@pytest.mark.parametrize("name", ["kitchen_mmixer", "kitchen_interactive", "kitchen_anticipation_mimo"])
def test_random_batches_are_what_the_data_would_be(name, tmp_path_factory):
    """The same shapes and types as a batch of the real kitchen."""
    from actionfuse.pipeline.samples import collate
    from actionfuse.train.build import build_dataset, make_task

    sizes = [f"streams.{s}.clip.{k}=32" for s in load_recipe(name).streams if s != "audio" for k in ("crop", "side")]
    small = [f"streams.{s}.backbone=tsn:test_resnet" for s in load_recipe(name).streams]
    recipe = load_recipe(name, [f"data.root={tiny_kitchen(tmp_path_factory)}", *sizes, *small])
    split = load_split(recipe, recipe.data.train)
    model = build_model(recipe, split.classes)
    dataset = build_dataset(recipe, split, model, make_task(recipe.task), training=True)
    real = collate([dataset[n] for n in range(2)])
    made = random_batch(recipe, stream_specs(recipe, model.input_specs), model, 2)
    for group in ("streams", "masks", "boxes", "labels"):
        assert {k: (v.shape, v.dtype) for k, v in real[group].items() if k in made[group]} == {
            k: (v.shape, v.dtype) for k, v in made[group].items()
        }, group


def test_an_rgbd_recipe_is_planned_with_batches_like_those_of_its_data(tmp_path_factory, monkeypatch):
    from actionfuse.pipeline.samples import collate
    from actionfuse.train.build import build_dataset, make_task

    monkeypatch.setattr(video_swin, "TINY", TINY_SWIN)
    small = ["streams.rgb.backbone=swin3d_t", "streams.rgb.options={stream: rgbd}", "streams.rgb.clip.frames=2"]
    root = tiny_kitchen(tmp_path_factory)
    recipe = load_recipe("kitchen_rgb", [*SMALL, *small, f"data.root={root}", "optim.batch=2", "run.workers=0"])
    split = load_split(recipe, recipe.data.train)
    model = build_model(recipe, split.classes)
    dataset = build_dataset(recipe, split, model, make_task(recipe.task), training=True)
    real = collate([dataset[n] for n in range(2)])
    made = random_batch(recipe, stream_specs(recipe, model.input_specs), model, 2)
    for group in ("streams", "masks"):
        assert {k: (v.shape, v.dtype) for k, v in real[group].items()} == {
            k: (v.shape, v.dtype) for k, v in made[group].items()
        }
    assert made["streams"]["rgb"][..., 3].max() <= 75
    plan = make_plan(recipe, steps=1)
    assert plan.measured_batches == (2,) and plan.segment_bytes > 0 and plan.segment_seconds > 0


def test_every_dataset_of_a_recipe_is_known():
    assert {load_recipe(name).data.dataset for name in list_recipes()} <= set(KNOWN)


@pytest.mark.parametrize("name", [name for name in list_recipes() if not name.startswith("kitchen_")])
def test_published_recipes_are_planned_without_their_data(name):
    """With small networks, pictures and widths in place of theirs; all else is the recipe's. Of full size the models
    are built in test_recipes.py.
    """
    recipe = load_recipe(name)
    small = ["optim.batch=2", "run.precision=fp32", "init_from=null"]
    for stream, each in recipe.streams.items():
        if each.backbone:
            family = "tsm" if each.backbone.startswith("tsm") else "tsn"
            small += [f"streams.{stream}.backbone={family}:test_resnet", f"streams.{stream}.clip.frames=4"]
            small += [f"streams.{stream}.clip.{k}=32" for k in ("side", "crop")]
    small += ["head.options.steps=4"] if "steps" in recipe.head.options else []
    small += ["head.options.width=64"] if "width" in dict(head_options(recipe.head.name)) else []
    plan = make_plan(load_recipe(name, small), synthetic=True, steps=1)
    assert plan.segment_bytes > 0 and plan.trained > 0 and plan.epochs == recipe.run.epochs
    assert (plan.segments is None) == (KNOWN[recipe.data.dataset][1] is None)
    assert describe(plan)


def test_the_command_says_whether_it_fits(root, tmp_path, capsys):
    (tmp_path / "toy.yaml").write_text(dump_recipe(toy_recipe(root)))
    words = ["plan", str(tmp_path / "toy.yaml"), "--steps", "1"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "an epoch of 36 segments" in told and "segments/s" in told
    assert main([*words, "--json", "--card-gb", "0.000001", "--overhead", "0"]) == 1
    assert json.loads(capsys.readouterr().out)["fits"] is False
    assert main([*words, "--processes", "4"]) == 2 and "cannot share evenly" in capsys.readouterr().err
    assert main([*words, "--steps", "0"]) == 2
    assert main([*words, "data.root=nowhere"]) == 2 and "is no folder" in capsys.readouterr().err
