"""`python -m actionfuse.extract ...`, for launchers: `accelerate launch -m actionfuse.extract ...`, torchrun, srun."""

import sys

from actionfuse.cli import run

if __name__ == "__main__":
    run(["extract", *sys.argv[1:]])
