"""Inputs by name, results in order, and Parquet parts: resumed, shared, checked.

Run alone: python -m pytest tests/test_predict_files.py
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import soundfile
import torch

from modeling_mtmm import MTMMModel
from mtmm_training.commands.cli import main
from mtmm_training.commands.predict_inputs import Input, read_inputs, read_transcript
from mtmm_training.commands.predict_output import Pictures, result_columns
from mtmm_training.commands.predict_parts import RUN_FILE, Parts, predict_parts
from mtmm_training.commands.predict_work import predict_each
from pipeline_mtmm import MTMMPipeline
from processing_mtmm import MTMMProcessor

ROOT = Path(__file__).parents[1]
RATE = 16000
WORDS = ["so you won", "no", "go away now", "we lost", "what is it"]


def write_wav(path: Path, duration_s: float = 0.3, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, round(duration_s * RATE))
    soundfile.write(path, noise.astype(np.float32), RATE, subtype="FLOAT")
    return path


def write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    pandas.DataFrame(rows).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def pipe(make_model: Callable[..., MTMMModel], tiny_processor: MTMMProcessor) -> MTMMPipeline:
    model = make_model(trained_outputs=("emotion", "valence"))
    return MTMMPipeline(model=model, processor=tiny_processor)


@pytest.fixture(scope="module")
def saved(pipe: MTMMPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    pipe.save_pretrained(folder)
    return folder


def texts(count: int) -> list[Input]:
    return [
        Input(f"u{i:03}", transcript={"text": " ".join(WORDS[i % 5] for _ in range(1 + i % 3))})
        for i in range(count)
    ]


def frame(folder: Path) -> pandas.DataFrame:
    return pandas.concat(
        map(pandas.read_parquet, sorted(folder.glob("part-*.parquet"))), ignore_index=True
    )


# ---- inputs --------------------------------------------------------------------------------------


def test_folder_gives_its_audio_by_name(tmp_path: Path) -> None:
    audio = ("a/x.mp3", "a/y.FLAC", "b/x.wav", "c.opus", "folder.wav/x.wav")
    for name in (*audio, ".hidden/z.wav", "a/.z.wav", "a/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [one.name for one in read_inputs([str(tmp_path)])]
    assert names == [str(tmp_path / name) for name in audio]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        read_inputs([str(tmp_path / "empty")])


def test_inputs_keep_the_order_of_the_words(tmp_path: Path) -> None:
    manifest = write_table(tmp_path / "m.csv", [{"id": "u1", "text": "no"}])
    url = "https://example.org/a.wav"
    inputs = read_inputs([url, str(manifest), "missing.wav"])
    assert [one.name for one in inputs] == [url, "u1", "missing.wav"]
    assert [one.audio for one in inputs] == [url, None, "missing.wav"]
    with pytest.raises(ValueError, match="'u1'"):
        read_inputs([str(manifest), str(manifest)])


def test_manifest_needs_no_speaker_and_its_labels_are_not_read(tmp_path: Path) -> None:
    names = ("audio", "text", "emotion", "valence", "start", "end")
    values = [("x.wav", "", "?!", "99", "0.5", "2"), ("", "no", "", "high", "", "")]
    rows = [dict(zip(names, row, strict=True)) for row in values]
    first, second = read_inputs([str(write_table(tmp_path / "m.csv", rows))])
    assert first == Input("x.wav", str(tmp_path / "x.wav"), {}, 0.5, 2.0)
    assert second == Input("m#3", None, {"text": "no"})
    rows[1]["text"] = ""
    with pytest.raises(ValueError, match="row 3: "):
        read_inputs([str(write_table(tmp_path / "m.csv", rows))])


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", " We won! \n", {"text": "We won!"}),
        ("a.txt", "\ufeff \n", {}),
        ("a.json", '{"text": "We won!"}', {"text": "We won!"}),
        ("a.json", '{"text": " ", "segments": []}', {}),
        ("a.json", '{"text": "no", "segments": [{"start": 0, "end": 1, "text": "no"}], "language": "en"}',
         {"segments": [{"start": 0, "end": 1, "text": "no"}]}),
        ("a.json", '{"text": "no", "chunks": [{"timestamp": [0, 1], "text": "no"}]}',
         {"words": [{"timestamp": [0, 1], "text": "no"}]}),
        ("a.json", '[{"text": "no", "start": 0, "end": 1}]',
         {"words": [{"text": "no", "start": 0, "end": 1}]}),
        ("a.json", '{"words": [{"word": "no", "start": 0, "end": 1}]}',
         {"words": [{"word": "no", "start": 0, "end": 1}]}),
        ("vosk.json", '{"result": [{"conf": 1, "end": 1, "start": 0, "word": "no"}], "text": "no"}',
         {"words": [{"conf": 1, "end": 1, "start": 0, "word": "no"}]}),
        ("vosk.json", '[{"result": [{"word": "no"}]}, {"text": ""}, {"result": [{"word": "so"}]}]',
         {"words": [{"word": "no"}, {"word": "so"}]}),
    ],
)  # fmt: skip
def test_transcript_file_to_what_the_pipeline_takes(
    tmp_path: Path, name: str, content: str, expected: dict[str, Any]
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_transcript(tmp_path / name) == expected


def test_times_of_an_unknown_form_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.json").write_text('{"text": "no", "timestamps": [0.1], "language": "en"}')
    assert read_transcript(tmp_path / "a.json") == {"text": "no"}
    assert "timestamps" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b'{"text": 3}', b'"We won"', b"{", b"\xff"])
def test_bad_transcript_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match="a.json"):
        read_transcript(tmp_path / "a.json")


def test_transcripts_folder_follows_the_audio_folder(tmp_path: Path) -> None:
    audio, words = tmp_path / "audio", tmp_path / "words"
    for name in ("a/x.wav", "b/x.wav", "y.wav"):
        write_wav(audio / name)
        (words / name).parent.mkdir(parents=True, exist_ok=True)
    (words / "a/x.txt").write_text("first")
    (words / "b/x.txt").write_text("not read")
    (words / "b/x.json").write_text('{"text": "second"}')
    given = [one.transcript for one in read_inputs([str(audio)], transcripts=words)]
    assert given == [{"text": "first"}, {"text": "second"}, {}]
    (alone,) = read_inputs([str(audio / "a/x.wav")], transcripts=words / "a")
    assert alone.transcript == {"text": "first"}


def test_transcript_of_two_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("whose?")
    with pytest.raises(ValueError, match="x.txt .*a/x.wav and b/x.wav"):
        read_inputs(["a/x.wav", "b/x.wav"], transcripts=tmp_path)


# ---- results -------------------------------------------------------------------------------------


def test_part_of_a_file_is_what_the_pipeline_hears(pipe: MTMMPipeline, tmp_path: Path) -> None:
    path = write_wav(tmp_path / "x.wav", 2.0)
    waveform, _ = soundfile.read(path, dtype="float32")
    ((_, result),) = predict_each(pipe, [Input("x", str(path), {}, 0.5, 1.25)], {})
    assert result == pipe(waveform[8000:20000], sampling_rate=RATE)
    assert result["valence"] != pipe(path)["valence"]


def test_times_of_a_part_count_from_the_recordings_beginning(
    pipe: MTMMPipeline, tmp_path: Path
) -> None:
    path = write_wav(tmp_path / "x.wav", 2.0)
    part = Input("x", str(path), {}, 0.5, 1.25)
    ((_, result),) = predict_each(pipe, [part], {"window_s": 0.5, "explain": "valence"})
    times = [(entry["start"], entry["end"]) for entry in result["timeline"]]
    assert times == [(0.5, 1.0), (0.75, 1.25)]
    for side in (explained := result["timeline"][1]["explanation"], explained["occlusion"]):
        assert (side["time"][0]["start"], side["time"][-1]["end"]) == (0.75, 1.25)
    ((_, whole),) = predict_each(pipe, [part], {"explain": "valence"})
    assert whole["explanation"]["time"][0]["start"] == 0.5
    Pictures(tmp_path, pipe.model.config).draw(part, whole)  # above its waveform


@pytest.mark.parametrize(("batch_size", "at_once"), [(1, None), (3, None), (3, 3), (3, 4)])
def test_failures_stand_where_they_were_given(
    pipe: MTMMPipeline, tmp_path: Path, batch_size: int, at_once: int | None
) -> None:
    (tmp_path / "broken.wav").write_bytes(b"RIFF, not really")
    inputs = texts(9)
    for place in (0, 4, 5, 8):
        path = tmp_path / ("broken.wav" if place else "none.wav")
        inputs[place] = Input(f"bad{place}", str(path))
    late = str(write_wav(tmp_path / "x.wav", 1.0))
    inputs[3] = Input("late", late, {}, 3.0, 4.0)  # past its end
    results = list(predict_each(pipe, inputs, {"batch_size": batch_size}, at_once=at_once))
    assert [one for one, _ in results] == inputs
    failed = {one.name: result["error"] for one, result in results if "error" in result}
    assert set(failed) == {"bad0", "bad4", "bad5", "bad8", "late"}
    assert "none.wav" in failed["bad0"] and "3.0 s" in failed["late"]
    for one, result in results:
        if one.name not in failed:
            assert result["valence"] == pytest.approx(pipe(one.given())["valence"], abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_input_whose_outputs_are_not_finite_fails_alone(
    make_model: Callable[..., MTMMModel], tiny_processor: MTMMProcessor, batch_size: int
) -> None:
    model = make_model(trained_outputs=("valence",))
    token = tiny_processor(text="z")["input_ids"][0, -2]
    with torch.no_grad():
        model.text_model.get_input_embeddings().weight[token] = torch.nan
    pipe = MTMMPipeline(model=model, processor=tiny_processor)
    inputs = texts(9)
    inputs[2] = inputs[6] = Input("bad", transcript={"text": "z"})
    results = list(predict_each(pipe, inputs, {"batch_size": batch_size}))
    assert [one for one, _ in results] == inputs
    failed = ["not finite" in result.get("error", "") for _, result in results]
    assert failed == [one.name == "bad" for one in inputs]
    with pytest.raises(ValueError, match="^bad: "):
        list(predict_each(pipe, inputs, {"batch_size": batch_size}, stop=True))


# ---- parts ---------------------------------------------------------------------------------------


class Make:
    """Runs `predict_parts` into a folder."""

    def __init__(self, pipe: MTMMPipeline, out: Path) -> None:
        self.pipe, self.out = pipe, out

    def __call__(
        self,
        inputs: Sequence[Input],
        size: int = 4,
        settings: Mapping[str, Any] | None = None,
        stop: bool = False,
        load: Callable[[], Any] | None = None,
        options: Mapping[str, Any] | None = None,
        **given: Any,
    ) -> int:
        predict = partial(predict_each, self.pipe, options=options or {}, stop=stop)
        columns = result_columns(self.pipe.model.config)
        parts = Parts(self.out, inputs, size, {"model": "m"} | dict(settings or {}))
        return predict_parts(parts, load or (lambda: (columns, predict)), **given)


@pytest.fixture
def make(pipe: MTMMPipeline, tmp_path: Path) -> Make:
    return Make(pipe, tmp_path / "out")


def test_parts_hold_every_input_in_order(make: Make, pipe: MTMMPipeline, tmp_path: Path) -> None:
    inputs = [*texts(9), Input("heard", str(write_wav(tmp_path / "x.wav", 0.9)))]
    assert make(inputs, options={"batch_size": 3, "window_s": 0.4}) == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"part-0000{i}-of-00003.parquet" for i in range(3)]  # and nothing else
    table = frame(tmp_path / "out")
    assert table["id"].tolist() == [one.name for one in inputs]
    expected = pipe([one.given() for one in inputs], window_s=0.4)
    assert table["emotion"].tolist() == [result["emotion"] for result in expected]
    values = [result["valence"] for result in expected]
    assert table["valence"].tolist() == pytest.approx(values, abs=1e-4)
    for name, share in expected[3]["scores"].items():
        assert table[f"p_{name}"][3] == pytest.approx(share, abs=1e-4)
    assert "arousal" not in table  # was never trained
    assert table["missing"].tolist() == ["audio"] * 9 + ["text"]
    assert table["timeline"][:9].isna().all()
    timeline, values = table["timeline"][9], expected[9]["timeline"]
    assert [entry["end"] for entry in timeline] == pytest.approx([0.4, 0.8, 0.9])
    for entry, value in zip(timeline, values, strict=True):
        assert entry["valence"] == pytest.approx(value["valence"], abs=1e-4)


def test_missing_part_is_made_again_and_others_stay(make: Make, tmp_path: Path) -> None:
    make(texts(10))
    before = frame(tmp_path / "out")
    first, second, third = sorted((tmp_path / "out").glob("part-*"))
    stamps = [path.stat().st_mtime_ns for path in (first, third)]
    second.unlink()
    left = tmp_path / "out" / f".{second.name}.4711.tmp"  # by one that was killed long ago
    left.write_bytes(b"PAR1")
    os.utime(left, (0, 0))
    done: list[Any] = []
    make(texts(10), advance=done.append)
    assert sum(done) == 4
    assert [path.stat().st_mtime_ns for path in (first, third)] == stamps
    pandas.testing.assert_frame_equal(frame(tmp_path / "out"), before)
    assert not list((tmp_path / "out").glob(".*.tmp"))


@pytest.mark.parametrize(
    ("inputs", "change", "name"),
    [
        (texts(6), {"settings": {"model": "other"}}, "model was 'm', now is 'other'"),
        (texts(6), {"settings": {"window_s": 3.0}}, "window_s was None, now is 3.0"),
        (texts(6), {"size": 3}, "part_size was 4, now is 3"),
        (texts(5), {}, "utterances was 6, now is 5"),
        (texts(6)[::-1], {}, "inputs was"),
    ],
)
def test_other_run_is_refused(
    make: Make, tmp_path: Path, inputs: list[Input], change: dict[str, Any], name: str
) -> None:
    make(texts(6))
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(ValueError, match=name):
        make(inputs, **change)
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_refused_option_leaves_no_settings_behind(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nonsense"):
        make(texts(2), settings={"explain": "nonsense"}, options={"explain": "nonsense"})
    assert make(texts(2), settings={"explain": "valence"}, options={"explain": "valence"}) == 0
    assert json.loads((tmp_path / f"out{RUN_FILE}").read_text())["explain"] == "valence"


def test_run_that_comes_second_writes_nothing_into_the_first_one_s_folder(make: Make) -> None:
    def load() -> Any:
        assert make(texts(2)) == 0  # another process, of other settings, while this one loads
        return {}, partial(predict_each, make.pipe, options={})

    with pytest.raises(ValueError, match="model was 'm', now is 'mine'"):
        make(texts(2), settings={"model": "mine"}, load=load)
    assert make(texts(2)) == 0


def test_recording_that_changed_after_its_part_is_noticed(make: Make, tmp_path: Path) -> None:
    path = write_wav(tmp_path / "x.wav", 0.4)
    inputs = [*texts(5), Input("x", str(path))]
    make(inputs)
    _, second = sorted((tmp_path / "out").glob("part-*"))
    os.utime(path, (second.stat().st_mtime + 1,) * 2)
    with pytest.raises(ValueError, match=second.name):
        make(inputs)
    os.utime(path, (0, 0))
    assert make(inputs) == 0


def test_folder_with_other_parquet_files_is_refused(make: Make, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "data.parquet").touch()
    with pytest.raises(ValueError, match=RUN_FILE):
        make(texts(2))


def test_damaged_and_foreign_parts_are_named(make: Make, tmp_path: Path) -> None:
    make(texts(8))
    first, second = sorted((tmp_path / "out").glob("part-*"))
    for content in (second.read_bytes(), first.read_bytes()[:-9], b""):
        first.write_bytes(content)
        with pytest.raises(ValueError, match="part-00000-of-00002.parquet"):
            make(texts(8))


def test_failed_inputs_are_rows_that_say_why(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = [*texts(5), Input("gone", "gone.wav"), *texts(9)[6:]]
    assert make(inputs) == 1
    table = pandas.read_parquet(tmp_path / "out")  # the run's record lies beside
    assert table["id"].tolist() == [one.name for one in inputs]
    (row,) = table[table["error"].notna()].dropna(axis="columns").to_dict("records")
    assert set(row) == {"id", "error"}
    assert row["id"] == "gone" and "gone.wav" in row["error"]
    capsys.readouterr()
    idle = partial(pytest.fail, "nothing is missing")
    assert make(inputs, load=idle) == 1  # counted and named again by the check
    assert "gone (part-00001-of-00003.parquet)" in capsys.readouterr().err


def test_stop_writes_no_part_with_a_failure(make: Make, tmp_path: Path) -> None:
    inputs = [*texts(6), Input("gone", str(tmp_path / "late.wav"))]
    with pytest.raises(ValueError, match="^gone: "):
        make(inputs, stop=True)
    assert len(list((tmp_path / "out").glob("part-*"))) == 1
    write_wav(tmp_path / "late.wav")
    assert make(inputs, stop=True) == 0
    assert frame(tmp_path / "out")["error"].isna().all()


def test_shares_come_together_whoever_is_last(make: Make, tmp_path: Path) -> None:
    inputs = texts(18)
    done: dict[int, list[Any]] = {rank: [] for rank in range(3)}
    for rank, left in ((2, 4), (0, 2), (1, 0)):
        make(inputs, share=(rank, 3), advance=done[rank].append)
        assert len(list((tmp_path / "out").glob("part-*"))) == 5 - left
    assert {rank: sum(counts) for rank, counts in done.items()} == {0: 8, 1: 6, 2: 4}
    (tmp_path / "out" / "part-00001-of-00005.parquet").unlink()
    make(inputs)  # one process goes on where three began
    assert frame(tmp_path / "out")["id"].tolist() == [one.name for one in inputs]


def test_names_that_are_not_utf8_are_kept_readable(
    pipe: MTMMPipeline, saved: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "names"
    folder.mkdir()
    recording = write_wav(tmp_path / "a.wav").read_bytes()
    Path(os.fsdecode(os.fsencode(folder) + b"/J\xfcrgen.wav")).write_bytes(recording)
    Path(os.fsdecode(os.fsencode(folder) + b"/n\xfcll.wav")).write_bytes(b"")
    words = ["predict", str(folder), "--model", str(saved), "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "parts")]) == 1
    table = frame(tmp_path / "parts")
    assert list(table["id"]) == [rf"{folder}/J\xfcrgen.wav", rf"{folder}/n\xfcll.wav"]
    assert list(table["error"].isna()) == [True, False]
    assert main([*words, "--window_s", "0.1", "--plot", str(tmp_path / "plots")]) == 1
    assert len(list((tmp_path / "plots").glob("*_J_xfcrgen.wav.timeline.png"))) == 1


# ---- real processes ------------------------------------------------------------------------------


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    rows = [{"id": one.name, "text": one.transcript["text"]} for one in texts(120)]
    return write_table(tmp_path / "manifest.csv", rows)


def command(manifest: Path, saved: Path, out: Path) -> list[str]:
    words = ["-m", "mtmm_training", "predict", str(manifest), "--model", str(saved)]
    return [*words, "--out", str(out), "--part_size", "1", "--device", "cpu"]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def test_run_killed_in_the_middle_goes_on(
    pipe: MTMMPipeline, manifest: Path, saved: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = command(manifest, saved, out)
    process = subprocess.Popen([sys.executable, *words], env=environment(), stderr=subprocess.PIPE)
    assert process.stderr is not None
    while not list(out.glob("part-*.parquet")):
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    assert 1 <= len(stamps) < 120
    assert main(words[2:]) == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    table = frame(out)
    assert table["id"].tolist() == [one.name for one in texts(120)]
    expected = [result["valence"] for result in pipe([one.given() for one in texts(120)])]
    assert table["valence"].tolist() == pytest.approx(expected, abs=1e-4)
    assert len(list(out.glob(".*.tmp"))) <= 1  # of the part that was being written


def test_processes_share_the_parts(
    manifest: Path,
    saved: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the environment that accelerate and torchrun give to each of theirs."""
    out = tmp_path / "out"
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert main([*command(manifest, saved, out)[2:], "--part_size", "20"]) == 0
    output = capsys.readouterr()
    assert output.out == "" and "120 utterances in 6 parts" in output.err
    assert frame(out)["id"].tolist() == [one.name for one in texts(120)]
    record = json.loads(Path(f"{out}{RUN_FILE}").read_text())
    assert record["utterances"] == 120 and record["model"].startswith("files ")


def test_workers_and_compiled_models_answer_alike(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five recordings and a broken one, read by three processes."""
    for number in range(5):
        write_wav(tmp_path / f"audio/{number}.wav", 0.2 + 0.1 * number, seed=number)
    (tmp_path / "audio/3b.wav").write_bytes(b"RIFF")
    modes: list[Any] = []
    monkeypatch.setattr(MTMMPipeline, "compile", lambda self, **options: modes.append(options))
    flags = ["predict", str(tmp_path / "audio"), "--model", str(saved), "--part_size", "4", "--out"]
    assert main([*flags, str(tmp_path / "alone")]) == 1
    assert main([*flags, str(tmp_path / "three"), "--workers", "3", "--compile"]) == 1
    assert modes == [{"mode": None}]
    alone, three = frame(tmp_path / "alone"), frame(tmp_path / "three")
    assert three["id"].tolist() == alone["id"].tolist() and three["error"].notna().sum() == 1
    pandas.testing.assert_frame_equal(three, alone, atol=1e-5, rtol=0)


# ---- folders -------------------------------------------------------------------------------------


def test_folder_is_searched_by_content_and_through_links(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is left out is counted and named; links round in circles are left."""
    top, noise = tmp_path / "calls", np.zeros(RATE, np.float32)
    write_wav(top / "a.wav")
    for name, form in (("b.sph", "NIST"), ("c.oga", "OGG"), ("d.rf64", "RF64"), ("e.aifc", "AIFF"),
                       ("f", "FLAC"), ("g.MP3", "MP3")):  # fmt: skip
        soundfile.write(top / name, noise, RATE, format=form)
    (top / "h.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")  # said to be unreadable when it is predicted
    (top / "j.spx").write_bytes(b"OggS\0\2" + bytes(22) + b"\1\x13OpusHead")  # as is speex
    (top / "k.avi").write_bytes(b"RIFF\x9c%\0\0AVI LIST")
    for name in ("notes.txt", "list.json", ".hidden.wav", "._a.wav", ".DS_Store"):
        (top / name).write_text("The MAC addresses; DSD or FLV?")  # whose formats begin so
    write_wav(tmp_path / "elsewhere/i.wav")
    (top / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/round").symlink_to(top)
    (top / "gone.wav").symlink_to(tmp_path / "nowhere")
    found = [Path(one.name).relative_to(top).as_posix() for one in read_inputs([str(top)])]
    assert found == ["a.wav", "b.sph", "c.oga", "d.rf64", "e.aifc", "f", "g.MP3", "gone.wav", "h.m4a",
                     "j.spx", "k.avi", "linked/i.wav"]  # fmt: skip
    told = capsys.readouterr().err
    assert "2 of 14 files" in told and "notes.txt" in told and "list.json" in told
    assert "hidden recordings" in told and ".hidden.wav" in told and "._a" not in told


def test_folder_without_audio(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.doc").write_text("only words")
    with pytest.raises(ValueError, match="No audio in"):
        read_inputs([str(tmp_path)])
    assert "notes.doc" in capsys.readouterr().err


def test_other_readers_take_the_folder_of_parts(make: Make, tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    assert make(texts(3)) == 0
    assert polars.read_parquet(tmp_path / "out").height == 3
    for part in (tmp_path / "out").iterdir():
        part.unlink()
    assert make(texts(2), settings={"top_k": 1}) == 0  # an emptied folder is a new one


def test_run_of_an_older_version_goes_on(make: Make, tmp_path: Path) -> None:
    assert make(texts(3)) == 0
    (tmp_path / f"out{RUN_FILE}").rename(tmp_path / "out" / "_run.json")
    assert make(texts(3)) == 0 and not (tmp_path / f"out{RUN_FILE}").exists()
