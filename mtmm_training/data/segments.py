"""Where in a recording somebody speaks, by silero-vad: the "segments" that the pipeline takes.

    pip install -e ".[vad]"
    predict({"audio": path, "segments": speech_segments(path)})

The package is MIT-licensed and brings its weights.
"""

from contextlib import closing

import numpy as np
import torch

from audio_mtmm import Source, open_recording

RATE = 16000
FRAME = 512  # samples that the detector takes at a time


def speech_segments(
    source: Source, threshold: float = 0.5, min_silence_s: float = 0.3, margin_s: float = 0.1
) -> list[dict[str, float]]:
    """Segments of speech, in order; the recording is read block by block.

    Args:
        source: A path, a URL, the bytes of a file, or an open binary file.
        threshold: Probability of speech from which a segment begins, 0 to 1.
        min_silence_s: Shorter pauses end no segment.
        margin_s: Added at both ends of a segment.

    Returns:
        {"start", "end"} in seconds; empty where nobody speaks.

    Raises:
        ModuleNotFoundError: silero-vad is not installed.
        As `load_audio`.
    """
    import silero_vad  # comes with the extra "vad"

    detector = silero_vad.VADIterator(
        silero_vad.load_silero_vad(), threshold=threshold, sampling_rate=RATE,
        min_silence_duration_ms=round(1000 * min_silence_s), speech_pad_ms=round(1000 * margin_s),
    )  # fmt: skip
    segments: list[dict[str, float]] = []
    rest, samples = np.zeros(0, np.float32), 0
    with closing(open_recording(source)) as recording:
        for block in recording.resampled(RATE):
            samples += len(block)
            rest = np.concatenate([rest, block])
            while len(rest) >= FRAME:
                found = detector(torch.from_numpy(rest[:FRAME])) or {}
                rest = rest[FRAME:]
                if "start" in found:
                    segments.append({"start": max(found["start"], 0) / RATE})
                if "end" in found:
                    segments[-1]["end"] = found["end"] / RATE
    duration_s = samples / RATE
    for segment in segments:
        segment["end"] = min(segment.get("end", duration_s), duration_s)
    return segments
