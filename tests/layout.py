"""How the root folders make up the package: setup.cfg read for the tests."""

from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def options() -> dict[str, str]:
    """The section [options] of setup.cfg."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    return dict(config["options"])


def declared_packages() -> set[str]:
    return set(options()["packages"].split())


def package_folders() -> dict[str, str]:
    """Import name -> folder, as setup.cfg maps them."""
    pairs = [line.split("=") for line in options()["package_dir"].strip().splitlines()]
    return {name.strip(): folder.strip() for name, folder in pairs}


def library_files() -> list[Path]:
    return sorted(path for folder in package_folders().values() for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    """`actionfuse.pipeline.types` of pipeline/types.py; a package's own name for its __init__.py."""
    for name, folder in package_folders().items():
        if path.is_relative_to(ROOT / folder):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            return ".".join([name, *(part for part in parts if part != "__init__")])
    raise ValueError(f"{path} is in no declared folder")
