"""actionfuse models --heads: every head with its paper, options and parameters; backbones as before."""

import json

import pytest

from actionfuse.cli import main
from actionfuse.fusion import create_head, head_options, list_heads
from actionfuse.fusion.contract import CARDS
from actionfuse.train.catalog import EXAMPLE_CLASSES, EXAMPLE_STREAMS, describe_head


def test_every_head_is_listed_with_options_and_paper(capsys):
    assert main(["models", "--heads"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for name in list_heads():
        assert f"{CARDS[name].paper} {CARDS[name].summary} options:" in out
        assert all(f"{option}={default!r}" in out for option, default in head_options(name))


def test_parameters_are_those_of_the_example():
    for name in ("late_fusion", "mif_parallel"):
        head = create_head(name, streams=EXAMPLE_STREAMS, classes=EXAMPLE_CLASSES)
        assert describe_head(name).parameters == sum(p.numel() for p in head.parameters())


def test_one_head_tells_what_its_options_may_be(capsys):
    assert main(["models", "--heads", "mif_progressive"]) == 0
    out = capsys.readouterr().out
    assert "    order=None\n" in out
    assert "    pool='mean'  ('mean' | 'last')\n" in out
    assert "a batch may lack streams: yes" in out


def test_json_lines(capsys):
    assert main(["models", "--heads", "mif*", "--json"]) == 0
    entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["name"] for entry in entries] == ["mif_parallel", "mif_progressive"]
    options = {option["name"]: option for option in entries[0]["options"]}
    assert options["pairing"] == {"name": "pairing", "default": "pairs", "choices": ["pairs", "diff_all"]}
    assert entries[0]["layout"] == "sequence" and entries[0]["needs_boxes"] is False


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--heads", "mif_diagonal"], "mif_parallel"),
        (["--heads", "--flops"], "leave it out with --heads"),
        (["mif*"], "add --heads"),
    ],
)
def test_wrong_calls(capsys, words, said):
    assert main(["models", *words]) == 2
    assert said in capsys.readouterr().err
