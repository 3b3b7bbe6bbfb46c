"""Disks that are full, read-only or not ours: one sentence, nothing half written, and the next run goes on.

The disks are small tmpfs, mounted for this process alone: they vanish with it. As root in Linux only.
Run alone: python -m pytest tests/test_disk_faults.py
"""

import ctypes
import errno
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
import torch
from matplotlib.figure import Figure
from safetensors import SafetensorError

from modeling_mtmm import MTMMModel
from mtmm_training.batches import cache as features
from mtmm_training.batches.cache import FeatureCache
from mtmm_training.batches.collate import to_dataset
from mtmm_training.batches.shards import StateShards
from mtmm_training.commands.cli import main
from mtmm_training.data.files import replacing, sweep, writing
from mtmm_training.data.recordings import Recordings
from mtmm_training.data.utterances import Utterance
from mtmm_training.pictures import style
from pipeline_mtmm import MTMMPipeline
from processing_mtmm import MTMMProcessor

CLONE_NEWNS = 0x20000  # of Linux: mounts of our own
NOBODY = 65534
FULL = "could not be written .*No space left on device"
CLOSED = "could not be written .*Read-only file system"


@pytest.fixture(scope="module")
def own_mounts() -> None:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small disk takes root in Linux")
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
        pytest.skip(f"no mounts of our own here: {os.strerror(ctypes.get_errno())}")
    mount("--make-rprivate", "/")


def mount(*words: str | Path) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path, own_mounts: None) -> Iterator[Path]:
    """The folder of a disk of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=8m", "tmpfs", folder)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path, leave: int = 0) -> None:
    """Takes all of the disk's space but `leave` bytes."""
    (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free - leave))


def make_space(disk: Path) -> None:
    (disk / "ballast").unlink()


def written(disk: Path) -> dict[str, bytes]:
    """All files of the disk, hidden ones too."""
    found = {str(path.relative_to(disk)): path for path in disk.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != "ballast"}


@pytest.fixture(scope="module")
def saved(
    make_model: Callable[..., MTMMModel],
    tiny_processor: MTMMProcessor,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    model = make_model(trained_outputs=("emotion", "valence"))
    MTMMPipeline(model=model, processor=tiny_processor).save_pretrained(folder)
    return folder


@pytest.fixture
def utterances(tmp_path: Path) -> list[Utterance]:
    made = []
    for i, text in enumerate(("so you won", "no", "go away now", "we lost")):
        noise = np.random.default_rng(i).normal(0, 0.1, 4000 + 500 * i)
        soundfile.write(tmp_path / f"{i}.wav", noise, 16000, subtype="FLOAT")
        audio = str(tmp_path / f"{i}.wav")
        made.append(
            Utterance(utterance_id=f"u{i}", corpus="noise", speaker_id="s", audio=audio, text=text)
        )
    return made


@pytest.fixture
def open_cache(
    make_model: Callable[..., MTMMModel], tiny_processor: MTMMProcessor
) -> Callable[[Path], FeatureCache]:
    return lambda disk: FeatureCache(
        disk / "cache", make_model(), tiny_processor, Recordings(disk / "cache"), dtype="float32"
    )


# ---- what every writer says ----------------------------------------------------------------------


def write_text(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("x" * 9000)


def write_shard(path: Path) -> None:
    StateShards(path).write({"key": torch.zeros(99, 99)})


def write_picture(path: Path) -> None:
    style.save(Figure(), path)


@pytest.mark.parametrize("write", [write_text, write_shard, write_picture])
def test_full_disk_is_one_sentence(disk: Path, write: Callable[[Path], None]) -> None:
    write(disk / "before")
    before = written(disk)
    fill(disk)
    with pytest.raises(OSError, match=f"{disk / 'after'}.* {FULL}"):
        write(disk / "after")
    assert written(disk) == before
    make_space(disk)
    write(disk / "after")
    assert len(written(disk)) == 2 * len(before)


@pytest.mark.parametrize("write", [write_text, write_shard, write_picture])
def test_read_only_disk_is_one_sentence(disk: Path, write: Callable[[Path], None]) -> None:
    mount("-o", "remount,ro", disk)
    with pytest.raises(OSError, match=f"{disk / 'after'}.* {CLOSED}"):
        write(disk / "after")


@pytest.mark.parametrize("part", ["model", "processor"])
def test_errors_of_rust_libraries_are_told(
    disk: Path,
    make_model: Callable[..., MTMMModel],
    tiny_processor: MTMMProcessor,
    part: str,
) -> None:
    """safetensors and tokenizers, which do not say which file, nor that the disk is the reason."""
    given = {"model": make_model(), "processor": tiny_processor}[part]
    given.save_pretrained(disk)
    name = {"model": "model.safetensors", "processor": "tokenizer.json"}[part]
    size = (disk / name).stat().st_size
    (disk / name).unlink()
    fill(disk, leave=size // 2)
    with pytest.raises(OSError, match=f"{disk} {FULL}") as caught, writing(disk):
        given.save_pretrained(disk)
    assert not isinstance(caught.value.__cause__, OSError)  # else `writing` need not look inside


@pytest.mark.parametrize("kind", ["folder", "file", "loop", "long"])
def test_wrong_kind_of_target_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "it"
    if kind == "folder":
        (path / "x").mkdir(parents=True)
    elif kind == "file":
        path.touch()
        path = path / "below"
    elif kind == "loop":
        path.symlink_to(path)
        path = path / "below"
    else:
        path = tmp_path / ("x" * 300)
    with pytest.raises(OSError, match=f"{path} could not be written"):
        write_text(path)
    assert not list(tmp_path.rglob(".*.tmp"))


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "No"), SafetensorError("bad")])
def test_other_errors_stay_as_they_are(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, replacing(tmp_path / "x"):
        raise error
    assert caught.value is error


def test_written_file_has_a_name_of_its_own_before(tmp_path: Path) -> None:
    """Also for processes with one number, as in containers: none takes the other's file."""
    with replacing(tmp_path / "x") as first, replacing(tmp_path / "x") as second:
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "x").read_text() == "first"
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize(("when", "kept"), [("now", 1), ("1970", 0), ("future", 0)])
def test_forgotten_files_are_swept_whatever_the_clock(tmp_path: Path, when: str, kept: int) -> None:
    """Of 1970: written before the clock was set; of the future: before it was set back."""
    for path in (tmp_path / ".a.safetensors.1.tmp", tmp_path / ".m.onnx.x.tmp"):
        path.mkdir() if "onnx" in path.name else path.write_bytes(b"half")
        if when != "now":
            stamp = {"1970": 0, "future": 4e9}[when]
            os.utime(path, (stamp, stamp))
    sweep(tmp_path)
    assert len(os.listdir(tmp_path)) == 2 * kept


# ---- the cache -----------------------------------------------------------------------------------


def test_cache_goes_on_when_there_is_space_again(
    disk: Path,
    utterances: list[Utterance],
    open_cache: Callable[[Path], FeatureCache],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another process takes the space after ours was announced."""
    monkeypatch.setattr(features, "SHARD_BYTES", 1)  # a shard after every batch
    cache = open_cache(disk)
    monkeypatch.setattr(FeatureCache, "_check_space", lambda *a, **b: fill(disk, leave=20_000))
    with pytest.raises(OSError, match=FULL):
        cache.encode(utterances, batch_size=1)
    there = [path for path in (disk / "cache").rglob("*") if path.is_file()]
    shards = [path for path in there if path.suffix == ".safetensors"]
    assert (
        len(shards) >= 1 and len(there) == len(shards) + 3
    )  # encoder.json twice, recordings.jsonl
    make_space(disk)
    monkeypatch.undo()
    again = open_cache(disk)
    encoded = again.encode(utterances)
    assert sum(encoded.values()) == 8 - len(shards)
    batch = again.collator(utterances, [], [])(list(to_dataset(utterances)))
    assert batch["acoustic_states"].isfinite().all()


def test_read_only_cache_serves_what_it_has(
    disk: Path, utterances: list[Utterance], open_cache: Callable[[Path], FeatureCache]
) -> None:
    open_cache(disk).encode(utterances)
    mount("-o", "remount,ro", disk)
    cache = open_cache(disk)
    assert cache.encode(utterances) == {"audio": 0, "text": 0}
    cache.collator(utterances, [], [])(list(to_dataset(utterances)))
    with pytest.raises(OSError, match=CLOSED):
        cache.encode([*utterances, replace(utterances[0], utterance_id="new", text="new")])


def as_nobody(work: Callable[[], object]) -> str:
    """What the work says, done by a user without rights in a process of its own."""
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)

    def child() -> None:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        try:
            sender.send(str(work()))
        except OSError as error:
            sender.send(f"{type(error).__name__}: {error}")

    process = fork.Process(target=child)
    process.start()
    process.join(60)
    assert receiver.poll(), "the child said nothing"
    return receiver.recv()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="takes root to drop it")
def test_folder_of_another_user_is_named() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        said = as_nobody(lambda: write_text(Path(folder, "new", "file")))
        assert said.startswith(f"PermissionError: {folder}/new/file could not be written")
        shards = StateShards(Path(folder))
        shards.write({"key": torch.ones(2, 2)})
        (shard,) = Path(folder).glob("*.safetensors")
        shard.chmod(0o644)
        expected = str(torch.ones(2, 2))  # here first: it imports files that nobody may not read

        def read() -> torch.Tensor:
            reader = StateShards(Path(folder))
            reader.refresh()
            return reader["key"]

        said = as_nobody(read)
        assert said == expected  # what others wrote can be read


# ---- mtmm predict --------------------------------------------------------------------------------


def predict(saved: Path, *words: object) -> int:
    return main(["predict", *map(str, words), "--model", str(saved), "--device", "cpu"])


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "m.csv"
    path.write_text("id,text\n" + "".join(f"u{i},so you won {i}\n" for i in range(12)))
    return path


def test_parts_go_on_when_there_is_space_again(
    disk: Path, manifest: Path, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = disk / "out"
    words = (manifest, "--out", out, "--part_size", 3)
    fill(disk, leave=16_384)
    assert predict(saved, *words) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "could not" in line]
    assert line.startswith(f"error: {out / 'part-0000'}") and "No space left" in line
    parts = sorted(out.glob("part-*"))
    assert 1 <= len(parts) < 4 and set(os.listdir(out)) == {p.name for p in parts}
    stamps = [path.stat().st_mtime_ns for path in parts]
    make_space(disk)
    assert predict(saved, *words) == 0
    assert "12 utterances in 4 parts, complete and in order; 0 failed" in capsys.readouterr().err
    assert [path.stat().st_mtime_ns for path in parts] == stamps
    # one by one: a folder is opened by Arrow's threads, and those older than the mount do not see it
    tables = [pyarrow.parquet.ParquetFile(path).read() for path in sorted(out.glob("part-*"))]
    assert pyarrow.concat_tables(tables)["id"].to_pylist() == [f"u{i}" for i in range(12)]


@pytest.mark.parametrize("flag", ["--out", "--plot"])
def test_unwritable_folder_is_refused_before_any_work(
    disk: Path,
    utterances: list[Utterance],
    saved: Path,
    capsys: pytest.CaptureFixture[str],
    flag: str,
) -> None:
    mount("-o", "remount,ro", disk)
    assert predict(saved, utterances[0].audio, flag, disk / "out") == 1
    output = capsys.readouterr()
    assert output.out == "" and "Read-only file system" in output.err


def test_pictures_go_on_when_there_is_space_again(
    disk: Path, utterances: list[Utterance], saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (utterances[0].audio, "--window_s", "0.1", "--plot", disk / "pictures")
    fill(disk)
    assert predict(saved, *words) == 1
    assert "timeline.png could not be written" in capsys.readouterr().err
    assert written(disk) == {}
    make_space(disk)
    assert predict(saved, *words) == 0
    assert {b"\x89PNG", b"%PDF"} == {content[:4] for content in written(disk).values()}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("form", [(), ("--json",), ("--csv",)])
def test_full_disk_behind_standard_output_is_no_success(
    saved: Path,
    manifest: Path,
    form: Sequence[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = open("/dev/full", "w")
    monkeypatch.setattr(sys, "stdout", full)
    assert predict(saved, manifest, *form) == 1
    monkeypatch.undo()
    with suppress(OSError):
        full.close()
    said = "No space left on device"
    assert said in capsys.readouterr().err
