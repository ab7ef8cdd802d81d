"""`python -m actionfuse.train RECIPE ...`, for launchers: torchrun, accelerate launch, srun."""

import sys

from actionfuse.cli import run

if __name__ == "__main__":
    run(["train", *sys.argv[1:]])
