"""Who speaks when: turns from a transcript's speakers, and from the channels of a call.

Uploaded to the Hub beside the weights, and part of the runtime, which has no torch.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

# Relative first, as in pipeline_mtmm.py.
try:
    if not TYPE_CHECKING:
        from .audio_mtmm import Recording, open_recording
        from .timeline_mtmm import Given, Part, Windows, parse_input
        from .transcript_mtmm import TimedText, Transcript
except ImportError:
    from audio_mtmm import Recording, open_recording
    from timeline_mtmm import Given, Part, Windows, parse_input
    from transcript_mtmm import TimedText, Transcript

UNITS = ("segment", "turn", "window")  # of `by`
PAUSE_S = 1.0  # a longer silence ends a speaker's turn
FRAME_S = 0.1  # in which a channel's level is measured
LEVEL_DB = -50.0  # of full scale, below which nobody speaks
BELOW_LOUD_DB = 25.0  # nor so far below the channel's loud frames
CROSSTALK_DB = 10.0  # nor where another channel is louder by this
SHORTEST_TURN_S = 0.3
BY_TIME = itemgetter(0, 1)  # of a TimedText


def in_units(given: Given, by: str | None) -> Given:
    """An input whose timeline has an entry for each segment, turn or window; None: as it is.

    Args:
        given: With segments, or words that have speakers.
        by: One of `UNITS`. "turn" joins what a speaker says without a pause; "window" cuts the whole
            recording, and who speaks in a window is who speaks in most of it.

    Raises:
        ValueError: Another name, or the input has no segments and no words with speakers.
    """
    if by is None:
        return given
    if by not in UNITS:
        raise ValueError(f"`by={by!r}` is not allowed; it must be one of {', '.join(UNITS)}.")
    spoken = given.segments or given.turns
    if by == "window":
        return replace(given, segments=None, turns=list(spoken or []), in_segments=False)
    if not spoken:
        raise ValueError(f'`by="{by}"` needs "segments", or "words" with their speakers.')
    return replace(given, segments=joined(spoken) if by == "turn" else list(spoken))


def joined(items: Sequence[TimedText], pause_s: float = PAUSE_S) -> list[TimedText]:
    """Turns: neighbours of one speaker and channel as one, unless a longer pause lies between them."""
    turns: list[TimedText] = []
    for item in sorted(items, key=BY_TIME):
        last = turns[-1] if turns else None
        goes_on = last is not None and (last.speaker, last.channel) == (item.speaker, item.channel)
        if last is not None and goes_on and item.start_s - last.end_s <= pause_s:
            words = [text.strip() for text in (last.text, item.text) if text is not None]
            said = " ".join(words) if words else None
            turns[-1] = last._replace(end_s=max(last.end_s, item.end_s), text=said)
        else:
            turns.append(item)
    return turns


def read_input(
    inputs: Any, sampling_rate: int | None, by: str | None, channel: str | int | None
) -> tuple[Given, Recording | None]:
    """One input of the pipeline in its units, and its recording where that was opened for its channels.

    Args:
        inputs, sampling_rate: As of `parse_input`.
        by: As of `in_units`.
        channel: "each" = a speaker on each channel; a number from 0 = this one; None = one recording.

    Raises:
        ValueError: As these, as `open_channels`, or another `channel`.
    """
    given, opened = parse_input(inputs, sampling_rate), None
    if isinstance(channel, int) and not isinstance(channel, bool) and channel >= 0:
        own = [s for s in given.segments or [] if s.channel in (None, channel)]
        segments = None if given.segments is None else [s._replace(channel=None) for s in own]
        given = replace(given, channel=channel, segments=segments)
    elif channel == "each":
        opened, given = open_channels(given)
    elif channel is not None:
        raise ValueError(f'`channel={channel!r}` must be a number from 0, "each", or left out.')
    return in_units(given, by), opened


def cut_input(
    given: Given,
    opened: Recording | None,
    processor: Any,
    window_s: float | None,
    hop_s: float | None,
    by: str | None,
    live: bool = False,
) -> Iterator[Part]:
    """The parts that one input is predicted in, while it is read; it is closed then.

    Args:
        given, opened: What [`read_input`] gave; opened now where it is not yet.
        processor: As of `Windows.of`.
        window_s, hop_s, by: The pipeline's options.
        live: Cut it in any case, as if it were asked for; else only what is too long is.
    """
    if given.audio is None:
        yield from given.texts()
        return
    windows = Windows.of(processor, window_s, hop_s, given.segments)
    is_cut = live or window_s is not None or hop_s is not None or by == "window"
    whole_s = 0.0 if is_cut else processor.longest_audio_s()
    with closing(
        opened or open_recording(given.audio, given.sampling_rate, given.channel)
    ) as recording:
        yield from given.cut(recording, windows, whole_s)


# ---- a call, one speaker to a channel ------------------------------------------------------------


def open_channels(given: Given) -> tuple[Recording, Given]:
    """A recording with its channels apart, and the input with their turns as its segments.

    Segments that the input has keep their times; each must say its channel, from 0. Without any, a
    channel's turns are where it is loud enough and no other channel is much louder. A speaker is called
    "channel 1", "channel 2", ... where the segments do not name one.

    Raises:
        ValueError: The audio has one channel; segments without a channel; nobody speaks.
        As `open_recording`.
    """
    opened = open_recording(given.audio, given.sampling_rate, "each")
    count = len(opened.channels)
    if count < 2:
        raise ValueError('`channel="each"` needs a recording of several channels; it has one.')
    segments = given.segments
    if segments is None:
        segments = channel_turns(opened.channels)
    if not segments or any(s.channel is None or not 0 <= s.channel < count for s in segments):
        raise ValueError(
            "Nobody speaks on any channel." if not segments
            else f'With `channel="each"` every segment needs its "channel", 0 to {count - 1}.'
        )  # fmt: skip
    named = [
        s if s.speaker else s._replace(speaker=f"channel {(s.channel or 0) + 1}") for s in segments
    ]
    said = [s for s in named if s.text is not None]
    transcript = Transcript(said) if said else given.transcript
    return opened, replace(given, segments=sorted(named, key=BY_TIME), transcript=transcript)


def channel_turns(channels: Sequence[Recording]) -> list[TimedText]:
    """Where somebody speaks on each channel, by its level in frames of 0.1 s, in order."""
    levels = [_levels(channel) for channel in channels]
    table = np.stack([level[: min(map(len, levels))] for level in levels])
    loud = np.maximum(np.percentile(table, 95, axis=1, keepdims=True) - BELOW_LOUD_DB, LEVEL_DB)
    clear = table > table.max(axis=0) - CROSSTALK_DB
    turns = []
    for number, active in enumerate((table > loud) & clear):
        frames = [
            TimedText(i * FRAME_S, (i + 1) * FRAME_S, None, None, number)
            for i in np.flatnonzero(active)
        ]
        turns += [t for t in joined(frames) if t.end_s - t.start_s >= SHORTEST_TURN_S]
    end_s = channels[0].duration_s or 0.0
    return sorted((t._replace(end_s=min(t.end_s, end_s)) for t in turns), key=BY_TIME)


def _levels(channel: Recording) -> np.ndarray:
    """Of each frame, dB of full scale, (frames,)."""
    size = round(FRAME_S * channel.sampling_rate)
    rest, found = np.zeros(0, np.float32), []
    for block in channel.blocks(0, None):
        rest = np.concatenate([rest, block])
        whole = len(rest) // size * size
        found.append(np.square(rest[:whole].reshape(-1, size), dtype=np.float64).mean(axis=1))
        rest = rest[whole:]
    return 10 * np.log10(np.concatenate(found) + 1e-12)
