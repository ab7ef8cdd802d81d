"""The order of the house: declared packages, direction of imports, what every file must and must not hold."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from layout import ROOT, declared_packages, library_files, module_name, package_folders

AREAS = ("pipeline", "backbones", "fusion", "extract", "train")
# An area may import those on the right, and nothing else of the package but the root modules of src/actionfuse.
MAY_IMPORT = {
    "pipeline": set(),
    "backbones": set(),
    "fusion": set(),
    "extract": {"pipeline", "backbones"},
    "train": {"pipeline", "backbones", "fusion"},
}
LONGEST_FILE_LINES = 550


def imported_modules(path: Path) -> list[tuple[int, int, str]]:
    """(line, relative level, absolute name) of every import in the file, wherever it stands.

    Left out is what a file imports when it is run as a program: it has no package then, so nothing to be relative to.
    """
    found = []
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [
        n for n in tree.body if not (isinstance(n, ast.If) and ast.unparse(n.test) == "__name__ == '__main__'")
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, 0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from .. import pipeline` names an area only in its aliases.
            found += [(node.lineno, node.level, f"{module}.{alias.name}") for alias in node.names]
    return found


def area_of(name: str) -> str | None:
    first, _, rest = name.partition(".")
    area = rest.partition(".")[0]
    return area if first == "actionfuse" and area in AREAS else None


def text_files() -> list[Path]:
    """What the project wrote: not what it or a user made in the same folder."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout: which files belong to the project is not known")
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()[:4096]]


def test_every_package_on_disk_is_declared():
    on_disk = {module_name(path) for path in library_files() if path.name == "__init__.py"}
    assert on_disk == declared_packages()


def test_every_area_on_disk_is_mapped():
    on_disk = {area for area in AREAS if (ROOT / area / "__init__.py").exists()}
    assert on_disk == {area for area in map(area_of, package_folders()) if area}


def test_every_module_stands_in_a_package():
    # A folder without __init__.py would work as a namespace package under an editable install and miss the wheel.
    assert [str(path) for path in library_files() if not (path.parent / "__init__.py").exists()] == []


def test_areas_import_in_one_direction():
    wrong = []
    for path in library_files():
        own = area_of(module_name(path))
        for line, _, name in imported_modules(path):
            other = area_of(name)
            allowed = own is None or other is None or other == own or other in MAY_IMPORT[own]
            # The command line finds its commands by name: a root module that imported an area would close a circle.
            if not allowed or (own is None and other is not None):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert wrong == []


def test_areas_are_imported_relatively_and_root_modules_absolutely():
    # Editors and type checkers find the real file behind a relative import of an area. src/actionfuse is not beside the
    # areas on disk: a relative import of its modules would run and not be found by them.
    wrong = []
    for path in library_files():
        if area_of(module_name(path)) is None:
            continue
        for line, level, name in imported_modules(path):
            if name.split(".")[0] == "actionfuse" and (level == 0) != (area_of(name) is None):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert wrong == []


@pytest.mark.parametrize(
    ("where", "line", "caught"),
    [
        ("pipeline/types.py", "from ..backbones import roi", "actionfuse.backbones.roi"),
        ("pipeline/types.py", "from .. import backbones", "actionfuse.backbones"),
        ("pipeline/decoders/__init__.py", "from ...fusion.contract import Output", "actionfuse.fusion.contract.Output"),
        ("extract/__init__.py", "import actionfuse.train", "actionfuse.train"),
    ],
)
def test_the_reading_of_imports_is_right(where, line, caught, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda self, **_: f"def f():\n    {line}\n")
    assert [name for *_, name in imported_modules(ROOT / where)] == [caught]


@pytest.mark.parametrize("module", ["actionfuse", "actionfuse.cli", "actionfuse.pipeline"])
def test_starts_without_torch(module):
    # Decoding processes import these; torch would cost each of them seconds and hundreds of megabytes.
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd="/").returncode == 0


def test_every_module_says_what_it_is_for():
    silent = []
    for path in library_files() + sorted((ROOT / "benchmarks").rglob("*.py")):
        if not (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").strip():
            silent.append(str(path.relative_to(ROOT)))
    assert silent == []


def test_no_file_grows_past_a_sitting():
    long = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8").count("\n") for path in library_files()}
    assert {name: lines for name, lines in long.items() if lines > LONGEST_FILE_LINES} == {}


def test_nothing_points_at_the_machine_it_was_written_on():
    folders = "|".join(("work", "root", "home", "Users"))
    pattern = re.compile(rf"(?<![\w.}}/-])/(?:{folders})/\w|\bshared/(?:facts|golden|seeds|data|tools|design)\b")
    assert pattern.search("open('/" + "root/x')") and pattern.search("../shared/" + "facts/")
    assert not pattern.search("example.org/home/x")
    wrong = []
    for path in text_files():
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if pattern.search(line):
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert wrong == []


def test_the_image_gets_every_area():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {area for area in AREAS if (ROOT / area / "__init__.py").exists()} <= kept
