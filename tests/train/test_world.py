"""How many processes were asked for, and what is refused."""

from __future__ import annotations

import pytest

from actionfuse.train.world import check_batch, check_world, parse_processes, share_batch


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


def test_processes_are_a_number_or_a_range() -> None:
    assert parse_processes("8") == (8, 8)
    assert parse_processes("2:8") == (2, 8)


@pytest.mark.parametrize("text", ["", "0", "x", "8:2", "2:", ":2", "1:2:3"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a range, such as 2:8"):
        parse_processes(text)


def test_a_range_takes_every_world_in_it_and_says_which() -> None:
    assert check_world(2, (2, 2)) is None
    told = check_world(2, (1, 4))
    assert told is not None and "2 processes, of 1 to 4" in told
    with pytest.raises(ValueError, match="allows 2 to 4 processes, but training runs in 1"):
        check_world(1, (2, 4))


def test_a_number_takes_that_world_only() -> None:
    with pytest.raises(ValueError, match="--processes asks for 2 processes, but training runs in 1"):
        check_world(1, 2)


def test_slurms_tasks_count_without_torchrun_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    with pytest.raises(ValueError, match="SLURM_NTASKS asks for 2"):
        check_world(1, None)
    # torchrun starts several processes in each of Slurm's tasks
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert check_world(4, None) is None


def test_a_batch_must_suit_every_world_of_the_range(monkeypatch: pytest.MonkeyPatch) -> None:
    check_batch(8, (1, 2))
    check_batch(7, 2)
    with pytest.raises(ValueError, match="optim.batch is 8, which 3 processes cannot share"):
        check_batch(8, (1, 4))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # nodes of 4: worlds of 4 and 8
    check_batch(8, (4, 8))


def test_a_step_is_shared_evenly_or_refused() -> None:
    assert share_batch(32, None, 1) == (32, 1)
    assert share_batch(32, 4, 2) == (4, 4)
    assert share_batch(32, 64, 2) == (16, 1)
    with pytest.raises(ValueError, match="optim.batch is 32, which 3 processes cannot share"):
        share_batch(32, None, 3)
    with pytest.raises(ValueError, match="micro_batch is 3; it must divide the 16"):
        share_batch(32, 3, 2)
