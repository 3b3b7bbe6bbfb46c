"""Who speaks when, as other programs write it, as the "segments" that the pipeline takes."""

from collections.abc import Iterable, Mapping
from typing import Any

Segment = dict[str, Any]  # "start", "end" (seconds), and "speaker", "text", "channel" where known


def of_json(content: Any) -> list[Segment] | None:
    """The segments of a JSON file with speakers: deepgram's, or pyannote's; None of anything else.

    whisperX's "segments" need no change.
    """
    if not isinstance(content, Mapping):
        return None
    results = content.get("results")
    if isinstance(results, Mapping):
        if results.get("utterances"):
            return [_of_deepgram(item) for item in results["utterances"]]
        words = [
            _of_deepgram(word) | {"channel": number}
            for number, channel in enumerate(results.get("channels", ()))
            for word in channel["alternatives"][0].get("words", ())
        ]
        return words or None
    turns = content.get("output", content).get("diarization")
    return None if turns is None else [dict(turn) for turn in turns]


def of_diariser(found: Any) -> list[Segment]:
    """The turns of a diariser.

    Args:
        found: A list of {"start", "end", "speaker"}; or what pyannote.audio returns, an Annotation or
            an output with `speaker_diarization`.
    """
    found = getattr(found, "speaker_diarization", found)
    if hasattr(found, "itertracks"):
        tracks: Iterable[Any] = found.itertracks(yield_label=True)
        return [{"start": t.start, "end": t.end, "speaker": str(by)} for t, _, by in tracks]
    return [dict(turn) for turn in found]


def _of_deepgram(item: Mapping[str, Any]) -> Segment:
    names = {"start": "start", "end": "end", "channel": "channel"}
    segment = {ours: item[theirs] for ours, theirs in names.items() if theirs in item}
    text = item.get("transcript", item.get("punctuated_word", item.get("word")))
    speaker = item.get("speaker")
    return segment | {"text": text} | ({} if speaker is None else {"speaker": str(speaker)})
