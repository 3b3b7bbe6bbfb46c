"""An exported file, called as the model is; needs onnxruntime."""

import json
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

from outputs_mtmm import MTMMOutput
from reference_mtmm import Reference

METADATA = "mtmm"  # the key of the description, JSON, in an ONNX file's metadata
INPUTS = ("input_values", "audio_attention_mask", "input_ids", "attention_mask")
REFERENCE_INPUTS = ("reference_mean", "reference_deviation")  # of models that take references
OUTPUTS = ("emotion_logits", "emotion_probabilities", "dimensions")
OPTIONAL = ("dimension_deviations", "unfamiliarity")  # of models that have them
MODALITIES = (INPUTS[:2], INPUTS[2:])  # values and mask of each


class ExportedModel(nn.Module):
    """An exported file, called as [`MTMMModel`] is; runs on the CPU, with torch's number of threads.

    A file of a model that takes references has them as inputs, (batch, layers, width): what
    [`MTMMModel.standardisation`] gives. NaN in them, or leaving them out here, means the model's own.

    Args:
        path: of the .onnx or .pt2 file.

    Attributes:
        metadata (`dict`): what `export.describe` wrote into the file.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        if self.path.suffix == ".pt2":
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
        # Few, but more than one frame and one token, for which torch.export made no graph.
        few = {"time": self.metadata["sampling_rate"] // 4, "frames": 100, "tokens": 2}
        for name, (_, *free) in self.metadata["input_shapes"].items():
            shape, is_own = [few.get(size, size) for size in free], name in REFERENCE_INPUTS
            if name not in given:
                dtype = torch.float32 if is_own or name == "input_values" else torch.long
                absent = torch.nan if is_own else 0
                given[name] = torch.full((batch, *shape), absent, dtype=dtype)
            elif is_own:
                given[name] = given[name].expand(batch, *shape).contiguous()
        if self.path.suffix == ".pt2":
            with torch.no_grad():
                outputs = self.program(**given)
        else:
            arrays = {name: tensor.numpy() for name, tensor in given.items()}
            names = self.metadata["outputs"]
            outputs = [torch.from_numpy(array) for array in self.session.run(names, arrays)]
        return dict(zip(self.metadata["outputs"], outputs, strict=True))

    def forward(self, **inputs: Tensor | None) -> MTMMOutput:
        """As [`MTMMModel.forward`], of which it takes raw inputs and references; labels are not looked at."""
        outputs = self.run(**{name: inputs.get(name) for name in (*INPUTS, *REFERENCE_INPUTS)})
        known = {
            n: t
            for n, t in outputs.items()
            if n not in ("emotion_probabilities", *Reference.STATES)
        }
        return MTMMOutput(**known)  # type: ignore[arg-type]  # tensors alone, by name
