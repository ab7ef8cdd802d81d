"""actionfuse demo-training: its commands are valid calls on the data that it says."""

import pytest

from actionfuse.train import demo
from actionfuse.train.recipe import load_recipe


def recipe_of_call(call):
    assert call[0] == "train"
    return load_recipe(call[1], [word for word in call[2:] if "=" in word])


@pytest.mark.parametrize("name", demo.HEADS)
def test_every_head_sees_the_stored_features_of_its_streams(name, tmp_path):
    streams = demo.HEADS[name][1]
    recipe = recipe_of_call(demo.training(tmp_path, name, streams, 3))
    assert recipe.inputs == "features" and recipe.run.epochs == 3
    assert set(recipe.streams) == set(streams)
    for stream, each in recipe.streams.items():
        assert each.features == f"{tmp_path}/features/tsn-tf_efficientnet_lite0-{stream}"
        assert each.key.format(video="P01_101") == "P01_101.mp4"


def test_end_to_end_is_trained_and_tested_on_the_splits_of_the_heads(tmp_path):
    recipe = recipe_of_call(demo.tuning(tmp_path, 1))
    assert recipe.inputs == "pixels" and not recipe.streams["rgb"].freeze
    head = recipe_of_call(demo.training(tmp_path, "kitchen_late", demo.STREAMS, 1))
    assert (recipe.data.train, recipe.data.test) == (head.data.train, head.data.test)


def test_a_command_that_fails_is_told(capsys):
    assert demo.run(["train", "no_such_recipe"]) == 2
    assert "$ actionfuse train no_such_recipe" in capsys.readouterr().out
