"""How far an export is from its model: on random batches, and on a test split."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from modeling_mtmm import MTMMModel, MTMMProcessor
from mtmm_training.data.utterances import Utterance
from mtmm_training.publishing.exported import (
    INPUTS,
    MODALITIES,
    OPTIONAL,
    OUTPUTS,
    REFERENCE_INPUTS,
    ExportedModel,
)
from reference_mtmm import Reference

FRAMES_PER_SECOND = 100  # of spectra
# Utterances, seconds of the longest, its tokens (None = as many as the processor takes).
CHECKED = ((1, 0.5, 5), (3, 2.0, 12), (1, 1.0, None))


def input_shapes(model: MTMMModel) -> dict[str, tuple[str | int, ...]]:
    """The axes of every input: a size, or a name where the length is free."""
    takes = model._audio_input
    audio: tuple[str | int, ...] = ("batch", "time")
    if takes.mels_first:  # one window, always whole
        audio = ("batch", *takes.empty(torch.device("cpu"), 0).shape[1:])
    elif takes.features is not None:
        audio = ("batch", "frames", takes.features)
    time = audio[-1 if takes.mels_first else 1]
    text = ("batch", "tokens")
    shapes = dict(zip(INPUTS, (audio, ("batch", time), text, text), strict=True))
    if model.config.reference != "none":
        layers, width = model.fusion.reference_mean.shape
        shapes |= dict.fromkeys(REFERENCE_INPUTS, ("batch", layers, width))
    return shapes


def output_names(model: MTMMModel) -> list[str]:
    """The outputs of the model's graph, in their order."""
    has = {"dimension_deviations": model.deviation_head, "unfamiliarity": model.familiarity}
    states = () if model.config.reference == "none" else Reference.STATES
    return [*OUTPUTS, *(name for name in OPTIONAL if has[name] is not None), *states]


def largest_difference(
    model: MTMMModel, processor: MTMMProcessor, exported: ExportedModel
) -> float:
    """Between any output of the two, over random batches; NaN if either gives one."""
    differences = []
    for batch in _checked_batches(model, processor):
        with torch.no_grad():
            expected = model(**batch)
        probabilities = (expected.emotion_logits / model.config.temperature).softmax(-1)
        outputs = dict(expected) | {"emotion_probabilities": probabilities}
        for name, found in exported.run(**batch).items():
            if name in Reference.STATES:  # no output of the model
                continue
            apart = (found - outputs[name]).abs()
            if name == "unfamiliarity":  # may be millions; NaN where a modality is absent
                apart = (apart / outputs[name].clamp(min=1)).nan_to_num()
            differences.append(apart.max())
    return float(torch.stack(differences).max())


def _checked_batches(model: MTMMModel, processor: MTMMProcessor) -> Iterator[dict[str, Tensor]]:
    """Batches of several sizes, whole, without one modality, and with one that lacks one."""
    for utterances, seconds, tokens in CHECKED:
        tokens = tokens or processor.max_tokens
        batch = random_batch(model, processor, utterances, seconds, tokens)
        yield batch
        for values, mask in MODALITIES:
            yield {name: batch[name] for name in INPUTS if name not in (values, mask)}
            if utterances > 1:
                zeroed = batch[mask].clone()
                zeroed[0] = 0
                yield batch | {mask: zeroed}


def random_batch(
    model: MTMMModel, processor: MTMMProcessor, utterances: int, seconds: float, tokens: int
) -> dict[str, Tensor]:
    """Raw inputs: noise and random tokens, the last utterance as long as asked, the others shorter.

    Behind them references, where the model takes them.
    """
    generator = torch.Generator().manual_seed(utterances)
    shapes = input_shapes(model)
    free = {
        "time": round(seconds * processor.sampling_rate),
        "frames": max(round(seconds * FRAMES_PER_SECOND), model._audio_input.shortest),
    }

    def sizes(name: str) -> list[int]:
        return [free[size] if isinstance(size, str) else size for size in shapes[name][1:]]

    vocabulary = model.config.encoder_config("text").vocab_size
    references = {
        name: torch.rand(utterances, *sizes(name), generator=generator) + 0.5
        for name in REFERENCE_INPUTS
        if name in shapes
    }
    raw = {
        "input_values": torch.randn(utterances, *sizes("input_values"), generator=generator),
        "audio_attention_mask": _ragged_mask(utterances, *sizes("audio_attention_mask")),
        "input_ids": torch.randint(1, vocabulary, (utterances, tokens), generator=generator),
        "attention_mask": _ragged_mask(utterances, tokens),
    }
    return raw | references


def _ragged_mask(rows: int, width: int) -> Tensor:
    """(rows, width) of 0 and 1: the last row has ones alone, the first one 1 / `rows` of them."""
    lengths = torch.arange(1, rows + 1) * width // rows
    return (torch.arange(width)[None, :] < lengths[:, None]).long()


def measure(
    model: MTMMModel,
    processor: MTMMProcessor,
    exported: ExportedModel,
    utterances: Sequence[Utterance],
) -> dict[str, tuple[float, float]]:
    """What an export costs: both predict these utterances, one at a time.

    Returns:
        By name, the model's and the export's score: UAR and the CCC of each dimension, those of
        `trained_outputs`; and "largest change of a probability": 0 and what the name says.
    """
    # All of the training extra, which exporting itself does not need.
    from accelerate import Accelerator
    from scipy.special import softmax

    from mtmm_training.batches.collate import RawInputs, make_loader, to_dataset
    from mtmm_training.batches.sampler import LengthBatches, frame_lengths
    from mtmm_training.scoring.predictions import predict

    config, accelerator = model.config, Accelerator(cpu=True)
    dataset, ids = to_dataset(utterances), [utterance.utterance_id for utterance in utterances]
    batches = LengthBatches(frame_lengths(utterances), 1, shuffle=False)
    collate = RawInputs(processor, list(config.emotion_names), config.dimension_names)
    loader, temperature = make_loader(dataset, batches, collate), config.temperature
    answers = [predict(each, loader, ids, accelerator) for each in (model, exported)]
    before, after = (each.metrics(config, temperature) for each in answers)
    measured = {}
    if "emotion" in config.trained_outputs:
        measured["UAR"] = before["UAR"], after["UAR"]
        old, new = (softmax(each.emotion_logits / temperature, axis=-1) for each in answers)
        measured["largest change of a probability"] = 0.0, float(abs(old - new).max())
    for name in config.dimension_names:
        if name in config.trained_outputs:
            measured[f"CCC {name}"] = before["CCC"][name], after["CCC"][name]
    return measured
