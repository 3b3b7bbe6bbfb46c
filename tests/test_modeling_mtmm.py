"""The model: parity with plain references, missing modalities, padding, gradients, the libraries' tools."""

import contextlib
import copy
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TRAINED, WHISPER, MakeModel, gradient, load_with_info
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

import modeling_mtmm
from configuration_mtmm import MTMMConfig
from fusion_mtmm import MTMMAttention, Seen, align_weights
from modeling_mtmm import MTMMModel

LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TEXT = LAYERS | {"hidden_size": 32, "vocab_size": 128, "max_position_embeddings": 66}
WAVE = MTMMConfig.tiny().encoder_config("audio").to_dict()
BERT, ROBERTA = TEXT | {"model_type": "bert"}, TEXT | {"model_type": "roberta"}
PAIRS: dict[str, dict[str, Any]] = {
    "hubert-deberta": {},
    "whisper-bert": {"audio_config": WHISPER | {"encoder_layers": 2}, "text_config": BERT},
    "wav2vec2-roberta": {
        "audio_config": WAVE | {"model_type": "wav2vec2"},
        "text_config": ROBERTA,
    },
    "wavlm-bert": {"audio_config": WAVE | {"model_type": "wavlm"}, "text_config": BERT},
}
WEIGHTED = {"encoder_layers": "weighted"}
WIRINGS = ["crossed", "direct"]
TRAINABLE = {"freeze_audio_encoder": False, "freeze_text_encoder": False}


def no_dropout(**overrides: object) -> dict[str, Any]:
    """Fields of a tiny model without any dropout, in its encoders too."""
    config = MTMMConfig.tiny(**overrides)
    encoders = {
        name: {k: 0.0 if "drop" in k else v for k, v in getattr(config, name).to_dict().items()}
        for name in ("audio_config", "text_config")
    }
    rates = dict.fromkeys(("hidden_dropout", "attention_dropout", "head_dropout"), 0.0)
    return overrides | encoders | rates


def is_whisper(model: MTMMModel) -> bool:
    return model.config.encoder_config("audio").model_type == "whisper"


def utterances(model: MTMMModel, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Audio and token ids of four utterances of different lengths, without padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(3, 100, (n,), generator=generator) for n in (5, 11, 3, 8)]
    if is_whisper(model):  # all real frames; the window's own padding comes with `batch`
        audio = [torch.randn(20, n, generator=generator) for n in (100, 55, 78, 22)]
    else:
        audio = [torch.randn(n, generator=generator) for n in (3000, 1234, 4001, 700)]
    return list(zip(audio, ids, strict=True))


def batch(
    model: MTMMModel, items: list[tuple[Tensor, Tensor]], padding: int = 0, fill: float = 0.0
) -> dict[str, Tensor]:
    """Inputs padded to the longest and `padding` positions more."""
    longest = max(audio.shape[-1] for audio, _ in items)
    time = 100 if is_whisper(model) else longest + 100 * padding
    tokens = max(len(ids) for _, ids in items) + padding
    shape = (len(items), *items[0][0].shape[:-1], time)
    values, mask = torch.full(shape, fill), torch.zeros(len(items), time, dtype=torch.long)
    pad = model.config.encoder_config("text").pad_token_id
    ids, ids_mask = torch.full((len(items), tokens), pad), torch.zeros(len(items), tokens).long()
    for i, (audio, text) in enumerate(items):
        values[i, ..., : audio.shape[-1]], mask[i, : audio.shape[-1]] = audio, 1
        ids[i, : len(text)], ids_mask[i, : len(text)] = text, 1
    return {
        "input_values": values,
        "audio_attention_mask": mask,
        "input_ids": ids,
        "attention_mask": ids_mask,
    }


LABELS = {
    "emotion_labels": torch.tensor([0, 1, 2, 3]),
    "dimension_labels": torch.tensor([[1.5, 4.0], [4.5, 2.0], [3.0, 3.5], [2.0, 1.0]]),
}
AUDIO_KEYS = ("input_values", "audio_attention_mask")
TEXT_KEYS = ("input_ids", "attention_mask")


def without(inputs: dict[str, Tensor], keys: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: value for name, value in inputs.items() if name not in keys}


@torch.no_grad()
def predict(model: Callable[..., Any], inputs: dict[str, Tensor]) -> Tensor:
    """Everything an utterance gets: logits, dimensions and fused state, (batch, numbers)."""
    output = model(**inputs)
    return torch.cat([output.emotion_logits, output.dimensions, output.fused_state], dim=-1)


def assert_equal(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


# ---- plain float64 references: one utterance, no batch, no mask ----------------------------------


def linear(module: nn.Linear, x: Tensor) -> Tensor:
    return x @ module.weight.T + (0 if module.bias is None else module.bias)


def layer_norm(x: Tensor, module: nn.LayerNorm | None = None) -> Tensor:
    eps = 1e-5 if module is None else module.eps
    centred = x - x.mean(-1, keepdim=True)
    x = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    return x if module is None else x * module.weight + module.bias


def reference_attention(
    attention: MTMMAttention, queries: Tensor, keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor]:
    q = linear(attention.query_projection, queries)
    k = linear(attention.key_projection, keys)
    v = linear(attention.value_projection, values)
    width = q.shape[-1] // attention.num_heads
    heads, all_weights = [], []
    for head in range(attention.num_heads):
        part = slice(head * width, (head + 1) * width)
        weights = (q[:, part] @ k[:, part].T / math.sqrt(width)).exp()
        weights = weights / weights.sum(-1, keepdim=True)
        heads.append(weights @ v[:, part])
        all_weights.append(weights)
    return linear(attention.output_projection, torch.cat(heads, -1)), torch.stack(all_weights)


def reference_feed_forward(layer: Any, x: Tensor) -> Tensor:
    hidden = linear(layer.feed_forward.input, layer_norm(x, layer.feed_forward_norm))
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return x + linear(layer.feed_forward.output, hidden)


def reference_refinement(layer: Any, x: Tensor) -> Tensor:
    normed = layer_norm(x, layer.attention_norm)
    return reference_feed_forward(
        layer, x + reference_attention(layer.attention, normed, normed, normed)[0]
    )


def reference_interaction(layer: Any, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    normed = layer_norm(x, layer.attention_norm)
    return reference_feed_forward(
        layer, x + reference_attention(layer.attention, normed, keys, values)[0]
    )


def reference_align(values: int, keys: int) -> list[list[Fraction]]:
    """Paper.md's formula in exact fractions: row i holds the weights of the values for key i."""
    rows = []
    for i in range(keys):
        row = [Fraction(0)] * values
        if values <= keys:
            position = (i + Fraction(1, 2)) * values / keys - Fraction(1, 2)
            position = min(max(position, Fraction(0)), Fraction(values - 1))
            left = math.floor(position)
            row[left] += 1 - (position - left)
            if position > left:
                row[left + 1] += position - left
        else:
            start, stop = Fraction(i * values, keys), Fraction((i + 1) * values, keys)
            for j in range(values):
                part = min(stop, Fraction(j + 1)) - max(start, Fraction(j))
                row[j] = max(part, Fraction(0)) / (stop - start)
        rows.append(row)
    return rows


def reference_fusion(
    model: MTMMModel, acoustic: Tensor | None, linguistic: Tensor | None
) -> Tensor:
    """`fused_state` of one utterance from its unpadded encoder states; None = absent."""
    fusion, config = model.fusion, model.config

    def refine(states: Tensor | None, modality: str) -> Tensor | None:
        if states is None:
            return None
        entry = getattr(fusion, f"{modality}_input")
        if config.encoder_layers == "weighted":
            shares = entry.layer_weights.exp() / entry.layer_weights.exp().sum()
            states = sum(s * layer_norm(layer) for s, layer in zip(shares, states, strict=True))
        states = linear(entry.projection, layer_norm(states, entry.norm))
        for layer in getattr(fusion, f"{modality}_refinement"):
            states = reference_refinement(layer, states)
        return layer_norm(states, getattr(fusion, f"{modality}_norm"))

    def align(values: Tensor, keys: Tensor) -> Tensor:
        weights = reference_align(len(values), len(keys))
        return values.new_tensor([[float(w) for w in row] for row in weights]) @ values

    acoustic, linguistic = refine(acoustic, "acoustic"), refine(linguistic, "linguistic")
    streams = []
    for modality, own, other in (
        ("acoustic", acoustic, linguistic),
        ("linguistic", linguistic, acoustic),
    ):
        if not config.use_bridge_tokens:
            if own is None:
                continue  # nothing to query with: the stream is left out
            queries, keys, values = own, other, other
        else:
            queries = getattr(fusion, f"{modality}_bridge_tokens")
            if config.bridge_wiring == "direct":
                if own is None:
                    continue
                keys, values = own, own
            else:
                keys = other if own is None else own
                heard = own if other is None else other
                assert keys is not None and heard is not None
                values = align(heard, keys)
        for layer in getattr(fusion, f"{modality}_interaction"):
            if keys is None or values is None:
                queries = reference_feed_forward(layer, queries)
            else:
                queries = reference_interaction(layer, queries, keys, values)
        streams.append(layer_norm(queries, fusion.output_norm).mean(0))
    return torch.stack(streams).mean(0)


def random_mask(lengths: list[int], padded: int) -> Tensor:
    return torch.arange(padded)[None, :] < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("queries", [None, 3], ids=["self", "cross"])
def test_attention_matches_plain_float64(implementation: str, queries: int | None) -> None:
    config = MTMMConfig.tiny(attn_implementation=implementation)
    torch.manual_seed(0)
    attention = MTMMAttention(config).double().eval()
    keys, values = torch.randn(2, 3, 9, 32, dtype=torch.float64)
    asked = keys if queries is None else torch.randn(3, queries, 32, dtype=torch.float64)
    lengths = [9, 4, 1]
    mask = random_mask(lengths, 9)
    rows = [given.flatten(0, 1) for given in (asked, keys, values)]
    output, none = attention(*rows, Seen.of(config, mask, rows[0], rows[1]))
    assert implementation == "eager" or none is None
    eager, weights = attention(*rows, Seen.of(config, mask, rows[0], rows[1], eager=True))
    output, eager = output.view(asked.shape), eager.view(asked.shape)
    assert_equal(output, eager, 1e-12)
    for i, n in enumerate(lengths):
        expected, expected_weights = reference_attention(
            attention, asked[i], keys[i, :n], values[i, :n]
        )
        assert_equal(output[i], expected, 1e-12)
        assert_equal(weights[i, :, :, :n], expected_weights, 1e-12)
        assert not weights[i, :, :, n:].any()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "overrides",
    [
        {"bridge_wiring": "crossed"},
        {"bridge_wiring": "direct"},
        {"use_bridge_tokens": False},
        {"bridge_wiring": "crossed", "num_refinement_layers": 2, "num_interaction_layers": 2},
        {"bridge_wiring": "direct", "use_refinement": False, "num_interaction_layers": 2},
        {"bridge_wiring": "crossed", **WEIGHTED},
        {"use_bridge_tokens": False, "num_interaction_layers": 2, **WEIGHTED},
    ],
    ids=lambda overrides: "-".join(map(str, overrides.values())),
)
def test_fusion_matches_plain_float64(
    make_model: MakeModel, overrides: dict[str, Any], implementation: str
) -> None:
    """Six utterances, padding full of noise, three of them without one modality."""
    model = make_model(attn_implementation=implementation, **overrides).double()
    layers = (3,) if "encoder_layers" in overrides else ()
    frames, tokens = [9, 4, 5, 7, 0, 3], [2, 6, 5, 0, 4, 0]
    torch.manual_seed(1)
    acoustic = 5 * torch.randn(6, *layers, 11, 32, dtype=torch.float64)
    linguistic = 5 * torch.randn(6, *layers, 8, 32, dtype=torch.float64)
    masks = random_mask(frames, 11), random_mask(tokens, 8)
    output = model.fusion({"audio": (acoustic, masks[0]), "text": (linguistic, masks[1])})
    for i, (n_frames, n_tokens) in enumerate(zip(frames, tokens, strict=True)):
        expected = reference_fusion(
            model,
            acoustic[i, ..., :n_frames, :] if n_frames else None,
            linguistic[i, ..., :n_tokens, :] if n_tokens else None,
        )
        assert_equal(output.fused_state[i], expected, 1e-11)


# ---- crossed resampling --------------------------------------------------------------------------

LENGTHS = [(1, 1), (1, 7), (7, 1), (5, 5), (3, 8), (8, 3), (12, 4), (4, 12), (250, 9), (9, 250)]


def test_align_weights_match_formula() -> None:
    values, keys = (torch.tensor(lengths) for lengths in zip(*LENGTHS, strict=True))
    weights = align_weights(values[:, None], keys[:, None], 260, 257)
    assert weights.shape == (len(LENGTHS), 257, 260)
    for row, (n_values, n_keys) in zip(weights, LENGTHS, strict=True):
        expected = [[float(weight) for weight in row] for row in reference_align(n_values, n_keys)]
        assert_equal(row[:n_keys, :n_values], torch.tensor(expected, dtype=torch.float64), 1e-12)
        assert not row[:n_keys, n_values:].any()  # padding


# ---- missing modalities --------------------------------------------------------------------------


@pytest.mark.parametrize("absent", ["audio", "text"])
@pytest.mark.parametrize("use_bridge_tokens", [True, False], ids=["bridge", "no_bridge"])
@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("pair", ["hubert-deberta", "whisper-bert"])
def test_missing_modality_is_same_however_missing(
    make_model: MakeModel, pair: str, wiring: str, use_bridge_tokens: bool, absent: str
) -> None:
    keys, other_keys = (AUDIO_KEYS, TEXT_KEYS) if absent == "audio" else (TEXT_KEYS, AUDIO_KEYS)
    results = []
    for implementation in ("eager", "sdpa"):
        model = make_model(
            bridge_wiring=wiring,
            use_bridge_tokens=use_bridge_tokens,
            attn_implementation=implementation,
            **PAIRS[pair],
        )
        assert model.fusion.config._attn_implementation == implementation
        items = utterances(model)
        together = batch(model, items)
        alone = batch(model, items[1:2])
        results.append(predict(model, without(alone, keys)))
        results.append(predict(model, without(together, keys))[1:2])
        for inputs, row in ((alone, 0), (together, 1)):
            mask = inputs[keys[1]].clone()
            mask[row] = 0
            results.append(predict(model, inputs | {keys[1]: mask})[row : row + 1])
        # beside an utterance that lacks the other modality
        masks = {key: together[key].clone() for key in (keys[1], other_keys[1])}
        masks[keys[1]][1] = masks[other_keys[1]][0] = 0
        results.append(predict(model, together | masks)[1:2])
    for result in results[1:]:
        assert_equal(result, results[0])
    assert (predict(model, alone) - results[0]).abs().max() > 1e-3  # presence makes a difference


def mask_out_everything(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of the last utterance; two others lack one modality."""
    masks = {key: inputs[key].clone() for key in (AUDIO_KEYS[1], TEXT_KEYS[1])}
    masks["audio_attention_mask"][[1, 3]] = 0
    masks["attention_mask"][[0, 3]] = 0
    return inputs | masks


def too_short(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    mask = inputs["audio_attention_mask"].clone()
    mask[2, 104:] = 0  # a frame is 105 samples
    return inputs | {"audio_attention_mask": mask}


def flip(inputs: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Padding in front, which positions would be read from."""
    return inputs | {name: inputs[name].flip(-1)}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda inputs: {}, "input_values"),
        (lambda inputs: inputs | {"input_ids": inputs["input_ids"][:1]}, r"\[4, 1\]"),  # broadcast
        (lambda inputs: inputs | {"dimension_labels": torch.ones(4, 1)}, "dimension_labels"),
        (lambda inputs: {"input_values": torch.randn(2, 104)}, r"\[0, 1\]"),
        (mask_out_everything, r"\[3\]"),
        (too_short, r"\[2\]"),
        (lambda inputs: flip(inputs, "audio_attention_mask"), r"\[0, 1, 3\]"),
        (lambda inputs: flip(inputs, "attention_mask"), r"\[0, 2, 3\]"),
    ],
)
def test_model_refuses_what_it_would_misread(
    make_model: MakeModel, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], named: str
) -> None:
    model = make_model()
    with pytest.raises(ValueError, match=named):
        model(**change(batch(model, utterances(model))))


@pytest.mark.parametrize("overrides", [{"bridge_wiring": "crossed"}, {"use_bridge_tokens": False}])
def test_utterance_without_anything_is_nan(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, overrides: dict[str, Any]
) -> None:
    """On a GPU, where reading the masks would be a wait; the others keep their predictions."""
    model = make_model(**overrides)
    inputs = mask_out_everything(batch(model, utterances(model)))
    monkeypatch.setattr(modeling_mtmm, "refuse_rows", lambda *_: None)
    predicted = predict(model, inputs)
    assert predicted[3].isnan().all()
    first = {key: value[:3] for key, value in inputs.items()}
    assert_equal(predicted[:3], predict(model, first))


@pytest.mark.parametrize("training", [False, True])
def test_forward_reads_no_value_of_another_device(
    monkeypatch: pytest.MonkeyPatch, training: bool
) -> None:
    """Where a value is read, the meta device, which has none, raises; a GPU's host would wait."""
    with torch.device("meta"):
        # Whisper, since transformers itself reads HuBERT's mask to see whether there is any padding.
        config = MTMMConfig.tiny(**TRAINABLE, **WEIGHTED, audio_config=WHISPER)
        model = MTMMModel(config)
    model.train(training)
    inputs = training_batch(model, "complete")
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # has no meta
    output = model(**{key: value.to("meta") for key, value in inputs.items()})
    assert output.loss.is_meta and output.emotion_logits.shape == (4, 4)


# ---- padding, order, sensitivity -----------------------------------------------------------------


@pytest.mark.parametrize("layers", ["last", "weighted"])
@pytest.mark.parametrize("pair", PAIRS)
def test_padding_size_and_order_change_nothing(
    make_model: MakeModel, pair: str, layers: str
) -> None:
    model = make_model(encoder_layers=layers, **PAIRS[pair])
    items = utterances(model)
    expected = torch.cat([predict(model, batch(model, [item])) for item in items])
    assert_equal(predict(model, batch(model, items)), expected)
    assert_equal(predict(model, batch(model, items, padding=13)), expected)
    assert_equal(predict(model, batch(model, items[::-1])), expected.flip(0))
    assert_equal(predict(model, batch(model, items[1:3], padding=2)), expected[1:3])
    for a, b in ((0, 1), (1, 2), (2, 3)):  # the comparison is not one of constants
        assert (expected[a] - expected[b]).abs().max() > 1e-3


@pytest.mark.parametrize("wiring", WIRINGS)
def test_contents_of_padding_change_nothing(make_model: MakeModel, wiring: str) -> None:
    model = make_model(bridge_wiring=wiring)
    items = utterances(model)
    inputs, noisy = batch(model, items, padding=5), batch(model, items, padding=5, fill=0.7)
    noisy["input_ids"][noisy["attention_mask"] == 0] = 77
    assert_equal(predict(model, noisy), predict(model, inputs))


@pytest.mark.parametrize("pair", PAIRS)
def test_model_without_masks_takes_all_as_real(make_model: MakeModel, pair: str) -> None:
    model = make_model(**PAIRS[pair])
    inputs = batch(model, utterances(model)[:1])
    bare = without(inputs, ("audio_attention_mask", "attention_mask"))
    assert_equal(predict(model, bare), predict(model, inputs))
    logical = {k: v.bool() if k.endswith("mask") else v for k, v in inputs.items()}
    assert_equal(predict(model, logical), predict(model, inputs))


# ---- attention implementations, outputs ----------------------------------------------------------


@pytest.mark.parametrize("layers", ["last", "weighted"])
@pytest.mark.parametrize("pair", PAIRS)
def test_precomputed_states_equal_raw_inputs(make_model: MakeModel, pair: str, layers: str) -> None:
    model = make_model(encoder_layers=layers, **PAIRS[pair])
    inputs = batch(model, utterances(model))
    expected = predict(model, inputs)
    acoustic, acoustic_mask = model.encode_audio(*(inputs[key] for key in AUDIO_KEYS))
    linguistic, linguistic_mask = model.encode_text(*(inputs[key] for key in TEXT_KEYS))
    assert acoustic.dim() == linguistic.dim() == (4 if layers == "weighted" else 3)
    assert acoustic_mask.dtype == linguistic_mask.dtype == torch.bool
    assert not acoustic.requires_grad
    states = {"acoustic_states": acoustic, "acoustic_attention_mask": acoustic_mask}
    words = {"linguistic_states": linguistic, "linguistic_attention_mask": linguistic_mask}
    assert_equal(predict(model, states | words), expected)
    assert_equal(predict(model, states | without(inputs, AUDIO_KEYS)), expected)
    assert_equal(predict(model, states), predict(model, without(inputs, TEXT_KEYS)))
    assert_equal(predict(model, words), predict(model, without(inputs, AUDIO_KEYS)))


@pytest.mark.parametrize("pair", PAIRS)
def test_weighted_layers_are_encoders_hidden_states(make_model: MakeModel, pair: str) -> None:
    model = make_model(**WEIGHTED, **PAIRS[pair])
    inputs = batch(model, utterances(model)[:1])
    acoustic = model.encode_audio(inputs["input_values"])[0]
    linguistic = model.encode_text(inputs["input_ids"])[0]
    with torch.no_grad():
        heard = model.audio_model(inputs["input_values"], output_hidden_states=True)
        read = model.text_model(inputs["input_ids"], output_hidden_states=True)
    for states, output in ((acoustic, heard), (linguistic, read)):
        layers = [*output.hidden_states[:-1], output.last_hidden_state]  # the last is normalised
        assert_equal(states, torch.stack(layers, dim=1), 1e-6)


OF_LAYERS = (
    "fusion.acoustic_input.layer_weights",
    "fusion.linguistic_input.layer_weights",
    "fusion.reference_",
    "fusion.expected_states",
)


@pytest.mark.parametrize("pair", PAIRS)
def test_chosen_layers_are_those_of_all(make_model: MakeModel, pair: str) -> None:
    every = make_model(**WEIGHTED, **PAIRS[pair])
    model = make_model(**WEIGHTED, **PAIRS[pair], audio_layers=[0, 2], text_layers=[1])
    model.load_state_dict(
        {n: v for n, v in every.state_dict().items() if not n.startswith(OF_LAYERS)},
        strict=False,
    )
    inputs = batch(model, utterances(model))
    heard, read = (m.encode_audio(inputs["input_values"])[0] for m in (model, every))
    assert_equal(heard, read[:, [0, 2]])
    heard, read = (m.encode_text(inputs["input_ids"])[0] for m in (model, every))
    assert_equal(heard, read[:, [1]])
    assert model.fusion.acoustic_input.layer_weights.shape == (2,)
    with torch.no_grad():  # all other layers of the one that has all count nothing
        weights = every.fusion.acoustic_input.layer_weights
        weights[[0, 2]], weights[1] = model.fusion.acoustic_input.layer_weights, -torch.inf
        every.fusion.linguistic_input.layer_weights[[0, 2]] = -torch.inf
    assert_equal(predict(model, inputs), predict(every, inputs))


@pytest.mark.parametrize("layers", ["last", "weighted"])
@pytest.mark.parametrize("pair", ["hubert-deberta", "whisper-bert"])
def test_stride_averages_real_frames(make_model: MakeModel, pair: str, layers: str) -> None:
    model = make_model(encoder_layers=layers, acoustic_stride=3, **PAIRS[pair])
    plain = make_model(encoder_layers=layers, **PAIRS[pair])
    plain.load_state_dict(model.state_dict())
    inputs = batch(model, utterances(model), padding=4)
    states, mask = model.encode_audio(*(inputs[key] for key in AUDIO_KEYS))
    frames, frame_mask = plain.encode_audio(*(inputs[key] for key in AUDIO_KEYS))
    lengths = frame_mask.sum(-1).tolist()
    assert mask.sum(-1).tolist() == [math.ceil(length / 3) for length in lengths]
    assert any(length % 3 for length in lengths)  # the last mean is over fewer
    for row, length in enumerate(lengths):
        for state, start in enumerate(range(0, length, 3)):
            expected = frames[row, ..., start : min(start + 3, length), :].mean(dim=-2)
            assert_equal(states[row, ..., state, :], expected)
    expected = predict(
        plain,
        {"acoustic_states": states, "acoustic_attention_mask": mask} | without(inputs, AUDIO_KEYS),
    )
    assert_equal(predict(model, inputs), expected)
    alone = torch.cat([predict(model, batch(model, [item])) for item in utterances(model)])
    assert_equal(predict(model, inputs), alone)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_contributions_are_weights_carried_to_their_values(
    make_model: MakeModel, wiring: str
) -> None:
    model = make_model(bridge_wiring=wiring, num_interaction_layers=2)
    inputs = batch(model, utterances(model), padding=3)
    inputs["audio_attention_mask"][0] = 0
    inputs["attention_mask"][1] = 0
    _, a_mask = model.encode_audio(*(inputs[key] for key in AUDIO_KEYS))
    l_mask = inputs["attention_mask"].bool()
    with torch.no_grad():
        output = model(**inputs, output_attentions=True)
    acoustic, linguistic = model.bridge_contributions(output, a_mask, l_mask)
    assert_equal(acoustic.sum(-1) + linguistic.sum(-1), torch.ones(4))
    assert not acoustic[~a_mask].any() and not linguistic[~l_mask].any()
    for row in range(4):
        a_length, l_length = int(a_mask[row].sum()), int(l_mask[row].sum())
        a_sets = torch.stack(output.acoustic_bridge_attentions)[:, row].mean(dim=(0, 1))
        l_sets = torch.stack(output.linguistic_bridge_attentions)[:, row].mean(dim=(0, 1))
        if wiring == "direct":
            from_audio, from_text = a_sets.mean(0)[:a_length], l_sets.mean(0)[:l_length]
        elif a_length and l_length:
            to_text = torch.tensor(reference_align(l_length, a_length), dtype=torch.float32)
            to_audio = torch.tensor(reference_align(a_length, l_length), dtype=torch.float32)
            from_audio = l_sets.mean(0)[:l_length] @ to_audio
            from_text = a_sets.mean(0)[:a_length] @ to_text
        else:  # both sets read the one that is there
            both = (a_sets + l_sets).mean(0)
            from_audio, from_text = both[:a_length], both[:l_length]
        total = from_audio.sum() + from_text.sum()
        assert_equal(acoustic[row, :a_length], from_audio / total)
        assert_equal(linguistic[row, :l_length], from_text / total)
    with pytest.raises(ValueError, match="bridge tokens"):
        make_model(use_bridge_tokens=False).bridge_contributions(output, a_mask, l_mask)


# ---- gradients, training -------------------------------------------------------------------------


def training_batch(model: MTMMModel, case: str) -> dict[str, Tensor]:
    inputs = batch(model, utterances(model)) | {k: v.clone() for k, v in LABELS.items()}
    if case == "one_row_each":
        inputs["audio_attention_mask"][0] = 0
        inputs["attention_mask"][1] = 0
    if case == "no_emotions":
        inputs["emotion_labels"][:] = -100
    if case == "no_dimensions":
        inputs["dimension_labels"][:] = torch.nan
    return without(inputs, {"no_audio": AUDIO_KEYS, "no_text": TEXT_KEYS}.get(case, ()))


@pytest.mark.parametrize(
    "case", "complete no_audio no_text no_emotions no_dimensions one_row_each".split()
)
@pytest.mark.parametrize(
    "overrides",
    [
        {"bridge_wiring": "crossed"},
        {"bridge_wiring": "direct"},
        {"use_bridge_tokens": False},
        WEIGHTED,
        TRAINABLE | WEIGHTED,
        {"freeze_audio_encoder": False},
        *(TRAINABLE | pair for pair in PAIRS.values()),
    ],
)
def test_gradient_reaches_every_trainable_parameter(
    make_model: MakeModel, overrides: dict[str, Any], case: str
) -> None:
    model = make_model(**overrides).train()
    model(**training_batch(model, case)).loss.backward()
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    flags = {"audio_model.": "freeze_audio_encoder", "text_model.": "freeze_text_encoder"}
    for prefix, flag in flags.items():
        names = {name for name, _ in model.named_parameters() if name.startswith(prefix)}
        if getattr(model.config, flag):
            assert names <= set(frozen)
        else:
            unused = ("embed_positions", "masked_spec_embed", "pooler")  # fixed, or read by nothing
            assert [n for n in names & set(frozen) if not any(part in n for part in unused)] == []
    parameters = dict(model.named_parameters())
    assert [name for name in frozen if parameters[name].grad is not None] == []
    trained = {name: p for name, p in parameters.items() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None] == []
    assert [name for name, p in trained.items() if not gradient(p).isfinite().all()] == []
    if case == "complete":
        new = ("fusion", "emotion_head", "dimension_head")
        assert [n for n, p in trained.items() if n.startswith(new) and not gradient(p).any()] == []


def modes_during_forward(model: MTMMModel) -> dict[str, set[bool]]:
    """In which modes the modules of each part were while it ran."""
    found: dict[str, set[bool]] = {}
    hooks = []
    for name in ("audio_model", "text_model", "fusion", "emotion_head"):

        def note(part: nn.Module, *_: Any, name: str = name) -> None:
            found[name] = {module.training for module in part.modules()}

        hooks.append(getattr(model, name).register_forward_hook(note))
    model(**training_batch(model, "complete")).loss.backward()
    for hook in hooks:
        hook.remove()
    return found


def test_encoders_train_where_they_are_trainable(make_model: MakeModel) -> None:
    """Whatever was called last: train(), eval(), freezing or unfreezing (LoRA: single weights)."""
    model = make_model().train()
    new = {"fusion": {True}, "emotion_head": {True}}
    assert modes_during_forward(model) == {"audio_model": {False}, "text_model": {False}} | new
    values = batch(model, utterances(model))["input_values"]
    states, again = model.encode_audio(values)[0], model.encode_audio(values)[0]
    assert not states.requires_grad and torch.equal(states, again)  # no dropout
    parameter = model.audio_model.encoder.layers[0].attention.q_proj.weight
    parameter.requires_grad = True
    assert modes_during_forward(model) == {"audio_model": {True}, "text_model": {False}} | new
    assert gradient(parameter).any()
    parameter.requires_grad = False
    assert modes_during_forward(model)["audio_model"] == {False}
    parameter.requires_grad = True
    assert set().union(*modes_during_forward(model.eval()).values()) == {False}


@pytest.mark.parametrize("frozen", [{"audio"}, {"text"}, {"audio", "text"}])
def test_frozen_encoders_survive_loading(
    make_model: MakeModel, tmp_path: Path, frozen: set[str]
) -> None:
    flags = {f"freeze_{name}_encoder": name in frozen for name in ("audio", "text")}
    make_model(**flags).save_pretrained(tmp_path)

    def trainable(model: MTMMModel) -> dict[str, set[bool]]:
        parts = {"audio": model.audio_model.encoder, "text": model.text_model.encoder}
        parts["fusion"] = model.fusion
        return {k: {p.requires_grad for p in part.parameters()} for k, part in parts.items()}

    loaded, info = load_with_info(tmp_path)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for model in (loaded, MTMMModel.from_pretrained(tmp_path)):
        wanted = {name: {name not in frozen} for name in ("audio", "text", "fusion")}
        assert trainable(model) == wanted
    changed = MTMMModel.from_pretrained(tmp_path, freeze_audio_encoder="audio" not in frozen)
    assert trainable(changed)["audio"] == {"audio" in frozen}


def damaged_copy(
    model: MTMMModel, folder: Path, change: Callable[[dict[str, Any]], object]
) -> Path:
    """The saved model with its weights changed."""
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda w: w.pop("fusion.output_norm.weight"), "fusion.output_norm.weight"),
        (lambda w: w.update(extra=torch.ones(1)), "extra"),
        (
            lambda w: w.update({"emotion_head.projection.bias": torch.ones(7)}),
            "emotion_head.projection.bias",
        ),
        (  # an encoder's file in place of the model's
            lambda w: [w.update({k.removeprefix("audio_model."): w.pop(k)}) for k in list(w)],
            "audio_model",
        ),
    ],
)
def test_loading_refuses_other_weights(
    make_model: MakeModel, tmp_path: Path, change: Callable[[dict[str, Tensor]], object], named: str
) -> None:
    folder = damaged_copy(make_model(), tmp_path, change)
    with pytest.raises(ValueError, match=f"{tmp_path}.*{named}"):
        MTMMModel.from_pretrained(folder)


def test_weights_without_a_folder_are_the_callers(make_model: MakeModel) -> None:
    """As transformers itself calls it, to see that every weight can be drawn."""
    model = make_model(trained_outputs=("emotion", "valence"))
    drawn: Any = MTMMModel.from_pretrained(None, config=model.config, state_dict={})
    new = drawn.fusion.state_dict() | drawn.emotion_head.state_dict()
    assert all(weight.isfinite().all() for weight in new.values())
    assert drawn.config.trained_outputs == ()
    given: Any = MTMMModel.from_pretrained(
        None, config=model.config, state_dict=copy.deepcopy(model.state_dict())
    )
    inputs = batch(model, utterances(model))
    assert torch.equal(predict(given, inputs), predict(model, inputs))


@pytest.mark.parametrize("content", [0, 100, 0.99, b"version https://git-lfs", b"x" * 99])
def test_loading_refuses_damaged_weights(
    make_model: MakeModel, tmp_path: Path, content: bytes | float
) -> None:
    make_model().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    if not isinstance(content, bytes):  # the beginning of the file
        whole = path.read_bytes()
        content = whole[: int(content * len(whole) if content < 1 else content)]
    path.write_bytes(content)
    with pytest.raises(OSError, match=f"{tmp_path}"):
        MTMMModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("overrides", [{}, TRAINABLE, TRAINABLE | WEIGHTED])
def test_checkpointing_changes_no_gradient(
    make_model: MakeModel, overrides: dict[str, Any]
) -> None:
    model = make_model(**no_dropout(**overrides)).train()
    inputs = training_batch(model, "complete")
    loss = model(**inputs).loss
    loss.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    model.activation_checkpointing_enable()
    model.train()
    assert model.is_activation_checkpointing
    assert all(layer.gradient_checkpointing for layer in model.fusion.acoustic_interaction)
    again = model(**inputs).loss
    again.backward()
    assert_equal(again, loss)
    parameters = dict(model.named_parameters())
    for name, wanted in expected.items():
        assert_equal(gradient(parameters[name]), wanted)


def test_trained_outputs_name_what_had_labels(make_model: MakeModel) -> None:
    model = make_model()
    config: Any = model.config  # of which mypy believes that no call changes it
    inputs = training_batch(model, "complete")
    model(**inputs)
    assert config.trained_outputs == ()  # evaluation trains nothing
    model.train()
    nothing = {
        "emotion_labels": torch.full((4,), -100),
        "dimension_labels": torch.full((4, 2), torch.nan),
    }
    model(**inputs | nothing)
    assert config.trained_outputs == ()
    nothing["dimension_labels"][2, 1] = 3.0
    model(**inputs | nothing)
    assert config.trained_outputs == ("arousal",)
    model(**inputs | {"dimension_labels": nothing["dimension_labels"]})
    assert set(config.trained_outputs) == {"arousal", "emotion"}
    model(**inputs)
    assert set(config.trained_outputs) == {"arousal", "emotion", "valence"}
    weightless = make_model(emotion_loss_weight=0.0, dimension_loss_weights=(0.5, 0.0)).train()
    weightless(**inputs)
    assert weightless.config.trained_outputs == ("valence",)


@pytest.mark.parametrize(
    ("lost", "changed", "kept"),
    [
        ([], {}, TRAINED),
        ([], {"id2label": {0: "calm", 1: "tense"}}, TRAINED[1:]),
        (
            [],
            {"dimension_names": ["valence", "arousal", "dominance"]}
            | {"dimension_loss_weights": [1, 1, 1]},
            TRAINED[:1],
        ),
        ([], {"hidden_size": 64}, ()),
        (["emotion_head.projection.weight"], {}, TRAINED[1:]),
        (["audio_model.masked_spec_embed"], {}, TRAINED),  # which nothing reads
    ],
)
def test_outputs_of_drawn_weights_are_untrained(
    make_model: MakeModel,
    tmp_path: Path,
    lost: list[str],
    changed: dict[str, Any],
    kept: tuple[str, ...],
) -> None:
    model = make_model(trained_outputs=TRAINED)
    folder = damaged_copy(model, tmp_path, lambda w: [w.pop(name) for name in lost])
    loaded = MTMMModel.from_pretrained(folder, ignore_mismatched_sizes=True, **changed)
    assert loaded.config.trained_outputs == kept
    head = loaded.emotion_head.projection
    assert head.out_features == len(changed.get("id2label", range(4)))
    assert head.weight.isfinite().all()
    _, found = load_with_info(folder)
    assert found["missing_keys"] == set(lost)


def test_threads_do_not_share_states(make_model: MakeModel) -> None:
    model = make_model(**WEIGHTED)
    inputs = [batch(model, [item]) for item in utterances(model)]
    expected = [predict(model, one) for one in inputs]

    def often(i: int) -> list[Tensor]:
        return [predict(model, inputs[i]) for _ in range(20)]

    with ThreadPoolExecutor(len(inputs)) as threads:
        for found, wanted in zip(threads.map(often, range(len(inputs))), expected, strict=True):
            for one in found:
                assert_equal(one, wanted)


def test_class_weights_and_reduction_reach_loss(make_model: MakeModel) -> None:
    model = make_model()
    inputs = training_batch(model, "complete")
    output = model(**inputs)
    weights = torch.tensor([1.0, 0.0, 0.0, 0.0])
    expected = 0.34 * nn.functional.cross_entropy(output.emotion_logits[:1], torch.tensor([0]))
    assert_equal(model(**inputs, class_weights=weights).emotion_loss, expected)
    seen: list[Tensor] = []

    def twice(sums: Tensor) -> Tensor:
        seen.append(sums)
        return 2 * sums

    doubled = model(**inputs, reduce_sum=twice)
    assert len(seen) == 1
    assert_equal(doubled.loss, output.loss)  # means of a batch counted twice
    assert_equal(output.loss, output.emotion_loss + output.dimension_loss)


# ---- precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [{}, TRAINABLE | WEIGHTED])
def test_autocast_keeps_loss_float32(make_model: MakeModel, overrides: dict[str, Any]) -> None:
    model = make_model(**overrides).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**training_batch(model, "complete"))
    assert output.loss.dtype == output.dimensions.dtype == torch.float32
    assert output.loss.isfinite()
    output.loss.backward()
    assert all(gradient(p).isfinite().all() for p in model.fusion.parameters())


@pytest.mark.parametrize("pair", PAIRS)
def test_half_precision_weights_take_float32_audio(make_model: MakeModel, pair: str) -> None:
    model = make_model(**WEIGHTED, **PAIRS[pair])
    inputs = training_batch(model, "one_row_each")
    exact = model(**inputs)
    output = model.to(torch.bfloat16)(**inputs)  # type: ignore[arg-type]  # its decorator hides `self` from mypy
    assert output.emotion_logits.dtype == torch.bfloat16
    assert output.loss.dtype == output.dimensions.dtype == torch.float32
    assert (output.dimensions - exact.dimensions).abs().max() < 0.3
    without_text = model(**without(inputs, TEXT_KEYS) | {"audio_attention_mask": None})
    assert without_text.emotion_logits.isfinite().all()


# ---- the libraries' tools ------------------------------------------------------------------------


def test_trainer_trains_and_evaluates(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    inputs = batch(model, utterances(model)) | LABELS
    rows = [{name: value[i] for name, value in inputs.items()} for i in range(4)] * 2
    losses = []
    model.register_forward_hook(lambda *args: losses.append(args[-1].loss.item()))
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=3,
        gradient_accumulation_steps=2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    few: Any = rows[:7]
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=few)
    assert set(trainer.label_names) == {"emotion_labels", "dimension_labels"}
    assert not trainer.model_accepts_loss_kwargs  # else it would not divide by the accumulation
    before = model.fusion.acoustic_bridge_tokens.detach().clone()
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 4 and len(logged) == 2
    expected = [(losses[0] + losses[1]) / 2, (losses[2] + losses[3]) / 2]
    assert logged == pytest.approx(expected, abs=1e-3)
    assert not torch.equal(before, model.fusion.acoustic_bridge_tokens)
    assert set(model.config.trained_outputs) == {"emotion", "valence", "arousal"}
    predictions: Any = trainer.predict(few)
    assert math.isfinite(predictions.metrics["test_loss"])
    shapes = [value.shape for value in predictions.predictions]
    assert shapes[-2:] == [(7, 4), (7, 2)]  # logits and dimensions are last
    assert all(len(shape) == 1 for shape in shapes[:-2])  # loss terms; no state was gathered
    assert {label.shape for label in predictions.label_ids} == {(7,), (7, 2)}


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layers", ["last", "weighted"])
def test_pretrained_encoders_keep_their_weights(
    make_model: MakeModel, tmp_path: Path, dtype: torch.dtype | None, layers: str
) -> None:
    source = make_model().half()
    source.audio_model.save_pretrained(tmp_path / "audio")
    source.text_model.save_pretrained(tmp_path / "text")
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    model = MTMMModel.from_encoders_pretrained(
        str(tmp_path / "audio"), str(tmp_path / "text"), encoder_layers=layers, **(sizes | options)
    )
    dtype = dtype or torch.float32
    assert {p.dtype for p in model.parameters()} == {dtype}
    for part in ("audio_model", "text_model"):
        expected = getattr(source, part).state_dict()
        for name, value in getattr(model, part).state_dict().items():
            assert torch.equal(value, expected[name].to(dtype)), name
    assert not model.training
    assert not any(p.requires_grad for p in model.audio_model.parameters())
    assert all(p.requires_grad and p.isfinite().all() for p in model.fusion.parameters())
    std = model.fusion.acoustic_bridge_tokens.std().item()
    assert std == pytest.approx(model.config.initializer_range, rel=0.3)
    assert model.audio_model.config is model.config.audio_config
    assert model.text_model.config is model.config.text_config
    inputs = training_batch(model, "complete")
    output = model(**inputs)
    model.save_pretrained(tmp_path / "whole")
    again = MTMMModel.from_pretrained(tmp_path / "whole", dtype=dtype)
    assert_equal(again(**inputs).emotion_logits, output.emotion_logits)
