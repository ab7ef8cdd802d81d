"""The model of an extraction on random clips, nothing else: CLIPS, then options of `actionfuse extract`.

Prints the CPU-seconds and the wall seconds that it took, without starting up.
"""

from __future__ import annotations

import sys
import threading
import time

import torch
from _common import own_cpu_seconds
from _options import runner_of

from actionfuse._memory import keep_freed_memory
from actionfuse.extract.runner import Batch
from actionfuse.extract.settings import batch_clips, default_compute_threads


def main(clips: int, words: list[str]) -> None:
    keep_freed_memory()
    runner, batch = runner_of(words)
    size = batch_clips(batch, runner)
    threads, inside = default_compute_threads(runner.device)
    pixels = torch.randint(0, 256, (size, *runner.plan.clip_shape), dtype=torch.uint8).numpy()
    left = [-(-clips // size)]
    lock = threading.Lock()

    def work() -> None:
        torch.set_num_threads(inside)
        while True:
            with lock:
                if left[0] == 0:
                    return
                left[0] -= 1
            runner(Batch(pixels))

    runner(Batch(pixels))
    began, cpu = time.perf_counter(), own_cpu_seconds()
    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print(f"cpu {own_cpu_seconds() - cpu:.3f} wall {time.perf_counter() - began:.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
