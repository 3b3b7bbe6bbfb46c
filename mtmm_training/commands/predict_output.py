"""Results of `mtmm predict` as lines for people, JSON or CSV on standard output, and as pictures."""

import argparse
import csv
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mtmm_training.commands.predict_files import Input, entries, moved, result_columns, result_row
from mtmm_training.files import writing

LONGEST_STEM = 150  # bytes; file names have 255, and ours say more behind it


def tell(message: object) -> None:
    """To people, on standard error."""
    print(message, file=sys.stderr, flush=True)


def close_stdout() -> None:
    """Nobody takes what we print any more: what is left goes nowhere, without another error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


Show = Callable[[Input, dict[str, Any]], None]


def printer(given: argparse.Namespace, config: Any) -> Show:
    """What prints a result in the form that the flags name.

    It raises OSError where standard output cannot be written, as on a full disk.
    """
    for name in sorted(set(config.output_names) - set(config.trained_outputs)):
        tell(f"{given.model} was never trained on {name}; it is left out")

    def records(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        return entries(result) if given.timeline else [result]

    def show_json(one: Input, result: dict[str, Any]) -> None:
        for record in records(result):
            print(json.dumps({"id": one.name, **record}, ensure_ascii=False), flush=True)

    def show_csv(one: Input, result: dict[str, Any]) -> None:
        for record in records(result):
            known = dict(record) | {"id": one.name}
            cells = {name: known.get(name) for name in own} | result_row(record, columns)
            writer.writerow(cells | {"error": record.get("error")})
        sys.stdout.flush()

    def show_lines(one: Input, result: dict[str, Any]) -> None:
        if "error" in result:  # it is on standard error already
            return
        if "missing" in result:  # a stream has no mean over all its windows
            print(f"{one.name}: {describe(result, config)}")
        for entry in result.get("timeline", ()) if given.timeline else ():
            print(f"{entry['start']:9.2f} {entry['end']:9.2f} s  {describe(entry, config)}")
        sys.stdout.flush()

    if given.json:
        return _named(show_json)
    if not given.csv:
        return _named(show_lines)
    columns = result_columns(config, explain=given.explain is not None)
    own = ["id", "start", "end"] if given.timeline else ["id"]
    writer = csv.DictWriter(sys.stdout, [*own, *columns, "error"], lineterminator="\n")
    writer.writeheader()
    return _named(show_csv)


def _named(show: Show) -> Show:
    def named(one: Input, result: dict[str, Any]) -> None:
        try:
            show(one, result)
        except BrokenPipeError:
            raise
        except OSError as error:
            close_stdout()
            raise OSError(f"Standard output cannot be written: {error.strerror}.") from error

    return named


def describe(result: Mapping[str, Any], config: Any) -> str:
    """A result, or an entry of a timeline, in a line."""
    parts = []
    if "emotion" in result:
        parts.append(", ".join(f"{name} {share:.0%}" for name, share in result["scores"].items()))
    low, high = config.dimension_range
    values = [f"{name} {result[name]:.2f}" for name in config.dimension_names if name in result]
    if values:
        parts.append(f"{', '.join(values)} ({low:g} to {high:g})")
    if windows := result.get("timeline"):
        duration_s = windows[-1]["end"] - windows[0]["start"]
        parts.append(f"mean of {len(windows)} windows, {duration_s:.2f} s")
    parts += [f"no {'transcript' if name == 'text' else name}" for name in result["missing"]]
    if result.get("text"):
        parts.append(f"{'recognised ' if result.get('transcribed') else ''}“{result['text']}”")
    return "; ".join(parts) + _describe_explanation(result, config)


def _describe_explanation(result: Mapping[str, Any], config: Any) -> str:
    """Two more lines: what was read, and what mattered; nothing without an explanation."""
    if "explanation" not in result:
        return ""
    read, mattered = result["explanation"], result["explanation"]["occlusion"]
    of, both = mattered["of"], not result["missing"]
    named = f"log p({of})" if of in config.label2id else of
    return (
        f"\n      read: {_shares(read, both, '.0%')}"
        f"\n      fall of {named} without it: {_shares(mattered, both, 'z.2f')}"
    )


def _shares(side: Mapping[str, Any], both: bool, form: str) -> str:
    """The modalities, if both are there, and the three words and stretches that have most."""
    places = [(place["share"], f"“{place['text']}”") for place in side["words"]]
    places += [(p["share"], f"{p['start']:.2f} to {p['end']:.2f} s") for p in side["time"]]
    places = sorted((place for place in places if place[0] is not None), reverse=True)[:3]
    modalities = [(share, name) for name, share in side["modalities"].items() if both]
    return ", ".join(f"{name} {share:{form}}" for share, name in modalities + places)


class Pictures:
    """The pictures of results, drawn as they come, into a folder; made here, before any work.

    Raises:
        OSError: The folder cannot be made.
    """

    def __init__(self, folder: Path, config: Any) -> None:
        from mtmm_training.pictures import figures, pictures

        self.pictures, self.write, self.folder = pictures, figures.save, folder
        self.range = {"dimension_range": config.dimension_range}
        self.results: dict[str, dict[str, Any]] = {}
        self.stems: dict[str, str] = {}  # of file names -> inputs
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def draw(self, one: Input, result: dict[str, Any]) -> None:
        """Write the pictures of one result; it is kept for the plane, which shows all of them."""
        self.results[one.name] = {k: v for k, v in result.items() if k != "timeline"}
        stem = self._stem(one)
        if "timeline" in result:
            figure = self.pictures.draw_timeline(result, title=one.name, **self.range)
            self._save(figure, f"{stem}.timeline")
        for entry in entries(result):
            if "explanation" not in entry:
                continue
            title, name, waveform, rate = one.name, stem, None, None
            if "start" in entry:
                title += f" {entry['start']:08.2f} s"
                name += f"_{entry['start']:08.2f}_s"
            elif one.audio is not None:  # a long recording is never held whole
                waveform, rate = one.waveform()
                entry = moved(entry, -(one.start_s or 0.0))  # as the waveform, which is the stretch
            figure = self.pictures.draw_explanation(entry, waveform, rate, title=title)
            self._save(figure, f"{name}.explanation")

    def draw_plane(self) -> None:
        """All results in the valence-arousal plane, where the model knows both."""
        known = {n: r for n, r in self.results.items() if "valence" in r and "arousal" in r}
        if known:
            points, names = list(known.values()), list(known)
            self._save(self.pictures.draw_plane(points, names, **self.range), "plane")

    def _stem(self, one: Input) -> str:
        """The input's name as a file's: of the characters and length of one, and like no other's."""
        cleaned = re.sub(r"[^\w.-]+", "_", one.name)
        stem = cleaned.encode()[-LONGEST_STEM:].decode(errors="ignore")
        while self.stems.setdefault(stem, one.name) != one.name:
            stem += "_"
        return stem

    def _save(self, figure: Any, stem: str) -> None:
        self.write(figure, self.folder / f"{stem}.png")
