"""Processes and threads are made for the cores that a container may use, not for those that the machine has."""

import pytest

from actionfuse.extract.plan import cgroup_cores, cores


@pytest.mark.parametrize(
    ("files", "allowed"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_limits_of_control_groups_are_read(tmp_path, files, allowed):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cgroup_cores(tmp_path) == allowed


@pytest.mark.parametrize(("quota", "wanted"), [(None, 8), (1.5, 2), (2.0, 2), (0.25, 1), (64.0, 8)])
def test_the_smaller_of_both_counts(monkeypatch, quota, wanted):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr("actionfuse.extract.plan.cgroup_cores", lambda _: quota)
    assert cores() == wanted
