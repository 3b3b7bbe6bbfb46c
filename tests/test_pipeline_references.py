"""References in people's hands: made by the pipeline, given to it, saved, adopted, of what is given."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import soundfile
import torch
from conftest import RATE, TRAINED, WHISPER, MakeModel, audio, noise
from small_runs import train, words

from audio_mtmm import InputError
from modeling_mtmm import MTMMModel
from mtmm_training.commands.cli import main
from mtmm_training.scoring.predictions import Predictions
from mtmm_training.training.references import predicted_answers
from mtmm_training.training.run import Run
from pipeline_mtmm import MTMMPipeline
from processing_mtmm import MTMMProcessor
from reference_mtmm import Reference

REFERENCE = {"reference": "speaker", "reference_encoder": "e", "reference_strengths": (20.0, 30.0)}


def with_statistics(model: MTMMModel) -> MTMMModel:
    """Fills what training would: states of noise, and other ones for each answer."""
    states, mask = model.encode_audio(torch.from_numpy(noise(2.0, seed=99))[None])
    rows = states.movedim(-2, 1)[mask].reshape(int(mask.sum()), -1, states.shape[-1])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.fusion.reference_mean.copy_(rows.mean(0))
        model.fusion.reference_deviation.copy_(rows.std(0))
        expected = torch.randn(model.fusion.expected_states.shape, generator=generator)
        model.fusion.expected_states.copy_(expected)
    return model


@pytest.fixture(scope="module", params=[1, 2])
def layers(request: pytest.FixtureRequest) -> str:
    return {1: "last", 2: "weighted"}[request.param]


@pytest.fixture(scope="module")
def model(make_model: MakeModel, layers: str) -> MTMMModel:
    options = REFERENCE | {"trained_outputs": TRAINED, "temperature": 1.5}
    return with_statistics(make_model(encoder_layers=layers, **options))


@pytest.fixture(scope="module")
def pipe(model: MTMMModel, tiny_processor: MTMMProcessor) -> MTMMPipeline:
    return MTMMPipeline(model=model, processor=tiny_processor)


def voices(count: int = 4) -> list[dict[str, Any]]:
    """Recordings of different lengths, of two speakers in turn, and one of nobody's."""
    texts = [{}, {"text": "i am fine"}, {}]
    rows: list[dict[str, Any]] = [
        {"audio": audio(0.3 * noise(0.4 + 0.1 * i, seed=i)), "speaker": ("anna", "ben")[i % 2]}
        | texts[i % 3]
        for i in range(count)
    ]
    return [*rows, {"audio": audio(noise(0.5, seed=50))}]


def by_hand(model: MTMMModel, rows: list[dict[str, Any]], processor: Any) -> Reference:
    """The reference of recordings, one at a time, from the model's own forward pass."""
    config, made = model.config, []
    for row in rows:
        waveform = row["audio"]["array"]
        features = processor(audio=[waveform], text=[row.get("text")], sampling_rate=RATE)
        with torch.no_grad():
            output = model(**features)
            states, mask = model.encode_audio(
                features["input_values"], features["audio_attention_mask"]
            )
        outputs = output.emotion_logits.numpy(), output.dimensions.numpy()
        nothing: Any = np.zeros(1)
        predictions = Predictions(["u"], *outputs, nothing, nothing)
        answers = torch.from_numpy(predicted_answers(predictions, config))
        seconds = len(waveform) / RATE
        made.append(Reference.of_states(states, mask, answers, seconds, "e"))
    return sum(made[1:], made[0])


def assert_alike(one: Reference, other: Reference) -> None:
    assert (one.recordings, one.frames, one.encoder) == (
        other.recordings,
        other.frames,
        other.encoder,
    )
    assert one.seconds == pytest.approx(other.seconds)
    for name in ("mean", "squares", "answers"):
        found, expected = getattr(one, name), getattr(other, name)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def numbers(result: dict[str, Any]) -> list[float]:
    return [*(result["scores"][name] for name in sorted(result["scores"])), result["valence"]]


# ---- made ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("trained", [TRAINED, ("valence", "arousal")])
def test_reference_is_what_the_model_hears_in_the_recordings(
    model: MTMMModel, tiny_processor: MTMMProcessor, trained: tuple[str, ...]
) -> None:
    pipe = MTMMPipeline(model=model, processor=tiny_processor)
    before, model.config.trained_outputs = model.config.trained_outputs, trained
    try:
        rows = voices()
        expected = by_hand(model, rows, tiny_processor)
        assert np.any(expected.answers[:4]) == ("emotion" in trained)
        for_all: list[dict[str, Any]] = [{}, {"batch_size": 3}, {"num_workers": 1}]
        for options in for_all:
            made = pipe.reference([*rows, {"text": "no voice"}], **options)
            assert_alike(made, expected)
            assert made.kind == "speaker"
        assert pipe.reference(rows[0], kind="domain").kind == "domain"
        parts = pipe.reference(rows[:2]) + pipe.reference(iter(rows[2:]))
        assert_alike(parts, expected)
    finally:
        model.config.trained_outputs = before


def test_windows_of_a_long_recording_count_once(pipe: MTMMPipeline) -> None:
    long = audio(noise(2.3, seed=3))
    made = pipe.reference([long, audio(noise(0.5))], window_s=1.0)
    assert made.recordings == 2
    assert made.seconds == pytest.approx(2.8)  # the last window begins at 1.3 s, within the second


def test_domain_decides_what_is_heard_in_a_speaker(pipe: MTMMPipeline, tmp_path: Path) -> None:
    rows = voices()
    domain = pipe.reference(rows, kind="domain")
    domain.save(tmp_path / "room.safetensors")
    plain = pipe.reference(rows[:2])
    within = pipe.reference(rows[:2], domain=tmp_path / "room.safetensors")
    np.testing.assert_array_equal(plain.mean, within.mean)
    assert np.abs(plain.answers - within.answers).max() > 1e-3


# ---- given ---------------------------------------------------------------------------------------


def test_given_reference_is_that_of_forward(
    pipe: MTMMPipeline, tiny_processor: MTMMProcessor, tmp_path: Path
) -> None:
    model, rows = pipe.model, voices()
    anna, room = pipe.reference(rows[::2]), pipe.reference(rows, kind="domain")
    anna.save(tmp_path / "anna.safetensors")
    for given, kinds in (
        (anna, {"speaker": anna}),
        (str(tmp_path / "anna.safetensors"), {"speaker": anna}),
        ([room, tmp_path / "anna.safetensors"], {"speaker": anna, "domain": room}),
        ([pipe.reference(rows[:1]), pipe.reference(rows[2:3])], {"speaker": None}),
    ):
        results = pipe(rows, reference=given, batch_size=2)
        for row, result in zip(rows, results, strict=True):
            used = {k: r or pipe.reference([rows[0], rows[2]]) for k, r in kinds.items()}
            features = tiny_processor(
                audio=[row["audio"]["array"]], text=[row.get("text")], sampling_rate=RATE
            )
            with torch.no_grad():
                expected = model(**features, **model.standardisation(**used))
            assert result["valence"] == pytest.approx(float(expected.dimensions[0, 0]), abs=1e-5)
            assert result["reference"] == {
                kind: {"recordings": one.recordings, "seconds": round(one.seconds, 2)}
                for kind, one in used.items()
            }


def test_nothing_given_is_what_it_was(pipe: MTMMPipeline) -> None:
    rows = voices()
    plain = pipe(rows)
    assert all("reference" not in result for result in plain)
    assert pipe(rows, reference="none") == plain == pipe(rows, reference=None)
    always = MTMMPipeline(
        model=pipe.model, processor=pipe.processor, reference=pipe.reference(rows)
    )
    assert numbers(always(rows)[0]) != numbers(plain[0])
    assert always(rows, reference="none") == plain
    silent = pipe({"text": "no voice"}, reference=pipe.reference(rows))
    assert silent == pipe({"text": "no voice"})


def test_speakers_get_their_own_among_what_is_given(pipe: MTMMPipeline) -> None:
    rows = voices(5)
    room = pipe.reference(rows, kind="domain")
    plain = pipe(rows)
    own = {
        name: pipe.reference([r for r in rows if r.get("speaker") == name])
        for name in ("anna", "ben")
    }
    results = pipe(rows, reference="speaker", batch_size=4)
    for row, result, without in zip(rows, results, plain, strict=True):
        name = row.get("speaker")
        expected = without if name is None else pipe(row, reference=own[name])
        assert numbers(result) == pytest.approx(numbers(expected), abs=1e-4)
        assert result.get("reference") == expected.get("reference")
    assert results[0]["reference"]["speaker"]["recordings"] == 3
    within = pipe(iter(rows), reference=["domain", "speaker"])
    ben = pipe.reference([r for r in rows if r.get("speaker") == "ben"], domain=room)
    both = pipe(rows[1], reference=[room, ben])  # whose moods are heard in the room
    assert numbers(list(within)[1]) == pytest.approx(numbers(both), abs=1e-4)
    assert both["reference"].keys() == {"domain", "speaker"}
    by_worker = pipe(rows, reference="speaker", num_workers=1)
    assert numbers(by_worker[0]) == pytest.approx(numbers(results[0]), abs=1e-4)


def test_long_recording_is_its_own_domain(pipe: MTMMPipeline) -> None:
    long = audio(0.2 * noise(2.5, seed=7))
    result = pipe(long, reference="domain", window_s=0.5)
    room = pipe.reference(long, kind="domain", window_s=0.5)
    expected = pipe(long, reference=room, window_s=0.5)
    assert numbers(result) == pytest.approx(numbers(expected))
    assert result["reference"] == {"domain": {"recordings": 1, "seconds": 2.5}}
    assert all("reference" not in entry for entry in result["timeline"])
    entries = list(pipe.stream(long, window_s=0.5, reference=room))
    assert [e["valence"] for e in entries] == pytest.approx(
        [e["valence"] for e in expected["timeline"]]
    )
    assert entries[0]["reference"] == result["reference"]


def test_every_pass_over_results_makes_the_reference_again(pipe: MTMMPipeline) -> None:
    rows = voices()
    results = pipe(Dataset(rows), reference="domain")
    assert list(results) == list(results) == pipe(rows, reference="domain")


class Dataset(torch.utils.data.Dataset[Any]):
    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


def test_explanation_uses_the_same_reference(pipe: MTMMPipeline) -> None:
    row = {"audio": audio(noise(1.5, seed=4)), "text": "i am fine"}
    made = pipe.reference([voices()[0]])
    anna = replace(made, mean=-made.mean, frames=10**5)  # a tiny model reads all alike
    result = pipe(row, reference=anna, explain="valence")
    plain = pipe(row, explain="valence")
    assert numbers(result) == pytest.approx(numbers(pipe(row, reference=anna)))
    falls = result["explanation"]["occlusion"]["modalities"]
    # Without its audio the reference has nothing to move.
    silent = pipe({"text": row["text"]})["valence"]
    assert falls["audio"] == pytest.approx(result["valence"] - silent, abs=1e-5)
    said = pipe({"audio": row["audio"]}, reference=anna)["valence"]
    assert falls["text"] == pytest.approx(result["valence"] - said, abs=1e-5)
    shares = [r["explanation"]["words"][0]["share"] for r in (result, plain)]
    assert abs(shares[0] - shares[1]) > 1e-6


def test_whisper_takes_references(make_model: MakeModel, whisper_processor: MTMMProcessor) -> None:
    model = make_model(audio_config=WHISPER, trained_outputs=TRAINED, **REFERENCE)
    pipe = MTMMPipeline(model=model, processor=whisper_processor)
    rows = voices()
    made = pipe.reference(rows, batch_size=3)
    assert made.recordings == 5
    assert made.frames < 5 * 50  # of windows of a second; what is behind the audio counts nothing
    assert numbers(pipe(rows[0], reference=made)) != numbers(pipe(rows[0]))


@pytest.mark.parametrize("kind", ["speaker", "none"])
def test_pipeline_answers_as_the_run_was_scored(embedded: Path, tmp_path: Path, kind: str) -> None:
    """A run's test predictions, from its cache, are those of its model with the same references."""
    out = train(words(embedded, tmp_path, "--reference", kind))
    scored = pandas.read_csv(out / "predictions.csv").query("split == 'test'").set_index("id")
    test = Run.open(out).test_utterances()
    rows = [{"audio": u.audio, "text": u.text, "speaker": u.speaker_id} for u in test]
    model = MTMMModel.from_pretrained(out / "model")
    pipe = MTMMPipeline(model=model, processor=MTMMProcessor.from_pretrained(out / "model"))
    results, plain = pipe(rows, reference=kind, batch_size=4), pipe(rows)
    found = [result["valence"] for result in results]
    expected = scored["valence"][[u.utterance_id for u in test]].tolist()
    assert found == pytest.approx(expected, abs=5e-3)  # the cache is float16
    moved = np.abs(np.array(found) - [result["valence"] for result in plain]).max()
    assert (moved > 0.05) == (kind == "speaker")


# ---- refused -------------------------------------------------------------------------------------


def test_what_cannot_be_used_is_refused(
    pipe: MTMMPipeline, make_model: MakeModel, tiny_processor: MTMMProcessor, tmp_path: Path
) -> None:
    rows = voices()
    plain = MTMMPipeline(model=make_model(trained_outputs=TRAINED), processor=tiny_processor)
    one = pipe.reference(rows)
    (tmp_path / "x.safetensors").write_bytes(b"no reference")
    for call, said in (
        (lambda: plain(rows, reference=one), "without references"),
        (lambda: plain(rows, reference="speaker"), "without references"),
        (lambda: plain.reference(rows), "without references"),
        (lambda: pipe(rows, reference=replace(one, encoder="other")), "another encoder"),
        (lambda: pipe(rows, reference=tmp_path / "x.safetensors"), "x.safetensors"),
        (lambda: pipe(rows[-1:], reference="speaker"), "who speaks"),
        (lambda: pipe([{"text": "no"}], reference="domain"), "none is given"),
        (lambda: pipe.reference([{"text": "no"}]), "none is given"),
        (lambda: pipe.reference(rows, kind="room"), "kind='room'"),
        (lambda: pipe.reference(rows, emotion="bored"), "emotion='bored'"),
        (lambda: pipe.reference(rows, kind="domain", emotion="sad"), "emotion='sad'"),
        (lambda: next(iter(pipe.stream(rows[0], reference="domain"))), "stream"),
        (lambda: pipe.model.adopt_domain(one), "speaker's"),
        (lambda: pipe({"speaker": "anna"}), "speaker"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
    with pytest.raises(FileNotFoundError):
        pipe(rows, reference="missing.safetensors")
    with pytest.raises(InputError) as caught:
        pipe([*rows, "missing.wav"], reference="domain")
    assert caught.value.index == 5


# ---- kept ----------------------------------------------------------------------------------------


def test_adopted_domain_is_the_models_own(
    make_model: MakeModel, tiny_processor: MTMMProcessor, tmp_path: Path
) -> None:
    model = with_statistics(make_model(trained_outputs=TRAINED, **REFERENCE))
    pipe, rows = MTMMPipeline(model=model, processor=tiny_processor), voices()
    room = pipe.reference(rows, kind="domain")
    expected = pipe(rows[0], reference=room)
    model.adopt_domain(room)
    pipe.save_pretrained(tmp_path)
    again = MTMMPipeline(model=MTMMModel.from_pretrained(tmp_path), processor=tiny_processor)
    assert numbers(again(rows[0])) == pytest.approx(numbers(expected), abs=1e-6)


def test_adapted_model_has_learned_its_place(
    make_model: MakeModel, tiny_processor: MTMMProcessor, saved: Path, tmp_path: Path
) -> None:
    def adaptable() -> MTMMPipeline:
        fields = REFERENCE | {"reference_spread": 1e-6}  # all is another place
        model = with_statistics(make_model(trained_outputs=TRAINED, **fields))
        path: Any = model.add_linear_path({"audio": {"layers": [0], "deviation": False}})
        half = len(path.bias) // 2
        path.audio_weight[half:].normal_(generator=torch.Generator().manual_seed(2))
        return MTMMPipeline(model=model, processor=tiny_processor)

    pipe, rows = adaptable(), voices(12)
    adopted = adaptable()
    room = adopted.reference(rows, kind="domain")
    adopted.model.adopt_domain(room)
    assert_alike(pipe.adapt(rows, batch_size=4), room)
    assert np.abs(np.subtract(numbers(pipe(rows[0])), numbers(adopted(rows[0])))[:4]).max() > 1e-3
    pipe.save_pretrained(tmp_path)
    again = MTMMPipeline(model=MTMMModel.from_pretrained(tmp_path), processor=tiny_processor)
    assert numbers(again(rows[0])) == pytest.approx(numbers(pipe(rows[0])), abs=1e-6)
    with pytest.raises(ValueError, match="none is given"):
        pipe.adapt([{"text": "no voice"}])


def test_place_that_a_path_of_text_cannot_learn_is_adopted(
    make_model: MakeModel, tiny_processor: MTMMProcessor
) -> None:
    model = make_model(trained_outputs=TRAINED, **REFERENCE, reference_spread=1e-6)
    with_statistics(model).add_linear_path({"text": {"layers": [0], "deviation": False}})
    pipe = MTMMPipeline(model=model, processor=tiny_processor)
    before = model.fusion.reference_mean.clone()
    made = pipe.adapt(voices())
    assert not torch.equal(model.fusion.reference_mean, before) and made.kind == "domain"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_stay_float32_in_half_precision(
    make_model: MakeModel, tiny_processor: MTMMProcessor, tmp_path: Path, dtype: torch.dtype
) -> None:
    model = make_model(trained_outputs=TRAINED, encoder_layers="weighted", **REFERENCE)
    with_statistics(model)
    path = model.add_linear_path({"audio": {"layers": [0], "deviation": True}})
    path.get_buffer("audio_weight").normal_(generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.fusion.reference_mean += 100.3  # of which bfloat16 keeps 100
    model.save_pretrained(tmp_path)
    half = MTMMModel.from_pretrained(tmp_path, dtype=dtype)
    for name, buffer in model.named_buffers():
        if name.startswith(("fusion.", "linear_path.")):
            loaded = half.get_buffer(name)
            assert loaded.dtype == torch.float32
            assert torch.equal(loaded, buffer)
    assert half.dtype == dtype
    given = torch.from_numpy(noise())[None]
    if dtype == torch.bfloat16:
        cast: Any = MTMMModel.from_pretrained(tmp_path)
        for one in (half, cast.to(dtype)):
            assert one(input_values=given).dimensions.isfinite().all()


# ---- from the command line -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(pipe: MTMMPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder in a run's, and a manifest of its recordings beside it."""
    folder = tmp_path_factory.mktemp("saved")
    pipe.save_pretrained(folder / "run" / "model")
    lines = ["audio,speaker,text"]
    for i, row in enumerate(voices()):
        soundfile.write(folder / f"{i}.wav", row["audio"]["array"], RATE, subtype="FLOAT")
        lines.append(f"{i}.wav,{row.get('speaker', '')},{row.get('text', '')}")
    (folder / "all.csv").write_text("\n".join([*lines, "missing.wav,anna,"]))
    return folder


def predict(
    capsys: pytest.CaptureFixture[str], words: list[Any], status: int = 0
) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["predict", *map(str, words), "--json"]) == status
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_command_uses_each_speakers_own(
    pipe: MTMMPipeline, saved: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    table, model = saved / "all.csv", ("--model", saved / "run")
    results = predict(capsys, [table, *model, "--reference", "speaker"], status=1)
    assert "missing.wav" in results[-1]["error"]
    expected = pipe(voices(), reference="speaker")
    for result, other in zip(results, expected, strict=False):
        assert numbers(result) == pytest.approx(numbers(other), abs=1e-4)
        assert result.get("reference") == other.get("reference")
    assert results[0]["reference"]["speaker"]["recordings"] == 2
    # All of them, also where the parts have one input each.
    words = ["predict", table, *model, "--reference", "domain", "--out", tmp_path / "p"]
    assert main([*map(str, words), "--part_size", "1"]) == 1
    parts = pandas.read_parquet(tmp_path / "p")
    assert [json.loads(cell)["domain"]["recordings"] for cell in parts["reference"][:5]] == [5] * 5
    assert main([*map(str, words), "--part_size", "1", "--reference", "none"]) == 1  # another run
    capsys.readouterr()
    main([*map(str, words[:-2]), "--csv"])
    line = capsys.readouterr().out.splitlines()[1]
    assert '""recordings"": 5' in line


def test_command_makes_a_reference_that_predict_takes(
    pipe: MTMMPipeline, saved: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out, model = tmp_path / "anna.safetensors", ("--model", saved / "run")
    files = [saved / "0.wav", saved / "2.wav"]
    words = ["reference", *files, *model, "--out", out]
    assert main([*map(str, words), "--batch_size", "2"]) == 0
    printed = capsys.readouterr().out
    assert f"{out}: a speaker's reference of 2 recordings, 1.0 s" in printed
    rows = [{"audio": row["audio"]} for row in voices()]
    assert_alike(Reference.load(out), pipe.reference([rows[0], rows[2]]))
    known = tmp_path / "sad.safetensors"
    assert main([*map(str, words[:-1]), str(known), "--emotion", "sad"]) == 0
    wanted = pipe.reference([rows[0], rows[2]], emotion="sad")
    assert_alike(Reference.load(known), wanted)
    sad = pipe.model.config.label2id["sad"]
    assert (wanted.told, wanted.answers.argmax(), wanted.answers.sum()) == (1.0, sad, 1.0)
    settled = tmp_path / "settled"
    assert main([*map(str, words[:-1]), str(settled), "--kind", "domain"]) == 0
    assert f"{settled}: a domain's model of 2 recordings, 1.0 s" in capsys.readouterr().out
    assert main([*map(str, words[:-1]), str(settled)]) == 2  # of one speaker there is no model
    named = tmp_path / "settled.v2"
    lost = [*map(str, words[:-1]), str(named), "--kind", "domain"]
    assert main([*lost, "--emotion", "sad"]) == main([*lost, "--domain", str(out)]) == 2
    assert not named.exists()
    capsys.readouterr()
    assert main(lost) == 0 and f"{named}: a domain's model of 2" in capsys.readouterr().out
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "thesis.txt").write_text("mine")
    assert main([*map(str, words[:-1]), str(kept), "--kind", "domain"]) == 1
    assert [path.name for path in kept.iterdir()] == ["thesis.txt"]
    room = tmp_path / "room.safetensors"
    capsys.readouterr()
    assert main([*map(str, words[:-1]), str(room), "--kind", "domain"]) == 0
    (result,) = predict(capsys, [saved / "1.wav", "--model", settled])
    expected = MTMMPipeline(model=MTMMModel.from_pretrained(settled), processor=pipe.processor)
    assert numbers(result) == pytest.approx(numbers(expected(rows[1])), abs=1e-4)
    (result,) = predict(capsys, [saved / "1.wav", *model, "--reference", out, room])
    expected = pipe(rows[1], reference=[Reference.load(out), Reference.load(room)])
    assert numbers(result) == pytest.approx(numbers(expected), abs=1e-4)
    assert result["reference"].keys() == {"speaker", "domain"}
    main(["predict", str(saved / "1.wav"), "--model", str(saved / "run"), "--reference", str(out)])
    assert "speaker's reference of 2 recordings, 1.0 s" in capsys.readouterr().out
    assert main([*map(str, [*words[:2], saved / "missing.wav", *model, "--out", out])]) == 1
    assert "missing.wav" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["a.wav", "--reference", "speaker", "b.wav"],
        ["-", "--reference", "domain"],
        ["a.wav", "--reference", "domain", "--out", "parts", "--share", "0/2"],
    ],
)
def test_command_refuses_references_that_cannot_be_made(words: list[str]) -> None:
    assert main(["predict", *words, "--model", "M"]) == 2
