"""Utterances as a data set of the Hub: Parquet with the recordings inside, and a card."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitInfo, DatasetCard, DatasetCardData, HfApi

from mtmm_training.batches.collate import groups_of
from mtmm_training.data.files import replacing
from mtmm_training.data.manifest import write_manifest
from mtmm_training.data.utterances import Utterance, by_id
from mtmm_training.publishing.hub import hub_errors

ROWS = 1000  # of a file
TEMPLATE = Path(__file__).with_name("dataset.md")


def save_dataset(utterances: Sequence[Utterance], folder: Path, name: str, licence: str) -> None:
    """Writes data/SPLIT-N.parquet and README.md.

    Args:
        utterances: with different ids; those without a split are in "train".
        folder: gets the files, and has no others.
        name: for the card.
        licence: for the card, as the Hub names it.

    Raises:
        ValueError: an id comes twice, or a recording cannot be read.
        OSError: the folder has something else, or cannot be written.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; give another folder.")
    splits: dict[str, list[Utterance]] = {}
    for u in by_id(utterances).values():
        splits.setdefault(u.split or "train", []).append(u)
    for split, members in splits.items():
        for number, part in enumerate(groups_of(ROWS, members)):
            write_manifest(part, folder / "data" / f"{split}-{number:05}.parquet")
    data = DatasetCardData(
        license=licence, pretty_name=name, task_categories=["audio-classification"]
    )
    card = DatasetCard.from_template(
        data, template_path=str(TEMPLATE), count=len(utterances),
        emotions=Counter(u.emotion for u in utterances if u.emotion).most_common(),
        speakers=len({u.speaker_id for u in utterances}),
    )  # fmt: skip
    with replacing(folder / "README.md") as unfinished:
        card.save(unfinished)


def push_dataset(folder: Path, repo_id: str, private: bool, api: HfApi | None = None) -> CommitInfo:
    """One commit with what `save_dataset` wrote; as `hub.hub_errors`."""
    api = api or HfApi()
    with hub_errors(repo_id):
        api.create_repo(repo_id, repo_type="dataset", private=private or None, exist_ok=True)
        return api.upload_folder(repo_id=repo_id, repo_type="dataset", folder_path=folder)
