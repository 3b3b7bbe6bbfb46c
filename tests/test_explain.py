"""Explanations of the pipeline, and whether they point at what was planted.

Run alone: python -m pytest tests/test_explain.py -q
"""

import json
import math
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import RATE, TRAINED, WHISPER, MakeModel, audio, noise
from hub_server import trained_run
from scipy.stats import spearmanr
from transformers import BertTokenizer, RobertaTokenizer, WhisperFeatureExtractor

from explanation_mtmm import BIN_S, Places, find_words
from modeling_mtmm import MTMMModel
from mtmm_training.studies import explanation_check
from mtmm_training.studies.explanation_check import Probe, count_hits, is_planted
from pipeline_mtmm import MTMMPipeline
from processing_mtmm import MTMMProcessor

TEXT = "hello, good old world"


SPEECH = audio(noise(1.9))


@pytest.fixture(scope="module")
def whisper_pipe(make_model: MakeModel, tiny_processor: MTMMProcessor) -> MTMMPipeline:
    extractor = WhisperFeatureExtractor(feature_size=20, chunk_length=2)
    processor = MTMMProcessor(extractor, tiny_processor.tokenizer, max_tokens=64)
    model = make_model(
        audio_config=WHISPER | {"max_source_positions": 100}, trained_outputs=TRAINED
    )
    return MTMMPipeline(model=model, processor=processor)


def shares(explanation: dict[str, Any], kind: str) -> list[float]:
    return [place["share"] for place in explanation[kind]]


def close(explanation: dict[str, Any], other: dict[str, Any]) -> None:
    """Equal, numbers to 1e-4; the agreement only where nothing is nearly a tie."""
    for one, two in ((explanation, other), (explanation["occlusion"], other["occlusion"])):
        assert one["modalities"] == pytest.approx(two["modalities"], abs=1e-4)
        for kind in ("time", "words"):
            assert len(one[kind]) == len(two[kind])
            for place, same in zip(one[kind], two[kind], strict=True):
                assert place == pytest.approx(same, abs=1e-4)


# ---- what is in it -------------------------------------------------------------------------------

INPUTS: dict[str, dict[str, Any]] = {
    "both": {"audio": SPEECH, "text": TEXT},
    "audio": {"audio": SPEECH},
    "text": {"text": TEXT},
    "shortest": {"audio": audio(noise(0.05)), "text": "a"},
}


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("which", ["pipe", "whisper_pipe"])
def test_explanation_is_plain_and_whole(
    request: pytest.FixtureRequest, which: str, name: str
) -> None:
    pipe, given = request.getfixturevalue(which), INPUTS[name]
    result = pipe(given, explain=True)
    explanation = result.pop("explanation")
    assert result == pipe(given)
    assert json.loads(json.dumps(explanation)) == explanation  # plain Python
    time, words = shares(explanation, "time"), shares(explanation, "words")
    assert explanation["modalities"] == pytest.approx({"audio": sum(time), "text": sum(words)})
    assert sum(time + words) == pytest.approx(1)
    occlusion = explanation["occlusion"]
    assert occlusion["of"] == result["emotion"]
    for kind in ("time", "words"):
        places = [place | {"share": 0} for place in explanation[kind]]
        assert places == [place | {"share": 0} for place in occlusion[kind]]
        agreement = explanation["agreement"][kind]
        if len(places) < 3:
            assert agreement is None
        else:
            sizes = np.abs(shares(occlusion, kind))
            ranks = spearmanr(shares(explanation, kind), sizes).statistic
            assert agreement == pytest.approx(ranks)
    for modality, change in occlusion["modalities"].items():
        if modality not in given:
            assert explanation["modalities"][modality] == change == 0
        else:  # without the only one nothing would be left
            assert (change is None) == (len(given) == 1) and change != 0
    found = [(w["text"], w["start_char"], w["end_char"]) for w in explanation["words"]]
    said = given.get("text", "")
    assert [said[start:end] for _, start, end in found] == [text for text, *_ in found]
    assert [text for text, *_ in found] == said.split()
    if "audio" in given:
        duration_s = len(given["audio"]["array"]) / RATE
        edges = [place["start"] for place in explanation["time"]]
        edges.append(explanation["time"][-1]["end"])
        assert np.allclose(edges, np.linspace(0, duration_s, len(edges)))
        assert len(edges) - 1 == max(round(duration_s / BIN_S), 1)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"bridge_wiring": "direct"},
        {"encoder_layers": "weighted", "num_interaction_layers": 2},
    ],
)
def test_shares_are_those_of_the_bridge_tokens(
    make_model: MakeModel, tiny_processor: MTMMProcessor, overrides: dict[str, Any]
) -> None:
    """Each frame is shared by the bins it lies in."""
    model = make_model(trained_outputs=TRAINED, **overrides)
    pipe = MTMMPipeline(model=model, processor=tiny_processor)
    inputs = tiny_processor([SPEECH["array"]], ["ab cd e"], sampling_rate=RATE)
    with torch.no_grad():
        output = model(**inputs, output_attentions=True)
        _, mask = model.encode_audio(inputs["input_values"])
        frames, _ = model.bridge_contributions(output, mask, inputs["attention_mask"])
    shared = frames[0].double().numpy()
    explanation = pipe({"audio": SPEECH, "text": "ab cd e"}, explain=True)["explanation"]
    count = len(explanation["time"])
    for i, share in enumerate(shares(explanation, "time")):
        inside = [
            max(min((f + 1) / len(shared), (i + 1) / count) - max(f / len(shared), i / count), 0)
            for f in range(len(shared))
        ]
        assert share == pytest.approx(float(shared @ inside) * len(shared), abs=1e-6)


def test_words_share_what_special_tokens_got(model: MTMMModel, pipe: MTMMPipeline) -> None:
    inputs = pipe.processor(text=["ab cd e"])
    ids = inputs["input_ids"][0].tolist()
    pieces = pipe.processor.tokenizer.convert_ids_to_tokens(ids)
    groups: list[list[int]] = []
    for place, piece in enumerate(pieces):
        if piece.startswith("▁"):
            groups.append([])
        if not piece.startswith("["):
            groups[-1].append(place)
    assert len(groups) == 3
    with torch.no_grad():
        output = model(**inputs, output_attentions=True)
        absent = torch.zeros(1, 1)
        _, tokens = model.bridge_contributions(output, absent, inputs["attention_mask"])
    expected = torch.stack([tokens[0, group].sum() for group in groups])
    explanation = pipe({"text": "ab cd e"}, explain=True)["explanation"]
    assert shares(explanation, "words") == pytest.approx((expected / expected.sum()).tolist())


# ---- what is left out ----------------------------------------------------------------------------


def fall(result: dict[str, Any], other: dict[str, Any]) -> float:
    """Of the log probability of the first one's emotion."""
    emotion = result["emotion"]
    return math.log(result["scores"][emotion]) - math.log(other["scores"][emotion])


@pytest.mark.parametrize("of", [True, "emotion", "valence", "arousal"])
def test_occlusion_is_the_change_without_it(pipe: MTMMPipeline, of: bool | str) -> None:
    result = pipe({"audio": SPEECH, "text": "good old world"}, explain=of, batch_size=3)
    occlusion = result["explanation"]["occlusion"]
    assert occlusion["of"] == (of if of in ("valence", "arousal") else result["emotion"])

    def change(given: dict[str, Any]) -> float:
        other = pipe(given)
        return result[of] - other[of] if of in ("valence", "arousal") else fall(result, other)

    without = {"audio": change({"text": "good old world"}), "text": change({"audio": SPEECH})}
    assert occlusion["modalities"] == pytest.approx(without, abs=1e-5)
    expected = [
        change({"audio": SPEECH, "text": text}) for text in ("old world", "good world", "good old")
    ]
    assert shares(occlusion, "words") == pytest.approx(expected, abs=1e-5)
    assert max(map(abs, expected)) > 1e-3


def test_bin_is_silent_in_what_the_encoder_hears(pipe: MTMMPipeline, model: MTMMModel) -> None:
    result = pipe(SPEECH, explain=True)
    occluded = shares(result["explanation"]["occlusion"], "time")
    inputs = pipe.processor([SPEECH["array"]], sampling_rate=RATE)
    indices: Any = model.config.label2id
    emotion = indices[result["emotion"]]
    whole = math.log(result["scores"][result["emotion"]])
    size = inputs["input_values"].shape[1] // len(occluded)
    for i, share in enumerate(occluded):
        values = inputs["input_values"].clone()
        values[:, i * size : (i + 1) * size] = 0
        with torch.no_grad():
            logits = model(values, inputs["audio_attention_mask"]).emotion_logits
        left = float(logits.log_softmax(-1)[0, emotion])
        assert share == pytest.approx(whole - left, abs=1e-5)
    assert len(occluded) == 4 and max(map(abs, occluded)) > 1e-3


def test_silence_of_a_log_mel_encoder_is_its_floor(whisper_pipe: MTMMPipeline) -> None:
    """A bin that is silent already changes nothing when it is left out."""
    waveform = noise(2.0)
    waveform[round(0.98 * RATE) : round(1.52 * RATE)] = 0
    explanation = whisper_pipe(audio(waveform), explain=True)["explanation"]
    changes = np.abs(shares(explanation["occlusion"], "time"))
    assert len(changes) == 4
    assert changes[2] < 1e-6 < 1e-4 < changes[[0, 1, 3]].min()


@pytest.mark.parametrize("left", [1.0, 0.0])
def test_certainty_has_a_finite_fall(left: float) -> None:
    """A probability of 0 is a large fall, not an infinite one."""
    places = Places("emotion", [0, 4], [0.0, 1.0], [])
    config: Any = SimpleNamespace(id2label={0: "sad", 1: "happy"})
    read = {"audio": torch.ones(4) / 4, "text": torch.zeros(0)}
    outcomes: Any = [None, None, ([left, 1 - left], [])]
    explanation = places.explained(config, read, ([0.5, 0.5], []), outcomes)
    (share,) = shares(explanation["occlusion"], "time")
    assert math.isfinite(share) and (share > 100 or left == 1)


# ---- words ---------------------------------------------------------------------------------------


def _bert() -> BertTokenizer:
    pieces = "[PAD] [UNK] [CLS] [SEP] [MASK] , . ! hello good ##bye world ' s fine it é".split()
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)})


def _byte_level() -> RobertaTokenizer:
    letters = "abcdefghijklmnopqrstuvwxyz,.!'"
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", *letters, *(f"Ġ{x}" for x in letters)]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges: Any = [("Ġ", x) for x in letters]  # pairs, whatever its annotation says
    return RobertaTokenizer(vocab=vocab, merges=merges)


@pytest.mark.parametrize(
    "text",
    [
        "hello, goodbye world!",
        "  hello  world ",
        "          it s fine",
        "it's ﬁne", # a ligature: normalised to two letters
        "ﬁne ﬁne\u00a0world",
        "…hello… world",
        "hello",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["sentencepiece", "wordpiece", "byte level"])
def test_words_are_found_in_the_transcript(
    tiny_processor: MTMMProcessor, kind: str, text: str
) -> None:
    tokenizer = {"sentencepiece": lambda: tiny_processor.tokenizer, "wordpiece": _bert,
                 "byte level": _byte_level}[kind]()  # fmt: skip
    processor = MTMMProcessor(tiny_processor.feature_extractor, tokenizer, max_tokens=64)
    ids = processor(text=[text])["input_ids"]
    words = find_words(text, tokenizer)
    assert [word.text for word in words] == text.split()
    assert [text[word.start_char : word.end_char] for word in words] == text.split()
    pieces = tokenizer.convert_ids_to_tokens(ids[0].tolist())
    nothing = {tokenizer.cls_token, tokenizer.sep_token, "Ġ"}  # a second space stands for no word
    ordinary = [i for i, piece in enumerate(pieces) if piece not in nothing]
    assert sum((word.tokens for word in words), []) == ordinary  # each token in one word, in order
    for word in words:
        alone = [pieces[token] for token in word.tokens]
        letters = re.sub("[^a-z]", "", "".join(alone))
        expected = re.sub("[^a-z]", "", word.text.replace("ﬁ", "fi"))
        assert letters == expected or tokenizer.unk_token in alone


# ---- every way to ask ----------------------------------------------------------------------------


def test_every_way_gives_the_same_explanation(pipe: MTMMPipeline) -> None:
    inputs = [*INPUTS.values(), {"audio": audio(noise(1.2, seed=3)), "text": "old"}]
    expected = [pipe(given, explain=True)["explanation"] for given in inputs]
    set_once = MTMMPipeline(model=pipe.model, processor=pipe.processor, explain=True)
    for results in (
        pipe(inputs, explain=True, batch_size=4),
        pipe(iter(inputs), explain=True, batch_size=2),
        set_once(inputs),
    ):
        for result, one in zip(results, expected, strict=True):
            close(result["explanation"], one)
    assert "explanation" not in set_once(inputs[0], explain=False)


@pytest.mark.parametrize("which", ["pipe", "whisper_pipe"])
def test_windows_are_explained_and_their_mean_is_not(
    request: pytest.FixtureRequest, which: str
) -> None:
    pipe = request.getfixturevalue(which)
    words = [{"text": "good", "start": 0.1, "end": 0.3}, {"text": "old", "start": 1.6, "end": 1.8},
             {"text": "world", "start": 1.8, "end": 1.9}]  # fmt: skip
    given = {"audio": audio(noise(3.2)), "words": words}
    options = {"window_s": 1.5, "hop_s": 1.0, "explain": True}
    result = pipe(given, batch_size=2, **options)
    assert "explanation" not in result and len(result["timeline"]) == 3
    some = pipe(given, explain_s=(2.6, 3.0), **options)["timeline"]
    assert ["explanation" in entry for entry in some] == [False, False, True]
    for entry in result["timeline"]:
        explanation = entry["explanation"]
        assert explanation["time"][0]["start"] == entry["start"]
        assert explanation["time"][-1]["end"] == pytest.approx(entry["end"])
        for word in explanation["words"]:
            assert entry["text"][word["start_char"] : word["end_char"]] == word["text"]
        # As the same part alone.
        first, last = (round(entry[name] * RATE) for name in ("start", "end"))
        alone = {"audio": audio(noise(3.2)[first:last]), "text": entry.get("text")}
        expected = pipe(alone, explain=True)["explanation"]
        for side in (expected, expected["occlusion"]):
            for place in side["time"]:
                place["start"] += entry["start"]
                place["end"] += entry["start"]
        close(explanation, expected)
    streamed = list(pipe.stream(given, **options))
    for entry, other in zip(streamed, result["timeline"], strict=True):
        close(entry["explanation"], other["explanation"])


def test_group_norm_encoder_is_explained(
    make_model: MakeModel, tiny_processor: MTMMProcessor
) -> None:
    config = make_model().config.encoder_config("audio").to_dict()
    config |= {"feat_extract_norm": "group", "do_stable_layer_norm": False}
    model = make_model(audio_config=config, trained_outputs=TRAINED, acoustic_stride=5)
    pipe = MTMMPipeline(model=model, processor=tiny_processor)
    inputs = [INPUTS["both"], INPUTS["audio"]]
    for result, given in zip(pipe(inputs, explain=True, batch_size=8), inputs, strict=True):
        explanation = result["explanation"]
        assert len(explanation["time"]) == 4
        close(explanation, pipe(given, explain=True)["explanation"])
        assert sum(explanation["modalities"].values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("overrides", "explain", "message"),
    [
        ({"use_bridge_tokens": False}, True, "bridge tokens"),
        ({"trained_outputs": ("valence",)}, True, "`explain=True`.*: valence"),
        ({"trained_outputs": ("valence",)}, "arousal", "`explain='arousal'`"),
        ({"trained_outputs": ()}, True, "none"),
        ({}, "happy", "`explain='happy'`.*: emotion, valence, arousal"),
    ],
)
def test_what_cannot_be_explained_is_refused(
    make_model: MakeModel,
    tiny_processor: MTMMProcessor,
    overrides: dict[str, Any],
    explain: object,
    message: str,
) -> None:
    pipe = MTMMPipeline(
        model=make_model(**({"trained_outputs": TRAINED} | overrides)), processor=tiny_processor
    )
    with pytest.raises(ValueError, match=message):
        pipe({"text": "a"}, explain=explain)
    assert pipe({"text": "a"})["missing"] == ["audio"]


# ---- against what was planted --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "span", "expected"),
    [
        ({"text": "Wonderfully"}, None, True),
        ({"text": "success."}, None, True),
        ({"text": "truly"}, None, False),
        ({"text": "kitchen."}, None, False),
        ({"start": 1.0, "end": 1.5}, (0.5, 1.25), True),
        ({"start": 1.0, "end": 1.5}, (0.5, 1.2), False),
        ({"start": 1.0, "end": 1.5}, (1.3, 2.3), False),
        ({"start": 1.0, "end": 1.5}, (2.0, 3.0), False),
    ],
)
def test_planted_places_are_known(
    place: dict[str, Any], span: tuple[float, float] | None, expected: bool
) -> None:
    assert is_planted(place, span) == expected


def test_hits_are_counted_beside_chance() -> None:
    def explanation(read: list[float], falls: list[float]) -> dict[str, Any]:
        words = ["a", "good", "day"]
        described = [
            {"words": [{"text": w, "share": s} for w, s in zip(words, side, strict=True)]}
            for side in (read, falls)
        ]
        return described[0] | {"occlusion": described[1], "agreement": {"words": 0.5}}

    explanations = [
        explanation([0.1, 0.8, 0.1], [0.5, -0.9, 0.0]),  # both point at the planted word
        explanation([0.5, 0.1, 0.4], [0.0, 2.0, 0.1]),
        explanation([0.1, 0.3, 0.6], [3.0, 2.0, 0.1]),
    ]
    probes = [Probe({}, None)] * 3
    read, left = (count_hits(probes, explanations, occluded) for occluded in (False, True))
    assert [read.rate, left.rate] == pytest.approx([1 / 3, 2 / 3])
    assert read.chance == left.chance == pytest.approx(1 / 3)
    assert read.agreement == 0.5


def test_run_is_checked(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained_run(tmp_path_factory.getbasetemp())
    explanation_check.check_explanations(run, 3)
    lines = capsys.readouterr().out.partition("place on top")[2].splitlines()
    rates = [line for line in lines if ": attention" in line or ": occlusion" in line]
    assert len(rates) == 11
    for line in rates:
        rate, chance, agreement = map(float, line.split()[-3:])
        assert 0 <= rate <= 1 and 0 < chance < 1 and -1 <= agreement <= 1
    assert "valence words: occlusion, emotion" in lines[2]
    assert lines[-1].startswith("3 utterances of the test split of")
