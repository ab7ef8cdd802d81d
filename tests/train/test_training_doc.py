"""docs/training.md: its recipes are recipes, its commands change fields that exist, its table is that of the code."""

import re
import runpy
import shlex
from pathlib import Path

import pytest
import yaml

from actionfuse.train.recipe import load_recipe, recipe_of

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "training.md").read_text(encoding="utf-8")
FIRST, *PARTS = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S)]
COMMANDS = re.findall(r"^\$ (.+)$", PAGE, re.M)


def test_the_table_is_that_of_the_code():
    written = runpy.run_path(str(DOCS / "training_fields.py"))
    guide, mark, table = PAGE.partition(written["MARK"])
    assert guide and mark + table == written["fields"](), "run python docs/training_fields.py"


def test_recipes_are_read():
    recipe_of(FIRST)
    assert PARTS
    for part in PARTS:
        recipe_of({**FIRST, **part})


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_change_fields_that_exist(command, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(FIRST))
    words = shlex.split(command)
    load_recipe(path, [word for word in words if re.fullmatch(r"[a-z_.]+=.*", word)])
    assert "actionfuse" in " ".join(words)
