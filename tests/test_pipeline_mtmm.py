"""The pipeline: every form of input, batches, what comes out, its errors, saving and loading."""

import copy
import io
import json
import multiprocessing
from collections import UserDict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import transformers
from conftest import RATE, TRAINED, MakeModel, audio, noise
from transformers.pipelines.pt_utils import KeyDataset

from audio_mtmm import InputError
from configuration_mtmm import MTMMConfig
from modeling_mtmm import MTMMModel
from pipeline_mtmm import MTMMPipeline
from processing_mtmm import MTMMProcessor

pipeline: Any = transformers.pipeline  # whose types want a `task`, which the model names itself


@pytest.fixture(scope="module")
def wav(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audio") / "speech.wav"
    soundfile.write(path, noise(), RATE, subtype="FLOAT")
    return path


def flat(result: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in result.items() if k != "scores"} | result.get("scores", {})


def assert_same(result: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-5) -> None:
    result, expected = flat(result), flat(expected)
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, float):
            assert result[name] == pytest.approx(value, abs=tolerance), name
        else:
            assert result[name] == value, name


def assert_all_same(results: Any, expected: list[dict[str, Any]]) -> None:
    for result, other in zip(results, expected, strict=True):
        assert_same(result, other)


# ---- forms of input ------------------------------------------------------------------------------


def test_every_form_of_audio_gives_the_same(pipe: MTMMPipeline, wav: Path) -> None:
    waveform, data = noise(), wav.read_bytes()
    expected = pipe(waveform, sampling_rate=RATE)
    assert expected["missing"] == ["text"]
    decoded = SimpleNamespace(data=torch.from_numpy(waveform)[None], sample_rate=RATE)
    forms: list[Any] = [
        wav,
        str(wav),
        data,
        bytearray(data),
        memoryview(data),
        io.BytesIO(data),
        audio(waveform),
        {"raw": waveform, "sampling_rate": RATE},
        {"array": torch.from_numpy(waveform), "sampling_rate": RATE},
        {"path": "x.wav", "array": waveform, "sampling_rate": RATE},  # decoded by datasets
        {"path": None, "bytes": data},
        {"path": "speech.wav", "bytes": data},
        {"path": str(wav), "bytes": None},
        {"path": str(wav)},
        SimpleNamespace(get_all_samples=lambda: decoded),
    ]
    for form in forms:
        for given in (form, {"audio": form}, {"audio": form, "text": " "}):
            if isinstance(form, io.BytesIO):
                form.seek(0)
            assert pipe(given) == expected, form
    assert pipe({"audio": waveform.tolist(), "sampling_rate": RATE}) == expected
    assert pipe({"audio": waveform}, sampling_rate=RATE) == expected
    assert pipe({"array": waveform}, sampling_rate=RATE) == expected


def test_own_rate_wins_over_the_options(pipe: MTMMPipeline, wav: Path) -> None:
    expected = pipe(str(wav))
    for given in (str(wav), audio(noise()), {"audio": noise(), "sampling_rate": RATE}):
        assert pipe(given, sampling_rate=8000) == expected


def test_rate_may_be_set_once(model: MTMMModel, tiny_processor: MTMMProcessor) -> None:
    pipe = MTMMPipeline(model=model, processor=tiny_processor, sampling_rate=RATE, top_k=1)
    assert pipe(noise()) == pipe({"array": noise(), "sampling_rate": RATE})
    assert len(pipe(noise())["scores"]) == 1
    assert len(pipe(noise(), top_k=3)["scores"]) == 3


def test_each_modality_changes_the_result(pipe: MTMMPipeline) -> None:
    results = pipe(
        [
            {"audio": audio(noise()), "text": "i am fine"},
            {"audio": audio(noise(seed=1)), "text": "i am fine"},
            {"audio": audio(noise()), "text": "i am sad"},
            audio(noise()),
            {"text": "i am fine"},
        ]
    )
    assert len({round(result["valence"], 4) for result in results}) == 5
    assert [result["missing"] for result in results] == [[], [], [], ["text"], ["audio"]]


def ragged(wav: Path) -> list[Any]:
    """Utterances of every form and length, with either modality or both."""
    return [
        str(wav),
        {"audio": audio(noise(1.0, seed=1)), "text": "a longer sentence than the others"},
        {"text": "no"},
        wav.read_bytes(),
        audio(noise(0.03, seed=2)),
        {"text": "text follows text"},
        {"audio": None, "text": "a b c d e f"},
        {"text": "x"},
        {"audio": {"path": str(wav), "bytes": None}, "text": ""},
        {"audio": str(wav), "text": "yes."},
    ]


@pytest.mark.parametrize("which", ["pipe", "whisper_pipe"])
def test_batches_equal_singles(request: pytest.FixtureRequest, which: str, wav: Path) -> None:
    pipe, inputs = request.getfixturevalue(which), ragged(wav)
    singles = [pipe(given) for given in inputs]
    for options in ({"batch_size": 2}, {"batch_size": 16}, {"batch_size": 4, "num_workers": 3}):
        assert_all_same(pipe(inputs, **options), singles)
        assert_all_same(pipe(inputs[::-1], **options), singles[::-1])


def test_lengths_are_sorted_into_batches(
    pipe: MTMMPipeline, model: MTMMModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mixed lengths come back in order; within the look-ahead batches hold neighbours by length."""
    shapes = []
    forward = model.forward

    def watched(*, return_dict: bool, **inputs: torch.Tensor) -> object:
        tensors = {n: value for n, value in inputs.items() if isinstance(value, torch.Tensor)}
        shapes.append({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        return forward(return_dict=return_dict, **inputs)

    monkeypatch.setattr(model, "forward", watched)
    durations = np.random.default_rng(0).permutation(np.linspace(0.1, 0.9, 32))
    inputs = [audio(noise(s)) for s in durations] + [{"text": "a"}] * 3
    results = pipe(inputs, batch_size=4)
    sizes = [next(iter(shape.values()))[0] for shape in shapes]
    assert sum(sizes) == 35 and len(sizes) <= 12  # of one kind each, and none padded by much
    padded = sum(np.prod(shape.get("input_values", (0,))) for shape in shapes)
    assert padded < 1.1 * durations.sum() * RATE
    assert_all_same(results, [pipe(given) for given in inputs])


@pytest.mark.parametrize(
    "changed",
    [
        {"feat_extract_norm": "group", "do_stable_layer_norm": False},  # HuBERT-base: over time
        {"model_type": "wav2vec2-conformer"},  # its convolutions reach over the end
    ],
    ids=["group", "conformer"],
)
def test_encoder_that_would_hear_padding_gets_none(
    make_model: MakeModel, tiny_processor: MTMMProcessor, changed: dict[str, Any]
) -> None:
    audio_config = MTMMConfig.tiny().encoder_config("audio").to_dict()
    model = make_model(audio_config=audio_config | changed, trained_outputs=TRAINED)
    pipe = MTMMPipeline(model=model, processor=tiny_processor)
    said = [(0.3, "a"), (0.5, "b c d"), (0.3, None), (0.5, "e"), (0.4, "f")]
    inputs = [{"audio": audio(noise(s, seed=i)), "text": text} for i, (s, text) in enumerate(said)]
    assert_all_same(pipe(inputs, batch_size=8), [pipe(given) for given in inputs])
    batches = [[noise(0.3)], [noise(0.3), noise(0.5)]]
    with torch.no_grad():
        alone, padded = (
            model(**tiny_processor(audio=batch, sampling_rate=RATE)).dimensions[0]
            for batch in batches
        )
    assert (alone - padded).abs().max() > 1e-3  # or this test would show nothing


def test_model_in_training_predicts_without_dropout_and_goes_on_with_it(
    make_model: MakeModel, tiny_processor: MTMMProcessor
) -> None:
    pipe = MTMMPipeline(
        model=make_model(hidden_dropout=0.5, trained_outputs=TRAINED), processor=tiny_processor
    )
    expected = pipe({"text": "so you won"}, explain=True)
    pipe.model.train()
    pipe.model.emotion_head.eval()
    before = [module.training for module in pipe.model.modules()]
    assert_same(pipe({"text": "so you won"}, explain=True), expected)
    assert [module.training for module in pipe.model.modules()] == before


def test_generator_is_read_a_bounded_way_ahead(pipe: MTMMPipeline) -> None:
    read = []

    def generator() -> Iterator[dict[str, Any]]:
        for i in range(100):
            read.append(i)
            yield {"text": "abcdefgh"[: 1 + i % 8]}

    results = pipe(generator(), batch_size=2)
    next(results)
    assert len(read) <= 17  # eight batches, and one input to see what it is
    assert len(list(results)) == 99


@pytest.mark.parametrize("bad", [3, {"text": "z"}])
def test_results_before_an_error_come_out(
    make_model: MakeModel, tiny_processor: MTMMProcessor, bad: Any
) -> None:
    """Also where the bad one's outputs are not finite and it shares a batch with them."""
    model = make_model(trained_outputs=TRAINED)
    letter = tiny_processor.tokenizer.convert_tokens_to_ids("z")
    with torch.no_grad():
        model.get_input_embeddings().weight[letter] = torch.nan
    pipe = MTMMPipeline(model=model, processor=tiny_processor)
    results = iter(pipe(iter([{"text": "a"}, {"text": "b"}, bad, {"text": "c"}]), batch_size=4))
    assert [next(results)["missing"], next(results)["missing"]] == [["audio"], ["audio"]]
    with pytest.raises(InputError) as refused:
        next(results)
    assert refused.value.index == 2


def test_generator_with_a_worker_needs_no_fork(pipe: MTMMPipeline) -> None:
    """It cannot be sent to a process that begins anew, as on macOS and Windows: it is read here."""
    before, items = multiprocessing.get_start_method(), [{"text": "so it is"}, {"text": "no"}]
    multiprocessing.set_start_method("spawn", force=True)
    try:
        found = list(pipe((item for item in items), num_workers=1))
        assert list(pipe(items, num_workers=1)) == found  # HuBERT's weights cannot be pickled
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert found == pipe(items)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_refused_input_is_numbered(pipe: MTMMPipeline, num_workers: int) -> None:
    with pytest.raises(InputError) as refused:
        pipe([noise(), b"RIFF"], sampling_rate=RATE, num_workers=num_workers)
    assert refused.value.index == 1 and "cannot be decoded" in refused.value.reason
    with pytest.raises(FileNotFoundError, match="gone.wav"):  # a single one keeps its own kind
        pipe("gone.wav")


def test_tokens_that_the_model_lacks_are_refused(
    model: MTMMModel, tiny_processor: MTMMProcessor
) -> None:
    tokenizer = copy.deepcopy(tiny_processor.tokenizer)
    tokenizer.add_tokens([f"new{i}" for i in range(200)])
    processor = MTMMProcessor(tiny_processor.feature_extractor, tokenizer)
    pipe = MTMMPipeline(model=model, processor=processor)
    assert pipe({"text": "hello"})["missing"] == ["audio"]
    with pytest.raises(ValueError, match="tokenizer"):
        pipe({"text": "hello new199"})


def test_progress_is_shown_on_request(
    pipe: MTMMPipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers.logging.enable_progress_bar()  # which another test may have turned off
    inputs = [{"text": "a"}, {"text": "b"}]
    pipe(inputs)
    assert "it/s" not in capsys.readouterr().err
    pipe(inputs, progress=True)
    assert "2/2" in capsys.readouterr().err
    pipe(noise(3.0), sampling_rate=RATE, window_s=1.0, progress=True)
    assert "3it" in capsys.readouterr().err


def test_series_is_read_in_its_order_whatever_its_labels(pipe: MTMMPipeline, wav: Path) -> None:
    inputs = [{"text": text} for text in ("a", "bc", "def")] + [str(wav)]
    series = pd.Series(inputs)
    results = pipe(inputs)
    assert pipe(series) == results
    assert pipe(series.iloc[::-1]) == results[::-1]
    assert pipe(series[[False, True, False, True]]) == [results[1], results[3]]
    assert pipe(series.set_axis(list("wxyz"))) == results
    assert pipe(series[:0]) == pipe([]) == pipe(()) == list(pipe(iter([]))) == []
    frame = pd.DataFrame({"text": ["a", "bc"]}, index=[7, 7])
    assert pipe(frame) == results[:2]
    with pytest.raises(InputError, match="^Input 1: .* neither audio nor text"):
        pipe(pd.Series([inputs[0], {"text": ""}], index=[7, 7]))


def test_streams_and_datasets_give_iterators(pipe: MTMMPipeline, wav: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows: list[dict[str, Any]]
    rows = [{"audio": str(wav), "text": "a"}, {"audio": None, "text": "b"}]
    expected = pipe(rows)
    assert pipe(tuple(rows)) == expected
    table = datasets.Dataset.from_list(rows)
    keyed: Any = [{"utterance": row} for row in rows]
    undecoded = table.cast_column("audio", datasets.Audio(decode=False))
    forms = (rows, table, table.to_iterable_dataset(), KeyDataset(keyed, "utterance"), undecoded)
    for form in forms:
        for batch_size in (1, 2):
            given: Any = map(dict, form) if form is rows else form
            results = pipe(given, batch_size=batch_size)
            assert not isinstance(results, list)
            assert_all_same(results, expected)
    assert len(pipe(table)) == 2  # for a progress bar
    assert list(pipe(table.select([0])["audio"])) == [pipe(str(wav))]


def test_rows_of_datasets_map_and_other_mappings_are_read(pipe: MTMMPipeline, wav: Path) -> None:
    datasets = pytest.importorskip("datasets")
    audio = {"bytes": None, "path": str(wav)}
    expected = pipe({"audio": audio, "text": "no"})
    assert pipe(UserDict(audio=UserDict(audio), text="no")) == expected
    assert pipe(UserDict(audio)) == pipe(wav)
    table = datasets.Dataset.from_list([{"audio": str(wav), "text": "no"}])
    (row,) = table.map(lambda row: {"valence": pipe(row)["valence"]})
    assert row["valence"] == expected["valence"]


# ---- what comes out ------------------------------------------------------------------------------


def test_result_is_the_models_plain_and_ordered(pipe: MTMMPipeline, model: MTMMModel) -> None:
    result = pipe({"audio": audio(noise()), "text": "hello"})
    assert json.loads(json.dumps(result)) == result
    assert list(result) == ["emotion", "scores", "valence", "arousal", "missing", "untrained"]
    assert (result["missing"], result["untrained"]) == ([], [])
    with torch.no_grad():
        output = model(**pipe.processor(audio=noise(), text="hello", sampling_rate=RATE))
    names: Any = model.config.id2label
    probabilities = output.emotion_logits.softmax(-1)[0].tolist()
    expected = {names[index]: value for index, value in enumerate(probabilities)}
    assert result["scores"] == pytest.approx(expected, abs=1e-6)
    assert list(result["scores"]) == sorted(expected, key=lambda name: -expected[name])
    assert result["emotion"] == next(iter(result["scores"]))
    dimensions = [result["valence"], result["arousal"]]
    assert dimensions == pytest.approx(output.dimensions[0].tolist(), abs=1e-6)


@pytest.mark.parametrize(("top_k", "count"), [(None, 4), (1, 1), (3, 3), (100, 4)])
def test_top_k_shortens_the_scores(pipe: MTMMPipeline, top_k: int | None, count: int) -> None:
    every, result = pipe({"text": "hello"}), pipe({"text": "hello"}, top_k=top_k)
    assert list(result["scores"].items()) == list(every["scores"].items())[:count]
    assert result["emotion"] == every["emotion"]


def test_temperature_changes_scores_not_ranking(
    make_model: MakeModel, tiny_processor: MTMMProcessor
) -> None:
    results = []
    for temperature in (0.5, 1.0, 5):
        model = make_model(trained_outputs=TRAINED, temperature=temperature)
        results.append(MTMMPipeline(model=model, processor=tiny_processor)({"text": "hello"}))
    best = [next(iter(result["scores"].values())) for result in results]
    assert best == sorted(best, reverse=True) and best[0] > best[-1] + 0.01
    assert len({tuple(result["scores"]) for result in results}) == 1
    assert len({result["valence"] for result in results}) == 1


@pytest.mark.parametrize(
    ("trained", "keys"),
    [
        ((), []),
        (("emotion",), ["emotion", "scores"]),
        (("arousal", "valence"), ["valence", "arousal"]),
        (("valence",), ["valence"]),
    ],
)
def test_untrained_outputs_are_left_out_and_named(
    make_model: MakeModel,
    tiny_processor: MTMMProcessor,
    trained: tuple[str, ...],
    keys: list[str],
) -> None:
    pipe = MTMMPipeline(model=make_model(trained_outputs=trained), processor=tiny_processor)
    result = pipe({"text": "hello"})
    assert list(result) == [*keys, "missing", "untrained"]
    assert result["untrained"] == [name for name in TRAINED if name not in trained]


# ---- errors --------------------------------------------------------------------------------------


def test_bad_option_is_refused(pipe: MTMMPipeline, model: MTMMModel) -> None:
    options: dict[str, Any]
    for options in ({"function_to_apply": "none"}, {"sampling_rates": 1}, {"sampling_rate": "16k"}):
        with pytest.raises((TypeError, ValueError), match=next(iter(options))):
            pipe(noise(), **options)
    with pytest.raises(ValueError, match="processor="):
        MTMMPipeline(model=model)


# ---- saved and loaded ----------------------------------------------------------------------------


@pytest.fixture
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remote code is copied into the test's folder, not into the user's cache."""
    modules = "transformers.dynamic_module_utils.HF_MODULES_CACHE"
    monkeypatch.setattr(modules, str(tmp_path / "modules"))


def test_saved_pipeline_loads_by_its_folder(
    pipe: MTMMPipeline, wav: Path, tmp_path: Path, own_modules: None
) -> None:
    folder = tmp_path / "saved"
    pipe.save_pretrained(folder)
    names = {path.name for path in folder.iterdir()}
    assert {"pipeline_mtmm.py", "timeline_mtmm.py", "processor_config.json"} <= names
    loaded = pipeline(model=str(folder), trust_remote_code=True)
    assert type(loaded).__name__ == "MTMMPipeline"
    assert loaded.task == "speech-emotion-recognition"
    inputs = ragged(wav)
    assert_all_same(loaded(inputs, batch_size=4), pipe(inputs))


def test_folder_without_processor_is_refused(
    model: MTMMModel, tmp_path: Path, own_modules: None
) -> None:
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(OSError, match="saved"):
        pipeline(model=str(tmp_path / "saved"), trust_remote_code=True)


def test_bfloat16_model_takes_float32_audio(
    make_model: MakeModel,
    tiny_processor: MTMMProcessor,
    wav: Path,
    tmp_path: Path,
    own_modules: None,
) -> None:
    model = make_model(trained_outputs=TRAINED)
    expected = MTMMPipeline(model=model, processor=tiny_processor)(ragged(wav))
    half = MTMMPipeline(model=model.bfloat16(), processor=tiny_processor)
    half.save_pretrained(tmp_path / "saved")
    loaded = pipeline(model=str(tmp_path / "saved"), trust_remote_code=True)
    assert loaded.model.dtype == torch.bfloat16
    results = loaded(ragged(wav), batch_size=4)
    assert json.dumps(results)
    for result, full in zip(results, expected, strict=True):
        assert result["valence"] == pytest.approx(full["valence"], abs=0.3)
        assert sum(result["scores"].values()) == pytest.approx(1, abs=1e-5)
