"""Protocols give the folds they promise, and planted leaks are refused."""

import json
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from mtmm_training.data.files import write_json
from mtmm_training.data.folds import (
    Fold,
    fold_from_speakers,
    load_folds,
    make_folds,
    script_of,
    select,
)
from mtmm_training.data.manifest import read_manifest
from mtmm_training.data.recordings import Recordings, doubled, excerpts
from mtmm_training.data.utterances import SPLITS, Utterance


@pytest.fixture(scope="module")
def ravdess(real_data: Path) -> list[Utterance]:
    return read_manifest(real_data / "ravdess4" / "manifest.csv")


def utterance(utterance_id: str, speaker: str, **given: Any) -> Utterance:
    defaults: dict[str, Any] = {"corpus": "test", "text": f"Words of {utterance_id}."}
    return Utterance(utterance_id=utterance_id, speaker_id=speaker, **defaults | given)


def corpus(sessions: int = 5, each: int = 3) -> list[Utterance]:
    """Two speakers per session, "1F" and "1M" and so on; the last utterance is not improvised."""
    return [
        utterance(f"{s}{sex}{n}", f"{s}{sex}", session_id=f"{s}", improvised=n < each - 1)
        for s in range(1, sessions + 1)
        for sex in "FM"
        for n in range(each)
    ]


def speakers(utterances: list[Utterance], fold: Fold, split: str) -> set[str]:
    return {u.speaker_id for u in select(utterances, fold)[split]}


def assert_whole_and_disjoint(utterances: list[Utterance], fold: Fold) -> None:
    groups = [speakers(utterances, fold, split) for split in SPLITS]
    assert sum(map(len, groups)) == len(set.union(*groups))
    ids = [*fold.train, *fold.validation, *fold.test]
    assert sorted(ids) == sorted(u.utterance_id for u in utterances)


@pytest.mark.parametrize(
    ("protocol", "k", "count"),
    [("speaker", None, 10), ("session", None, 5), ("leave_one_speaker_out", None, 10)]
    + [("grouped", k, k) for k in (3, 4, 10)],
)
def test_every_utterance_is_tested_once(protocol: str, k: int | None, count: int) -> None:
    utterances = corpus()
    folds = make_folds(utterances, protocol, k=k)
    assert len(folds) == len({fold.name for fold in folds}) == count
    for fold in folds:
        assert_whole_and_disjoint(utterances, fold)
    for split in ("validation", "test"):
        held_out = [name for fold in folds for name in getattr(fold, split)]
        if (protocol, split) != ("leave_one_speaker_out", "validation"):  # two speakers each
            assert sorted(held_out) == sorted(u.utterance_id for u in utterances)


@pytest.mark.parametrize(
    ("protocol", "fold", "test", "validation"),
    [
        ("speaker", "3M", {"3M"}, {"3F"}),
        ("session", "5", {"5F", "5M"}, {"1F", "1M"}),
        ("leave_one_speaker_out", "4M", {"4M"}, {"5F", "5M"}),
        ("leave_one_speaker_out", "5F", {"5F"}, {"5M", "1F"}),
    ],
)
def test_protocol_validates_on_those_who_follow(
    protocol: str, fold: str, test: set[str], validation: set[str]
) -> None:
    utterances = corpus()
    (chosen,) = (f for f in make_folds(utterances, protocol) if f.name == fold)
    assert speakers(utterances, chosen, "test") == test
    assert speakers(utterances, chosen, "validation") == validation
    assert (
        speakers(utterances, chosen, "train")
        == {u.speaker_id for u in utterances} - test - validation
    )


def test_grouped_folds_are_balanced() -> None:
    sizes = [30, 20, 10, 10, 5, 5, 5, 5]
    utterances = [
        utterance(f"{s}-{n}", f"s{s}") for s, size in enumerate(sizes) for n in range(size)
    ]
    assert [len(fold.test) for fold in make_folds(utterances, "grouped", k=3)] == [30, 30, 30]


def test_grouped_folds_follow_the_seed() -> None:
    utterances = corpus()
    folds = make_folds(utterances, "grouped", k=5, seed=1)
    reordered = make_folds(utterances[::-1], "grouped", k=5, seed=1)
    assert [set(fold.test) for fold in reordered] == [set(fold.test) for fold in folds]
    assert make_folds(utterances, "grouped", k=5, seed=2) != folds


def test_official_protocol_takes_the_splits() -> None:
    official = {"1": "train", "2": "validation", "3": "test"}
    utterances = [replace(u, split=official[str(u.session_id)]) for u in corpus(sessions=3)]
    (fold,) = make_folds(utterances, "official")
    assert speakers(utterances, fold, "validation") == {"2F", "2M"}


@pytest.mark.parametrize(
    ("protocol", "change", "options", "named"),
    [
        ("speker", {}, {}, "'speker'"),
        ("session", {}, {"k": 5}, "5"),
        ("grouped", {}, {}, "`k` is None"),
        ("grouped", {}, {"k": 2}, "train is empty"),
        ("grouped", {}, {"k": 11}, "is empty"),
        ("speaker", {"session_id": None}, {}, "session"),
        ("session", {"session_id": "1"}, {}, "is empty"),
        ("speaker", {"session_id": "1"}, {}, "'1' has not two speakers"),
        ("speaker", {"speaker_id": "a"}, {}, "'a' is in several"),
        ("leave_one_speaker_out", {"speaker_id": "a"}, {}, "is empty"),
        ("official", {}, {}, "split"),
        ("session", {"speaker_id": "Unknown"}, {}, "30 .*'unknown'"),
        ("session", {"utterance_id": "u"}, {}, "'u'"),
        ("session", {"improvised": None}, {"improvised_only": True}, "no folds"),
        ("session", {"speaker_id": "a"}, {}, "Speaker 'a' is in both"),
    ],
)
def test_unsuitable_protocol_is_refused(
    protocol: str, change: dict[str, Any], options: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        make_folds([replace(u, **change) for u in corpus()], protocol, **options)


def test_speaker_of_two_sessions_is_refused_by_the_speaker_protocol() -> None:
    """Everyone has one partner in each session, but 1F would be tested in both."""
    visit = [replace(u, speaker_id="1F") if u.speaker_id == "2F" else u for u in corpus()]
    with pytest.raises(ValueError, match="'1F'"):
        make_folds(visit, "speaker")
    assert len(make_folds(visit, "leave_one_speaker_out")) == 9


def test_improvised_only_keeps_the_improvised() -> None:
    folds = make_folds(corpus(), "session", improvised_only=True)
    assert {len(fold.test) for fold in folds} == {4}


# Planted leaks.

TRAIN, VALIDATION, TEST = utterance("a", "anna"), utterance("b", "ben"), utterance("c", "cleo")


def make(*splits: list[Utterance], script_disjoint: bool = False) -> Fold:
    audio = excerpts([u for members in splits for u in members], Recordings())
    return Fold.from_splits("f", dict(zip(SPLITS, splits, strict=True)), audio, script_disjoint)


def test_speaker_in_two_splits_is_refused() -> None:
    with pytest.raises(ValueError, match="Speaker 'anna' is in both train and test of fold 'f'"):
        make([TRAIN], [VALIDATION], [TEST, utterance("d", "anna")])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"test": ("b", "c")}, "'f' .*'b'"),
        ({"train": ("a", "a")}, "'f' .*'a'"),
        *(({split: ()}, f"'f' .*{split} is empty") for split in SPLITS),
    ],
)
def test_fold_needs_each_utterance_once(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Fold(name="f", **{"train": ("a",), "validation": ("b",), "test": ("c",)} | change)


def test_script_in_two_splits_is_refused_where_asked() -> None:
    same_words = replace(TEST, text="  WORDS of a")
    make([TRAIN], [VALIDATION], [same_words])
    with pytest.raises(ValueError, match="Script 'words of a' is in both train and test"):
        make([TRAIN], [VALIDATION], [same_words], script_disjoint=True)


def recorded(folder: Path, contents: str) -> list[Utterance]:
    """One utterance per character, by a speaker of its own; equal characters, equal bytes."""
    for index, content in enumerate(contents):
        (folder / f"{index}.wav").write_text(content)
    return [
        utterance(f"{index}", f"s{index}", audio=str(folder / f"{index}.wav"))
        for index in range(len(contents))
    ]


def test_recording_in_two_splits_is_refused(tmp_path: Path) -> None:
    first, second, third, fourth = recorded(tmp_path, "xyzx")
    with pytest.raises(ValueError, match="names '0', '3' is in both train and test of fold 'f'"):
        make([first], [second], [third, fourth])


@pytest.mark.parametrize(
    ("train", "test", "refused"),
    [
        ((None, None), (1.0, None), True),
        ((None, None), (2.0, 3.0), True),  # a part of the other
        ((0.0, 5.0), (0.001, 5.0), True),
        ((0.0, 5.0), (2.5, 7.5), True),  # half
        ((0.0, 5.0), (4.0, 6.0), True),  # half of the shorter
        ((0.0, 5.0), (4.9, 8.0), False),  # two who talk at once
        ((0.0, 5.0), (5.0, 8.0), False),
    ],
)
def test_parts_of_one_recording_overlap_a_little_at_most(
    tmp_path: Path,
    train: tuple[float | None, float | None],
    test: tuple[float | None, float | None],
    refused: bool,
) -> None:
    first, second, third = recorded(tmp_path, "xyx")
    first = replace(first, start_s=train[0], end_s=train[1])
    third = replace(third, start_s=test[0], end_s=test[1])
    with pytest.raises(ValueError, match="One recording") if refused else nullcontext():
        make([first], [second], [third])


def test_part_without_end_ends_with_its_file(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(6000), 1000)
    soundfile.write(tmp_path / "b.wav", np.ones(6000), 1000)
    whole, last = (replace(u, audio=str(tmp_path / "a.wav")) for u in (TRAIN, TEST))
    validation = replace(VALIDATION, audio=str(tmp_path / "b.wav"))
    with pytest.raises(ValueError, match="One recording under the names"):
        make([replace(whole, end_s=6.0)], [validation], [replace(last, start_s=5.0)])
    make([replace(whole, end_s=5.1)], [validation], [replace(last, start_s=5.0)])


# Script-disjoint folds.


def test_script_disjoint_drops_shared_scripts(caplog: pytest.LogCaptureFixture) -> None:
    utterances = [replace(u, script_id=None) for u in corpus(sessions=3)]
    utterances += [utterance(f"{s}yes", f"{s}F", session_id=s, text="Yes!") for s in "123"]
    folds = make_folds(utterances, "session", script_disjoint=True)
    first = next(fold for fold in folds if fold.name == "1")
    assert "1yes" in first.test
    assert "2yes" not in first.validation and "3yes" not in first.train
    assert (len(first.train), len(first.validation), len(first.test)) == (6, 6, 7)
    assert "fold 1: script_disjoint dropped {'train': 1, 'validation': 1}" in caplog.text


def test_script_disjoint_says_how_many_scripted_utterances_train(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As in IEMOCAP, where every session plays the same scenes."""
    utterances = [
        replace(u, script_id=None if u.improvised else "scene") for u in corpus(sessions=3)
    ]
    (first, *_) = make_folds(utterances, "session", script_disjoint=True)
    assert (len(first.train), len(first.validation), len(first.test)) == (4, 4, 6)
    assert "; 0 scripted utterances train" in caplog.text


def test_script_id_outranks_the_words() -> None:
    read = utterance("a", "anna", text="Yes, of course!", script_id="play")
    assert script_of(read) == "play"
    assert script_of(replace(read, script_id=None)) == "yes of course"
    assert script_of(replace(read, script_id=None, text="...")) == "..."


def test_script_disjoint_needs_scripts(tmp_path: Path) -> None:
    utterances = [replace(u, text=None) for u in recorded(tmp_path, "abcd")]
    with pytest.raises(ValueError, match="script or a transcript; '.' has none"):
        make_folds(utterances, "leave_one_speaker_out", script_disjoint=True)


# Explicit speakers, selection, files.


def test_fold_from_speakers_trains_on_the_rest() -> None:
    utterances = corpus()
    fold = fold_from_speakers(utterances, ["4F", "4M"], ["5F", "5M"])
    assert fold.name == "5F+5M"
    assert speakers(utterances, fold, "validation") == {"4F", "4M"}
    assert_whole_and_disjoint(utterances, fold)


@pytest.mark.parametrize(
    ("validation", "test", "named"),
    [
        (["4X"], ["5F"], "'4X'.*1F, 1M"),
        (["5F"], ["5F", "5M"], "'5F'"),
        ([], ["5F"], "'5F' .*validation is empty"),
    ],
)
def test_bad_speaker_lists_are_refused(validation: list[str], test: list[str], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        fold_from_speakers(corpus(), validation, test)


def test_select_refuses_other_utterances() -> None:
    fold = make_folds(corpus(), "session")[0]
    with pytest.raises(ValueError, match="Fold '1' lacks 6 utterances"):
        select([u for u in corpus() if u.session_id != "1"], fold)


def test_saved_folds_load_equal(tmp_path: Path) -> None:
    folds = make_folds(corpus(), "speaker")
    write_json({"folds": [asdict(fold) for fold in folds]}, tmp_path / "folds.json")
    assert load_folds(tmp_path / "folds.json", corpus()) == folds


def test_loading_checks_folds_again(tmp_path: Path) -> None:
    path = tmp_path / "folds.json"
    write_json({"folds": [asdict(fold) for fold in make_folds(corpus(), "session")]}, path)
    content = json.loads(path.read_text())
    moved = content["folds"][0]["train"].pop()
    content["folds"][0]["test"].append(moved)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="Speaker '5M' is in both train and test of fold '1'"):
        load_folds(path, corpus())


@pytest.mark.parametrize("content", ["", "[]", '{"folds": [{"name": "a"}]}', '{"folds": [1]}'])
def test_other_files_are_not_folds(tmp_path: Path, content: str) -> None:
    path = tmp_path / "folds.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=str(path)):
        load_folds(path, corpus())


# Real speech.


def test_ravdess_folds_are_speaker_disjoint(ravdess: list[Utterance]) -> None:
    recordings = Recordings()
    folds = make_folds(ravdess, "leave_one_speaker_out", recordings=recordings)
    assert len(folds) == 24
    for fold in folds:
        assert_whole_and_disjoint(ravdess, fold)
        assert (len(fold.validation), len(fold.test)) == (72, 36)
    (names,) = doubled(excerpts(ravdess, recordings))
    assert len(names) == 2 and all("actor_07" in name for name in names)
    moved = [replace(u, speaker_id="x") if u.utterance_id == names[0] else u for u in ravdess]
    with pytest.raises(ValueError, match="One recording under the names .*actor_07"):
        fold_from_speakers(moved, ["x"], ["actor_07"], recordings=recordings)
