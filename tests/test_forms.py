"""Audio and tables in the forms that other tools give them, wherever audio or a table is taken."""

import base64
import json
import shutil
import threading
import unicodedata
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest
import soundfile
from conftest import RATE, noise
from torch.utils.data import ChainDataset, ConcatDataset, DataLoader, StackDataset, Subset

from audio_mtmm import load_audio
from mtmm_training.batches.collate import RawInputs, make_loader, to_dataset
from mtmm_training.commands.predict_inputs import read_inputs
from mtmm_training.data import sounds
from mtmm_training.data.manifest import read_manifest, write_manifest
from mtmm_training.data.recordings import Recordings
from mtmm_training.studies.inspect_corpus import inspect
from mtmm_training.training.ending import run_command
from pipeline_mtmm import MTMMPipeline

WAVE = noise()
SAID = "well done"


@pytest.fixture(scope="module")
def wav(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("forms") / "a b.wav"
    soundfile.write(path, WAVE, RATE, subtype="FLOAT")
    return path


def valence(answer: Any) -> float:
    return (answer if isinstance(answer, dict) else list(answer)[0])["valence"]


FORMS: dict[str, Callable[[Path], Any]] = {
    "librosa's pair": lambda wav: (WAVE, RATE),
    "gradio's pair": lambda wav: (RATE, WAVE),
    "torchaudio's shape": lambda wav: (WAVE[None], np.int64(RATE)),
    "pairs in a list": lambda wav: [(RATE, WAVE)],
    "data address": lambda wav: "data:audio/wav;base64," + _base64(wav),
    "file address": lambda wav: wav.as_uri(),
    "polars series": lambda wav: pl.Series([str(wav)]),
    "pyarrow array": lambda wav: pa.array([str(wav)]),
    "values of a column": lambda wav: pd.Series([str(wav)]).to_numpy(object),
    "array of NumPy's strings": lambda wav: np.array([str(wav)]),
    "datasets column": lambda wav: _audio_dataset(wav)["audio"],
    "streamed column": lambda wav: _audio_dataset(wav).to_iterable_dataset()["audio"],
}
ROWS: dict[str, Callable[[Path], Any]] = {
    "one row of pandas": lambda wav: pd.DataFrame({"audio": [str(wav)], "text": [SAID]}).iloc[0],
    "polars frame": lambda wav: pl.DataFrame({"audio": [str(wav)], "text": [SAID]}),
    "pyarrow struct": lambda wav: pa.table({"audio": [_struct(wav)], "text": [SAID]}),
    "datasets": lambda wav: _audio_dataset(wav),
    "subset of datasets": lambda wav: _subset(_audio_dataset(wav)),
    "torch's joined sets": lambda wav: ConcatDataset([_subset(_audio_dataset(wav))]),
    "torch's joined streams": lambda wav: ChainDataset([_audio_dataset(wav).to_iterable_dataset()]),
    "torch's stacked columns": lambda wav: StackDataset(**_columns(wav)),
    "torch's loader": lambda wav: DataLoader(_audio_dataset(wav), batch_size=None),
    "streamed datasets": lambda wav: _audio_dataset(wav).to_iterable_dataset(),
    "pair in a dict": lambda wav: {"audio": (WAVE, RATE), "text": SAID},
}


def _base64(wav: Path) -> str:
    return base64.b64encode(wav.read_bytes()).decode()


def _struct(wav: Path) -> dict[str, Any]:
    return {"bytes": wav.read_bytes(), "path": None}


def _audio_dataset(wav: Path) -> datasets.Dataset:
    rows = datasets.Dataset.from_dict({"audio": [str(wav)], "text": [SAID]})
    return rows.cast_column("audio", datasets.Audio())


def _columns(wav: Path) -> dict[str, Any]:
    return {"audio": [str(wav)], "text": [SAID]}


def _subset(rows: datasets.Dataset) -> Any:
    return Subset(rows, [0])


@pytest.mark.parametrize("form", FORMS)
def test_pipeline_hears_the_same_in_every_form(pipe: MTMMPipeline, wav: Path, form: str) -> None:
    assert valence(pipe(FORMS[form](wav))) == pytest.approx(valence(pipe(str(wav))), abs=1e-6)


@pytest.mark.parametrize("form", ROWS)
def test_pipeline_takes_rows_in_every_form(pipe: MTMMPipeline, wav: Path, form: str) -> None:
    expected = valence(pipe({"audio": str(wav), "text": SAID}))
    assert valence(pipe(ROWS[form](wav))) == pytest.approx(expected, abs=1e-6)


PCM = (WAVE * 2**15).astype(np.int16)
LISTS = pa.list_(pa.int16())
INTEGERS: dict[str, Any] = {
    "pyarrow table": pa.table({"audio": [PCM], "sampling_rate": [RATE]}),
    "pyarrow struct": pa.table({"audio": pa.StructArray.from_arrays([pa.array([PCM])], ["array"])}),
    "pyarrow lists": pa.chunked_array([[PCM]]),
    "pyarrow stereo": pa.array([[PCM.tolist()] * 2], pa.list_(LISTS)),
    "pyarrow numbers": {"audio": pa.array(PCM), "sampling_rate": RATE},
    "polars frame": pl.DataFrame({"audio": [PCM], "sampling_rate": [RATE]}),
    "polars lists": pl.Series([PCM]),
    "polars numbers": {"audio": pl.Series(PCM), "sampling_rate": RATE},
    "pandas frame of Arrow's types": pd.DataFrame(
        {"audio": pd.Series([PCM], dtype=pd.ArrowDtype(LISTS))}
    ),
    "pandas numbers": {"audio": pd.Series(PCM), "sampling_rate": RATE},
}


@pytest.mark.parametrize("form", INTEGERS)
def test_samples_in_tables_have_the_scale_of_their_type(pipe: MTMMPipeline, form: str) -> None:
    expected = valence(pipe(PCM, sampling_rate=RATE))
    assert valence(pipe(INTEGERS[form], sampling_rate=RATE)) == pytest.approx(expected, abs=1e-6)


def test_missing_values_of_pandas_are_absent(pipe: MTMMPipeline, wav: Path) -> None:
    rows = pd.DataFrame({"audio": [str(wav), str(wav), None], "text": [SAID, np.nan, SAID]})
    for given in (rows.to_dict("records"), rows.convert_dtypes().to_dict("records"), rows):
        assert [answer["missing"] for answer in pipe(given)] == [[], ["text"], ["audio"]]


def test_processor_takes_columns_of_datasets(pipe: MTMMPipeline, wav: Path) -> None:
    rows, processor = _audio_dataset(wav), pipe.processor
    expected = processor(audio=[WAVE, WAVE], text=[SAID, None], sampling_rate=RATE)
    again = datasets.concatenate_datasets([rows, rows])
    for audio in (again["audio"], [(WAVE, RATE), (RATE, WAVE)]):
        tensors = processor(audio=audio, text=[SAID, np.nan])
        assert all((tensors[name] == expected[name]).all() for name in expected)


# ---- tables ----------------------------------------------------------------------------------------


def write_table(form: str, wav: Path, folder: Path) -> Path:
    """A table of one labelled utterance with audio and one with text alone, as a tool writes it."""
    path = folder / f"t.{'jsonl' if 'JSON' in form else 'parquet'}"
    rows: dict[str, list[Any]] = {
        "text": [SAID, SAID], "label": [1, -1], "speaker": [3.0, 4.0], "valence": [2.5, np.nan]
    }  # fmt: skip
    if path.suffix == ".jsonl":
        array: Any = [round(float(x), 6) for x in WAVE]
        first = {"array": array, "sampling_rate": RATE} if form == "JSON dicts" else array
        audio = {"audio": [first, None], "sampling_rate": [RATE, RATE], "label": ["sad", "None"]}
        records = [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]
        more = [dict(zip(audio, row, strict=True)) for row in zip(*audio.values(), strict=True)]
        lines = [json.dumps(a | b) for a, b in zip(records, more, strict=True)]
        path.write_text("\n".join(lines))
        return path
    cell = wav.read_bytes() if form == "bare bytes" else {"bytes": wav.read_bytes(), "path": "x"}
    table = pa.table({"audio": [cell, None], **rows})
    features = {name: datasets.Value("string") for name in rows} | {
        "audio": datasets.Audio(decode=False)
        if form == "push_to_hub"
        else datasets.Value("binary"),
        "label": datasets.ClassLabel(names=["angry", "sad"]),
        "valence": datasets.Value("float64"),
        "speaker": datasets.Value("float64"),
    }
    described = json.dumps({"info": {"features": datasets.Features(features).to_dict()}})
    pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": described}), path)
    return path


@pytest.mark.parametrize("form", ["push_to_hub", "bare bytes", "JSON dicts", "JSON lists"])
def test_tables_with_audio_inside_are_read_everywhere(
    pipe: MTMMPipeline, wav: Path, tmp_path: Path, form: str
) -> None:
    path = write_table(form, wav, tmp_path)
    heard, read = read_manifest(path)
    assert [(u.emotion, u.valence, u.speaker_id) for u in (heard, read)] == [
        ("sad", 2.5, "3"), (None, None, "4")
    ]  # fmt: skip
    assert read.audio is None and heard.audio == f"{path}#audio[1]"
    known = Recordings(tmp_path).of([heard.audio])[heard.audio]
    assert (known.duration_s, known.sampling_rate) == (0.5, RATE)
    again = Recordings()  # another process would hash the same
    assert again.of([heard.audio])[heard.audio].digest == known.digest
    loader = make_loader(
        to_dataset([heard, read]),
        [[0, 1]],
        RawInputs(pipe.processor, ("sad",), ("valence",)),
        workers=1,
    )
    (batch,) = loader
    assert batch["audio_attention_mask"].sum(-1).tolist() == [8000, 0]
    expected = pipe.processor(audio=[WAVE], sampling_rate=RATE)["input_values"]
    np.testing.assert_allclose(batch["input_values"][:1], expected, atol=1e-4)
    assert "2 utterances" in inspect([heard, read], "t") and "16,000 Hz 1" in inspect([heard], "t")
    answers = list(pipe(one.given() for one in read_inputs([str(path)])))
    assert [a["missing"] for a in answers] == [[], ["audio"]]
    assert valence(answers) == pytest.approx(
        valence(pipe({"audio": str(wav), "text": SAID})), abs=1e-4
    )
    write_manifest([heard, read], tmp_path / "copy.csv")  # the addresses hold in another table
    assert [u.audio for u in read_manifest(tmp_path / "copy.csv")] == [heard.audio, None]


@pytest.mark.parametrize("kind", ["int16", "int32", "uint8", "float16", "stereo", "struct"])
def test_lists_of_samples_have_the_scale_of_their_type(tmp_path: Path, kind: str) -> None:
    numbers = {"int32": WAVE * 2.0**31, "int16": WAVE * 2**15, "uint8": WAVE * 127 + 128}
    dtype = kind if kind[-1].isdecimal() else "int16"
    array = pa.array([numbers.get(dtype, WAVE).astype(dtype)])
    if kind == "stereo":
        array = pa.array([[array[0].as_py()] * 2], pa.list_(pa.list_(pa.int16())))
    if kind == "struct":
        array = pa.StructArray.from_arrays([array, pa.array([RATE])], ["array", "sampling_rate"])
    table = pa.table({"audio": array, "speaker": ["a"], "sampling_rate": [RATE]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    (u,) = read_manifest(tmp_path / "t.parquet")
    waveform, rate = sounds.waveform(str(u.audio))
    assert rate == RATE
    np.testing.assert_allclose(waveform, WAVE, atol=0.02 if kind == "uint8" else 1e-3)


def test_quotes_in_tab_separated_tables_are_the_words_own(tmp_path: Path) -> None:
    """Common Voice's tables are written so; two lone ones would swallow what lies between."""
    said = ['"Hello', "so", 'he said "no"', '"Yes," she said, "no"', '"say ""so"""', "it's"]
    table = tmp_path / "t.tsv"
    table.write_text("path\tsentence\tclient_id\n" + "".join(f"\t{one}\ta\n" for one in said))
    assert [u.text for u in read_manifest(table)] == [*said[:4], 'say "so"', "it's"]
    table.write_text('sentence\tclient_id\n"two\nlines"\ta\nso\ta\n')  # as pandas writes it
    assert [u.text for u in read_manifest(table)] == ["two\nlines", "so"]


@pytest.fixture
def served(wav: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(wav.parent)))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/a%20b.wav"
    server.shutdown()
    server.server_close()


def test_all_splits_at_once_are_refused_by_name(pipe: MTMMPipeline, wav: Path) -> None:
    with pytest.raises(ValueError, match=r"has the keys \['test'\]"):
        pipe(datasets.DatasetDict({"test": _audio_dataset(wav)}))


def test_bytes_in_json_are_base64(wav: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.jsonl"
    table.write_text(json.dumps({"audio": {"bytes": _base64(wav), "path": None}, "speaker": "a"}))
    (u,) = read_manifest(table)
    waveform, rate = sounds.waveform(str(u.audio))
    assert rate == RATE and (waveform == WAVE).all()


def test_addresses_in_a_table_are_read(wav: Path, tmp_path: Path, served: str) -> None:
    places = [served, wav.as_uri(), f'"data:audio/wav;base64,{_base64(wav)}"', str(wav)]
    table = tmp_path / "t.csv"
    table.write_text("audio,speaker,start\n" + "".join(f"{place},a,\n" for place in places))
    read = read_manifest(table)
    assert [u.utterance_id for u in read] == [served, wav.as_uri(), "t#4", str(wav)]
    assert read[1].audio == str(wav)
    known = Recordings().of(u.audio for u in read if u.audio)
    assert len({file.digest for file in known.values()}) == 1
    for u in read:
        waveform, rate = sounds.waveform(str(u.audio), 0.1, 0.3)
        assert rate == RATE and (waveform == WAVE[1600:4800]).all()


def test_numbers_that_tools_leave_empty_are_absent(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    words = ("nan", "NA", "<NA>", "None", "null", "")
    table.write_text("text,speaker,valence,emotion\n" + "".join(f"NA,a,{w},nan\n" for w in words))
    assert {(u.text, u.valence, u.emotion) for u in read_manifest(table)} == {("NA", None, None)}
    table.write_text("text,speaker\nhi,nan\n")  # else everybody without a name would be one speaker
    with pytest.raises(ValueError, match="speaker"):
        read_manifest(table)


def test_messages_abridge_what_was_given(
    pipe: MTMMPipeline, wav: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "data:audio/wav;base64," + "A" * 10**5
    for given in ({f"sound{i}": i for i in range(10**4)}, long, {"audio": {"x" * 10**5: 1}}):
        with pytest.raises((ValueError, OSError)) as error:
            pipe(given)
        assert len(str(error.value)) < 1000
    table = tmp_path / "t.jsonl"
    table.write_text(json.dumps({"text": "hi", "speaker": ["a"] * 10**5, "emotion": "x" * 10**5}))
    with pytest.raises(ValueError) as error:
        read_manifest(table)
    assert len(str(error.value)) < 1000

    def fail() -> None:
        raise ValueError("x" * 10**6)

    assert run_command(fail) == 1 and len(capsys.readouterr().err) < 5000


def test_a_cell_without_audio_is_named(wav: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.jsonl"
    table.write_text(json.dumps({"audio": {"array": [], "sampling_rate": RATE}, "speaker": "a"}))
    (u,) = read_manifest(table)
    with pytest.raises(ValueError, match=r"t.jsonl#audio\[1\] has no audio"):
        sounds.source(str(u.audio))
    shutil.copy(wav, tmp_path / "x.wav")
    table.write_text(json.dumps({"audio": {"path": "x.wav"}, "speaker": "a"}))
    (u,) = read_manifest(table)
    assert sounds.source(str(u.audio)) == str(tmp_path / "x.wav")  # beside the table


def test_accents_of_names_may_be_written_both_ways(wav: Path, tmp_path: Path) -> None:
    """A letter and its accent are one character in a table, and two in the file's name, or the other way."""
    one, two = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    for on_disk, said in ((two, one), (one, two)):
        folder = tmp_path / str(len(on_disk)) / on_disk
        folder.mkdir(parents=True)
        (folder / f"{on_disk}.wav").write_bytes(wav.read_bytes())
        table = folder.parent / "m.csv"
        table.write_text(f"audio,speaker,emotion\n{said}/{said}.wav,anna,sad\n", encoding="utf-8")
        (u,) = read_manifest(table)
        assert u.audio == str(folder / f"{on_disk}.wav")
        (folder.parent / "said").mkdir()
        (folder.parent / "said" / f"{said}.txt").write_text("so it is")
        (one_input,) = read_inputs([str(folder)], folder.parent / "said")
        assert one_input.transcript == {"text": "so it is"}
        assert load_audio(folder.parent / on_disk / f"{said}.wav")[1] == RATE
    plain = tmp_path / "m.csv"
    plain.write_text(f"audio,speaker\n{one}.wav,anna\n", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=one):
        read_manifest(plain)
