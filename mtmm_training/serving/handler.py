"""What Inference Endpoints of the Hub call: a model's repository has this file as handler.py.

`mtmm publish RUN REPO --endpoint` puts it there. Requests are the bytes of an audio file, or JSON:
{"inputs": ..., "parameters": ...}. Inputs are a transcript, or {"audio": base64 of a file,
"text": transcript, "words": ..., "segments": ...}; parameters are the pipeline's options. A path or URL
is never opened.
"""

import base64
from typing import Any

from transformers import pipeline

PARAMETERS = {"window_s", "hop_s", "top_k", "min_confidence", "explain", "by", "channel"}


class EndpointHandler:
    """Answers requests by the pipeline of the repository that it lies in.

    Args:
        path: The repository's folder; its code is run.
    """

    def __init__(self, path: str = "") -> None:
        options: dict[str, Any] = {"model": path, "trust_remote_code": True}
        self.predict = pipeline(**options)

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """The pipeline's answer; what cannot be used is {"error": why}."""
        try:
            options = dict(data.get("parameters") or {})
            unknown = sorted(set(options) - PARAMETERS)
            if unknown:
                raise ValueError(f"There are no parameters {unknown}; give {sorted(PARAMETERS)}.")
            return self.predict(_given(data.get("inputs")), **options)
        except (ValueError, TypeError, OSError) as error:
            return {"error": str(error)}


def _given(inputs: Any) -> dict[str, Any]:
    """The pipeline's input, whose audio is bytes and nothing else."""
    if isinstance(inputs, (bytes, bytearray)):
        return {"audio": bytes(inputs)}
    given = {"text": inputs} if isinstance(inputs, str) else dict(inputs or {})
    if given.get("audio") is not None:
        try:
            given["audio"] = base64.b64decode(given["audio"], validate=True)
        except (TypeError, ValueError) as error:
            raise ValueError("`audio` must be the base64 of an audio file.") from error
    return given
