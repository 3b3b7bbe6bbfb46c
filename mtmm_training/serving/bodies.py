"""A request's body: a form, an audio file or raw samples, within limits; no path and no URL."""

from contextlib import closing
from typing import Any

import numpy as np
from fastapi import HTTPException, Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.types import Message

from audio_mtmm import open_recording
from mtmm_training.serving.limits import TIMED, Asked, Limits

TOO_LARGE, NOT_AUDIO, UNUSABLE = 413, 415, 422
AUDIO = "audio"  # the form's part with the recording
NO_AUDIO_TYPES = ("application/json", "text/", "image/", "video/")

_BINARY = {"type": "string", "format": "binary"}
_JSON = {name: {"type": "string", "contentMediaType": "application/json"} for name in TIMED}
_FIELDS = Asked.model_json_schema()["properties"] | _JSON
BODY = {  # for OpenAPI: FastAPI knows one kind of body alone
    "description": "A form, or the recording itself; the fields may stand in the query instead.",
    "content": {
        "multipart/form-data": {
            "schema": {"type": "object", "properties": {AUDIO: _BINARY} | _FIELDS}
        },
        "application/octet-stream": {"schema": _BINARY},
    },
}


def counted(request: Request, most: int) -> Request:
    """The request, whose body may have so many bytes: else an HTTPException while it is read."""
    too_large = HTTPException(TOO_LARGE, f"The body has more than {most} bytes.")
    if int(request.headers.get("content-length", 0)) > most:
        raise too_large
    size = 0

    async def counting() -> Message:
        nonlocal size
        message = await request.receive()
        size += len(message.get("body", b""))
        if size > most:
            raise too_large
        return message

    return Request(request.scope, counting)


async def read(request: Request, asked: Asked, limits: Limits) -> tuple[bytes, Asked]:
    """The recording's bytes, none where there is no recording, and all that is asked.

    Raises:
        HTTPException: The body is too large, no form, or of a type that no audio has.
    """
    request = counted(request, limits.max_bytes)
    kind = request.headers.get("content-type", "").lower()
    if not kind.startswith("multipart/form-data"):
        if kind.startswith(NO_AUDIO_TYPES):
            raise HTTPException(NOT_AUDIO, f"{kind} is no audio; send audio, or a form.")
        return await request.body(), asked
    async with request.form(max_files=1, max_part_size=limits.max_bytes) as form:
        fields: dict[str, Any] = asked.model_dump(exclude_unset=True)
        audio = b""
        for name, value in form.multi_items():
            if name == AUDIO:
                audio = await value.read() if isinstance(value, UploadFile) else value.encode()
            elif value != "":  # as browsers send what was not filled in
                fields[name] = value
    try:
        return audio, Asked.model_validate(fields)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        raise HTTPException(UNUSABLE, problems) from error


def recording_of(audio: bytes, asked: Asked, limits: Limits) -> tuple[dict[str, Any], float]:
    """The pipeline's input without its words, and its length in seconds.

    Raises:
        HTTPException: It cannot be decoded, or is too long.
    """
    if not audio:
        return {}, 0.0
    given: Any = audio
    try:
        if asked.sampling_rate is not None:
            samples = np.frombuffer(audio, "<i2")  # refuses half a sample
            given = {"array": samples, "sampling_rate": asked.sampling_rate}
        with closing(open_recording(given)) as recording:
            lasts_s = recording.duration_s or 0.0
    except (ValueError, TypeError, OSError) as error:
        raise HTTPException(UNUSABLE, str(error)) from error
    if lasts_s > limits.max_seconds:
        raise HTTPException(TOO_LARGE, f"{lasts_s:.1f} s of audio exceed {limits.max_seconds:g} s.")
    return {"audio": given}, lasts_s
