"""The whole model in one file that runs without this code: ONNX, or a program of torch.export.

    python -m mtmm_training.publishing.export out/run/model out/mtmm.onnx
    python -m mtmm_training.publishing.export out/run/model out/mtmm.int8.onnx --int8 --run out/run
    python -m mtmm_training.publishing.export out/run/model out/mtmm.pt2

The suffix says which. One graph takes any number of utterances of any length; a mask row that is all
zero means an absent modality, also for a single utterance. The file is compared with the model before
it gets its name. --int8 keeps the matrices of linear layers and embeddings in 8 bits; --run measures
on that run's test split what the export cost, which needs the training extra too.
"""

import argparse
import io
import json
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from modeling_mtmm import MTMMModel, MTMMOutput, MTMMProcessor
from mtmm_training.files import sweep, writing

try:
    import onnx
    import onnxruntime
    from onnxruntime.quantization import quantize_dynamic
except ImportError as error:
    raise ImportError(
        "Exporting needs onnx, onnxscript and onnxruntime; run `pip install -e '.[onnx]'`."
    ) from error

if TYPE_CHECKING:
    from mtmm_training.data.utterances import Utterance

TOLERANCE = 1e-4  # largest difference from the model, in logits, probabilities and dimensions
SUFFIXES = (".onnx", ".pt2")
METADATA = "mtmm"  # the key of the description, JSON, in an ONNX file's metadata
PROTOBUF_LIMIT = 2**31  # bytes; a larger ONNX file keeps its weights in another beside it

INPUTS = ("input_values", "audio_attention_mask", "input_ids", "attention_mask")
OUTPUTS = ("emotion_logits", "emotion_probabilities", "dimensions")
MODALITIES = (INPUTS[:2], INPUTS[2:])  # values and mask of each

# Utterances, seconds of the longest, its tokens (None = as many as the processor takes).
CHECKED = ((1, 0.5, 5), (3, 2.0, 12), (1, 1.0, None))


class ExportableModel(nn.Module):
    """Four tensors to three, and NaN where [`MTMMModel`] raises an error: a graph cannot.

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
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Emotion logits, probabilities (calibrated by `config.temperature`) and dimensions."""
        acoustic, acoustic_mask = self.model.encode_audio(input_values, audio_attention_mask)
        linguistic, linguistic_mask = self.model.encode_text(input_ids, attention_mask)
        output = self.model(
            acoustic_states=acoustic,
            acoustic_attention_mask=acoustic_mask,
            linguistic_states=linguistic,
            linguistic_attention_mask=linguistic_mask,
        )
        heard, read = acoustic_mask.any(-1), linguistic_mask.any(-1)
        too_short = (audio_attention_mask != 0).any(-1) & ~heard
        valid = ((heard | read) & ~too_short)[:, None]
        logits = output.emotion_logits
        probabilities = (logits / self.model.config.temperature).softmax(-1)
        outputs = (logits, probabilities, output.dimensions)
        shown = [torch.where(valid, values, torch.nan) for values in outputs]
        return shown[0], shown[1], shown[2]


class ExportedModel(nn.Module):
    """An exported file, called as [`MTMMModel`] is; runs on the CPU, with torch's number of threads.

    Args:
        path: Of the .onnx or .pt2 file.

    Attributes:
        metadata (`dict`): What [`describe`] wrote into the file.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        if _suffix(self.path) == ".pt2":
            extra_files = {f"{METADATA}.json": ""}
            self.program = torch.export.load(self.path, extra_files=extra_files).module()
            self.metadata = json.loads(extra_files[f"{METADATA}.json"])
            return
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(
            self.path, options, providers=["CPUExecutionProvider"]
        )
        self.metadata = json.loads(self.session.get_modelmeta().custom_metadata_map[METADATA])

    def run(self, **inputs: Tensor | None) -> dict[str, Tensor]:
        """All outputs by name. A modality that is left out, or None, is absent for the whole batch."""
        given = {name: tensor for name, tensor in inputs.items() if tensor is not None}
        batch = len(next(iter(given.values())))
        for values, mask in MODALITIES:
            if values not in given:
                shape = [self._absent_size(s) for s in self.metadata["input_shapes"][values][1:]]
                dtype = torch.long if values == "input_ids" else torch.float32
                given[values] = torch.zeros(batch, *shape, dtype=dtype)
                given[mask] = torch.zeros(batch, shape[-1], dtype=torch.long)
        if _suffix(self.path) == ".pt2":
            with torch.no_grad():
                outputs = self.program(**given)
        else:
            arrays = {name: tensor.numpy() for name, tensor in given.items()}
            outputs = [torch.from_numpy(array) for array in self.session.run(OUTPUTS, arrays)]
        return dict(zip(OUTPUTS, outputs, strict=True))

    def _absent_size(self, axis: str | int) -> int:
        """Few, but more than one frame and one token, for which torch.export made no graph."""
        if isinstance(axis, int):
            return axis
        return {"time": self.metadata["sampling_rate"] // 4, "tokens": 2}[axis]

    def forward(self, **inputs: Tensor | None) -> MTMMOutput:
        """As [`MTMMModel.forward`], of which it takes the four raw inputs; labels are not looked at."""
        outputs = self.run(**{name: inputs.get(name) for name in INPUTS})
        return MTMMOutput(
            emotion_logits=outputs["emotion_logits"], dimensions=outputs["dimensions"]
        )


# ---- writing -----------------------------------------------------------------------------------


def export(
    model: MTMMModel, processor: MTMMProcessor, path: str | Path, *, int8: bool = False
) -> float:
    """Write a model as `path`, and `path`.data beside it where the weights are too many for one file.

    Args:
        model: On the CPU, float32, in eval mode.
        processor: Of the model; says how long a transcript may be.
        path: .onnx or .pt2. Appears only after the file was compared with the model.
        int8: ONNX only: linear layers and embeddings in 8 bits, activations quantised as they come.

    Returns:
        The largest difference between the outputs of the model and of the float32 export, over
        batches of several sizes and lengths, with and without one modality.

    Raises:
        ValueError: The suffix is unknown or has no int8; or the difference is above `TOLERANCE`; or
            the file in 8 bits does not answer with numbers.
        OSError: The disk is full, or cannot be written to; an older export at `path` is untouched.
    """
    path = Path(path)
    suffix = _suffix(path)
    if int8 and suffix != ".onnx":
        raise ValueError(f"`--int8` is for .onnx only; {path} ends in {suffix}.")
    with _appearing(path) as staged:
        float32 = staged.with_name(f"float32{suffix}") if int8 else staged
        _write(trace(model, processor), describe(model, processor), float32)
        difference = largest_difference(model, processor, ExportedModel(float32))
        if not difference <= TOLERANCE:
            raise ValueError(
                f"The export differs from the model by up to {difference:.2g}; at most {TOLERANCE:g} is "
                f"allowed, so {path} was not written. Please report this with both encoders' names."
            )
        if int8:
            quantise(float32, staged)
            if not math.isfinite(largest_difference(model, processor, ExportedModel(staged))):
                raise ValueError(
                    f"In 8 bits the model answers with NaN, so {path} was not written. Export it without "
                    "--int8, and please report this with both encoders' names."
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
    return {
        "emotions": list(config.emotion_names),
        "dimension_names": list(config.dimension_names),
        "dimension_range": list(config.dimension_range),
        "trained_outputs": list(config.trained_outputs),
        "temperature": config.temperature,
        "sampling_rate": processor.sampling_rate,
        "max_tokens": processor.max_tokens,
        "input_shapes": input_shapes(model),
    }


def input_shapes(model: MTMMModel) -> dict[str, tuple[str | int, ...]]:
    """The axes of every input: a size, or a name where the length is free."""
    audio: tuple[str | int, ...] = ("batch", "time")
    if model.audio_model.main_input_name == "input_features":  # log-mel: one window, always whole
        config = model.config.encoder_config("audio")
        audio = ("batch", config.num_mel_bins, 2 * config.max_source_positions)
    text = ("batch", "tokens")
    return dict(zip(INPUTS, (audio, ("batch", audio[-1]), text, text), strict=True))


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
            program,
            output_names=OUTPUTS,
            dynamic_shapes=_free_axes(metadata["input_shapes"]),
            dynamo=True,
            verbose=False,
        )
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
        target: Of the new file.
    """
    graph = onnx.load(source, load_external_data=False)
    # onnxruntime 1.31 transposes the weights of Gemm, then finds that their recorded shapes disagree.
    del graph.graph.value_info[:]
    onnx.save(graph, source)
    quantize_dynamic(
        source,
        target,
        op_types_to_quantize=["MatMul", "Gemm", "Gather"],
        nodes_to_exclude=_after_acoustic_activations(graph.graph),
        per_channel=True,
        use_external_data_format=size_of(source) > PROTOBUF_LIMIT,
    )


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


def _suffix(path: Path) -> str:
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"{path} ends in {path.suffix!r}; an export ends in {' or '.join(SUFFIXES)}."
        )
    return path.suffix


@contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """Gives `path`'s name in a folder beside it; moves the file and its data here if all goes well.

    Not by a temporary name: an ONNX file holds the name of the file with its weights.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name the file to write.")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, f".{path.name}.*.tmp")
        with tempfile.TemporaryDirectory(".tmp", f".{path.name}.", path.parent) as folder:
            staged = Path(folder, path.name)
            yield staged
            if _data_of(path).exists():  # an older export's, which must not meet another's weights
                path.unlink(missing_ok=True)
                _data_of(path).unlink()
            if _data_of(staged).exists():
                os.replace(_data_of(staged), _data_of(path))  # first: the file is of no use without
            os.replace(staged, path)


# ---- comparing ---------------------------------------------------------------------------------


def largest_difference(
    model: MTMMModel, processor: MTMMProcessor, exported: ExportedModel
) -> float:
    """Between any output of the two, over random batches; NaN if either gives one."""
    differences = []
    for batch in _checked_batches(model, processor):
        with torch.no_grad():
            expected = model(**batch)
        found = exported.run(**batch)
        probabilities = (expected.emotion_logits / model.config.temperature).softmax(-1)
        outputs = (expected.emotion_logits, probabilities, expected.dimensions)
        differences += [
            (found[name] - values).abs().max()
            for name, values in zip(OUTPUTS, outputs, strict=True)
        ]
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
    """Raw inputs: noise and random tokens, the last utterance as long as asked, the others shorter."""
    generator = torch.Generator().manual_seed(utterances)
    shape = input_shapes(model)["input_values"]
    samples = round(seconds * processor.sampling_rate)
    sizes = [size if isinstance(size, int) else samples for size in shape[1:]]
    longest = min(samples, sizes[-1])
    vocabulary = model.config.encoder_config("text").vocab_size
    return {
        "input_values": torch.randn(utterances, *sizes, generator=generator),
        "audio_attention_mask": _ragged_mask(utterances, longest, sizes[-1]),
        "input_ids": torch.randint(1, vocabulary, (utterances, tokens), generator=generator),
        "attention_mask": _ragged_mask(utterances, tokens, tokens),
    }


def _ragged_mask(rows: int, longest: int, width: int) -> Tensor:
    """(rows, width) of 0 and 1: the last row has `longest` ones, the first one 1 / `rows` of them."""
    lengths = torch.arange(1, rows + 1) * longest // rows
    return (torch.arange(width)[None, :] < lengths[:, None]).long()


def measure(
    model: MTMMModel,
    processor: MTMMProcessor,
    exported: ExportedModel,
    utterances: "Sequence[Utterance]",
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
    before, after = (
        predict(each, make_loader(dataset, batches, collate), ids, accelerator)
        for each in (model, exported)
    )
    temperature = config.temperature
    scores = [predictions.metrics(config, temperature) for predictions in (before, after)]
    measured = {}
    if "emotion" in config.trained_outputs:
        measured["UAR"] = tuple(score["UAR"] for score in scores)
        p, q = (softmax(each.emotion_logits / temperature, axis=-1) for each in (before, after))
        measured["largest change of a probability"] = (0.0, float(abs(p - q).max()))
    for name in config.dimension_names:
        if name in config.trained_outputs:
            measured[f"CCC {name}"] = tuple(score["CCC"][name] for score in scores)
    return measured


def _test_split(run: Path) -> "list[Utterance]":
    try:
        from mtmm_training.training.run import read_test_split
    except ImportError as error:
        raise ValueError(
            f"--run needs what training needs, and {error.name} is not installed; run "
            "`pip install -e '.[train]'`, or leave --run out."
        ) from error
    return read_test_split(run)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mtmm_training.publishing.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="folder or Hub id of an MTMM model")
    parser.add_argument("out", type=Path, help="file to write, .onnx or .pt2")
    parser.add_argument("--int8", action="store_true", help="8 bits for linear layers; .onnx only")
    parser.add_argument(
        "--run", type=Path, help="run folder on whose test split to measure the cost"
    )
    options = parser.parse_args(arguments)
    try:
        test = (
            None if options.run is None else _test_split(options.run)
        )  # first: it is quick to fail
        model = MTMMModel.from_pretrained(options.model, dtype=torch.float32).eval()
        processor = MTMMProcessor.from_pretrained(options.model)
        difference = export(model, processor, options.out, int8=options.int8)
        print(
            f"{options.out}: {size_of(options.out) / 1e6:.1f} MB; the graph differs from the model by "
            f"{difference:.1e} at most{', before 8 bits' * options.int8}"
        )
        if test is not None:
            exported = ExportedModel(options.out)
            print(f"{len(test)} test utterances, one at a time: model -> export")
            for name, (before, after) in measure(model, processor, exported, test).items():
                print(f"{name:<34}{before:>8.4f} ->{after:>8.4f}")
        elif options.int8:
            print(
                "what the 8 bits cost in accuracy is not known; --run measures it on a test split"
            )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
