"""Results of `mtmm predict` as lines for people, JSON or CSV on standard output, and as pictures."""

import csv
import json
import re
import sys
from collections.abc import Mapping
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

from mtmm_training.commands.predict_inputs import Input
from mtmm_training.data import sounds
from mtmm_training.scoring.texts import render

# ---- the parts of a result -------------------------------------------------------------------


def entries(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The windows or segments of a result; of one that was not cut, or failed, itself."""
    return result.get("timeline") or [result]


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


def timed(one: Input, result: dict[str, Any]) -> dict[str, Any]:
    """The result with "start" and "end" in seconds before all else, also of a recording that was not cut.

    Of a URL that was not cut the end is not known without fetching it again, and is left out.
    """
    if "error" in result:
        return result
    if windows := result.get("timeline"):
        times = {"start": windows[0]["start"], "end": windows[-1]["end"]}
    elif one.audio is not None and sounds.file_of(one.audio) and sounds.is_there(one.audio):
        end_s = one.end_s
        if end_s is None:
            from audio_mtmm import open_recording

            with closing(open_recording(sounds.source(one.audio))) as recording:
                end_s = round(float(recording.duration_s or 0), 6)
        times = {"start": one.start_s or 0.0, "end": end_s}
    else:
        return result
    return times | result


def rounded(value: Any) -> Any:
    """The same with four decimals of every number: more is noise of the machine."""
    if isinstance(value, Mapping):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def result_columns(
    config: Any, *, explain: bool = False, reference: bool = False, speakers: bool = False
) -> dict[str, type]:
    """The columns of a table of results, and of their timelines: name -> str or float."""
    columns: dict[str, type] = {"speaker": str} if speakers else {}
    if "emotion" in config.trained_outputs:
        columns["emotion"] = str
        columns |= {f"p_{name}": float for name in config.id2label.values()}
        columns |= {"agreement": float} if config.calibrated_on == "votes" else {}
    for name in config.dimension_names:
        if name in config.trained_outputs:
            columns[name] = float
            columns |= {f"{name}_sd": float} if name in config.rated_dimensions else {}
    columns |= {"missing": str, "text": str} | ({"unfamiliar": str} if config.familiarity else {})
    columns |= {"reference": str} if reference else {}
    return columns | ({"explanation": str} if explain else {})


def result_row(result: Mapping[str, Any], columns: Mapping[str, type]) -> dict[str, Any]:
    """The cells of these columns; None where the result has nothing."""
    known = dict(result)
    known |= {f"p_{name}": share for name, share in result.get("scores", {}).items()}
    for name in ("missing", "unfamiliar"):
        if name in result:
            known[name] = " ".join(result[name])
    for name in ("explanation", "reference"):
        if name in result:
            known[name] = json.dumps(result[name], ensure_ascii=False)
    return {name: known.get(name) for name in columns}


# ---- printed ---------------------------------------------------------------------------------


class Printer:
    """Prints results as they come.

    Args:
        config: The model's configuration.
        form: "lines" for people, "json" or "csv".
        columns: As of `result_columns`.
        timeline: Whether each window or segment has a line or row of its own.
    """

    def __init__(self, config: Any, form: str, columns: Mapping[str, type], timeline: bool) -> None:
        self.config, self.form, self.columns, self.timeline = config, form, columns, timeline
        header = ["id", *(["start", "end"] if timeline else []), *self.columns, "error"]
        self.table = csv.DictWriter(sys.stdout, header, extrasaction="ignore", lineterminator="\n")
        if form == "csv":
            self.table.writeheader()

    def show(self, one: Input, result: Mapping[str, Any]) -> None:
        """Print one result.

        Raises:
            OSError: Standard output cannot be written, as on a full disk.
        """
        for record in entries(result) if self.timeline else [result]:
            if self.form == "json":
                print(json.dumps(rounded({"id": one.name, **record}), ensure_ascii=False))
            elif self.form == "csv":
                cells = result_row(record, self.columns)
                self.table.writerow({**record, **cells, "id": one.name})
        if self.form == "lines" and "error" not in result:  # that is on standard error already
            if "missing" in result:  # a stream has no mean over all its windows
                print(f"{one.name}: {describe(result, self.config)}")
            for speaker, own in result.get("speakers", {}).items():
                print(f"  {speaker}, {own['seconds']:.1f} s: {describe(own, self.config)}")
            for entry in result.get("timeline", ()) if self.timeline else ():
                times = f"{entry['start']:9.2f} {entry['end']:9.2f} s"
                by = f"{entry['speaker']}: " if "speaker" in entry else ""
                print(f"{times}  {by}{describe(entry, self.config)}")
        sys.stdout.flush()


def describe(result: Mapping[str, Any], config: Any) -> str:
    """A result, or an entry of a timeline, in a line."""
    said = render("answer.txt", result=result, config=config).split("\n")
    line = "; ".join(part for part in said if part)
    if "explanation" in result:  # two more lines: what was read, and what mattered
        read, mattered = result["explanation"], result["explanation"]["occlusion"]
        of, both = mattered["of"], not result["missing"]
        named = f"log p({of})" if of in config.label2id else of
        line += f"\n      read: {_shares(read, both, '.0%')}"
        line += f"\n      fall of {named} without it: {_shares(mattered, both, 'z.2f')}"
    return line


def _shares(side: Mapping[str, Any], both: bool, form: str) -> str:
    """The modalities, if both are there, and the three words and times that have most."""
    places = [(place["share"], f"“{place['text']}”") for place in side["words"]]
    places += [(p["share"], f"{p['start']:.2f} to {p['end']:.2f} s") for p in side["time"]]
    places = sorted((place for place in places if place[0] is not None), reverse=True)[:3]
    modalities = [(share, name) for name, share in side["modalities"].items() if both]
    return ", ".join(f"{name} {share:{form}}" for share, name in modalities + places)


# ---- drawn -----------------------------------------------------------------------------------


class Pictures:
    """The pictures of results, drawn as they come, into a folder; made here, before any work.

    Raises:
        OSError: The folder cannot be made.
    """

    def __init__(self, folder: Path, config: Any) -> None:
        from mtmm_training.pictures import of_answers, style

        self.pictures, self.write, self.folder = of_answers, style.save, folder
        self.scale = {"dimension_range": config.dimension_range}
        self.results: dict[str, dict[str, Any]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def draw(self, one: Input, result: dict[str, Any]) -> None:
        """Write the pictures of one result; it is kept for the plane, which shows all of them."""
        self.results[one.name] = {k: v for k, v in result.items() if k != "timeline"}
        # File names have 255 bytes, and ours say more behind these.
        stem = re.sub(r"[^\w.-]+", "_", one.name).encode()[-150:].decode(errors="ignore")
        if "timeline" in result:
            figure = self.pictures.draw_timeline(result, title=one.name, **self.scale)
            self._save(figure, f"{stem}.timeline")
        for entry in entries(result):
            if "explanation" not in entry:
                continue
            place = f" {entry['start']:08.2f} s" if "start" in entry else ""
            heard: tuple[Any, Any] = (None, None)
            if one.audio is not None and not place:  # a long recording is never held whole
                heard = one.waveform()
                entry = moved(entry, -(one.start_s or 0.0))  # as the waveform, which begins there
            figure = self.pictures.draw_explanation(entry, *heard, title=one.name + place)
            self._save(figure, f"{stem}{place.replace(' ', '_')}.explanation")

    def draw_plane(self) -> None:
        """All results in the valence-arousal plane, where the model knows both."""
        both = "valence", "arousal"
        known = {n: r for n, r in self.results.items() if None not in map(r.get, both)}
        if known:
            points, names = list(known.values()), list(known)
            self._save(self.pictures.draw_plane(points, names, **self.scale), "plane")

    def _save(self, figure: Any, name: str) -> None:
        """Under a name that no picture has yet, of this run or an earlier one."""
        names = (f"{name}.png" if number == 1 else f"{name}_{number}.png" for number in count(1))
        self.write(figure, next(p for n in names if not (p := self.folder / n).exists()))
