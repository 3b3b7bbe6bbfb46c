"""What `mtmm predict` works on: the inputs by name, their results in order, and many as Parquet parts.

The parts are made by any number of processes that share a folder and nothing else. Each takes every
so many-th part, writes it under a temporary name and renames it; whichever finds the last part in
place checks them all. A run that was killed goes on with the parts that are missing.
"""

import base64
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mtmm_training.data.manifest import read_manifest
from mtmm_training.data.utterances import Utterance, few
from mtmm_training.files import replacing, sweep

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64")
MANIFEST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
TIMED = {"words": "words", "segments": "segments", "chunks": "words"}  # in a file: to the pipeline
TRANSCRIPT_FORMS = (
    'a list of words {"text", "start", "end"}, or an object with "words", "segments" or "chunks" '
    '(what speech recognisers write), or with "text"'
)
RUN_FILE = "_run.json"  # readers of folders of Parquet files pass over names that begin so
RUN_KEY, RECORDINGS_KEY = b"mtmm_run", b"mtmm_recordings"  # digests in a part's metadata
NOT_FINITE = "The model's outputs are not finite"  # the pipeline does not say for which input


class InputFailed(Exception):
    """An input that cannot be predicted, where that is to end the run."""


# ---- inputs --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Input:
    """One utterance or recording.

    Args:
        name: How it is called in the output, different from all others: its path, or its id.
        audio: Path or URL; None = no audio.
        transcript: {"text": ...}, or "words" or "segments" with times, as the pipeline takes them;
            empty = none.
        start_s, end_s: The stretch of the audio file in seconds; None = its beginning, its end.
    """

    name: str
    audio: str | None = None
    transcript: dict[str, Any] = field(default_factory=dict)
    start_s: float | None = None
    end_s: float | None = None

    def waveform(self) -> tuple[Any, int]:
        """The audio, (time,), and its sampling rate in Hz."""
        from audio_mtmm import to_mono
        from processing_mtmm import MTMMProcessor

        waveform, sampling_rate = MTMMProcessor.load_audio(
            str(self.audio), self.start_s, self.end_s
        )
        return to_mono(waveform), sampling_rate

    def given(self) -> dict[str, Any]:
        """What the pipeline takes; a stretch of a file is read when the pipeline asks for it."""
        audio: Any = self.audio
        if self.start_s is not None or self.end_s is not None:
            audio = SimpleNamespace(get_all_samples=self._samples)
        return {"audio": audio} | self.transcript

    def _samples(self) -> SimpleNamespace:
        """The stretch, in the form of a decoder of datasets."""
        waveform, sampling_rate = self.waveform()
        return SimpleNamespace(data=waveform, sample_rate=sampling_rate)


def read_inputs(places: Sequence[str], transcripts: Path | None = None) -> list[Input]:
    """Finds everything that the command line names.

    Args:
        places: Audio files, URLs, folders (all audio files below them, by name) and manifests
            (`read_manifest` of utterances.py says what one has; here "speaker" may be left out, and
            labels are not read). Whether a file exists is seen when it is read.
        transcripts: Folder with <name>.json or <name>.txt for the audio file <name>; for a folder's
            files with their path below that folder. Where both are there, the .json counts. Not
            together with a manifest, whose rows may be stretches of a file.

    Raises:
        ValueError: A folder without audio, a bad manifest or transcript, a manifest with
            `transcripts`, a name that comes twice.
        FileNotFoundError: No such manifest.
    """
    taken: dict[Path, str] = {}  # transcript -> audio

    def said(audio: str, relative: Path) -> dict[str, Any]:
        if transcripts is None:
            return {}
        paths = (transcripts / relative.with_suffix(suffix) for suffix in (".json", ".txt"))
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            return {}
        if taken.setdefault(path, audio) != audio:
            raise ValueError(
                f"{path} would be the transcript of both {taken[path]} and {audio}; give the folder "
                "above them instead of the files, or a manifest."
            )
        return read_transcript(path)

    inputs: list[Input] = []
    for place in places:
        path = Path(place)
        if path.is_dir():
            found = audio_files(path)
            inputs += [
                Input(printable(str(p)), str(p), said(str(p), p.relative_to(path))) for p in found
            ]
        elif path.suffix.lower() in MANIFEST_SUFFIXES:
            if transcripts is not None:
                raise ValueError(
                    f"{place} is a manifest, which has transcripts in its column text, so none are looked "
                    f"up in {transcripts}; fill that column, or give the audio files or their folder."
                )
            inputs += map(_as_input, read_manifest(path, labelled=False))
        else:
            inputs.append(Input(printable(place), place, said(place, Path(path.name))))
    name, count = Counter(one.name for one in inputs).most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"{count} inputs are called {name!r}; each may be given once, and ids in manifests must be "
            "different."
        )
    return inputs


def printable(name: str) -> str:
    r"""A file's name as text: bytes that are not UTF-8, as of older systems, become \xfc."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def audio_files(folder: Path) -> list[Path]:
    """The audio files below a folder by name, hidden ones left out.

    Raises:
        ValueError: There are none.
    """
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in AUDIO_SUFFIXES
        and not path.is_dir()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not found:
        raise ValueError(
            f"There is no audio in {str(folder)!r}; looked for {', '.join(AUDIO_SUFFIXES)}."
        )
    return found


def _as_input(utterance: Utterance) -> Input:
    return Input(
        utterance.utterance_id,
        utterance.audio,
        {} if utterance.text is None else {"text": utterance.text},
        utterance.start_s,
        utterance.end_s,
    )


def read_transcript(path: Path) -> dict[str, Any]:
    """A transcript file as the pipeline takes it: .txt as it is, .json with times; {} if it is blank.

    Raises:
        ValueError: Not UTF-8, not JSON, or JSON without a transcript.
        FileNotFoundError: No such file.
    """
    if not path.exists():
        raise FileNotFoundError(f"There is no transcript at {str(path)!r}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text) if path.suffix.lower() == ".json" else {"text": text.strip()}
    except (ValueError, RecursionError) as error:  # of UTF-8, of JSON, of JSON nested too deep
        raise ValueError(
            f"{path} cannot be read as a transcript ({error}); give UTF-8 text as .txt, or as .json "
            f"{TRANSCRIPT_FORMS}."
        ) from error
    if isinstance(content, list):
        return {"words": _as_written("words", content)}
    if isinstance(content, dict):
        given = {name: content[key] for key, name in TIMED.items() if content.get(key)}
        timed = {name: _as_written(name, items) for name, items in given.items()}
        if timed := {name: items for name, items in timed.items() if items}:
            return timed  # "text" beside them has the same words
        if isinstance(content.get("text"), str):
            return {"text": content["text"]} if content["text"].strip() else {}
    raise ValueError(f"{path} has no transcript; it must be {TRANSCRIPT_FORMS}.")


def _as_written(name: str, items: Any) -> Any:
    """What recognisers write for "words" or "segments", as the pipeline takes it."""
    if not isinstance(items, list):
        return items
    if name == "words":  # some say {"word": ...}
        return [
            {"text": i["word"]} | i if isinstance(i, dict) and "word" in i else i for i in items
        ]
    return [item for item in items if not _is_nothing(item)]


def _is_nothing(segment: Any) -> bool:
    """Whether it is without words and without length, as at the end of silence."""
    if not isinstance(segment, dict) or "start" not in segment:
        return False
    text = segment.get("text")
    blank = isinstance(text, str) and not text.strip()
    return blank and segment["start"] == segment.get("end")


# ---- results -------------------------------------------------------------------------------------


def predict_each(
    pipe: Any, inputs: Sequence[Input], options: Mapping[str, Any], *, stop: bool = False
) -> Iterator[tuple[Input, dict[str, Any]]]:
    """Results in the order of the inputs, while they come.

    Args:
        pipe: An `MTMMPipeline`.
        inputs: Files, transcripts or both.
        options: Of its `__call__`.
        stop: Whether the first input that fails ends it.

    Yields:
        The input and what the pipeline gives for it, or {"error": message}. Times are seconds from
        the recording's beginning, also of a stretch.

    Raises:
        InputFailed: An input cannot be predicted, and `stop`.
        ValueError, TypeError: The options are wrong.
    """
    done, alone = 0, False
    while done < len(inputs):
        first = done  # the pipeline stops at an input that it cannot read; it is begun again behind
        given = {**options, "batch_size": 1} if alone else options
        try:
            for result in pipe((one.given() for one in inputs[first:]), **given):
                yield inputs[done], moved(result, inputs[done].start_s or 0.0)
                done += 1
        except (ValueError, TypeError, OSError) as error:
            prefix, infinite = f"Input {done - first}: ", NOT_FINITE in str(error)
            if infinite and not alone:  # one of a batch; one by one it is the next
                alone = True
                continue
            if not infinite and not str(error).startswith(prefix):
                raise
            message, alone = str(error).removeprefix(prefix), False
            if stop:
                raise InputFailed(f"{inputs[done].name}: {message}") from error
            yield inputs[done], {"error": message}
            done += 1


def moved(result: Any, by_s: float) -> Any:
    """The same result with its times so many seconds later."""
    if by_s == 0:
        return result
    if isinstance(result, list):
        return [moved(item, by_s) for item in result]
    if not isinstance(result, dict):
        return result
    later = {name: round(result[name] + by_s, 6) for name in ("start", "end") if name in result}
    return {name: moved(item, by_s) for name, item in result.items()} | later


def entries(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The windows or segments of a result; of one that was not cut, or failed, itself."""
    return result.get("timeline") or [result]


def result_columns(config: Any, *, explain: bool = False) -> dict[str, type]:
    """The columns of a table of results, and of their timelines: name -> str or float."""
    columns: dict[str, type] = {}
    if "emotion" in config.trained_outputs:
        columns["emotion"] = str
        columns |= {f"p_{name}": float for name in config.id2label.values()}
    columns |= {name: float for name in config.dimension_names if name in config.trained_outputs}
    columns |= {"missing": str, "text": str}
    return columns | ({"explanation": str} if explain else {})


def result_row(result: Mapping[str, Any], columns: Mapping[str, type]) -> dict[str, Any]:
    """The cells of these columns; None where the result has nothing."""
    known = dict(result)
    known |= {f"p_{name}": share for name, share in result.get("scores", {}).items()}
    if "missing" in result:
        known["missing"] = " ".join(result["missing"])
    if "explanation" in result:
        known["explanation"] = json.dumps(result["explanation"], ensure_ascii=False)
    return {name: known.get(name) for name in columns}


# ---- many of them: Parquet parts -----------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """Predictions of many inputs in one folder: `size` of them to a part, in their order.

    Args:
        folder: Seen by all processes.
        inputs: All of them, the same in every process.
        size: Inputs to a part; the last may have fewer.
        settings: What the results depend on, beside the inputs: JSON values by name.
    """

    folder: Path
    inputs: Sequence[Input]
    size: int
    settings: Mapping[str, Any]

    @property
    def count(self) -> int:
        """How many parts there are."""
        return -(-len(self.inputs) // self.size)

    def path(self, number: int) -> Path:
        """The file of a part; names sort as numbers do."""
        width = max(5, len(str(self.count)))  # so that their order by name is their order
        return self.folder / f"part-{number:0{width}}-of-{self.count:0{width}}.parquet"

    def of(self, number: int) -> Sequence[Input]:
        """The inputs of a part."""
        return self.inputs[number * self.size : (number + 1) * self.size]

    def missing(self, share: tuple[int, int] = (0, 1)) -> list[int]:
        """The numbers of the parts that are not there: all, or those of process i of n."""
        mine = range(share[0], self.count, share[1])
        return [number for number in mine if not self.path(number).exists()]

    @cached_property  # each part that is written asks again
    def record(self) -> dict[str, Any]:
        """What makes this run this run."""
        digest = hashlib.sha256()
        for one in self.inputs:
            digest.update(json.dumps(asdict(one), sort_keys=True).encode() + b"\n")
        own = {"utterances": len(self.inputs), "part_size": self.size, "inputs": digest.hexdigest()}
        return json.loads(json.dumps(dict(self.settings) | own))

    def digest(self) -> str:
        """Of the run's record, which every part carries; the folder must be empty or this run's.

        Raises:
            ValueError: The folder was begun with something else, or holds parts of nobody knows what,
                or its record is damaged.
        """
        record, path = self.record, self.folder / RUN_FILE
        if not path.exists() and any(self.folder.glob("*.parquet")):
            raise ValueError(
                f"{self.folder} holds Parquet files but no {RUN_FILE}; choose another --out."
            )
        begun = _read_record(path) if path.exists() else record
        for name in sorted(begun.keys() | record.keys()):
            if begun.get(name) != record.get(name):
                raise ValueError(
                    f"{self.folder} was begun with other settings: {name} was {begun.get(name)!r}, now "
                    f"is {record.get(name)!r}. Choose another --out, or delete it."
                )
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()

    def recordings(self, number: int) -> bytes:
        """Digest of the sizes and times of a part's audio files, as they are now."""
        states = [_file_state(one.audio) for one in self.of(number)]
        return hashlib.sha256(json.dumps(states).encode()).hexdigest().encode()

    def write(self, number: int, rows: list[dict[str, Any]], schema: Any) -> None:
        """Write a part as Parquet, under a temporary name first; with the first one the run's record.

        Not before: a run that never got so far, for options that are wrong, leaves its folder free.

        Raises:
            ValueError: As `digest`: another run was first.
        """
        path = self.folder / RUN_FILE
        if not path.exists():
            with replacing(path) as temporary:
                text = json.dumps(self.record, indent=1) + "\n"
                temporary.write_text(text, encoding="utf-8")
        self.digest()
        import pyarrow
        import pyarrow.parquet

        with replacing(self.path(number)) as temporary:
            table = pyarrow.Table.from_pylist(rows, schema)
            pyarrow.parquet.write_table(table, temporary, write_page_checksum=True)

    def check(self, digest: str) -> list[str]:
        """Reads every part back: undamaged, all inputs, once, in order, of this run and its files.

        Returns:
            The inputs that failed, each with its part.

        Raises:
            ValueError: A part is not what it should be.
        """
        failed, outdated = [], []
        for number in range(self.count):
            path, expected = self.path(number), [one.name for one in self.of(number)]
            try:
                table = _read_part(path)
                names, run = table["id"].to_pylist(), table.schema.metadata.get(RUN_KEY)
                errors = table["error"].is_valid().to_pylist()
            except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
                raise ValueError(f"{path} cannot be read ({error}); {_REMOVE}") from error
            if names != expected or run != digest.encode():
                raise ValueError(f"{path} is not the part {number} of this run; {_REMOVE}")
            known = table.schema.metadata.get(RECORDINGS_KEY)  # None of parts of older versions
            if known is not None and known != self.recordings(number):
                outdated.append(path.name)
            failed += [
                f"{name} ({path.name})" for name, bad in zip(names, errors, strict=True) if bad
            ]
        sweep(self.folder)
        if outdated:
            raise ValueError(
                f"Audio files changed, came or went after their results were written into "
                f"{few(outdated)} of {self.folder}; delete these parts and run the same command again."
            )
        return failed


_REMOVE = "delete it and run the same command again."


def _file_state(path: str | None) -> tuple[int, int] | None:
    """Bytes and whole seconds, which network shares and copies keep; None of what is no file."""
    try:
        found = os.stat(path or "")
    except (OSError, ValueError):  # not there, a URL, or a name that no file can have
        return None
    return found.st_size, int(found.st_mtime)


def _read_part(path: Path) -> Any:
    """The table of a part, whose columns are those that were written and its pages undamaged."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
        # No checksum covers the columns' names and the metadata, but they are there twice.
        written = base64.b64decode(file.metadata.metadata[b"ARROW:schema"])
        table, schema = file.read(), pyarrow.ipc.read_schema(pyarrow.py_buffer(written))
        if table.schema != schema or table.schema.metadata != schema.metadata:
            raise ValueError("its columns or metadata are not those that were written")
        return table


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); choose another --out.") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} is no record of a run; choose another --out.")
    return record


def predict_parts(
    parts: Parts,
    load: Callable[[], tuple[Any, Mapping[str, Any]]],
    *,
    share: tuple[int, int] = (0, 1),
    stop: bool = False,
    tell: Callable[[str], None] = print,
    advance: Callable[[int], Any] = lambda count: None,
) -> int:
    """Makes this process's parts, as far as they are missing; checks all, if they are all there.

    Args:
        parts: What is to be made.
        load: Gives the pipeline and the options of its call; called only where a part is missing.
        share: Number of this process, from 0, and how many there are; it need not be the same
            number of processes that began the run.
        stop: Whether an input that cannot be read ends the process, before its part is written.
        tell: Is given each message for people.
        advance: Is given the number of inputs done since the last time.

    Returns:
        How many inputs failed: of all if this process was the last, else of those that it did.

    Raises:
        InputFailed: See `stop`.
        ValueError: The folder belongs to another run, a part is damaged or older than its
            recordings, the options are wrong.
    """
    import pyarrow.parquet  # noqa: F401  before any work: it comes with the training extra

    digest = parts.digest()
    mine, failed = parts.missing(share), 0
    if mine:
        pipe, options = load()
        columns = result_columns(pipe.model.config, explain=bool(options.get("explain")))
        schema = _schema(columns, digest)
    for number in mine:
        rows, recordings = [], parts.recordings(number)  # before any of them is read
        for one, result in predict_each(pipe, parts.of(number), options, stop=stop):
            rows.append(_part_row(one, result, columns))
            if "error" in result:
                tell(f"{one.name}: {result['error']}")
                failed += 1
            advance(1)
        metadata = schema.metadata | {RECORDINGS_KEY: recordings}
        parts.write(number, rows, schema.with_metadata(metadata))
    if missing := parts.missing():
        tell(f"This share is done; {len(missing)} of {parts.count} parts are left to others.")
        return failed
    names = parts.check(digest)
    if names:
        tell(
            f"Failed: {few(names)}. To try them anew, delete their parts and run the same command again."
        )
    tell(
        f"{parts.folder}: {len(parts.inputs)} utterances in {parts.count} parts, complete and in order; "
        f"{len(names)} failed."
    )
    return len(names)


def _part_row(one: Input, result: dict[str, Any], columns: Mapping[str, type]) -> dict[str, Any]:
    timeline = [
        {"start": entry["start"], "end": entry["end"]} | result_row(entry, columns)
        for entry in result.get("timeline", ())
    ]
    own = {"id": one.name, "timeline": timeline or None, "error": result.get("error")}
    return own | result_row(result, columns)


def _schema(columns: Mapping[str, type], digest: str) -> Any:
    """The same for every part, also where all values of a column are absent."""
    import pyarrow

    kinds = {str: pyarrow.string(), float: pyarrow.float64()}
    cells = [(name, kinds[kind]) for name, kind in columns.items()]
    times = [(name, pyarrow.float64()) for name in ("start", "end")]
    timeline = ("timeline", pyarrow.list_(pyarrow.struct([*times, *cells])))
    fields = [("id", pyarrow.string()), *cells, timeline, ("error", pyarrow.string())]
    return pyarrow.schema(fields, metadata={RUN_KEY: digest})
