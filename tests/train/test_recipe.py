"""Recipes: typed, strict, changed by dotted overrides, written back equal."""

import pytest
import yaml

from actionfuse.train.recipe import dump_recipe, list_recipes, load_recipe, recipe_of

BASE = {
    "data": {"dataset": "kitchen", "root": "kitchen"},
    "streams": {"rgb": {"backbone": "tsn:resnet18"}, "flow": {"features": "flow", "feature_dim": 16}},
    "head": {"name": "mif_parallel", "options": {"width": 32}},
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(BASE, sort_keys=False))
    return path


def test_written_recipes_read_back_equal(file):
    recipe = load_recipe(file, ["optim.lr=1e-4", "streams.rgb.freeze=true", "augment.short_side=[200, 300]"])
    assert (recipe.name, recipe.optim.lr, recipe.streams["rgb"].freeze) == ("mine", 1e-4, True)
    assert recipe.augment.short_side == (200, 300) and list(recipe.streams) == ["rgb", "flow"]
    file.write_text(dump_recipe(recipe))
    assert load_recipe(file) == recipe


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optim": {"lrr": 1}}, "optim.lrr is unknown; did you mean optim.lr?"),
        ({"streams": {"rgb": {"clip": {"frame": 2}}}}, "did you mean streams.rgb.clip.frames?"),
        ({"optim": {"name": "lion"}}, "optim.name is 'lion': input should be 'sgd', 'adam' or 'adamw'"),
        ({"optim": {"lr": "fast"}}, "optim.lr is 'fast'"),
        ({"optim": {"lr": float("inf")}}, "optim.lr is inf"),
        ({"optim": {"batch": 0}}, "optim.batch is 0: input should be greater than or equal to 1"),
        ({"run": {"micro_batch": 0}}, "run.micro_batch is 0"),
        ({"data": {"dataset": "toy", "root": "x", "share": 2}}, "data.share is 2"),
        ({"augment": {"mixup": -1, "erasing": 2, "repeats": 0}}, "augment.erasing is 2"),
        ({"optim": {"label_smoothing": 2}}, "optim.label_smoothing is 2: input should be less than or equal to 1, or"),
        ({"init_from": 3}, "init_from is 3: input should be a valid string, or input should be a valid list"),
        ({"dta": {}}, "dta is unknown; did you mean data?"),
        ({"data": {"root": "x"}}, "data.dataset is missing"),
        ({"head": "concat"}, "head is 'concat'; it is a mapping with the keys name, options"),
    ],
)
def test_what_is_wrong_is_named_by_its_dotted_path(changes, said):
    with pytest.raises(ValueError) as raised:
        recipe_of({**BASE, **changes}, "mine.yaml")
    assert said in str(raised.value) and str(raised.value).startswith("mine.yaml: ")


def test_everything_that_is_wrong_is_told_at_once():
    with pytest.raises(ValueError, match=r"optim.lrr is unknown.*run.epoks is unknown; did you mean run.epochs"):
        recipe_of({**BASE, "optim": {"lrr": 1}, "run": {"epoks": 3}})


def test_errors_name_the_changes_of_the_command_line(file):
    with pytest.raises(ValueError, match=r"mine.yaml with optim.lr=fast run.seed=1: optim.lr is 'fast'"):
        load_recipe(file, iter(["optim.lr=fast", "run.seed=1"]))


@pytest.mark.parametrize("override", ["optim.lr", "=3", "optim.lr.deep=3", "optim.lr=[1"])
def test_overrides_that_change_nothing_are_refused(file, override):
    with pytest.raises(ValueError, match="'"):
        load_recipe(file, ["optim.lr=1", override])


def test_unknown_recipes_are_answered_with_what_there_is(tmp_path):
    with pytest.raises(ValueError, match="no recipe"):
        load_recipe("no_such_recipe")
    with pytest.raises(ValueError, match="there is no recipe"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ValueError, match="holds list"):
        load_recipe(tmp_path / "list.yaml")


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_of_the_package_reads(name):
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.about.paper
