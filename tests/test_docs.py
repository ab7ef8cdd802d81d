"""The pages of docs/: their commands can be called, their Python runs, their links lead somewhere.

The README's commands are run by test_readme.py, the recipes of docs/training.md read by train/test_training_doc.py.
"""

import importlib
import re
import shlex
from pathlib import Path

import pytest
from kitchen import tiny_kitchen
from test_readme import ROOT, read_blocks
from torch.testing import assert_close

from actionfuse import launch
from actionfuse.backbones import create_backbone, load_backbone
from actionfuse.cli import COMMANDS, make_parser
from actionfuse.fusion import create_head
from actionfuse.train.model import ActionModel, save_model
from actionfuse.train.recipe import list_recipes

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
BLOCKS = {page: read_blocks(page.read_text(encoding="utf-8")) for page in PAGES}


def words_of(command: str) -> list[str]:
    """What stands behind `actionfuse` in a line of a page or of a help text; nothing where it starts otherwise."""
    words = shlex.split(command.replace("\\\n", " "), comments=True)
    return words[1:] if words[:1] == ["actionfuse"] else []


def commands_of(page: Path) -> list[str]:
    shown = [command for block in BLOCKS[page] if block.language == "console" for command, _ in block.commands()]
    return [command for command in shown if words_of(command)]


@pytest.mark.parametrize("command", sorted({command for page in PAGES for command in commands_of(page)}))
def test_commands_can_be_called(command):
    words = words_of(command)
    make_parser(words[0]).parse_args(words)


def test_pages_have_commands():
    assert len(commands_of(ROOT / "docs" / "training.md")) > 5 and commands_of(ROOT / "docs" / "scale.md")


@pytest.mark.parametrize("name", [*COMMANDS, "launch"])
def test_help_shows_calls_and_recipes_that_there_are(name):
    text = (importlib.import_module(COMMANDS[name][0]) if name in COMMANDS else launch).__doc__ or ""
    recipes = re.findall(r"\b(?:train|plan|actionfuse\.train) ([a-z][a-z0-9]*_[a-z0-9_]+)\b", text)
    assert set(recipes) <= set(list_recipes())
    assert recipes or name not in ("train", "plan", "launch")
    # what a call does stands behind it, after two spaces or more
    for call in re.findall(r"^ +(actionfuse [a-z].*?)(?: {2,}.*)?$", text, re.M):
        words = words_of(call)
        make_parser(words[0]).parse_args(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def run_python(name: str) -> None:
    """All Python of a page, in the current folder."""
    for block in BLOCKS[ROOT / "docs" / name]:
        if block.language == "python":
            exec(compile("\n" * block.line + block.body, name, "exec"), {})


def test_the_kitchens_python_runs(tmp_path, tmp_path_factory, monkeypatch):
    (tmp_path / "kitchen").symlink_to(tiny_kitchen(tmp_path_factory))
    monkeypatch.chdir(tmp_path)
    run_python("kitchen.md")


def test_a_runs_backbone_is_taken_out_as_the_page_says(tmp_path, monkeypatch):
    model = ActionModel(
        {"rgb": create_backbone("tsn:test_resnet")},
        create_head("concat", streams={"rgb": create_backbone("tsn:test_resnet").feature_dim}, classes={"action": 3}),
    )
    save_model(model, tmp_path / "runs" / "mine" / "best")
    monkeypatch.chdir(tmp_path)
    run_python("training.md")
    assert_close(
        load_backbone("mine-rgb.safetensors").state_dict(), model.backbones["rgb"].state_dict(), atol=0, rtol=0
    )


def test_all_pages_with_python_are_run():
    with_python = {page.name for page, blocks in BLOCKS.items() if any(each.language == "python" for each in blocks)}
    assert with_python == {"README.md", "kitchen.md", "training.md"}
