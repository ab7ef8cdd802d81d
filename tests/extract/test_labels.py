"""Label files as data sets publish them."""

import json
from pathlib import Path

import pytest

from actionfuse.extract.labels import read_labels

NAMES = ("take", "put down", "wash")
FORMS = {
    "lines.txt": "take\nput down\nwash\n\n",
    "counted.txt": "1 take\n2 put down\n3 wash\n",
    "list.json": json.dumps(NAMES),
    "kinetics_classnames.json": json.dumps({'"put down"': 1, "take": 0, '"wash"': 2}),
    "something_labels.json": json.dumps({"wash": "2", "take": "0", "put down": "1"}),
    "numbers.json": json.dumps({"0": "take", "2": "wash", "1": "put down"}),
    "EPIC_100_verb_classes.csv": "id,key,instances,category\n0,take,\"['take', 'grab']\",retrieve\n"
    "1,put down,['put'],leave\n2,wash,['wash'],clean\n",
    "EPIC_verb_classes.csv": "verb_id,class_key,verbs\n1,put down,[]\n0,take,[]\n2,wash,[]\n",
    "rulstm_actions.csv": "id,verb,noun,action\n0,0,0,take\n1,1,0,put down\n2,2,0,wash\n",
    "rulstm_egtea.csv": "0, 0_0, take\n1, 0_1, put down\n2, 1_1, wash\n",
    "bare.csv": "0,take\n1,put down\n2,wash\n",
}


@pytest.mark.parametrize("name", FORMS)
def test_forms(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(FORMS[name], encoding="utf-8")
    assert read_labels(tmp_path / name) == NAMES


def test_numbers_that_do_not_count_are_part_of_names(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("10 pins\n2 hands\n", encoding="utf-8")
    assert read_labels(tmp_path / "a.txt") == ("10 pins", "2 hands")


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.csv", "id,key\n0,take\n2,wash\n", "2 classes and none with the number 1"),
        ("a.csv", "id,key\n0,take\n0,wash\n", "'wash' has the number '0'"),
        ("a.csv", "what,then\n0,take\n", "columns what, then; the number is looked for under id"),
        ("a.csv", "id,key\n0\n", "a line of 1 columns"),
        ("a.json", "{", "no JSON"),
        ("a.json", "{}", "no class names"),
        ("a.json", '{"take": "first"}', "'take' has the number 'first'"),
        ("a.txt", "\n", "names no class"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_labels(tmp_path / name)
    with pytest.raises(ValueError, match="no label file"):
        read_labels(tmp_path / "other")
