"""What libraries say while they load and warn: nothing where nobody watches or could do anything."""

import os
import sys
import warnings

# Read by the libraries when they are imported, and inherited by the processes of folds.
_ERRORS_ONLY = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "false",  # or it warns of every fork of a loader
}
_NO_BARS = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
_LIBRARIES = r"(torch|transformers|accelerate|peft|datasets|huggingface_hub|sklearn|matplotlib)\b"


def hush() -> None:
    """Silence the libraries' notices; their bars as well, unless standard error is a terminal.

    What the user has set in the environment stays.
    """
    watched = sys.stderr is not None and sys.stderr.isatty()
    for name, value in (_ERRORS_ONLY if watched else _ERRORS_ONLY | _NO_BARS).items():
        os.environ.setdefault(name, value)
    if "transformers" in sys.modules:  # which has read the environment by now
        from transformers.utils import logging

        if os.environ["TRANSFORMERS_VERBOSITY"] == "error":
            logging.set_verbosity_error()
        if not watched:
            logging.disable_progress_bar()
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module=_LIBRARIES)
