"""Embeddings: of the pipeline, in a table, and in mteb.

Run alone: python -m pytest tests/test_embedding.py -q
"""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pytest
import soundfile
from conftest import RATE, audio, noise

from answers_mtmm import time_weights
from mtmm_training.commands.cli import main
from mtmm_training.data.manifest import read_manifest
from mtmm_training.studies.embedding_model import EmbeddingModel
from pipeline_mtmm import MTMMPipeline


def test_embedding_is_the_fused_state_and_each_modalitys_mean(pipe: MTMMPipeline) -> None:
    rows = [{"audio": audio(noise(1.0)), "text": "so"}, audio(noise(0.5)), {"text": "hello"}]
    answers = pipe(rows, embedding=True, batch_size=4)
    alone = [pipe(row, embedding=True)["embedding"] for row in rows]
    for answer, row, own in zip(answers, rows, alone, strict=True):
        for name, values in answer.pop("embedding").items():
            assert (values is None) == (own[name] is None)
            if values is not None:
                np.testing.assert_allclose(values, own[name], atol=2e-5)
        assert answer.keys() == pipe(row).keys()
    assert [[name for name in own if own[name] is None] for own in alone] == [
        [],
        ["text"],
        ["audio"],
    ]
    inputs = pipe.processor(audio=noise(1.0), sampling_rate=RATE, text="so")
    output = pipe.model(**inputs, output_hidden_states=True)
    np.testing.assert_allclose(alone[0]["fused"], output.fused_state[0].tolist(), atol=1e-5)
    expected = [states[0].mean(0).tolist() for states in output.hidden_states]
    np.testing.assert_allclose([alone[0]["audio"], alone[0]["text"]], expected, atol=1e-5)


def test_embedding_of_a_long_recording_is_its_mean_over_time(pipe: MTMMPipeline) -> None:
    words = [{"text": "so", "start": 0.1, "end": 0.2}]
    given = {"audio": audio(noise(3.0)), "words": words}
    answer = pipe(given, embedding=True, window_s=2.0, hop_s=1.5)
    entries = [entry["embedding"] for entry in answer["timeline"]]
    weights = time_weights([(e["start"], e["end"]) for e in answer["timeline"]])
    mean = weights @ np.array([entry["fused"] for entry in entries])
    np.testing.assert_allclose(answer["embedding"]["fused"], mean)
    assert entries[1]["text"] is None and answer["embedding"]["text"] == entries[0]["text"]


def test_table_has_a_row_for_each_input_or_window(
    pipe: MTMMPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe.save_pretrained(tmp_path / "model")
    for seed, seconds in enumerate((1.0, 0.5)):
        soundfile.write(tmp_path / f"{seed}.wav", noise(seconds, seed=seed), RATE, subtype="FLOAT")
    words = [
        "embed",
        str(tmp_path / "0.wav"),
        str(tmp_path / "1.wav"),
        "--model",
        str(tmp_path / "model"),
    ]
    out = tmp_path / "new" / "e.parquet"
    assert main([*words, "--out", str(out)]) == 0
    table = pandas.read_parquet(out)
    assert list(table) == ["id", "start", "end", "fused", "audio", "text"]
    assert table["end"].tolist() == [1.0, 0.5] and table["text"].isna().all()
    expected = [pipe(path, embedding=True)["embedding"] for path in table["id"]]
    for name in ("fused", "audio"):
        rows = [one[name] for one in expected]
        np.testing.assert_allclose(np.stack(table[name].tolist()), rows, atol=2e-5)
    assert (
        main(
            [
                *words[:3],
                "gone.wav",
                *words[3:],
                "--window_s",
                ".5",
                "--timeline",
                "--out",
                str(out),
            ]
        )
        == 1
    )
    assert pandas.read_parquet(out)["start"].tolist() == [0.0, 0.5, 0.0]
    assert "3 rows of 2 inputs; 1 failed" in capsys.readouterr().out


def test_mteb_evaluates_the_embeddings_on_recordings(
    pipe: MTMMPipeline, real_data: Path, tmp_path: Path
) -> None:
    mteb = pytest.importorskip("mteb")
    rows = read_manifest(real_data / "ravdess4" / "manifest.csv")
    chosen = [u for u in rows if u.emotion in ("angry", "sad") and u.speaker_id <= "actor_02"]

    class Ravdess(mteb.abstasks.AbsTaskClassification):  # type: ignore[name-defined, misc]
        input_column_name, label_column_name = "audio", "label"
        samples_per_label, n_experiments = 8, 2
        metadata = mteb.TaskMetadata(
            name="RavdessEmotions", description="Two emotions of RAVDESS.", type="AudioClassification",
            category="a2c", modalities=["audio"], eval_splits=["test"], eval_langs=["eng-Latn"],
            main_score="accuracy", dataset={"path": "none/none", "revision": "none"},
        )  # fmt: skip

        def load_data(self, *args: Any, **kwargs: Any) -> None:
            splits = {"train": "actor_01", "test": "actor_02"}
            self.dataset = datasets.DatasetDict()
            for split, speaker in splits.items():
                own = [u for u in chosen if u.speaker_id == speaker]
                columns = {
                    "audio": [u.audio for u in own],
                    "label": [u.emotion == "sad" for u in own],
                }
                table = datasets.Dataset.from_dict(columns)
                self.dataset[split] = table.cast_column("audio", datasets.Audio(decode=False))
            self.data_loaded = True

    model = EmbeddingModel(pipe)
    cache = mteb.ResultCache(tmp_path)
    (result,) = mteb.evaluate(
        model, Ravdess(), cache=cache, encode_kwargs={"batch_size": 8}
    ).task_results
    assert 0 <= result.get_score() <= 1
    # The same vectors, and so the same regressions.
    assert model.encode(["so", "hello"]).shape == (2, pipe.model.config.hidden_size)
    assert model.similarity(np.eye(2), np.eye(2)).tolist() == np.eye(2).tolist()
    with pytest.raises(ValueError, match="Input 0 has no audio"):
        EmbeddingModel(pipe, which="audio").encode(["so"])
