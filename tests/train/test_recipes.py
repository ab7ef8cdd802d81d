"""The recipes of the package: what they name is there, their models can be built, those of the kitchen train."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from kitchen import tiny_kitchen
from toy_training import TINY_SWIN, toy_recipe, write_toy

from actionfuse.backbones import video_swin
from actionfuse.fusion import list_heads
from actionfuse.fusion.few_shot import classifier_parameters
from actionfuse.pipeline.datasets.contract import CARDS, options_of
from actionfuse.train.build import build_dataset, build_model, init_from, load_split, make_task
from actionfuse.train.engine import Trainer
from actionfuse.train.log import read_metrics
from actionfuse.train.model import load_model, save_model
from actionfuse.train.optim import scaled_lr
from actionfuse.train.recipe import list_recipes, load_recipe

KITCHEN = [name for name in list_recipes() if name.startswith("kitchen_")]


def tiny(name: str) -> list[str]:
    """Overrides that make a recipe of the kitchen a matter of a second."""
    recipe = load_recipe(name)
    found = ["data.limit=4", "optim.batch=2", "run.workers=0", "run.epochs=1", "optim.warmup_epochs=0"]
    if recipe.task.test_tau_a:
        found.append("task.test_tau_a=[0.5]")
    for stream in recipe.streams:
        found.append(f"streams.{stream}.backbone=tsn:test_resnet")
        found += [f"streams.{stream}.clip.side=32", f"streams.{stream}.clip.crop=32"] if stream != "audio" else []
    return found


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny_kitchen(tmp_path_factory)


def test_every_method_is_there():
    heads = {load_recipe(name).head.name for name in list_recipes()}
    assert {
        "concat",
        "late_fusion",
        "mif_parallel",
        "mif_progressive",
        "mimo",
        "interactive",
        "mmixer",
        "rulstm",
    } <= heads
    assert {"kitchen_rgb", "kitchen_flow", "kitchen_audio"} <= set(KITCHEN)
    assert {load_recipe(name).task.kind for name in KITCHEN} == {"recognition", "anticipation"}


@pytest.mark.parametrize("name", list_recipes())
def test_what_a_recipe_names_is_there_and_its_model_can_be_built(name):
    recipe = load_recipe(name)
    assert recipe.head.name in list_heads() and recipe.about.row and recipe.about.deviations
    card = CARDS[recipe.data.dataset]
    assert {recipe.data.train, recipe.data.test} <= set(card.splits)
    assert set(recipe.data.options) <= set(options_of(recipe.data.dataset))
    if not name.startswith("kitchen_"):
        assert all(0 < value < 1 for value in recipe.about.expected.values())
        assert recipe.about.hardware and recipe.about.paper
        # the paper's rate is the one that is used; with another batch it follows by the linear rule
        optim = recipe.optim
        assert (optim.lr_batch is not None) == (optim.name == "sgd" or name == "mimo_epic_kitchens_100")
        used = scaled_lr(optim)
        assert used == pytest.approx(optim.lr if optim.lr_batch in (None, optim.batch) else 2.5e-4)
        half = scaled_lr(replace(optim, batch=optim.batch // 2))
        assert half == pytest.approx(used if optim.lr_batch is None else used / 2)
    # Shapes alone: no weights are read and no memory is taken.
    own = [f"streams.{stream}.weights=random" for stream, each in recipe.streams.items() if each.backbone]
    with torch.device("meta"):
        model = build_model(
            load_recipe(name, [*own, "init_from=null"]), {t: ("a", "b", "c") for t in recipe.data.tasks or ["action"]}
        )
    assert list(model.head.streams) == list(recipe.streams)


@pytest.mark.parametrize("name", KITCHEN)
def test_recipes_of_the_kitchen_train(name, root, tmp_path):
    recipe = load_recipe(name, [*tiny(name), f"data.root={root}"])
    results = Trainer(recipe, tmp_path, quiet=True).run()
    rows = read_metrics(tmp_path)
    assert [row["kind"] for row in rows].count("step") == 2
    assert not [row for row in rows if row["kind"] == "broken"]
    assert recipe.run.monitor in results
    if "action" not in (recipe.data.tasks or ["action"]):
        assert "action_factorised/top1_accuracy" in results
    told = {name.partition("@")[2] for name in results}
    if recipe.head.name == "rulstm":
        assert told == {"", "tau_a=2..0.25", *(f"tau_a={step / 4:g}" for step in range(1, 9))}
    else:
        assert told == ({"", "tau_a=0.5"} if recipe.task.test_tau_a else {""})
    assert json.loads((tmp_path / "best" / "metrics.json").read_text())["monitor"] == recipe.run.monitor


def test_verbs_and_nouns_are_told_by_actions(root, tmp_path):
    name = "kitchen_anticipation_rulstm"
    recipe = load_recipe(name, [*tiny(name), f"data.root={root}", "data.tasks=[action]"])
    assert {task for segment in load_split(recipe, "train").segments for task in segment.labels} == {"action"}
    results = Trainer(recipe, tmp_path, quiet=True).run()
    for task in ("verb_marginalised", "noun_marginalised", "action"):
        assert {
            f"{task}/top5_accuracy",
            f"{task}/top5_accuracy@tau_a=2",
            f"{task}/top5_time_to_action@tau_a=2..0.25",
        } <= (results.keys())
    assert not any(name.startswith(("verb/", "noun/")) for name in results)


def test_depth_and_infrared_painted_are_pictures(root):
    recipe = load_recipe("kitchen_mmixer", [*tiny("kitchen_mmixer"), f"data.root={root}"])
    split = load_split(recipe, "train")
    model = build_model(recipe, split.classes)
    assert {spec.stream for spec in model.input_specs.values()} == {"rgb"}
    sample = build_dataset(recipe, split, model, make_task(recipe.task), training=True)[0]
    assert {name: tuple(x.shape) for name, x in sample.streams.items()} == dict.fromkeys(
        ("rgb", "depth", "ir"), (8, 32, 32, 3)
    )
    assert sample.streams["depth"].dtype == torch.uint8
    plain = load_recipe(
        "kitchen_mmixer", [*tiny("kitchen_mmixer"), f"data.root={root}", "streams.depth.clip.colour_map=null"]
    )
    assert build_model(plain, split.classes).input_specs["depth"].channels == 1
    wrong = load_recipe("kitchen_mmixer", ["streams.depth.options={stream: depth}"])
    with pytest.raises(ValueError, match="colour_map gives rgb, but the backbone eats depth"):
        build_dataset(wrong, split, build_model(wrong, split.classes), make_task(wrong.task), training=True)


def test_rgbd_backbones_train_from_files_of_rgb_and_depth(root, tmp_path, monkeypatch):
    """Omnivore's Swin on four channels."""
    monkeypatch.setattr(video_swin, "TINY", TINY_SWIN)
    changes = [*tiny("kitchen_rgb"), f"data.root={root}", "streams.rgb.backbone=swin3d_t", "data.limit=2"]
    changes += ["streams.rgb.options={stream: rgbd}", "streams.rgb.weights=random", "streams.rgb.clip.frames=2"]
    recipe = load_recipe("kitchen_rgb", changes)
    split = load_split(recipe, "train")
    dataset = build_dataset(recipe, split, build_model(recipe, split.classes), make_task(recipe.task), training=True)
    sample = dataset[0]
    alone = [f"streams.{s}.clip.{k}" for s in ("rgb", "depth") for k in ("side=32", "crop=32", "frames=2")]
    plain = load_recipe(
        "kitchen_rgb",
        [*changes[:-3], "streams.rgb.backbone=tsn:test_resnet", *alone, "streams.depth.backbone=tsn:test_resnet"],
    )
    own = build_dataset(plain, split, build_model(plain, split.classes), make_task(plain.task), training=True)[0]
    assert sample.streams["rgb"].shape == (2, 32, 32, 4)
    assert torch.equal(sample.streams["rgb"][..., :3], own.streams["rgb"].float())
    torch.testing.assert_close(sample.streams["rgb"][..., 3:], own.streams["depth"].float() * (75 / 255))
    results = Trainer(recipe, tmp_path, quiet=True).run()
    assert not [row for row in read_metrics(tmp_path) if row["kind"] == "broken"]
    assert load_model(tmp_path).input_specs["rgb"].channels == 4 and results
    both = load_recipe("kitchen_rgb", [*changes, "streams.depth.backbone=tsn:test_resnet"])
    with pytest.raises(ValueError, match="leave other streams of rgb or depth out"):
        build_dataset(both, split, build_model(both, split.classes), make_task(both.task), training=True)


def test_second_stages_train_new_classifiers_alone(tmp_path):
    classes = {"verb": ("a", "b"), "noun": ("c", "d", "e")}
    first = build_model(load_recipe("kitchen_interactive", ["run.seed=1"]), classes)
    save_model(first, tmp_path)
    recipe = load_recipe("kitchen_interactive", ["head.freeze_all_but_classifier=true", f"init_from={tmp_path}"])
    second = build_model(recipe, classes)
    trained = {name for name, parameter in second.named_parameters() if parameter.requires_grad}
    assert trained == {f"head.{name}" for name in classifier_parameters(second.head)} and trained
    before = first.state_dict()
    for name, value in second.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in trained), name
    assert not any(backbone.training for backbone in second.backbones.values()) and second.head.training
    assert set(init_from(second, tmp_path)) == set()


def test_branches_complete_sequences_then_anticipate_then_meet(tmp_path):
    """RULSTM's three stages on stored features: each begins with the weights of the one before."""
    root = write_toy(tmp_path / "toy")
    places = {"task__kind": "anticipation", "task__tau_a": 0.25, "task__tau_o": 2.0, "sampling__rule": "rulstm"}
    steps = {"features": "{root}/rgb", "clip": {"frames": 8, "fps": 4}, "key": "{video}"}

    def stage(name, streams, init_from=None, **options):
        head = {"name": "rulstm", "options": {"width": 8, "dropout": 0.0, "anticipation_steps": 6, **options}}
        features = {stream: {**steps, "features": f"{{root}}/{stream}"} for stream in streams}
        recipe = toy_recipe(
            root, **places, streams=features, head=head, init_from=init_from, data__max_broken_share=1.0,
            optim={"name": "sgd", "lr": 0.1, "batch": 6}, run={"epochs": 1, "workers": 0, "save_minutes": 1000.0},
        )  # fmt: skip
        return Trainer(recipe, tmp_path / name, quiet=True)

    def weights(trainer):
        return {key: value.clone() for key, value in trainer.model.state_dict().items()}

    trained = {}
    for stream in ("rgb", "flow"):
        first = stage(f"{stream}-completion", [stream], sequence_completion=True)
        first.run()
        second = stage(stream, [stream], str(tmp_path / f"{stream}-completion"))
        began = weights(second)
        assert all(torch.equal(value, began[key]) for key, value in weights(first).items())
        second.run()
        trained |= weights(second)
        assert any(not torch.equal(trained[key], began[key]) for key in began)
    third = stage("fused", ["rgb", "flow"], [str(tmp_path / "rgb"), str(tmp_path / "flow")])
    fused = weights(third)
    assert {key for key in fused if "branches" in key} == set(trained)
    assert all(torch.equal(value, fused[key]) for key, value in trained.items())
    third.run()
    assert all(not torch.equal(weights(third)[key], fused[key]) for key in fused)  # all of it learns
    step = next(row for row in read_metrics(tmp_path / "fused") if row["kind"] == "step")
    told = {name for name in step if "/" in name or name in ("verb", "noun")}
    assert {"auxiliary/steps/verb", "auxiliary/steps/noun"} <= told and not {"verb", "noun"} & told
