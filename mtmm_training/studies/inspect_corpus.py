"""What is in a corpus or a manifest: a table of counts, and a picture of the same.

mtmm inspect --corpus iemocap --corpus_dir IEMOCAP_full_release --out out/iemocap
mtmm inspect --manifest my_corpus/manifest.csv
"""

import argparse
import json
import logging
import math
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtmm_training.commands.flags import folder
from mtmm_training.data.corpora import CORPORA, CORPUS_FLAGS, read_corpus
from mtmm_training.data.corpora.labels import LABELS
from mtmm_training.data.folds import doubled_recordings, recording_digests, script_of
from mtmm_training.data.utterances import DIMENSIONS, Utterance, read_manifest
from mtmm_training.files import replacing
from mtmm_training.pictures.of_corpora import (
    MANY,
    NO_EMOTION,
    _audio,
    _emotion,
    _emotions,
    _ordered,
    durations,
    plot_corpus,
)


def table(utterances: Sequence[Utterance], name: str) -> str:
    """Describes utterances in plain text.

    Args:
        utterances: at least one.
        name: of the corpus, for the heading.
    """
    seconds = durations(utterances)
    speakers = {u.speaker_id for u in utterances}
    lines = [f"{name}: {len(utterances):,} utterances, {len(speakers):,} speakers", ""]
    lines += _facts(utterances, seconds)
    groups: dict[str, list[str | None]] = {
        "split": [u.split for u in utterances],
        "session": [u.session_id for u in utterances],
        "gender": [u.gender for u in utterances],
        "speaker": [u.speaker_id for u in utterances],
    }
    emotions = _emotions(utterances)
    for what, keys in groups.items():
        if any(key is not None for key in keys):
            lines += ["", *_cross_table(what, keys, [_emotion(u) for u in utterances], emotions)]
    return "\n".join(lines)


def _facts(utterances: Sequence[Utterance], seconds: dict[str, float]) -> list[str]:
    facts = []
    if seconds:
        low, middle, high = (f(seconds.values()) for f in (min, statistics.median, max))
        facts.append(
            ("audio", f"{len(seconds):,} utterances, {sum(seconds.values()) / 3600:.2f} h; each "
             f"{low:.1f} to {high:.1f} s, median {middle:.1f} s")
        )  # fmt: skip
        rates = Counter(_audio(u.audio)[1] for u in utterances if u.audio)
        facts.append(
            ("sampling rate", ", ".join(f"{rate:,} Hz {n:,}" for rate, n in rates.items()))
        )
        facts.append(("one recording, several ids", _doubled(utterances)))
    texts = [u.text for u in utterances if u.text is not None]
    if texts:
        words = [len(text.split()) for text in texts]
        facts.append(
            ("text", f"{len(texts):,} utterances, {len(set(texts)):,} different; "
             f"{min(words)} to {max(words)} words, median {statistics.median(words):g}")
        )  # fmt: skip
    scripts = {script_of(u) for u in utterances if u.script_id or u.text}
    facts.append(("scripts", f"{len(scripts):,} (script ids, or different texts without one)"))
    improvised = Counter(u.improvised for u in utterances)
    if improvised[True]:
        flags = {True: "yes", False: "no", None: "not known"}
        shown = ", ".join(f"{improvised[flag]:,} {word}" for flag, word in flags.items())
        facts.append(("improvised", shown))
    for name in DIMENSIONS:
        values = [getattr(u, name) for u in utterances if getattr(u, name) is not None]
        if values:
            facts.append(
                (name, f"{len(values):,} utterances, {min(values):g} to {max(values):g}, mean "
                 f"{statistics.fmean(values):.2f}, sd {statistics.pstdev(values):.2f}")
            )  # fmt: skip
    width = max(len(name) for name, _ in facts)
    return [f"{name:{width}}  {value}" for name, value in facts]


def _doubled(utterances: Sequence[Utterance]) -> str:
    doubled = doubled_recordings(recording_digests(utterances))
    shown = "; ".join(" = ".join(ids) for ids in doubled[:3])
    return f"{len(doubled)}{': ' if doubled else ''}{shown}{' ...' if len(doubled) > 3 else ''}"


def _cross_table(
    what: str, keys: Sequence[str | None], emotions: Sequence[str], columns: Sequence[str]
) -> list[str]:
    counts = Counter(keys)
    cells = Counter(zip(keys, emotions, strict=True))
    if len(counts) > MANY:
        sizes = sorted(counts.values())
        largest = ", ".join(f"{key} {count:,}" for key, count in counts.most_common(5))
        rows = [
            [f"{what} ({len(counts):,})", "utterances each"],
            ["", f"{sizes[0]:,} to {sizes[-1]:,}, median {statistics.median(sizes):g}"],
            ["", f"most: {largest}"],
        ]
        return [f"{first:24}  {second}" for first, second in rows]
    wide = [name for name in columns if name != NO_EMOTION or len(columns) > 1]
    rows = [[what, "all", *wide]]
    for key in _ordered(counts):
        per_emotion = [f"{cells[key, name]:,}" for name in wide]
        rows.append(["not known" if key is None else key, f"{counts[key]:,}", *per_emotion])
    if len(counts) > 1:
        totals = Counter(emotions)
        rows.append(["all", f"{len(keys):,}", *(f"{totals[name]:,}" for name in wide)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            f"{cell:<{width}}" if i == 0 else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


NO_OPTIONS = CORPUS_FLAGS | {"official_split": "--official_split"}


def _json_object(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text} is not JSON ({error}); put it in single quotes, which keep its double quotes from "
            """the shell, such as '{"NAME": "VALUE"}'"""
        ) from error
    if not isinstance(content, dict):
        raise argparse.ArgumentTypeError(f"{text} is no JSON object")
    return content


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    contents = "\n".join(f"  {name:12} {reader.contents}" for name, reader in CORPORA.items())
    parser = argparse.ArgumentParser(
        prog="python -m mtmm_training.studies.inspect_corpus",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Lists what a corpus has: counts by emotion, speaker, split and session, hours,"
        "\nranges of the labels, transcripts, and recordings that are there twice.",
        epilog=f"corpora, as their makers distribute them:\n{contents}\n\nexamples:\n"
        "  --corpus iemocap --corpus_dir IEMOCAP_full_release --out out/iemocap\n"
        "  --corpus crema_d --corpus_dir CREMA-D --labels all\n"
        "  --manifest my_corpus/manifest.csv   (columns: speaker, audio or text, emotion, ...)",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--corpus", choices=CORPORA, metavar="NAME", help="one of those below")
    source.add_argument("--manifest", metavar="FILE", help="a .csv, .tsv, .jsonl or .parquet table")
    parser.add_argument("--corpus_dir", metavar="DIR", help="what the corpus was unpacked into")
    parser.add_argument(
        "--labels", choices=("four", "all"),
        help="four: angry, happy, neutral, sad, and nothing else is read; all: every emotion that "
        "the corpus has. Without it, all for meld and four for the others",
    )  # fmt: skip
    parser.add_argument(
        "--partial", action="store_true",
        help="go on, with a warning, where the corpus is not complete",
    )  # fmt: skip
    parser.add_argument(
        "--corpus_options", type=_json_object, default={}, metavar="JSON",
        help="""other options of the corpus's reader, such as '{"audio_dir": "MELD/wav"}'""",
    )  # fmt: skip
    parser.add_argument(
        "--dimension_range", type=float, nargs=2, metavar=("LOW", "HIGH"),
        help="the scale of the manifest's valence, arousal and dominance; 1 5 if not given",
    )  # fmt: skip
    parser.add_argument(
        "--official_split", action="store_true",
        help="read for the corpus's own split, as protocol official does",
    )  # fmt: skip
    parser.add_argument(
        "--out", metavar="FOLDER", type=folder,
        help="also write the table and a picture there, as <name>.txt and <name>.png",
    )  # fmt: skip
    arguments = parser.parse_args(words)
    if (arguments.corpus is None) != (arguments.corpus_dir is None):
        parser.error("--corpus and --corpus_dir go together: the corpus's name and its folder")
    of_corpus = ("labels", "partial", "official_split", "corpus_options")
    if arguments.manifest and any(getattr(arguments, name) for name in of_corpus):
        parser.error(
            f"{', '.join('--' + name for name in of_corpus)} are for --corpus, not --manifest"
        )
    for name, flag in NO_OPTIONS.items():
        if name in arguments.corpus_options:
            parser.error(f"--corpus_options cannot have {name!r}: give {flag}")
    if arguments.corpus and arguments.dimension_range:
        parser.error("--dimension_range is for --manifest: a corpus has its own")
    low, high = arguments.dimension_range or (1.0, 5.0)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        parser.error(
            f"--dimension_range is {low:g} {high:g}; it must be two finite numbers, the lower one first"
        )
    if arguments.labels and arguments.corpus not in LABELS:
        parser.error(f"--labels is not possible: {arguments.corpus} has no emotion labels")
    arguments.dimension_range = (low, high)
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    logging.basicConfig(format="%(message)s")
    arguments = _arguments(words)
    try:
        if arguments.manifest:
            name = Path(arguments.manifest).resolve().parent.name
            utterances = read_manifest(
                arguments.manifest, dimension_range=arguments.dimension_range
            )
        else:
            name = arguments.corpus
            options = {"partial": arguments.partial} | arguments.corpus_options
            options |= {"labels": arguments.labels} if arguments.labels else {}
            utterances = read_corpus(
                name,
                arguments.corpus_dir,
                official_split=arguments.official_split,
                **options,
            )
        listed = table(utterances, name)
        print(listed)
        if arguments.out is not None:
            with replacing(arguments.out / f"{name}.txt") as temporary:
                temporary.write_text(listed + "\n", encoding="utf-8")
            plot_corpus(utterances, arguments.out / f"{name}.png", name)
            print(f"\nwrote {arguments.out / name}.txt and .png")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
