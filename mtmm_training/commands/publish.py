"""Write the model card and upload a model to the Hub.

What is uploaded is on an allow-list; predictions, logs, paths and speakers stay at home.

examples:
mtmm publish out/run someone/mtmm --dry_run
mtmm publish out/run someone/mtmm --licence cc-by-nc-4.0 --tag v1
"""

import argparse
import difflib
from dataclasses import fields
from pathlib import Path
from typing import Any

from mtmm_training.commands.flags import refuse

LICENCES = Path(__file__).parents[1] / "publishing" / "licences.txt"  # the Hub's ids


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", help="folder of a finished run")
    add("repo_id", help="where to: user/name or organisation/name")
    add("--dry_run", action="store_true",
        help="stage, check, and list what would go where; upload nothing")  # fmt: skip
    add("--out", help="keep the staged folder here, to look at")
    add("--endpoint", action="store_true",
        help="also handler.py, which the Hub's Inference Endpoints call")  # fmt: skip
    add("--adapter", action="store_true",
        help="publish a LoRA run's adapter alone, not the whole model it was merged into",
        )  # fmt: skip

    add("--heads_only", action="store_true",
        help="publish fusion and heads alone, which name their encoders on the Hub")  # fmt: skip

    add = parser.add_argument_group("where to").add_argument
    add("--private", action="store_true", help="make a new repository private")
    add("--branch", help="upload to this branch; made if it does not exist")
    add("--pull_request", action="store_true",
        help="open a pull request instead of changing the branch")  # fmt: skip
    add("--tag", help="name the uploaded commit")
    add("--message", default="Publish an MTMM model", help="commit message")

    add = parser.add_argument_group("what the card says").add_argument
    add("--licence", help="of the weights, as the Hub names it")
    add("--language", nargs="+", help="ISO 639-1 codes of the speech; en if not given")
    add("--corpus_name", help="name of the training data, as readers know it")
    add("--corpus_licence", help="licence or terms of the training data")
    add("--datasets", nargs="+", help="Hub ids of the training data")
    add("--base_model", nargs="+", metavar="ID",
        help="Hub ids that the model derives from; for --adapter the MTMM model it belongs to, for "
        "--heads_only the audio and the text encoder",
        )  # fmt: skip
    add("--folds", nargs="+", metavar="RUN",
        help="folders of the other folds' runs, for mean and spread")  # fmt: skip
    add("--example", help="recording for the example; a tone if not given")
    add("--example_text", help="its transcript")
    add("--name_speakers", action="store_true",
        help="keep speakers' ids in results.json (public corpora only)")  # fmt: skip


def run(options: argparse.Namespace) -> None:
    bases = options.base_model or []
    licence, known = options.licence, LICENCES.read_text(encoding="utf-8").split()
    near = difflib.get_close_matches(licence or "", known, n=1) or ["other"]
    refuse(
        (licence not in (None, *known),
         f"--licence {licence} is none of the Hub's, which refuses the card; is {near[0]} meant?"),
        ("/" not in options.repo_id, f"{options.repo_id} lacks its owner; give user/name"),
        (bool(options.pull_request and (options.branch or options.tag)),
         "--pull_request goes without --branch and --tag; merge first, then tag"),
        (bool(options.example) and not Path(options.example or "").is_file(),
         f"--example {options.example} is no file"),
        (options.adapter and len(bases) != 1, "--adapter needs --base_model with one Hub id"),
        (options.adapter and options.heads_only, "--adapter and --heads_only exclude each other"),
        (options.adapter and any(Path(base).exists() for base in bases),
         f"--base_model {' '.join(bases)} is a folder here; publish the base first, give its id"),
    )  # fmt: skip
    from mtmm_training.publishing.card import Facts
    from mtmm_training.publishing.hub import Target
    from mtmm_training.publishing.publish import publish

    given = {name: value for name, value in vars(options).items() if value is not None}

    def made(kind: Any) -> Any:
        return kind(**{f.name: given[f.name] for f in fields(kind) if f.name in given})

    how = {
        name: getattr(options, name)
        for name in ("adapter", "heads_only", "endpoint", "dry_run", "out")
    }
    publish(options.run, made(Target), made(Facts), **how)
