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

from mtmm_training.commands.flags import declare, refuse

LICENCES = Path(__file__).parents[1] / "publishing" / "licences.txt"  # the Hub's ids


def add_flags(parser: argparse.ArgumentParser) -> None:
    declare(parser, "publish")


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
