"""The order of samples: a pure function of (seed, epoch), shared without doubling or losing any, begun anywhere."""

import numpy as np
import pytest

from actionfuse.pipeline import EpochSampler, epoch_order


def test_an_order_has_every_sample_once_and_depends_on_seed_and_epoch_alone():
    order = epoch_order(100, seed=3, epoch=5)
    assert sorted(order.tolist()) == list(range(100))
    np.random.default_rng(0).random(10)  # nobody else's draws matter
    assert np.array_equal(order, epoch_order(100, 3, 5))
    others = [epoch_order(100, 3, 6), epoch_order(100, 4, 5), np.arange(100)]
    assert not any(np.array_equal(order, other) for other in others)
    assert np.array_equal(epoch_order(7, 0, 0, shuffle=False), np.arange(7))
    assert len(epoch_order(0, 0, 0)) == 0


def indices(sampler: EpochSampler) -> list[int]:
    got = list(sampler)
    assert len(got) == len(sampler) and {epoch for epoch, _ in got} <= {sampler.epoch}
    return [index for _, index in got]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize(("num_samples", "start_index"), [(23, 0), (23, 10), (24, 0), (2, 0), (5, 5)])
def test_processes_share_what_is_left(world_size, num_samples, start_index):
    for uneven in ("keep", "drop"):
        shares = [
            indices(
                EpochSampler(
                    num_samples, seed=1, epoch=2, rank=rank, world_size=world_size, start_index=start_index,
                    uneven=uneven,
                )
            )
            for rank in range(world_size)
        ]  # fmt: skip
        left = epoch_order(num_samples, 1, 2)[start_index:].tolist()
        together = [index for share in shares for index in share]
        assert len(set(together)) == len(together)
        assert max(map(len, shares)) - min(map(len, shares)) <= (uneven == "keep")
        if uneven == "keep":
            assert sorted(together) == sorted(left)
        else:
            assert sorted(together) == sorted(left[: len(left) // world_size * world_size])


def test_training_goes_on_with_the_very_next_sample():
    whole = [indices(EpochSampler(50, seed=9, rank=rank, world_size=2, epoch=1)) for rank in range(2)]
    batches, batch = 3, 4  # of each process, before it was stopped
    done = batches * batch * 2
    for rank in range(2):
        sampler = EpochSampler(50, seed=9, rank=rank, world_size=2)
        sampler.set_epoch(1, start_index=done)
        assert indices(sampler) == whole[rank][batches * batch :]
        sampler.set_epoch(1)
        assert indices(sampler) == whole[rank]
    # and with another number of processes it has what the two had not
    rest = [index for rank in range(5) for index in indices(
        EpochSampler(50, seed=9, rank=rank, world_size=5, epoch=1, start_index=done))]  # fmt: skip
    assert sorted(rest) == sorted(whole[0][batches * batch :] + whole[1][batches * batch :])


@pytest.mark.parametrize(
    ("change", "said"),
    [({"rank": 2, "world_size": 2}, "rank is 2"), ({"start_index": 6}, "start_index 6"), ({"epoch": -1}, "epoch is -1"),
     ({"uneven": "pad"}, "uneven is 'pad'")],
)  # fmt: skip
def test_wrong_calls_are_told(change, said):
    with pytest.raises(ValueError, match=said):
        EpochSampler(5, **change)
