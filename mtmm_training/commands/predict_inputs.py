"""What `mtmm predict` works on: files, folders, manifests and their transcripts, as inputs by name."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mtmm_training.data import hub, sounds, turns
from mtmm_training.data.files import as_spelt, walk
from mtmm_training.data.manifest import UNKNOWN_SPEAKER, read_manifest
from mtmm_training.data.tables import SUFFIXES as MANIFEST_SUFFIXES
from mtmm_training.data.transcripts import SUFFIXES, read_timed
from mtmm_training.data.utterances import Utterance, few
from mtmm_training.training.ending import tell

# In a file: to the pipeline. "result" is Vosk's.
TIMED = {"chunks": "words", "words": "words", "result": "words", "segments": "segments"}


@dataclass(frozen=True)
class Input:
    """One utterance or recording.

    Args:
        name: How it is called in the output, different from all others: its path, or its id.
        audio: Path or address, as of sounds.py; None = no audio.
        transcript: {"text": ...}, or "words" or "segments" with times, as the pipeline takes them;
            empty = none.
        start_s, end_s: Where it lies in the audio file, seconds; None = its beginning, its end.
        speaker: Who speaks; None = unknown.
    """

    name: str
    audio: str | None = None
    transcript: dict[str, Any] = field(default_factory=dict)
    start_s: float | None = None
    end_s: float | None = None
    speaker: str | None = None

    @classmethod
    def of(cls, row: Utterance, speakers: bool) -> "Input":
        """A manifest's row; with its speaker, if that is known and asked for."""
        said = {} if row.text is None else {"text": row.text}
        known = speakers and row.speaker_id != UNKNOWN_SPEAKER
        speaker = row.speaker_id if known else None
        return cls(row.utterance_id, row.audio, said, row.start_s, row.end_s, speaker)

    @property
    def has_speakers(self) -> bool:
        """Whether its transcript says who speaks."""
        items = [*self.transcript.get("segments", ()), *self.transcript.get("words", ())]
        return any(isinstance(item, dict) and "speaker" in item for item in items)

    def waveform(self) -> tuple[Any, int]:
        """The audio, (time,), and its sampling rate in Hz."""
        from waveforms_mtmm import to_mono

        samples = self._samples()
        return to_mono(samples.data), samples.sample_rate

    def given(self) -> dict[str, Any]:
        """What the pipeline takes; a part of a file, or a cell of a table, is read when it asks for it."""
        audio: Any = self.audio
        in_file = audio is None or sounds.is_plain(audio)
        if not in_file or self.start_s is not None or self.end_s is not None:
            audio = SimpleNamespace(get_all_samples=self._samples)
        speaker = {} if self.speaker is None else {"speaker": self.speaker}
        return {"audio": audio} | self.transcript | speaker

    def _samples(self) -> SimpleNamespace:
        """The audio, all its channels, in the form of a decoder of datasets."""
        waveform, sampling_rate = sounds.waveform(str(self.audio), self.start_s, self.end_s)
        return SimpleNamespace(data=waveform, sample_rate=sampling_rate)


def read_inputs(
    places: Sequence[str], transcripts: Path | None = None, *, speakers: bool = False
) -> list[Input]:
    """Finds everything that the command line names.

    Args:
        places: Audio files, URLs, folders (all audio files below them, by name) and manifests
            ("speaker" may be left out, and labels are not read). Whether an audio file exists is
            seen when it is read.
        transcripts: Folder with <name>.json, <name>.srt or others of `SUFFIXES` for the audio file <name>;
            for a folder's files with their path below that folder. The first of `SUFFIXES` that is
            there counts. Not read for a manifest.
        speakers: Whether to keep what manifests say of speakers.

    Raises:
        ValueError: No audio, a bad manifest or transcript, two files with one transcript, a name
            that comes twice.
        FileNotFoundError: No such manifest.
    """
    inputs: list[Input] = []
    taken: dict[Path, str] = {}  # transcript -> the audio that it belongs to
    for place in places:
        path = Path(place)
        if is_manifest(place):
            rows = read_manifest(place, labelled=False)
            inputs += [Input.of(row, speakers) for row in rows]
            continue
        top = path if path.is_dir() else path.parent
        for audio in _recordings(path) if path.is_dir() else [as_spelt(place)]:
            said, found = {}, None
            if transcripts is not None:
                beside = transcripts / Path(audio).relative_to(top)
                paths = [Path(as_spelt(str(beside.with_suffix(suffix)))) for suffix in SUFFIXES]
                found = next((path for path in paths if path.is_file()), None)
            if found is not None:
                if taken.setdefault(found, audio) != audio:
                    raise ValueError(
                        f"{found} is the transcript of {taken[found]} and {audio}; give a manifest."
                    )
                said = read_transcript(found)
            # Bytes that are not UTF-8, as in names of older systems, become \xfc and the like.
            shown = os.fsencode(audio).decode("utf-8", "backslashreplace")
            inputs.append(Input(shown, audio, said))
    if not inputs:
        raise ValueError(f"No audio in {', '.join(places)}.")
    name, times = Counter(one.name for one in inputs).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{times} inputs are called {name!r}; each may be given once.")
    return inputs


def is_manifest(place: str) -> bool:
    """Whether this names a table of utterances."""
    is_table = Path(place).suffix.lower() in MANIFEST_SUFFIXES and not Path(place).is_dir()
    return is_table or hub.is_dataset(place)


def _recordings(folder: Path) -> list[str]:
    """The recordings below a folder, by name or content; what is left out is said."""
    from audio_mtmm import is_audio

    found, others = list[str](), list[str]()
    for path in walk(folder):
        named = path.suffix.lower() in sounds.SUFFIXES  # a damaged one fails where it is predicted
        (found if named or is_audio(path) else others).append(str(path))
    if others:
        files = f"{len(others)} of {len(found) + len(others)} files"
        tell(f"{files} in {folder} are left out, which are no audio: {few(others)}")
    hidden = [str(p) for p in folder.rglob(".[!_]*") if p.suffix.lower() in sounds.SUFFIXES]
    if hidden:  # not those of macOS, ._NAME, which are no recordings
        tell(f"hidden recordings in {folder} are left out: {few(hidden)}")
    return found


def read_transcript(path: Path) -> dict[str, Any]:
    """A transcript file as the pipeline takes it; {} if it is blank.

    .json with times, and with speakers where it has them; .rttm: speakers alone; subtitles and tables as
    of `read_timed`; .txt, unless it has times, as it is.

    Raises:
        ValueError: Of another kind, no text, not what its name says, or JSON without a transcript.
        FileNotFoundError: No such file.
    """
    suffix = path.suffix.lower()
    if suffix not in map(str.lower, SUFFIXES):
        raise ValueError(
            f"{path} is no transcript: its name must end in one of {', '.join(SUFFIXES)}."
        )
    try:
        raw = path.read_bytes()
        is_wide = raw[:2] in (b"\xff\xfe", b"\xfe\xff")  # as Praat and Notepad write
        text = raw.decode("utf-16" if is_wide else "utf-8-sig")
        if suffix != ".json":
            timed = read_timed(text, suffix)
            return ({"text": text.strip()} if text.strip() else {}) if timed is None else timed
        content: Any = json.loads(text)
    except ValueError as error:  # of UTF-8, of JSON, or of the format
        raise ValueError(f"{path} cannot be read as a transcript: {error}.") from error
    if isinstance(content, list):  # of Vosk's an object for each stretch of speech
        parts = [one.get("result", [one]) if isinstance(one, dict) else [one] for one in content]
        return {"words": [word for part in parts for word in part if word != {"text": ""}]}
    if segments := turns.of_json(content):
        return {"segments": segments}
    if isinstance(content, dict):
        # "text" beside them has the same words
        lists = [key for key, value in content.items() if isinstance(value, (list, dict)) and value]
        if found := {name: content[key] for key, name in TIMED.items() if key in lists}:
            return found
        if isinstance(content.get("text"), str):
            if lists:
                tell(f"{path}: its text is read, and not {', '.join(lists)}")
            return {"text": content["text"]} if content["text"].strip() else {}
    raise ValueError(
        f'{path} has no transcript: a list of words {{"text", "start", "end"}}, or an object with '
        '"words", "segments" or "chunks" (what speech recognisers write), or with "text".'
    )
