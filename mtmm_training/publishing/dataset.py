"""Utterances as a data set of the Hub: Parquet with the recordings inside, and a card."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import soundfile
from huggingface_hub import CommitInfo, DatasetCard, DatasetCardData, HfApi

from mtmm_training.batches.collate import groups_of
from mtmm_training.data import sounds
from mtmm_training.data.files import replacing
from mtmm_training.data.manifest import COLUMNS
from mtmm_training.data.utterances import DIMENSIONS, Utterance, by_id
from mtmm_training.publishing.hub import hub_errors

BLOCK, FILE = 100, 2000  # rows that are read at once, as datasets writes audio, and of a file
_CARD = """
# {name}

{count:,} utterances of {speakers:,} speakers; {emotions}. `mtmm train --dataset PLACE` trains on it.
"""


def save_dataset(utterances: Sequence[Utterance], folder: Path, name: str, licence: str) -> None:
    """Writes data/SPLIT-N.parquet and README.md; a part of a recording becomes one of its own, as FLAC.

    Args:
        utterances: with different ids; those without a split are in "train".
        folder: gets the files, and has no others.
        name, licence: for the card; the licence as the Hub names it.

    Raises:
        ValueError: an id comes twice, or a recording cannot be read.
        OSError: the folder has something else, or cannot be written.
    """
    import pyarrow.parquet

    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; give another folder.")
    by_id(utterances)
    columns = [c for c, f in COLUMNS.items() if any(getattr(u, f) is not None for u in utterances)]
    columns = [c for c in columns if c not in ("audio", "start", "end", "split")]
    sound = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    kinds = {c: pyarrow.float64() if c in DIMENSIONS else pyarrow.string() for c in columns}
    features: dict[str, Any] = {
        c: {"_type": "Value", "dtype": "float64" if c in DIMENSIONS else "string"} for c in columns
    }
    kinds, features = kinds | {"audio": sound}, features | {"audio": {"_type": "Audio"}}
    described = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pyarrow.schema(list(kinds.items()), described)
    splits: dict[str, list[Utterance]] = {}
    for u in utterances:
        splits.setdefault(u.split or "train", []).append(u)
    for split, members in splits.items():
        for number, part in enumerate(groups_of(FILE, members)):
            with (
                replacing(folder / "data" / f"{split}-{number:05}.parquet") as unfinished,
                pyarrow.parquet.ParquetWriter(unfinished, schema) as file,
            ):
                for rows in groups_of(BLOCK, part):
                    table = pyarrow.Table.from_pylist([_row(u, columns) for u in rows], schema)
                    file.write_table(table)
    labels = Counter(u.emotion for u in utterances if u.emotion).most_common()
    emotions = ", ".join(f"{emotion} {count:,}" for emotion, count in labels)
    data = DatasetCardData(
        license=licence, pretty_name=name, task_categories=["audio-classification"]
    )
    counted = {"count": len(utterances), "speakers": len({u.speaker_id for u in utterances})}
    content = _CARD.format(name=name, emotions=emotions or "no emotions", **counted)
    with replacing(folder / "README.md") as unfinished:
        DatasetCard(f"---\n{data.to_yaml()}\n---\n{content}").save(unfinished)


def _row(u: Utterance, columns: Sequence[str]) -> dict[str, Any]:
    row = {column: getattr(u, COLUMNS[column]) for column in columns}
    row |= {c: json.dumps(v) for c, v in row.items() if isinstance(v, (dict, tuple))}
    row |= {c: str(v).lower() for c, v in row.items() if isinstance(v, bool)}
    if u.audio is None:
        return row
    suffix, place = (
        os.path.splitext(u.audio)[1] if sounds.is_named(u.audio) else "",
        sounds.source(u.audio),
    )
    if u.start_s is not None or u.end_s is not None:
        waveform, rate = sounds.waveform(u.audio, u.start_s, u.end_s)
        file = BytesIO()
        soundfile.write(file, waveform, rate, format="FLAC", subtype="PCM_24")
        place, suffix = file.getvalue(), ".flac"
    content = place if isinstance(place, bytes) else Path(place).read_bytes()
    return row | {"audio": {"bytes": content, "path": f"{u.utterance_id}{suffix}"}}


def push_dataset(folder: Path, repo_id: str, private: bool, api: HfApi | None = None) -> CommitInfo:
    """One commit with what `save_dataset` wrote; as `hub.hub_errors`."""
    api = api or HfApi()
    with hub_errors(repo_id):
        api.create_repo(repo_id, repo_type="dataset", private=private or None, exist_ok=True)
        return api.upload_folder(repo_id=repo_id, repo_type="dataset", folder_path=folder)
