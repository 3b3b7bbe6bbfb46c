"""Count what is in a corpus or a manifest.

examples:
mtmm inspect --corpus iemocap --corpus_dir IEMOCAP_full_release --out out/iemocap
mtmm inspect --corpus crema_d --corpus_dir CREMA-D --labels all
mtmm inspect --manifest my_corpus/manifest.csv
"""

import argparse
from pathlib import Path

from mtmm_training.commands.flags import declare, refuse
from mtmm_training.data import hub
from mtmm_training.data.corpora import CORPORA, CORPUS_FLAGS
from mtmm_training.data.corpora.labels import LABELS

# Options of a reader that have a flag of their own here.
TAKEN = CORPUS_FLAGS | {"official_split": "--official_split"}


def add_flags(parser: argparse.ArgumentParser) -> None:
    known = [f"{name:12} {facts['contents']}" for name, facts in CORPORA.items()]
    groups = declare(parser, "inspect", corpus={"choices": CORPORA})
    groups["with --corpus"].description = "\n".join(known)


def run(options: argparse.Namespace) -> None:
    of_corpus = ("corpus_dir", "labels", "partial", "official_split", "corpus_options")
    given = [f"--{name}" for name in of_corpus if getattr(options, name)]
    of_reader = options.corpus_options or {}
    places = [*filter(None, [options.manifest]), *hub.places_of(options)]
    taken = [TAKEN[name] for name in of_reader if name in TAKEN]
    refuse(
        (len(places) + bool(options.corpus) != 1,
         "give one of --corpus, --manifest and --dataset"),
        (places and given, f"{' and '.join(given)} go with --corpus"),
        (options.corpus and not options.corpus_dir, "--corpus needs --corpus_dir"),
        (options.corpus and options.dimension_range, "--dimension_range goes with --manifest"),
        (taken, f"--corpus_options cannot set {' and '.join(taken)}; give that flag"),
        (options.labels and options.corpus not in LABELS, f"{options.corpus} has no emotions"),
    )  # fmt: skip
    from mtmm_training.data.corpora import read_corpus
    from mtmm_training.data.manifest import read_manifest
    from mtmm_training.studies.inspect_corpus import inspect

    if places:
        (place,) = places
        of_hub = hub.is_dataset(place)
        name = hub.name_of(place) if of_hub else Path(place).resolve().parent.name
        scale = options.dimension_range or (1.0, 5.0)
        utterances = read_manifest(place, dimension_range=scale, speakers=not of_hub)
    else:
        name = options.corpus
        names = ("partial", "official_split", *(["labels"] if options.labels else []))
        of_reader |= {flag: getattr(options, flag) for flag in names}
        utterances = read_corpus(name, options.corpus_dir, **of_reader)
    print(inspect(utterances, name, options.out))
    if options.out is not None:
        print(f"\nwrote {options.out / name}.txt, .png and .pdf")
