"""Data sets of a Hub on the loopback, and folders, in the place of manifests."""

import io
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import CHECKOUT
from hub_server import WRITER, Files, HubServer
from huggingface_hub import HfApi
from small_runs import SIZES

from mtmm_training.batches.cache import FeatureCache
from mtmm_training.commands import cli
from mtmm_training.data import sounds
from mtmm_training.data.manifest import read_manifest
from mtmm_training.data.recordings import Recordings
from mtmm_training.data.utterances import Utterance, by_id
from mtmm_training.publishing.card import Facts, Subject
from mtmm_training.publishing.dataset import push_dataset, save_dataset
from mtmm_training.training.config import TrainConfig
from mtmm_training.training.model import build_model

EMOTIONS = ["angry", "happy", "sad", "neutral"]


@pytest.fixture(scope="module")
def spoken(embedded: Path) -> list[Utterance]:
    """Twenty-four utterances of six speakers, four of each."""
    found: dict[str, list[Utterance]] = {}
    for u in read_manifest(embedded / "corpus" / "manifest.csv"):
        found.setdefault(u.speaker_id, []).append(u)
    return [u for speaker in sorted(found)[:6] for u in found[speaker][:4]]


def parquet(spoken: list[Utterance], label: str = "class", speakers: bool = True) -> bytes:
    """As `push_to_hub` writes it."""
    names = sorted({str(u.emotion) for u in spoken})
    columns: dict[str, Any] = {
        "audio": [
            {"bytes": Path(str(u.audio)).read_bytes(), "path": Path(str(u.audio)).name} for u in spoken
        ],
        "transcription": [u.text for u in spoken],
        "label": [names.index(str(u.emotion)) if label == "class" else u.emotion for u in spoken],
        "valence": [u.valence for u in spoken],
    }  # fmt: skip
    if speakers:
        columns["speaker_id"] = [u.speaker_id for u in spoken]
    features: dict[str, Any] = {"audio": {"_type": "Audio"}}
    if label == "class":
        features["label"] = {"_type": "ClassLabel", "names": names}
    table = pa.table(columns).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file, row_group_size=5)
    return file.getvalue()


def folder(spoken: list[Utterance]) -> Files:
    """As datasets' AudioFolder."""
    lines, files = ["file_name,sentence,emotion,speaker"], Files()
    for u in spoken:
        name = Path(str(u.audio)).name
        files[f"train/clips/{name}"] = Path(str(u.audio)).read_bytes()
        lines.append(f"clips/{name},{u.text},{u.emotion},{u.speaker_id}")
    return files | {"train/metadata.csv": "\n".join(lines).encode()}


# One process for all commands: each would take seconds to begin.
COMMANDS = """
import contextlib, io, json, sys
from unittest.mock import patch
import train_accelerate
from mtmm_training.commands.cli import main
answers = []
for words in json.load(open(sys.argv[1])):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), patch(
        "mtmm_training.training.report.draw", lambda *_: None
    ):
        status = train_accelerate.main(words[1:]) if words[0] == "train" else main(words)
    answers.append([status, out.getvalue()])
json.dump(answers, open(sys.argv[2], "w"))
"""


@pytest.fixture(scope="module")
def answers(
    spoken: list[Utterance], embedded: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """What each command answered, and what it left in the folder."""
    out = tmp_path_factory.mktemp("datasets")
    half = len(spoken) // 2
    repos: dict[str, Files] = {
        "classes": {"data/train-00000-of-00001.parquet": parquet(spoken)},
        "strings": {
            "data/train-0.parquet": parquet(spoken[:half], "string"),
            "data/train-1.parquet": parquet(spoken[half:], "string"),
        },
        "folder": folder(spoken),
        "nobody": {"data/train.parquet": parquet(spoken, speakers=False)},
        "private": {
            f"data/{split}.parquet": parquet(part) for split, part in thirds(spoken).items()
        },
    }
    with HubServer() as server:
        for name, files in repos.items():
            server.put(f"datasets/writer/{name}", files, private=name == "private")
        revision = server.repos["datasets/writer/classes"].branches["main"]
        server.put("datasets/writer/classes", {"data/train.parquet": parquet(spoken[:3])})
        train = lambda name, *flags: [  # noqa: E731
            "train", "--dataset", f"writer/{name}", "--out", str(out / name.partition("@")[0]), *flags,
            "--cache_dir", str(out / "cache"), *small(embedded),
        ]  # fmt: skip
        model = str(out / "private")
        at = ["--dataset", f"writer/classes@{revision}"]
        (out / "map.json").write_text(json.dumps({"sad": "neutral", "happy": None}))
        commands = {
            "classes": train(f"classes@{revision}"),
            "strings": train("strings", "--label_map", str(out / "map.json")),
            "folder": train("folder"),
            "nobody": train("nobody"),
            "nobody, said": train("nobody", "--speakers_unknown"),
            "private": train("private"),
            "baselines": ["baselines", *train("private")[1:3], "--out", str(out / "linear"), "--folds", "0",
                          "--cache_dir", str(out / "cache"), *small(embedded)[:9], "--layers", "last"],
            "inspect": ["inspect", *at],
            "predict": ["predict", *at, "--model", model, "--csv"],
            "score": ["score", model, *at],
            "embed": ["embed", *at, "--model", model, "--out", str(out / "e.parquet")],
            "no split": ["inspect", *at, "--dataset_split", "test"],
        }  # fmt: skip
        (out / "commands.json").write_text(json.dumps(list(commands.values())))
        environment = server.environment(out / "home")
        words = [
            sys.executable,
            "-c",
            COMMANDS,
            str(out / "commands.json"),
            str(out / "answers.json"),
        ]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, cwd=CHECKOUT)
        assert done.returncode == 0, done.stderr[-3000:]
        told = dict(zip(commands, json.loads((out / "answers.json").read_text()), strict=True))
        kept = [path for path in (out / "home").rglob("*") if path.is_file()]
        yield {"out": out, "revision": revision, "kept": kept, "server": server, **told}


def thirds(spoken: list[Utterance]) -> dict[str, list[Utterance]]:
    return {"train": spoken[:8], "validation": spoken[8:16], "test": spoken[16:]}


def small(embedded: Path) -> list[str]:
    return [
        "--audio_encoder", str(embedded / "encoders" / "audio"),
        "--text_encoder", str(embedded / "encoders" / "text"), "--emotions", *EMOTIONS,
        "--epochs", "1", "--batch_size", "8", "--workers", "0", "--tracker", "none",
        "--model_config", json.dumps(SIZES),
    ]  # fmt: skip


def results(answers: dict[str, Any], name: str) -> dict[str, Any]:
    assert answers[name][0] == 0, answers[name][1]
    return json.loads((answers["out"] / name.partition(",")[0] / "results.json").read_text())


def test_five_shapes_train(answers: dict[str, Any], spoken: list[Utterance]) -> None:
    count = Counter(str(u.emotion) for u in spoken)
    for name in ("classes", "folder", "nobody, said", "private"):
        found = results(answers, name)
        total = sum((Counter(split["emotions"]) for split in found["splits"].values()), Counter())
        assert total == count and found["splits"]["train"]["with_audio"] > 0
    mapped = results(answers, "strings")["splits"].values()
    total = sum((Counter(split["emotions"]) for split in mapped), Counter())
    assert total["neutral"] == count["neutral"] + count["sad"] and "happy" not in total
    assert sum(split["utterances"] for split in mapped) == len(spoken)


def test_results_name_the_data_set(answers: dict[str, Any]) -> None:
    revision = answers["revision"]
    found = results(answers, "classes")
    assert found["datasets"] == [
        {"id": "writer/classes", "revision": revision, "config": "default", "splits": ["train"],
         "fingerprint": revision}
    ]  # fmt: skip
    assert found["config"]["manifest"] == [f"dataset:writer/classes@{revision}"]
    assert Subject("a/b", found, None, Facts(), [found]).datasets == ["writer/classes"]
    private = results(answers, "private")
    assert (
        private["datasets"][0]["revision"]
        in answers["server"].repos["datasets/writer/private"].commits
    )
    assert private["config"]["protocol"] == "official"
    assert [private["splits"][s]["utterances"] for s in ("train", "validation", "test")] == [
        8,
        8,
        8,
    ]


def test_speakers_that_are_missing_are_said(answers: dict[str, Any]) -> None:
    status, said = answers["nobody"]
    assert status == 1 and "--speakers_unknown" in said
    found = results(answers, "nobody, said")
    assert len(found["splits"]["train"]["speakers"]) == found["splits"]["train"]["utterances"]


def test_whatever_takes_a_manifest_takes_a_data_set(
    answers: dict[str, Any], spoken: list[Utterance]
) -> None:
    for name in ("baselines", "inspect", "predict", "score", "embed"):
        assert answers[name][0] == 0, answers[name][1]
    assert f"classes: {len(spoken)} utterances, 6 speakers" in answers["inspect"][1]
    rows = [line for line in answers["predict"][1].splitlines() if ".wav," in line]
    assert len(rows) == len(spoken)
    assert f"{len(spoken)} utterances of 6 speakers" in answers["score"][1]
    assert pyarrow.parquet.read_table(answers["out"] / "e.parquet").num_rows == len(spoken)
    assert answers["no split"][0] == 1 and "'test'; it has train" in answers["no split"][1]


def test_nothing_but_states_is_kept(answers: dict[str, Any]) -> None:
    """No recording and no table: what the Hub's client keeps is cards and the like."""
    assert not [p for p in answers["kept"] if p.suffix in (".parquet", ".wav", ".arrow", ".csv")]
    assert sum(path.stat().st_size for path in answers["kept"]) < 10**6


def test_a_block_of_a_table_is_one_process_share(
    spoken: list[Utterance], embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.parquet").write_bytes(parquet(spoken))  # five blocks
    utterances = read_manifest(tmp_path / "t.parquet")
    config = TrainConfig(
        manifest=["-"], audio_encoder=str(embedded / "encoders" / "audio"),
        text_encoder=str(embedded / "encoders" / "text"), model_config=json.dumps(SIZES),
    ).resolve()  # fmt: skip
    model, processor = build_model(config)
    read = Counter[tuple[Any, ...]]()
    counts = []
    for rank in range(2):
        sounds._group.cache_clear()
        cache = FeatureCache(tmp_path / "c", model, processor, Recordings(tmp_path / "c"))
        cache.missing(utterances)  # identifies the recordings
        monkeypatch.setattr(sounds, "_group", counting(sounds._group, read))
        counts.append(cache.encode(utterances, rank=rank, world_size=2)["audio"])
        monkeypatch.undo()
    assert sum(counts) == len(spoken) and min(counts) > 0
    assert set(read.values()) == {1} and len(read) == 5
    assert (
        len(list(cache.shards["audio"].folder.glob("*.safetensors"))) == 2
    )  # not one of each block


def counting(function: Any, read: Counter[tuple[Any, ...]]) -> Any:
    """Counts what it could not answer from memory."""

    def counted(*given: Any) -> Any:
        before = function.cache_info().misses
        answer = function(*given)
        read[given[1:2]] += function.cache_info().misses - before
        return answer

    function.cache_clear()
    return counted


def test_a_saved_data_set_is_read_back(spoken: list[Utterance], tmp_path: Path) -> None:
    part = replace(spoken[1], start_s=0.1, end_s=0.3, votes={"sad": 2.0}, split="test")
    silent = replace(spoken[2], audio=None, improvised=True)
    given = [spoken[0], part, silent]
    save_dataset(given, tmp_path / "d", "d", "cc-by-4.0")
    with pytest.raises(FileExistsError):
        save_dataset(given, tmp_path / "d", "d", "cc-by-4.0")
    again = by_id(read_manifest(f"dataset:{tmp_path / 'd'}"))
    for u in given:
        now = again[u.utterance_id]
        lost: dict[str, Any] = {"audio": None, "start_s": None, "end_s": None, "split": None}
        assert replace(now, **lost, text="-") == replace(u, **lost, text="-") and now.text == u.text
        assert (now.audio is None) == (u.audio is None)
    assert again[part.utterance_id].split == "test" and again[silent.utterance_id].split == "train"
    heard, rate = sounds.waveform(str(again[part.utterance_id].audio))
    expected, _ = sounds.waveform(str(part.audio), 0.1, 0.3)
    assert rate == 16000 and abs(heard - expected).max() < 1e-6
    card = (tmp_path / "d" / "README.md").read_text()
    assert "license: cc-by-4.0" in card and "3 utterances" in card


def test_classes_whose_names_are_numbers_are_named_once(
    spoken: list[Utterance], tmp_path: Path
) -> None:
    given = [replace(u, emotion=name) for u, name in zip(spoken[:3], "321", strict=True)]
    (tmp_path / "train.parquet").write_bytes(parquet(given))
    names = {"class_label": {"names": {"0": "1", "1": "2", "2": "3"}}}
    info = json.dumps({"dataset_info": {"features": [{"name": "label", "dtype": names}]}})
    (tmp_path / "README.md").write_text(f"---\n{info}\n---\n")
    assert [u.emotion for u in read_manifest(f"dataset:{tmp_path}")] == ["3", "2", "1"]


def test_a_corpus_that_may_not_be_passed_on_is_refused(tmp_path: Path) -> None:
    for words in (
        ["--corpus", "iemocap", "--corpus_dir", str(tmp_path), "--licence", "mit"],
        ["--manifest", "m.csv"],  # without a licence
    ):
        assert cli.main(["dataset", "save", str(tmp_path / "x"), *words]) == 2
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("verb", [["inspect", "--manifest"], ["score", "model"]])
def test_a_manifest_beside_a_data_set_is_refused(verb: list[str]) -> None:
    assert cli.main([*verb, "m.csv", "--dataset", "writer/d"]) == 2


def test_a_data_set_is_pushed(spoken: list[Utterance], tmp_path: Path) -> None:
    save_dataset(spoken[:2], tmp_path / "d", "d", "mit")
    with HubServer() as server:
        api = HfApi(endpoint=server.url, token=WRITER)
        push_dataset(tmp_path / "d", "writer/d", True, api)
        repo = server.repos["datasets/writer/d"]
        files = repo.commits[repo.branches["main"]]
        assert repo.private and {"README.md", "data/train-00000.parquet"} <= set(files)
