"""Each audio file is read once, by whichever process; what is known of it is what it has."""

import hashlib
import logging
import multiprocessing
import resource
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from mtmm_training.batches.sampler import durations
from mtmm_training.data import recordings as module
from mtmm_training.data.recordings import INDEX, Recordings, doubled, excerpts
from mtmm_training.data.utterances import Utterance, UtteranceError

fork: Any = multiprocessing.get_context("fork")


def write(path: Path, seconds: float = 0.5, rate: int = 16000, seed: int = 0) -> str:
    noise = np.random.default_rng(seed).normal(0, 0.1, round(rate * seconds))
    soundfile.write(path, noise, rate, subtype="PCM_16")
    return str(path)


def utterance(name: str, audio: str | None, **fields: Any) -> Utterance:
    return Utterance(
        utterance_id=name, corpus="c", speaker_id="s", audio=audio, text="Hello.", **fields
    )


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """How often each file was read, by all processes that this one starts too."""
    read, log = module._read, tmp_path / "opened.txt"

    def counting(key: Any) -> Any:
        with log.open("a") as file:
            file.write(f"{Path(key[0]).name}\n")
        return read(key)

    monkeypatch.setattr(module, "_read", counting)
    return lambda: Counter(log.read_text().split() if log.exists() else [])


def test_recording_is_what_its_bytes_are(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", 0.5, 22050)
    found = Recordings().of([path])[path]
    assert found.digest == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert (found.duration_s, found.sampling_rate) == (0.5, 22050)


@pytest.mark.parametrize("folder", [True, False])
def test_file_is_read_once_until_it_changes(tmp_path: Path, opened: Any, folder: bool) -> None:
    path = write(tmp_path / "a.wav")
    recordings = Recordings(tmp_path / "cache" if folder else None)
    first = recordings.of([path, path])[path]
    assert recordings.of([path]) == {path: first} and opened() == {"a.wav": 1}
    write(tmp_path / "a.wav", seed=1)  # as many bytes
    recordings = Recordings(tmp_path / "cache" if folder else None)
    assert recordings.of([path])[path].digest != first.digest and opened() == {"a.wav": 2}
    again = Recordings(tmp_path / "cache" if folder else None).of([path])
    assert again == recordings.of([path]) and opened() == {"a.wav": 2 if folder else 3}


def test_processes_that_start_together_read_once(tmp_path: Path, opened: Any) -> None:
    paths = [write(tmp_path / f"{number}.wav", 0.1, seed=number) for number in range(20)]
    processes = [
        fork.Process(target=lambda: Recordings(tmp_path / "cache").of(paths)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert set(opened().values()) == {1} and len(opened()) == 20


def test_damaged_lines_are_read_again(tmp_path: Path, opened: Any) -> None:
    one, two = write(tmp_path / "1.wav"), write(tmp_path / "2.wav", seed=1)
    Recordings(tmp_path).of([one])
    index = tmp_path / INDEX
    whole = index.read_text()
    index.write_text(f'{whole}["{one}", 1]\n7\n{whole.strip()[:40]}')  # and a half line at the end
    assert Recordings(tmp_path).of([two])[two].duration_s == 0.5
    known = Recordings(tmp_path).of([one, two])
    assert opened() == {"1.wav": 1, "2.wav": 1}
    assert known[two].digest == hashlib.sha256(Path(two).read_bytes()).hexdigest()
    index.write_text(whole[:50])
    assert Recordings(tmp_path).of([one]) == {one: known[one]} and opened()["1.wav"] == 2


def test_index_that_cannot_be_written_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.wav")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))  # as a full disk
    try:
        found = Recordings(tmp_path).of([path])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert found[path].duration_s == 0.5
    assert f"{INDEX} cannot be written" in caplog.text


def test_what_is_no_audio_has_a_digest_alone(tmp_path: Path, opened: Any) -> None:
    path = tmp_path / "a.wav"
    path.write_text("not audio")
    found = Recordings(tmp_path).of([str(path)])[str(path)]
    assert found.duration_s is None and found.digest == hashlib.sha256(b"not audio").hexdigest()
    with pytest.raises(UtteranceError, match=r"Utterance u1: .*a\.wav") as caught:
        durations([utterance("u1", str(path))], Recordings(tmp_path))
    assert caught.value.utterance_id == "u1"
    assert opened() == {"a.wav": 2}  # another libsndfile may read it: it is not remembered


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone.wav"):
        Recordings().of([str(tmp_path / "gone.wav")])


def test_durations_are_of_the_part_that_is_meant(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", 2.0)
    whole = utterance("u", path)
    parts: list[dict[str, Any]] = [
        {},
        {"start_s": 0.5},
        {"end_s": 1.25},
        {"start_s": 1.5, "end_s": 9.0},
        {"audio": None},
    ]
    utterances = [replace(whole, **part) for part in parts]
    assert durations(utterances, Recordings()) == [2.0, 1.5, 1.25, 0.5, None]
    with pytest.raises(UtteranceError, match="begins at 3 s"):
        durations([replace(whole, start_s=3.0)], Recordings())


def test_equal_sounds_are_found_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.wav")
    copy = tmp_path / "copy.wav"
    copy.write_bytes(Path(path).read_bytes())
    utterances = [
        utterance("a", path), utterance("b", str(copy), start_s=0.0), utterance("c", path, end_s=0.1),
        utterance("d", None),
    ]  # fmt: skip
    with caplog.at_level(logging.WARNING):
        found = excerpts(utterances, Recordings())
    assert doubled(found) == [("a", "b")] and set(found) == {"a", "b", "c"}
    assert "'a', 'b'" in caplog.text
