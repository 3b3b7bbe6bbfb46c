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
    lines = [f"{name}: {len(frame):,} utterances, {frame['speaker'].nunique():,} speakers", ""]
    facts = _facts(frame, same)
    width = max(map(len, facts), default=0)
    lines += [f"{fact:{width}}  {value}" for fact, value in facts.items()]
    for column in ("split", "session", "gender", "speaker"):
        if frame[column].notna().any():
            lines += ["", _cross_table(frame, column)]
    return "\n".join(lines)


def _facts(frame: pd.DataFrame, same: Sequence[Sequence[str]]) -> dict[str, str]:
    facts = {}
    seconds, words = frame["seconds"].dropna(), frame["words"].dropna()
    if len(seconds):
        low, middle, high = seconds.min(), seconds.median(), seconds.max()
        facts["audio"] = (
            f"{len(seconds):,} utterances, {seconds.sum() / 3600:.2f} h; each {low:.1f} to {high:.1f} s, "
            f"median {middle:.1f} s"
        )
        rates = frame["sampling_rate"].dropna().astype(int).value_counts()
        facts["sampling rate"] = ", ".join(f"{rate:,} Hz {n:,}" for rate, n in rates.items())
        listed = "; ".join(" = ".join(ids) for ids in same[:3]) + " ..." * (len(same) > 3)
        facts["one recording, several ids"] = f"{len(same)}: {listed}" if same else "0"
    if len(words):
        facts["text"] = (
            f"{len(words):,} utterances, {frame['text'].nunique():,} different; {words.min():g} to "
            f"{words.max():g} words, median {words.median():g}"
        )
    facts["scripts"] = f"{frame['script'].nunique():,} (script ids, or different texts without one)"
    if (frame["improvised"] == True).any():  # noqa: E712  # None is neither
        counts = frame["improvised"].map({True: "yes", False: "no"}).fillna("not known")
        flags = counts.value_counts().reindex(["yes", "no", "not known"], fill_value=0)
        facts["improvised"] = ", ".join(f"{n:,} {word}" for word, n in flags.items())
    for name in DIMENSIONS:
        values = frame[name].dropna()
        if len(values):
            facts[name] = (
                f"{len(values):,} utterances, {values.min():g} to {values.max():g}, mean "
                f"{values.mean():.2f}, sd {values.std(ddof=0):.2f}"
            )
    return facts


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
