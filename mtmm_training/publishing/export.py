"""The whole model in one file that runs without this code: ONNX, or a program of torch.export.

The suffix says which. One graph takes any number of utterances of any length; a mask row that is all
zero means an absent modality, also for a single utterance. The file is compared with the model before
it gets its name.
"""

import io
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from onnxruntime.quantization import quantize_dynamic
from torch import Tensor, nn

from modeling_mtmm import MTMMModel, MTMMProcessor
from mtmm_training.publishing.exported import METADATA, OPTIONAL, ExportedModel
from mtmm_training.publishing.parity import (
    input_shapes,
    largest_difference,
    output_names,
    random_batch,
)
from mtmm_training.training.ending import unlogged
from pooled_mtmm import pool

Precision = Literal["float32", "float16", "int8"]

TOLERANCE = 1e-4  # largest difference from the model, in logits, probabilities and dimensions
PROTOBUF_LIMIT = 2**31  # bytes; a larger ONNX file keeps its weights in another beside it


class ExportableModel(nn.Module):
    """Four tensors to three or more, and NaN where [`MTMMModel`] raises an error: a graph cannot.

    A model that takes references has their mean and deviation as two more inputs, in which NaN means
    its own.

    An utterance gets NaN if it has neither modality, or if its mask leaves less than one encoder
    frame of a longer tensor. Tensors of sizes that the graph was not made for end in an error: in a
    .pt2 an AssertionError where the audio tensor has no more than one frame, or there are more tokens
    than the linguistic encoder has places; in an .onnx one of onnxruntime for very few samples, while
    the number of tokens is not checked.
    """

    def __init__(self, model: MTMMModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_values: Tensor,
        audio_attention_mask: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        reference_mean: Tensor | None = None,
        reference_deviation: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Logits, calibrated probabilities, dimensions, `OPTIONAL`, `Reference.STATES`."""
        acoustic, acoustic_mask = self.model.encode_audio(input_values, audio_attention_mask)
        linguistic, linguistic_mask = self.model.encode_text(input_ids, attention_mask)
        output = self.model(
            acoustic_states=acoustic,
            acoustic_attention_mask=acoustic_mask,
            linguistic_states=linguistic,
            linguistic_attention_mask=linguistic_mask,
            reference_mean=self._or_own("reference_mean", reference_mean),
            reference_deviation=self._or_own("reference_deviation", reference_deviation),
        )
        heard, read = acoustic_mask.any(-1), linguistic_mask.any(-1)
        too_short = (audio_attention_mask != 0).any(-1) & ~heard
        valid = ((heard | read) & ~too_short)[:, None]
        logits = output.emotion_logits
        probabilities = (logits / self.model.config.temperature).softmax(-1)
        outputs = [logits, probabilities, output.dimensions]
        outputs += [output[name] for name in OPTIONAL if name in output]
        answers = (torch.where(valid, values, torch.nan) for values in outputs)
        return (*answers, *self._statistics(acoustic, acoustic_mask))

    def _statistics(self, states: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """`Reference.STATES`: mean and deviation, (batch, layers, width) each, and number, (batch,)."""
        if self.model.config.reference == "none":
            return ()
        shape = self.model.fusion.reference_mean.shape
        mean, deviation = pool(states, mask, slice(None), True).unflatten(1, (2, *shape)).unbind(1)
        return mean, deviation, mask.sum(-1)

    def _or_own(self, name: str, given: Tensor | None) -> Tensor | None:
        """The model's own statistics in the place of NaN."""
        if given is None:
            return None
        return torch.where(given.isnan(), self.model.fusion.get_buffer(name), given)


@unlogged()  # operators that are not installed, settings that nobody chose
def export(
    model: MTMMModel, processor: MTMMProcessor, path: Path, precision: Precision = "float32"
) -> float:
    """Write a model's graph as `path`, and `path`.data beside it where the weights are too many for one file.

    Args:
        model: on the CPU, float32, in eval mode.
        processor: of the model; says how long a transcript may be.
        path: .onnx or .pt2, in a folder of the caller's, who throws it away where this fails.
        precision: ONNX only. "float16": weights and most of the computing; inputs and outputs stay
            float32. "int8": linear layers and embeddings, activations quantised as they come.

    Returns:
        The largest difference between the outputs of the model and of the float32 export, over
        batches of several sizes and lengths, with and without one modality.

    Raises:
        ValueError: The difference is above `TOLERANCE`, or the smaller file does not answer with
            numbers.
        OSError: The disk is full, or cannot be written to.
    """
    smaller = SMALLER.get(precision)
    float32 = path.with_name(f"float32{path.suffix}") if smaller else path
    _write(trace(model, processor), describe(model, processor), float32)
    difference = largest_difference(model, processor, ExportedModel(float32))
    problem = "" if difference <= TOLERANCE else f"differs from the model by {difference:.2g}"
    if smaller and not problem:
        smaller(float32, path)
        for file in (float32, _data_of(float32)):
            file.unlink(missing_ok=True)
        answers = largest_difference(model, processor, ExportedModel(path))
        problem = "" if math.isfinite(answers) else f"answers with NaN in {precision}"
    if problem:
        raise ValueError(
            f"The export {problem} (at most {TOLERANCE:g} is allowed); please report both encoders' names."
        )
    return difference


def trace(model: MTMMModel, processor: MTMMProcessor) -> torch.export.ExportedProgram:
    """The model's graph by torch.export, for any number of utterances of any length."""
    batch = random_batch(model, processor, utterances=2, seconds=1.0, tokens=9)
    shapes = {
        name: {axis: torch.export.Dim.DYNAMIC for axis in axes}
        for name, axes in _free_axes(input_shapes(model)).items()
    }
    with torch.no_grad():
        program = torch.export.export(
            ExportableModel(model).eval(), (), batch, dynamic_shapes=shapes, strict=False
        )
    for module in program.graph_module.modules():
        for node in module.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def describe(model: MTMMModel, processor: MTMMProcessor) -> dict[str, Any]:
    """What a user of the file must know: names, scale and calibration of outputs, shapes of inputs.

    Returns:
        For JSON. "emotions" and "dimension_names" are in the order of the outputs' columns;
        "trained_outputs" names those that ever saw labels; "temperature" is already applied to
        emotion_probabilities; an axis in "input_shapes" has a size, or a name if its length is free.
    """
    config = model.config
    named = ("dimension_names", "dimension_range", "trained_outputs", "temperature")
    return {
        "emotions": list(config.emotion_names),
        **{name: getattr(config, name) for name in named},
        "sampling_rate": processor.sampling_rate,
        "max_tokens": processor.max_tokens,
        "input_shapes": input_shapes(model),
        "outputs": output_names(model),
    }


def _free_axes(shapes: Mapping[str, Sequence[str | int]]) -> dict[str, dict[int, str]]:
    return {
        name: {axis: size for axis, size in enumerate(sizes) if isinstance(size, str)}
        for name, sizes in shapes.items()
    }


def _write(program: torch.export.ExportedProgram, metadata: dict[str, Any], path: Path) -> None:
    text = json.dumps(metadata)
    if path.suffix == ".pt2":
        content = io.BytesIO()  # given a path, torch ends the whole process where the disk is full
        torch.export.save(program, content, extra_files={f"{METADATA}.json": text})
        path.write_bytes(content.getbuffer())
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of its own old names
        warnings.filterwarnings("ignore", "# The axis name")  # two inputs share an axis, as meant
        converted = torch.onnx.export(
            program, output_names=metadata["outputs"], dynamo=True, verbose=False,
            dynamic_shapes=_free_axes(metadata["input_shapes"]),
        )  # fmt: skip
    assert converted is not None  # with dynamo=True it never is
    converted.model.metadata_props[METADATA] = text
    converted.save(path)
    onnx.checker.check_model(path)


def quantise(source: Path, target: Path) -> None:
    """Write an ONNX file with the matrices of linear layers and embeddings in 8 bits.

    The second matrices of the acoustic encoder's feed-forward parts stay as they are: their inputs have
    outliers. With them, probabilities moved by up to 0.55, without by 0.11 (Whisper-base and MiniLM,
    72 recordings). Inputs of the others are scaled by the largest in the batch, so results depend
    a little on which utterances are together.

    Args:
        source: Loses its record of intermediate shapes, which onnxruntime does not miss.
        target: the new file.
    """
    graph = onnx.load(source, load_external_data=False)
    # onnxruntime 1.31 transposes the weights of Gemm, then finds that their recorded shapes disagree.
    del graph.graph.value_info[:]
    onnx.save(graph, source)
    quantize_dynamic(
        source, target, op_types_to_quantize=["MatMul", "Gemm", "Gather"], per_channel=True,
        nodes_to_exclude=_after_acoustic_activations(graph.graph),
        use_external_data_format=size_of(source) > PROTOBUF_LIMIT,
    )  # fmt: skip


def halve(source: Path, target: Path) -> None:
    """Write an ONNX file with 16-bit weights; inputs and outputs stay as they are."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of every number that float16 rounds to 0
        graph = convert_float_to_float16(onnx.load(source), keep_io_types=True)
    is_large = graph.ByteSize() > PROTOBUF_LIMIT
    name = _data_of(target).name
    onnx.save(graph, target, save_as_external_data=is_large, location=name)


SMALLER: dict[str, Callable[[Path, Path], None]] = {"float16": halve, "int8": quantise}


def _after_acoustic_activations(graph: onnx.GraphProto) -> list[str]:
    """Names of the acoustic encoder's matrix products with a GELU's output."""
    activated = {name for node in graph.node if node.op_type == "Gelu" for name in node.output}
    scopes = {
        node.name: next((p.value for p in node.metadata_props if p.key.endswith("name_scopes")), "")
        for node in graph.node
    }
    return [
        node.name
        for node in graph.node
        if node.op_type == "MatMul"
        and node.input[0] in activated
        and "model.audio_model" in scopes[node.name]
    ]


def size_of(path: Path) -> int:
    """Bytes of a file and of the weights beside it."""
    return sum(file.stat().st_size for file in (path, _data_of(path)) if file.exists())


def _data_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.data")
