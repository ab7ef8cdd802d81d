"""Daemons on this machine (Docker, Slurm, Ray, ...) for tests that `make test-cluster` runs, and `make test` does not.

A daemon that does not start is a failure, never a skip. Each test has a hard limit of time (pytest-timeout).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import Daemons

HERE = Path(__file__).parent
LIMIT_SECONDS = 300  # of a test that names no other: @pytest.mark.timeout(60)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    return True if os.environ.get("ACTIONFUSE_CLUSTER") != "1" and collection_path.is_relative_to(HERE) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not item.path.is_relative_to(HERE):
            continue
        given = item.get_closest_marker("timeout")
        seconds = given.args[0] if given is not None else LIMIT_SECONDS
        # Of the test alone: what fixtures start and stop for all of a module has limits of its own, and must not be
        # broken off, half removed, because the last test was slow.
        item.add_marker(pytest.mark.timeout(seconds, func_only=True), append=False)


@pytest.fixture(scope="session", autouse=True)
def _one_thread_a_process() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def daemons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemons]:
    """Starts daemons; all of a module's are stopped at its end, the last first."""
    with Daemons(tmp_path_factory.mktemp("daemons")) as started:
        yield started
