"""`python -m actionfuse.extract ...`, for launchers: `accelerate launch -m actionfuse.extract ...`, torchrun, srun."""

import sys

from actionfuse.cli import main

if __name__ == "__main__":
    sys.exit(main(["extract", *sys.argv[1:]]))
