"""What is in a corpus or a manifest: a table of counts, and a picture of the same."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mtmm_training.batches.sampler import durations
from mtmm_training.data.folds import script_of
from mtmm_training.data.recordings import Recordings, doubled, excerpts
from mtmm_training.data.utterances import DIMENSIONS, SPLITS, Utterance
from mtmm_training.pictures.of_corpora import MANY, NO_EMOTION, by_name, plot_corpus
from mtmm_training.scoring.texts import render
from mtmm_training.studies.tables import write_text


def inspect(utterances: Sequence[Utterance], name: str, out: str | Path | None = None) -> str:
    """Counts utterances by emotion, speaker, split and session, and measures what they have.

    Args:
        utterances: at least one.
        name: of the corpus, for the heading and the files' names.
        out: folder for the table and a picture, as <name>.txt, .png and .pdf; None = neither.

    Returns:
        The table, as plain text.

    Raises:
        UtteranceError: a file is no audio, or ends before an utterance begins.
        OSError: a file cannot be read or written.
    """
    recordings = Recordings()
    frame = describe(utterances, recordings)
    same = doubled(excerpts(utterances, recordings))
    shown = table(frame, name, same)
    if out is not None:
        write_text(shown + "\n", Path(out, f"{name}.txt"))
        plot_corpus(frame, Path(out, f"{name}.png"), name)
    return shown


def describe(utterances: Sequence[Utterance], recordings: Recordings) -> pd.DataFrame:
    """One row per utterance: what the table and the picture count.

    Returns:
        The fields of `Utterance` ("session_id" and "speaker_id" as "session" and "speaker"; the
        emotion is never absent) and "script", "words", "seconds", "sampling_rate" (Hz); absent values
        are None or NaN.
    """
    known = recordings.of(u.audio for u in utterances if u.audio is not None)
    names = {"session_id": "session", "speaker_id": "speaker"}
    frame = pd.DataFrame(list(utterances)).rename(columns=names)
    frame = frame.assign(
        emotion=frame["emotion"].fillna(NO_EMOTION),
        script=[script_of(u) if u.script_id or u.text else None for u in utterances],
        words=[None if u.text is None else len(u.text.split()) for u in utterances],
        sampling_rate=[known[u.audio].sampling_rate if u.audio else None for u in utterances],
        seconds=durations(utterances, recordings),
    )
    return frame.astype(dict.fromkeys(["words", "seconds", "sampling_rate", *DIMENSIONS], float))


def table(frame: pd.DataFrame, name: str, same: Sequence[Sequence[str]] = ()) -> str:
    """Counts what `describe` gives, as plain text.

    Args:
        frame: at least one row.
        name: of the corpus, for the heading.
        same: ids of utterances with the same audio, one sequence for each excerpt.
    """
    parts = [render("corpus.txt", frame=frame, name=name, same=same, dimensions=DIMENSIONS)]
    for column in ("split", "session", "gender", "speaker"):
        if frame[column].notna().any():
            parts.append(_cross_table(frame, column) + "\n")
    return "\n".join(parts).rstrip()


def _cross_table(frame: pd.DataFrame, column: str) -> str:
    """Utterances by the values of a column and by emotion; of many values only how large they are."""
    keys = frame[column].fillna("not known")
    sizes = keys.value_counts()
    if len(sizes) > MANY:
        largest = ", ".join(f"{key} {count:,}" for key, count in sizes.head(5).items())
        spread = f"{sizes.min():,} to {sizes.max():,}, median {statistics.median(sizes):g}"
        first = f"{column} ({len(sizes):,})"
        return f"{first:24}  utterances each\n{'':24}  {spread}\n{'':24}  most: {largest}"
    counts = pd.crosstab(keys, frame["emotion"])
    columns = by_name(counts.columns, NO_EMOTION)
    rows = by_name(counts.index, "not known")
    if column == "split":
        rows.sort(key=[*SPLITS, "not known"].index)
    counts = counts.loc[rows, columns]
    if columns == [NO_EMOTION]:
        counts = counts.drop(columns=NO_EMOTION)
    counts.insert(0, "all", sizes.reindex(rows))
    if len(rows) > 1:
        counts.loc["all"] = counts.sum()
    return counts.map("{:,}".format).rename_axis(index=None, columns=column).to_string()
