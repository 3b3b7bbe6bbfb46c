"""An export as a folder: the graph, and all else that an answer takes, for a reader without torch."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save
from transformers import Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from configuration_mtmm import MTMMConfig
from modeling_mtmm import MTMMModel, MTMMProcessor
from mtmm_training.data.files import appearing, write_json
from mtmm_training.publishing.browser import write_page
from mtmm_training.publishing.export import Precision, describe, export, size_of
from mtmm_training.publishing.exported import ExportedModel
from mtmm_training.publishing.parity import measure
from mtmm_training.scoring.texts import render
from reference_mtmm import STATISTICS

FORMAT = 1  # of the folder; a reader that is older refuses it
GRAPH, MANIFEST, TOKENIZER, ARRAYS = (
    "model.onnx", "manifest.json", "tokenizer.json", "arrays.safetensors"
)  # fmt: skip
TRANSFORMERS = "export.json"
ENCODERS = ("audio_config", "text_config")


def export_model(
    model: str | Path,
    out: str | Path,
    precision: Precision = "float32",
    run: str | Path | None = None,
    page: bool = False,
) -> str:
    """Export a saved model, and say how large it is and what it costs.

    Args:
        model: folder or Hub id of an MTMM model.
        out: folder to write, or a file that ends in .pt2.
        precision: as of `export`.
        run: folder of a run, on whose test split both predict; needs the training extra.
        page: add the page that predicts in a browser.

    Returns:
        Lines to print.

    Raises:
        ValueError, OSError: as `export` and `write_page`; the run is not finished, or its data is
            away; or `out` is a folder of something else.
    """
    test = None
    if run is not None:  # first: it is quick to fail
        from mtmm_training.training.run import Run

        test = Run.open(run).test_utterances()
    out = Path(out)
    loaded = MTMMModel.from_pretrained(model, dtype=torch.float32).eval()
    processor = MTMMProcessor.from_pretrained(model)
    with appearing(out, MANIFEST) as staged:
        if out.suffix == ".pt2":
            graph, difference = out, export(loaded, processor, staged)
        else:
            graph, difference = out / GRAPH, write_folder(loaded, processor, staged, precision)
            if page:
                write_page(staged, "/".join(Path(model).parts[-2:]), loaded.config)
    scores = None if test is None else measure(loaded, processor, ExportedModel(graph), test)
    said = {"out": out, "precision": precision, "megabytes": size_of(graph) / 1e6}
    return render("exported.txt", **said, difference=difference, test=test, scores=scores).rstrip()


def write_folder(
    model: MTMMModel, processor: MTMMProcessor, folder: Path, precision: Precision = "float32"
) -> float:
    """Write an export into a new folder; as `export`."""
    folder.mkdir()
    difference = export(model, processor, folder / GRAPH, precision)
    # transformers asks for it, also where the graph has its weights.
    (folder / f"{GRAPH}.data").touch()
    (folder / ARRAYS).write_bytes(save(_arrays(model, processor)))
    processor.tokenizer.backend_tokenizer.save(str(folder / TOKENIZER))
    manifest = make_manifest(model, processor, precision)
    for name, content in ((MANIFEST, manifest), (TRANSFORMERS, _for_transformers(manifest))):
        write_json(content, folder / name)
    return difference


def make_manifest(
    model: MTMMModel, processor: MTMMProcessor, precision: Precision
) -> dict[str, Any]:
    """All that is no number of the graph: JSON, for readers in any language."""
    config, known = model.config, describe(model, processor)
    fields = [name for name in MTMMConfig.__annotations__ if name not in ENCODERS]
    return {
        "format": FORMAT,
        "precision": precision,
        "config": {name: getattr(config, name) for name in fields}
        | {"output_names": config.output_names},
        "graph": {"file": GRAPH, "inputs": known["input_shapes"], "outputs": known["outputs"]},
        "arrays": ARRAYS,
        "audio": {
            "sampling_rate": processor.sampling_rate,
            "shortest_s": processor.min_duration_s,
            "longest_s": processor.longest_audio_s(),
            **_features(processor.feature_extractor),
        },
        "text": {
            "file": TOKENIZER,
            "max_tokens": processor.max_tokens,
            "pad_token_id": processor.tokenizer.pad_token_id,
        },
    }


def _for_transformers(manifest: dict[str, Any]) -> dict[str, Any]:
    """What `transformers.exporters.ExportedModel.from_pretrained` reads; it gives the outputs by name."""
    graph = manifest["graph"]
    _, outputs = torch.utils._pytree.tree_flatten(dict.fromkeys(graph["outputs"], 0))
    metadata = {
        "architecture": "MTMMModel",
        "export_dtype": "float32",
        "export_device": "cpu",
        "kwargs": {name: {"rank": len(shape)} for name, shape in graph["inputs"].items()},
        "out_spec": torch.utils._pytree.treespec_dumps(outputs),
    }
    component = {"file": graph["file"], "metadata": metadata}
    return {"schema_version": 1, "export_format": "onnx", "components": {"model": component}}


def _features(extractor: Any) -> dict[str, Any]:
    """How the encoder's input is made of a waveform; of a kind that no reader knows its name alone."""
    if type(extractor) is Wav2Vec2FeatureExtractor:
        return {"kind": "waveform", "normalise": extractor.do_normalize}
    if type(extractor) is WhisperFeatureExtractor and not extractor.dither:
        names = {"window": "n_fft", "hop": "hop_length", "samples": "n_samples"}
        return {"kind": "log-mel", **{n: getattr(extractor, field) for n, field in names.items()}}
    return {"kind": type(extractor).__name__}


def _arrays(model: MTMMModel, processor: MTMMProcessor) -> dict[str, np.ndarray]:
    """The filters of a log-mel encoder, (bins, mels), and what references are reckoned against."""
    arrays = {}
    filters = getattr(processor.feature_extractor, "mel_filters", None)
    if filters is not None:
        arrays["mel_filters"] = np.ascontiguousarray(filters, np.float32)
    if model.config.reference != "none":
        buffers = ((name, model.fusion.get_buffer(name)) for name in STATISTICS)
        arrays |= {name: buffer.float().cpu().numpy() for name, buffer in buffers}
    return arrays
