"""Files of safetensors, which are JSON and numbers."""

import json
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

KINDS = {"F64": "<f8", "F32": "<f4", "I64": "<i8"}


def read_arrays(path: str | PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a file by name, and its metadata.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no file of safetensors, or cut off.
    """
    content = Path(path).read_bytes()
    try:
        begins = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:begins])
        metadata = header.pop("__metadata__", {})
        arrays = {}
        for name, told in header.items():
            first, last = told["data_offsets"]
            flat = np.frombuffer(content[begins + first : begins + last], KINDS[told["dtype"]])
            arrays[name] = flat.reshape(told["shape"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged, or no file of safetensors ({error}).") from error
    return arrays, metadata
