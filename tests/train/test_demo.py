"""actionfuse demo-training: valid commands on the data that it says; a tiny one to its end, stopped and repeated."""

import json

import pytest
from kitchen import tiny_kitchen

from actionfuse.cli import make_parser
from actionfuse.train import demo, demo_page
from actionfuse.train.recipe import load_recipe

RUNS = [name for name, row in demo.COMPARED.items() if row.head]


@pytest.fixture
def out(tmp_path):
    demo.write_recipes(tmp_path, "small")
    return tmp_path


def calls(out, verb):
    return [step.call for step in demo.plan(out, "small") if step.call[0] == verb]


def recipe_of(call):
    return load_recipe(call[1], [word for word in call[2:] if "=" in word])


def test_every_command_is_one_of_the_programs(out):
    for step in demo.plan(out, "small"):
        args = make_parser(step.call[0]).parse_args(step.call)
        assert args.command == step.call[0]


@pytest.mark.parametrize("name", [name for name in RUNS if not demo.COMPARED[name].begins_from])
def test_heads_see_the_stored_features_of_their_streams(name, out):
    (call,) = [call for call in calls(out, "train") if call[3] == str(out / "runs" / name)]
    recipe = recipe_of(call)
    assert recipe.inputs == "features" and tuple(recipe.streams) == demo.COMPARED[name].streams
    for stream, each in recipe.streams.items():
        assert each.features == f"{out}/features/tsn-tf_efficientnet_lite0-{stream}"
        assert each.key.format(video="P01_101") == "P01_101.mp4"


def test_end_to_end_goes_on_from_a_head_with_the_same_recipe(out):
    (call,) = [call for call in calls(out, "train") if "inputs=pixels" in call]
    recipe, before = recipe_of(call), load_recipe(call[1])
    assert recipe.init_from == str(out / "runs" / demo.COMPARED[demo.END_TO_END].begins_from)
    assert (recipe.head, recipe.streams, recipe.data) == (before.head, before.streams, before.data)
    assert not any(each.freeze for each in recipe.streams.values())


def test_features_are_cut_as_clips_are(out):
    (call,) = calls(out, "extract")
    args = make_parser("extract").parse_args(call)
    assert (tuple(args.stream), args.backbone) == (demo.STREAMS, [demo.NETWORK])
    recipe = load_recipe(out / "recipes" / "mmixer.yaml")
    for stream, each in recipe.streams.items():
        assert each.clip.fps == float(args.fps) and args.clip_frames == 1
        if stream == "audio":
            assert each.clip.audio_preset == args.audio_preset
        else:
            assert (each.clip.side, each.clip.crop) == (args.side, args.crop)
    assert recipe.streams["flow"].options == {"flow_stack": args.flow_stack}


def test_late_fusion_is_of_the_single_streams(out):
    (call,) = [call for call in calls(out, "evaluate") if call[-2].endswith("late.json")]
    assert [word.rpartition("/")[2] for word in call[1:4]] == ["rgb", "flow", "audio"]


def test_a_command_that_fails_is_told(tmp_path, capsys):
    step = demo.Step(["train", "no_such_recipe"], tmp_path / "log.txt", shown=True)
    assert demo.run(step) == 2
    assert "$ actionfuse train no_such_recipe" in capsys.readouterr().out


def test_a_tiny_demo_to_its_end(tmp_path, tmp_path_factory, monkeypatch, capsys):
    monkeypatch.setattr(demo, "NETWORK", "tsn:test_efficientnet")
    monkeypatch.setattr(demo, "WEIGHTS", "random")
    for name in ("flow", "early", "mif-parallel", "mif-progressive", "mimo"):
        monkeypatch.delitem(demo.COMPARED, name)
    (tmp_path / "kitchen").symlink_to(tiny_kitchen(tmp_path_factory))
    args = make_parser("demo-training").parse_args(["demo-training", "--out", str(tmp_path), "--size", "tiny"])

    real, ran = demo.run, []

    def run(step):
        ran.append(step.call[0])
        return real(step)

    def stopped_at_the_report(step):
        return 75 if step.call[0] == "report" else run(step)

    monkeypatch.setattr(demo, "run", stopped_at_the_report)
    assert demo.main(args) == 75 and not (tmp_path / "index.html").exists()
    assert ran == ["synth", "extract"] + 4 * ["train"] + 5 * ["evaluate"]

    monkeypatch.setattr(demo, "run", run)
    ran.clear()
    assert demo.main(args) == 0
    assert ran == ["synth", "extract"] + 4 * ["report"]
    shown = capsys.readouterr().out
    page = (tmp_path / "index.html").read_text()
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
    rows = demo_page.compare(tmp_path)
    assert [row.name for row in rows] == list(demo.COMPARED)
    for row in rows:
        found = json.loads((tmp_path / "results" / f"{row.name}.json").read_text())["results"]
        assert row.top1["verb"] == found["verb/top1_accuracy"] and row.segments == 12
        assert row.title in shown and row.title in page
    assert 'href="runs/mmixer/report.html"' in page

    # another epoch of one run: it alone, and what stands on it, is told to be of another recipe
    monkeypatch.setitem(demo.SIZES, "tiny", (3, 8, 1, 8))
    ran.clear()
    assert demo.main(args) == 2 and ran == ["synth", "extract", "train"]
