"""`python -m mtmm_training` is `mtmm`, also under `accelerate launch -m`."""

import sys

from mtmm_training.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
