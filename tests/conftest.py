"""Where the tests run: on the CPU, also where there are GPUs, but for those that are asked for by `-m gpu`.

What tests of the CPU pin down (the same bits, processes that are forked in the middle, two of them on one card) does
not hold on a GPU.
"""

from __future__ import annotations

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # before CUDA is looked for; processes that tests start see the same
    if config.option.markexpr.strip() != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
