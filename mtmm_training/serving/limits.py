"""What a service takes, and what a request may ask."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeInt
from pydantic_core import from_json


@dataclass(frozen=True)
class Limits:
    """Of a service.

    Args:
        max_bytes: Longest body of a request.
        max_seconds: Longest recording.
        timeout_s: From a request's first byte to its answer; of a stream, from one message to the next.
        queue: Requests that are read, wait or are computed at a time.
        streams: Streams at a time.
        batch_size: Utterances or windows at a time, at most.
        wait_s: How long a request may wait for others to share a batch.
    """

    max_bytes: int = 25_000_000
    max_seconds: float = 600.0
    timeout_s: float = 60.0
    queue: int = 256
    streams: int = 8
    batch_size: int = 8
    wait_s: float = 0.005


def _parsed(value: Any) -> Any:
    return from_json(value) if isinstance(value, (str, bytes)) else value


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Timed = Annotated[list[dict[str, Any]] | None, BeforeValidator(_parsed)]


class Cut(BaseModel):
    """How recordings are cut into windows, and what is shown of each; as the pipeline's options."""

    model_config = ConfigDict(extra="forbid")
    sampling_rate: int | None = Field(
        None, ge=1000, le=10**6, description="of raw 16-bit little-endian mono samples, Hz"
    )
    window_s: Positive | None = Field(None, description="cut into windows of so many seconds")
    hop_s: Positive | None = Field(None, description="from one window to the next, seconds")
    top_k: int | None = Field(None, ge=1, le=10**6, description="only the highest scores")
    min_confidence: float | None = Field(None, ge=0, le=1, description="name no emotion below it")

    def options(self) -> dict[str, Any]:
        """Of the pipeline's call: those that were given."""
        return self.model_dump(include=set(OPTIONS), exclude_none=True)


class Asked(Cut):
    """One request: what was said, and how to predict it."""

    text: str | None = Field(None, description="the transcript")
    words: Timed = Field(None, description='JSON: [{"text": "so", "start": 0.1, "end": 0.3}, ...]')
    segments: Timed = Field(None, description='JSON: [{"start": 0, "end": 2.5, "text": ...}, ...]')
    speaker: str | None = Field(None, description="who speaks")
    explain: str | None = Field(None, description="emotion, or the name of a dimension")
    by: Literal["segment", "turn", "window"] | None = Field(None, description="what is predicted")
    channel: NonNegativeInt | Literal["each"] | None = Field(
        None, description="this one alone, from 0; or each has its own speaker"
    )
    embedding: bool | None = Field(None, description="the fused state too, and each modality's")
    reference: Literal["domain", "speaker", "none"] | None = Field(
        None, description="made of this recording itself"
    )

    def said(self) -> dict[str, Any]:
        """Of the pipeline's input: what belongs to the audio."""
        return self.model_dump(include=set(SAID), exclude_none=True)


TIMED = ("words", "segments")  # JSON
SAID = ("text", *TIMED, "speaker")
OPTIONS = tuple(name for name in Asked.model_fields if name not in (*SAID, "sampling_rate"))
