"""Words and segments with their times, as the pipeline is given them, and odd ones mended.

A leaf file: it is uploaded to the Hub with the others, is part of the runtime, and imports none of them.
"""

import logging
import math
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)
TIMED_FORMS = {
    "words": 'a list of {"text": ..., "start": s, "end": s} or {"text": ..., "timestamp": (s, s)}',
    "segments": 'a list of at least one {"start": s, "end": s}, the end after the start',
}
TIMED_KEYS = {"text", "word", "start", "end", "timestamp", "speaker", "channel"}
# What recognisers write beside these.
TIMED_KEYS |= set(
    "id seek tokens temperature avg_logprob compression_ratio no_speech_prob words score conf "
    "confidence probability punctuated_word speaker_confidence chars language".split()
)
# <|en|>, <|HAPPY|>, <|2.40|>; whisper.cpp's; and the time in front of a line of lyrics or a chat.
MARKS = re.compile(r"<\|[^<>|]*\|>|\[_[A-Z]+_\d*\]|\[BLANK_AUDIO\]|\[(?:\d+:)+\d\d(?:[.,]\d+)?\]")
LATE_S = 1.0  # recognisers' times may lie so far behind the end of the audio


@cache
def warn_once(message: str) -> None:
    """Log a warning, the same one only once in a process."""
    logger.warning(message)


class TimedText(NamedTuple):
    """What is said from one time to another, seconds; by whom, and on which channel, from 0."""

    start_s: float
    end_s: float
    text: str | None
    speaker: str | None = None
    channel: int | None = None


class Transcript:
    """Words in the order of their middles; a word belongs to the window that holds its middle.

    One whose end nobody knows belongs to the window that holds its start.
    """

    def __init__(self, words: Sequence[TimedText]) -> None:
        ends = [word.start_s if word.end_s == math.inf else word.end_s for word in words]
        middles = [(word.start_s + end_s) / 2 for word, end_s in zip(words, ends, strict=True)]
        order = sorted(range(len(words)), key=middles.__getitem__)
        self.middles = [middles[i] for i in order]
        self.texts = [(words[i].text or "").strip() for i in order]
        self.speakers = [words[i].speaker for i in order]

    def between(self, start_s: float, end_s: float, speaker: str | None = None) -> str:
        """The words whose middles lie from `start_s` up to `end_s`, with spaces between them.

        Of a speaker: without those that are somebody else's.
        """
        first, last = bisect_left(self.middles, start_s), bisect_left(self.middles, end_s)
        pairs = zip(self.texts[first:last], self.speakers[first:last], strict=True)
        return " ".join(
            text for text, by in pairs if text and (not speaker or by in (None, speaker))
        )


def spoken(text: str) -> str:
    """Without the marks of recognisers for language, emotion, events and times."""
    return MARKS.sub(" ", text) if MARKS.search(text) else text


def parse_timed(name: str, fields: Mapping[str, Any]) -> tuple[list[TimedText] | None, int]:
    """The "words" or "segments" of an input, None where it has none; and how many had to be mended.

    A time that is absent comes from the neighbours; one before the beginning is the beginning, and an
    end before its start is its start. Segments without length and without words are left out.

    Raises:
        ValueError: No list of texts with times, in seconds from the beginning; or most are odd.
    """
    items = fields.get(name)
    if items is None:
        return None, 0
    is_list = isinstance(items, (list, tuple)) and (items or name == "words")
    rows = [_timed_text(name, item) for item in (items if is_list else [items])]
    odd, filled, texts = [], 0, list[TimedText]()
    for i, row in enumerate(rows):
        start_s = row.start_s
        if math.isnan(start_s):
            start_s = texts[-1].end_s if texts else 0.0
        # Some say −1 for an end that they do not know.
        end_s = math.nan if row.end_s < 0 else row.end_s
        if math.isnan(end_s):  # a recogniser's last word ends so
            later = [one.start_s for one in rows[i + 1 :] if not math.isnan(one.start_s)]
            end_s = max(later[0], start_s) if later else math.inf if name == "segments" else start_s
        one = row._replace(start_s=max(start_s, 0.0), end_s=max(end_s, start_s, 0.0))
        if row.start_s != one.start_s or row.end_s < one.start_s:
            odd.append(i)
        elif math.isnan(row.end_s) and name == "segments":
            filled += 1
        if one.start_s < one.end_s or (one.text or "").strip() or name == "words":
            texts.append(one)
    if 2 * len(odd) > len(rows):
        raise ValueError(f'"{name}" has {items[odd[0]]!r:.200}; it must be {TIMED_FORMS[name]}.')
    return texts or ([] if name == "words" else None), len(odd) + filled


def _timed_text(name: str, item: Any) -> TimedText:
    """One word or segment; its times are NaN where it has none."""
    try:
        said = item.get("text", item.get("word"))
        times = item.get("timestamp") or (item.get("start"), item.get("end"))
        start_s, end_s = (math.nan if time is None else time + 0.0 for time in times)
        if isinstance(said, str) or (said is None and name == "segments"):
            if unread := sorted(set(item) - TIMED_KEYS):
                warn_once(f'"{name}" have {", ".join(unread)}, which nobody reads.')
            by = None if item.get("speaker") is None else str(item["speaker"])
            said = None if said is None else spoken(said)
            return TimedText(start_s, end_s, said, by, item.get("channel"))
    except (AttributeError, TypeError, ValueError):
        pass
    raise ValueError(f'"{name}" has {item!r:.200}; it must be {TIMED_FORMS[name]}.')


def fitted(
    items: Sequence[TimedText] | None, begins: Sequence[float], ends_s: float, shortest_s: float
) -> tuple[list[TimedText], int]:
    """Segments that lie in a recording and are long enough to be heard; and how many had to be changed.

    One that ends behind the recording is cut off there. A short one becomes part of the one before, if
    that is the same speaker's and near, or is widened.

    Args:
        items: The segments; None = there are none, and words behind the recording count as changed.
        begins: When all words and segments are said, seconds.
        ends_s: The recording's end.
        shortest_s: Shortest audio that can be heard.

    Raises:
        ValueError: Most begin behind the recording.
    """
    late, count = [begin for begin in begins if begin > ends_s + LATE_S], len(begins)
    if late and len(late) > min(max(1, count / 10), count - 1):
        raise ValueError(
            f"{len(late)} of {count} words and segments lie behind the end of the recording, which "
            f"lasts {ends_s:.3f} s, the last at {max(late):g} s; is it of another recording?"
        )
    kept, changed = list[TimedText](), len(late) if items is None else 0
    for one in items or []:
        start_s = min(one.start_s, ends_s)
        end_s, last = min(one.end_s, ends_s), kept[-1] if kept else None
        if end_s - start_s < shortest_s:
            is_near = last is not None and 0 <= start_s - last.end_s <= LATE_S
            if last and is_near and (last.speaker, last.channel) == (one.speaker, one.channel):
                said = " ".join(filter(None, (last.text, one.text))) or None
                kept[-1] = last._replace(end_s=end_s, text=said)
                changed += 1
                continue
            start_s = max(min(start_s, ends_s - 2 * shortest_s), 0.0)
            end_s = min(start_s + 2 * shortest_s, ends_s)
        changed += (start_s, end_s) != one[:2] and one.end_s != math.inf
        kept.append(one._replace(start_s=start_s, end_s=end_s))
    return kept, changed
