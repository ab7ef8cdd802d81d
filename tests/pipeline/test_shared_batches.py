"""Batches in shared memory that is used again: values stay as long as anybody looks at them."""

import gc
import os
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from actionfuse.pipeline import shared_batches
from actionfuse.pipeline.shared_batches import MAX_FREE, Blocks, SharedCollate, shared_memory_available

pytestmark = [
    pytest.mark.skipif(not shared_memory_available(), reason="without memfd torch's own way is used"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]
SIDE = 300  # 90,000 bytes a row: more than travels by value


class Numbers(Dataset):
    """Sample n is a picture full of n; sizes may grow."""

    def __init__(self, count: int, growing: bool = False) -> None:
        self.count, self.growing = count, growing

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, n: int) -> tuple[int, torch.Tensor]:
        return n, torch.full((SIDE + 40 * n if self.growing else SIDE, SIDE), n % 256, dtype=torch.uint8)


def together(samples, empty=None):
    empty = empty or (lambda shape, dtype: torch.empty(shape, dtype=dtype))
    pictures = empty((len(samples), *samples[0][1].shape), torch.uint8)
    for row, (_, picture) in zip(pictures, samples, strict=True):
        row[...] = picture
    wide = empty((len(samples), SIDE, SIDE), torch.float64)
    for row, (n, _) in zip(wide, samples, strict=True):
        row.fill_(n + 0.5)
    return {"streams": {"rgb": pictures, "wide": wide}, "n": torch.tensor([n for n, _ in samples]), "id": "x"}


def loader_of(count=12, workers=1, method="fork", pin_memory=False, **options):
    collate = SharedCollate(together)
    loader = DataLoader(
        Numbers(count, **options), batch_size=1, num_workers=workers, collate_fn=collate,
        persistent_workers=workers > 0, pin_memory=pin_memory,
        multiprocessing_context=method if workers else None,
    )  # fmt: skip
    collate.watch(loader)
    return loader, collate


def whole(batch) -> bool:
    n = batch["n"].item()
    rgb, wide = batch["streams"]["rgb"], batch["streams"]["wide"]
    return bool((rgb == n % 256).all()) and bool((wide == n + 0.5).all()) and wide.dtype == torch.float64


@pytest.mark.parametrize(("workers", "method"), [(0, "fork"), (2, "fork"), (1, "spawn")])
def test_values_and_memory_that_comes_back(workers, method):
    loader, collate = loader_of(workers=workers, method=method)
    for _ in range(3):
        assert [b["n"].item() for b in loader if whole(b)] == list(range(12))
    # two tensors a batch: two batches wait with each worker, one is looked at, one is made, one is on its way
    mapped = shared_batches._mapped.get(collate.loader, {})
    assert (0 < len(mapped) <= 10 * workers) if workers else not mapped


def test_a_thread_that_copies_to_pinned_memory_gives_blocks_back(monkeypatch):
    """As where a GPU computes: batches arrive in a thread of the loader, which copies them and lets their blocks go."""
    pinned = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda _: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self.data_ptr()) or self.clone())
    loader, collate = loader_of(workers=2, pin_memory=True)
    for _ in range(3):
        batches = list(loader)  # all of them held: they are copies, and no block waits for them
        assert [b["n"].item() for b in batches] == list(range(12)) and all(map(whole, batches))
    mapped = shared_batches._mapped[collate.loader]
    assert len(pinned) == 3 * 12 * 3 and 0 < len(mapped) <= 20


def test_what_is_held_is_not_written_to():
    loader, collate = loader_of()
    batches = list(loader)
    assert all(map(whole, batches))
    views = [batch["streams"]["rgb"][0, 5:] for batch in batches]
    arrays = [batch["streams"]["wide"].numpy()[0, ::7] for batch in batches]
    del batches
    gc.collect()
    again = [batch["n"].item() for batch in loader]
    assert again == list(range(12))
    assert all((view == n).all() for n, view in enumerate(views))
    assert all((array == n + 0.5).all() for n, array in enumerate(arrays))
    views[3][...] = 77  # a batch may be written to: it is the reader's own
    assert (views[3] == 77).all() and (views[4] == 4).all()


def test_small_tensors_travel_by_value():
    loader, collate = loader_of()
    labels = [batch["n"] for batch in loader]
    assert [label.item() for label in labels] == list(range(12))
    assert len(shared_batches._mapped[collate.loader]) <= 10, "labels that were kept kept pictures"
    assert all(label.untyped_storage().nbytes() == 8 for label in labels)


def test_batches_that_grow():
    loader, collate = loader_of(count=40, growing=True)
    seen = [batch["streams"]["rgb"].shape[1] for batch in loader if whole(batch)]
    assert seen == [SIDE + 40 * n for n in range(40)]
    assert len(shared_batches._mapped[collate.loader]) <= 10 + MAX_FREE, "blocks that are too small were kept"


def test_a_forked_child_gives_nothing_back():
    loader, _ = loader_of()
    held = next(iter(loader))
    child = os.fork()
    if child == 0:
        del held
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert len(list(loader)) == 12 and whole(held)


def test_memory_goes_with_the_loader_but_tensors_stay():
    loader, collate = loader_of()
    batches = list(loader)
    assert collate.loader in shared_batches._mapped
    del loader
    gc.collect()
    assert collate.loader not in shared_batches._mapped
    assert all(map(whole, batches))


def test_an_epoch_that_is_broken_off():
    loader, _ = loader_of()
    for batch in loader:
        assert whole(batch)
        break
    assert [batch["n"].item() for batch in loader if whole(batch)] == list(range(12))


def test_free_blocks_are_few():
    blocks = Blocks("a loader")
    taken = [blocks.take(size) for size in range(1, 30)]
    assert len({block.number for block in taken}) == 29
    for block in taken:
        block.memory[0] = 0
    last = blocks.take(5)
    assert last.size >= 5 and len(blocks.blocks) == MAX_FREE and len(blocks.gone) == 29 - MAX_FREE
    assert last in blocks.blocks and not last.free


def test_a_collate_pickles_without_its_memory():
    collate = SharedCollate(together)
    collate._blocks = Blocks(collate.loader)
    collate._blocks.take(100_000)
    copied = pickle.loads(pickle.dumps(collate))
    assert copied._blocks is None and copied.loader == collate.loader
    here = copied([(3, torch.full((SIDE, SIDE), 3, dtype=torch.uint8))])
    assert whole(here) and isinstance(here["streams"]["wide"].numpy(), np.ndarray)
