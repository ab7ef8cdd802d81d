"""docs/backbones.md lists every name."""

from pathlib import Path

from actionfuse.backbones import list_backbones

TABLE = Path(__file__).parents[2] / "docs" / "backbones.md"


def test_the_table_has_every_backbone():
    rows = {line.split("`")[1].partition(":")[0] for line in TABLE.read_text().splitlines() if line.startswith("| `")}
    assert rows == {name.partition(":")[0] for name in list_backbones()}, "run python docs/backbones_table.py"
