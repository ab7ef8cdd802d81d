"""What is built is what was written: sdist and wheel hold every package and nothing else, and the wheel runs."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from layout import ROOT, library_files, module_name, package_folders


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel made from an sdist, as a release is: a file that the sdist forgets is missing here too."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for folder in package_folders().values():
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests" / "packaging", source / "tests" / "packaging")
    shutil.copy(ROOT / "tests" / "test_readme.py", source / "tests")
    for name in ("setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    built = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (archive,) = out.glob("*.tar.gz")
    with tarfile.open(archive) as sdist:
        assert not [name for name in sdist.getnames() if "/tests/" in name]
    (path,) = out.glob("*.whl")
    return path


def test_wheel_holds_every_module_and_no_test(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = set()
    for path in library_files():
        module = module_name(path).replace(".", "/")
        modules.add(f"{module}/__init__.py" if path.name == "__init__.py" else f"{module}.py")
    assert {name for name in names if name.endswith(".py")} == modules
    assert "actionfuse/py.typed" in names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"actionfuse"}


def test_wheel_holds_every_data_file(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for name, folder in package_folders().items():
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts:
                assert f"{name.replace('.', '/')}/{path.relative_to(ROOT / folder).as_posix()}" in names


def test_wheel_carries_licence_and_readme(wheel):
    archive = zipfile.ZipFile(wheel)
    (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    text = archive.read(metadata).decode()
    assert "License-Expression: Apache-2.0" in text
    assert (ROOT / "README.md").read_text(encoding="utf-8").strip() in text.replace("\r\n", "\n")
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in archive.namelist())


def test_wheel_runs_beside_a_users_own_train_and_pipeline(wheel, tmp_path):
    # The repository is not on the path here: only what the wheel holds can be imported.
    (tmp_path / "site").mkdir()
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    for name in ("train.py", "pipeline.py", "extract.py"):
        (tmp_path / name).write_text("raise SystemExit('the wrong module was imported')\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); sys.meta_path[:] = "
        "[finder for finder in sys.meta_path if 'editable' not in getattr(finder, '__module__', '')"
        " and 'Editable' not in getattr(finder, '__name__', '')]\n"
        "import actionfuse, actionfuse.pipeline\n"
        "from actionfuse.cli import main\n"
        "print(actionfuse.pipeline.__file__)\n"
        "main(['--version'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "site") in done.stdout.splitlines()[0]
