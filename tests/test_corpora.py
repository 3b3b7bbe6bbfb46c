"""python -m pytest tests/test_corpora.py -q

Each corpus's tree is written here as its makers distribute it, with the odd cases they have.
"""

import importlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mtmm_training.data.corpora import (
    checks,
    crema_d,
    emodb,
    esd,
    iemocap,
    meld,
    ravdess,
    read_corpus,
)
from mtmm_training.data.corpora.checks import read_rows
from mtmm_training.data.corpora.labels import LABELS, emotion_map
from mtmm_training.data.folds import make_folds
from mtmm_training.data.manifest import read_manifest
from mtmm_training.data.utterances import Utterance, leading


def write(path: Path, content: str | bytes = b"RIFF") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def emotions(utterances: list[Utterance]) -> dict[str | None, int]:
    return dict(Counter(u.emotion for u in utterances))


# All corpora.


def test_label_sets_agree_on_four() -> None:
    for sets in LABELS.values():
        assert set(sets["four"].values()) == {"angry", "happy", "neutral", "sad"}
        assert set(sets["four"]) <= set(sets["all"])


@pytest.mark.parametrize(
    ("corpus", "labels", "total"),
    [
        ("iemocap", "four", 5531),
        ("iemocap", "all", 10039),
        ("crema_d", "four", 4900),
        ("crema_d", "all", 7442),
        ("ravdess", "four", 864),
        ("ravdess", "all", 1440),
        ("emodb", "four", 339),
        ("emodb", "all", 535),
        ("esd", "four", 14000),
        ("esd", "all", 17500),
        ("meld", "all", 13708),
    ],
)
def test_expected_totals_are_as_published(corpus: str, labels: str, total: int) -> None:
    chosen = emotion_map(corpus, labels)
    expected = importlib.import_module(f"mtmm_training.data.corpora.{corpus}").EXPECTED
    assert sum(n for row in expected.values() for own, n in row.items() if own in chosen) == total


def test_expected_iemocap_classes_and_sessions_are_as_published() -> None:
    four = LABELS["iemocap"]["four"]
    classes: Counter[str | None] = Counter()
    sessions: Counter[str] = Counter()
    for speaker, row in iemocap.EXPECTED.items():
        for own, count in row.items():
            if own in four:
                classes[four[own]] += count
                sessions[speaker[:5]] += count
    assert classes == {"neutral": 1708, "happy": 1636, "angry": 1103, "sad": 1084}
    assert list(sessions.values()) == [1085, 1023, 1151, 1031, 1241]


@pytest.mark.parametrize(
    ("name", "folder", "options", "error", "named"),
    [
        ("iemo", "", {}, ValueError, "'iemo'.*iemocap, msp"),
        ("emobank", "", {"labels": "four"}, ValueError, "labels.*partial"),
        ("crema_d", "nowhere", {}, FileNotFoundError, "nowhere.*AudioWAV"),
        ("crema_d", "", {}, FileNotFoundError, "AudioWAV"),
        ("emobank", "", {}, FileNotFoundError, "emobank.csv"),
        ("iemocap", "", {}, ValueError, "0 utterances found where the corpus has 5,531"),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path,
    name: str,
    folder: str,
    options: dict[str, Any],
    error: type[Exception],
    named: str,
) -> None:
    with pytest.raises(error, match=named):
        read_corpus(name, tmp_path / folder, **options)


@pytest.mark.parametrize("labels", ["five", {"joy": "happy"}])
def test_label_sets_refuse_unknown_names(labels: Any) -> None:
    with pytest.raises(ValueError, match="esd.* Angry, Happy"):
        emotion_map("esd", labels)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_text_is_read_in_every_encoding(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path / "a.txt", "It’s café.".encode(encoding))
    assert checks.read_text(path) == "It’s café."


# IEMOCAP.

EVALUATION = """% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\r
\r
[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]\r
C-E2:\tNeutral;\t()\r
C-F1:\tAnger; Frustration;\t(what: [1 - 2])\r
A-E3:\tval 3; act 2; dom  2;\t()\r
A-E4:\tval 2; act 3; dom  3;\t()\r
A-E5:\tval ; act 3; dom  3;\t()\r
A-F1:\tval 4; act 1; dom  ;\t()\r
\r
[10.0100 - 11.3925]  Ses01F_impro01_M000   exc   [4.0000, 3.5000, 3.0000] \r
C-E2:\tExcited; Happiness;\t()\r
C-E3:\tExcited;\t()\r
C-E4:\tNeutral state; Surprise; Other;\t(curious (a little))\r
C-M1:\tAnger;\t()\r
A-M1:\tval 5; act 5; dom 5;\t()\r
[14.0 - 15.0]\tSes01F_impro01_M001\txxx\t[2.0000, 3.0000, 5.5000]\r
C-E2:\tAnger;\t()\r
C-E3:\tSadness;\t()\r
C-E4:\tOther (tense);\t()\r
[14.0 - 15.0]\tSes01F_impro01_M001\txxx\t[2.0000, 3.0000, 5.5000]\r
"""
SCRIPTED = """% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]

[1.0 - 2.0]\tSes01M_script01_1b_F002\thap\t[4.0000, 3.0000, 3.0000]
[3.0 - 4.0]\tSes01M_script01_1b_M003\tfru\t[2.0000, 4.0000, 3.0000]
"""
TRANSCRIPT = """Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.\r
M: [BREATHING]\r
Ses01F_impro01_M000: Do you have your forms?  \r
Ses01F_impro01_MXX0 [011.0000-012.0000]: Yeah.\r
"""
TURNS = (
    "Ses01F_impro01_F000", "Ses01F_impro01_M000", "Ses01F_impro01_M001",
    "Ses01M_script01_1b_F002", "Ses01M_script01_1b_M003",
)  # fmt: skip


@pytest.fixture
def iemocap_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    session = tmp_path / "Session1"
    ratings = session / "dialog" / "EmoEvaluation"
    write(ratings / "Ses01F_impro01.txt", EVALUATION)
    write(ratings / "Ses01M_script01_1b.txt", SCRIPTED)
    write(ratings / "._Ses01F_impro01.txt", b"\x00\x05\x16\x07[1 - 2]")
    write(ratings / "Categorical" / "Ses01F_impro01_e2_cat.txt", "[ nonsense")
    write(session / "dialog" / "transcriptions" / "Ses01F_impro01.txt", TRANSCRIPT)
    for turn in TURNS:
        write(session / "sentences" / "wav" / turn.rpartition("_")[0] / f"{turn}.wav")
    expected = {"Ses01F": {"neu": 1, "hap": 1}, "Ses01M": {"exc": 1, "xxx": 1, "fru": 1}}
    monkeypatch.setattr(iemocap, "EXPECTED", expected)
    return tmp_path


def test_iemocap_reads_the_release(iemocap_folder: Path) -> None:
    first, second, scripted = read_corpus("iemocap", iemocap_folder)
    wav = iemocap_folder / "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav"
    assert first == Utterance(
        utterance_id="Ses01F_impro01_F000",
        corpus="iemocap",
        audio=str(wav),
        text="Excuse me.",
        emotion="neutral",
        valence=2.5,
        arousal=2.5,
        dominance=2.5,
        speaker_id="Ses01F",
        session_id="Ses01",
        dialogue_id="Ses01F_impro01",
        improvised=True,
        gender="female",
        votes={"neutral": 1},
        valence_ratings=(3, 2),
        arousal_ratings=(2, 3),
        dominance_ratings=(2, 3),
        raters=("E3", "E4"),
        groups=(("self_report", "ang fru"), ("self_valence", "4"), ("self_arousal", "1")),
    )
    third = pytest.approx(1 / 3)
    assert second.votes == {"happy": 2, "neutral": third, "other": pytest.approx(2 / 3)}
    assert second.valence_ratings is None and ("self_report", "ang") in second.groups
    assert (second.emotion, second.speaker_id, second.gender) == ("happy", "Ses01M", "male")
    assert (second.valence, second.arousal, second.dominance) == (4.0, 3.5, 3.0)
    assert second.text == "Do you have your forms?"
    assert (scripted.speaker_id, scripted.script_id) == ("Ses01F", "script01_1")
    assert scripted.improvised is False and scripted.text is None


def test_iemocap_label_sets_keep_what_they_say(
    iemocap_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert emotions(read_corpus("iemocap", iemocap_folder)) == {"neutral": 1, "happy": 2}
    assert (
        "left out 2 of 5 utterances, whose labels are not in this set: fru 1, xxx 1" in caplog.text
    )
    assert "kept 1 ratings" in caplog.text and "off the scale" in caplog.text
    assert "1 utterances have no transcript: Ses01M_script01_1b_F002" in caplog.text
    everything = read_corpus("iemocap", iemocap_folder, labels="all")
    assert emotions(everything) == {
        "neutral": 1, "excited": 1, "happy": 1, "frustrated": 1, None: 1,
    }  # fmt: skip
    own = read_corpus("iemocap", iemocap_folder, labels={"fru": "upset", "xxx": None})
    assert emotions(own) == {"upset": 1, None: 1}


def test_iemocap_turns_without_majority_stay_for_their_votes(
    iemocap_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    turns = read_corpus("iemocap", iemocap_folder, undecided=True)
    assert [u.utterance_id for u in turns][:3] == [*TURNS[:3]]
    assert (turns[2].emotion, turns[2].votes) == (None, {"angry": 1, "sad": 1, "other": 1})
    assert "left out 1 of 5 utterances, whose labels are not in this set: fru 1" in caplog.text
    every = read_corpus("iemocap", iemocap_folder, labels="all")
    assert every[1].votes and every[1].votes["excited"] == 1.5 and every[1].votes["happy"] == 0.5


def test_iemocap_missing_audio_is_listed(
    iemocap_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wavs = iemocap_folder / "Session1" / "sentences" / "wav"
    (wavs / "Ses01F_impro01" / "Ses01F_impro01_M001.wav").unlink()  # xxx: nobody misses it
    assert len(read_corpus("iemocap", iemocap_folder)) == 3
    (wavs / "Ses01F_impro01" / "Ses01F_impro01_M000.wav").unlink()
    with pytest.raises(FileNotFoundError, match="1 audio files are missing:\n.*impro01_M000.wav"):
        read_corpus("iemocap", iemocap_folder)
    assert len(read_corpus("iemocap", iemocap_folder, partial=True)) == 2
    assert "1 audio files are missing" in caplog.text
    assert "Ses01M exc: 0 found, 1 expected" in caplog.text


def test_iemocap_incomplete_totals_are_explained(
    iemocap_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = {"Ses01F": {"neu": 1, "hap": 1}, "Ses01M": {"exc": 1}, "Ses02F": {"sad": 7}}
    monkeypatch.setattr(iemocap, "EXPECTED", expected)
    with pytest.raises(ValueError, match="3 utterances found where the corpus has 10") as refusal:
        read_corpus("iemocap", iemocap_folder)
    assert "Ses02F sad: 0 found, 7 expected" in str(refusal.value)
    assert len(read_corpus("iemocap", iemocap_folder, partial=True)) == 3
    assert "3 utterances found where the corpus has 10" in caplog.text


def test_totals_differ_where_only_cells_do() -> None:
    def one(name: str, speaker: str, label: str) -> Utterance:
        return Utterance(
            utterance_id=name, corpus="esd", text="x", speaker_id=speaker, emotion=label
        )

    expected = {"a": {"Sad": 1}, "b": {"Happy": 1}}
    found = [one("1", "a", "Happy"), one("2", "b", "Sad")]
    with pytest.raises(ValueError, match="a Happy: 1 found, 0 expected"):
        checks.finish("esd", found, labels="four", expected=expected, partial=False)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1.0 - 2.0]\tSes01F_impro01_F000\tsad\t[2.5, 2.5, 2.5]", ", was .'neu'"),
        ("[1.0 - 2.0]\tSes01F_impro01_F009\tsad\t[2.5, 2.5]", "line 22: .*F009"),
        ("[1.0 - 2.0]\tSes01F_impro01_F009\tmad\t[1, 1, 1]", "Ses01F_impro01_F009: 'mad'"),
        ("[1 - 2]\tSes01F_impro01_F009\tneu\t[1, 1, 1]\nC-E1:\tJoy;\t()", "F009: .*'Joy'"),
        ("[1 - 2]\tSes01F_impro01_F009\tneu\t[1, 1, 1]\nA-E1:\tval 3;", "F009: .*'A-E1"),
    ],
)
def test_iemocap_refuses_bad_ratings(iemocap_folder: Path, line: str, message: str) -> None:
    path = iemocap_folder / "Session1" / "dialog" / "EmoEvaluation" / "Ses01F_impro01.txt"
    write(path, EVALUATION + line + "\n")
    with pytest.raises(ValueError, match=message):
        read_corpus("iemocap", iemocap_folder, partial=True)


def test_iemocap_session_needs_its_ratings(tmp_path: Path) -> None:
    (tmp_path / "Session1").mkdir()
    with pytest.raises(FileNotFoundError, match="EmoEvaluation"):
        read_corpus("iemocap", tmp_path)


# MSP-Podcast.

MSP_HEADER = "FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set\r\n"
MSP_ROWS = (
    "MSP-PODCAST_0001_0008.wav,N,2.2,4.0,3.0,127,Male,Test1\r\n"
    "MSP-PODCAST_0002_0033.wav,H,5.0,6.0,4.0,128,Female,Train\r\n"
    "MSP-PODCAST_0002_0034.wav,A,5.0,2.0,6.5,Unknown,Unknown,Train\r\n"
    "MSP-PODCAST_0003_0001.wav,X,4.0,4.0,4.0,129,Female,Development\r\n"
    "MSP-PODCAST_0003_0002.wav,S,2.0,2.0,3.0,129,Female,Development\r\n"
    "MSP-PODCAST_0004_0001.wav,S,2.0,2.0,3.0,127,Male,Test2\r\n"
)


@pytest.fixture
def msp_folder(tmp_path: Path) -> Path:
    write(tmp_path / "Labels" / "labels_consensus.csv", MSP_HEADER + MSP_ROWS)
    for row in MSP_ROWS.split("\r\n")[:-1]:
        write(tmp_path / "Audios" / row.split(",")[0])
    write(tmp_path / "Audios" / "MSP-PODCAST_test3_0001.wav")
    write(tmp_path / "Transcripts" / "MSP-PODCAST_0001_0008.txt", "well, it’s fine.\r\n")
    return tmp_path


def test_msp_podcast_reads_the_release(msp_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second, third = read_corpus("msp_podcast", msp_folder)
    assert first == Utterance(
        utterance_id="msp_podcast_0001_0008",
        corpus="msp_podcast",
        audio=str(msp_folder / "Audios" / "MSP-PODCAST_0001_0008.wav"),
        text="well, it’s fine.",
        emotion="neutral",
        valence=4.0,
        arousal=2.2,
        dominance=3.0,
        speaker_id="msp_podcast_127",
        split="test",
        gender="male",
    )
    assert (second.split, third.split, third.text) == ("train", "validation", None)
    assert "left out 1 by unidentified speakers, 1 in Test2" in caplog.text
    assert "1 recordings have no labels" in caplog.text
    assert "2 utterances have no transcript" in caplog.text


def test_msp_podcast_options_choose_partitions(msp_folder: Path) -> None:
    everything = read_corpus("msp_podcast", msp_folder, labels="all", test="Test2")
    assert [(u.split, u.emotion) for u in everything] == [
        ("train", "happy"), ("validation", None), ("validation", "sad"), ("test", "sad"),
    ]  # fmt: skip
    official = read_corpus("msp_podcast", msp_folder, official_split=True)
    assert official[2].speaker_id == "msp_podcast_unknown_0002"
    make_folds(official_with_own_audio(official), "official")
    with pytest.raises(ValueError, match="`test`='Test' is not a partition"):
        read_corpus("msp_podcast", msp_folder, test="Test")


def test_msp_podcast_reads_the_early_names_of_partitions(msp_folder: Path) -> None:
    labels = msp_folder / "Labels" / "labels_consensus.csv"
    early = labels.with_name("labels_concensus.csv")
    labels.rename(early)
    early.write_text(early.read_text().replace("Development", "Validation"))
    splits = [u.split for u in read_corpus("msp_podcast", msp_folder)]
    assert splits == ["test", "train", "validation"]


PLAIN = "FileName,{},EmoClass_Major,EmoClass_Second,EmoAct,EmoVal,EmoDom\r\n"
PLAIN_ROWS = (
    'MSP-PODCAST_0001_0008.wav,WORKER1,Neutral,"Neutral,Concerned",2,4,3\r\n'
    'MSP-PODCAST_0001_0008.wav,WORKER1,Neutral,"Neutral,Concerned",2,4,3\r\n'
    'MSP-PODCAST_0001_0008.wav,WORKER2,Happy,"Happy,Amused,Sad",2.4,4,nan\r\n'
    "MSP-PODCAST_0003_0001.wav,WORKER3,Other-mixed,,4,4,4\r\n"
    "MSP-PODCAST_0003_0001.wav,WORKER4,Angry,,4,4,4\r\n"
)
STRINGS = "FileName,EmoDetail\r\n" + "".join(
    f'{row}"\r\n'
    for row in (
        'MSP-PODCAST_0001_0008.wav,"WORKER1; Neutral; Neutral,Concerned; A:2.0; V:4.0; D:3.0;',
        'MSP-PODCAST_0001_0008.wav,"WORKER2; Happy; Happy,Amused,Sad; A:2.4; V:4.0; D:;',
        'MSP-PODCAST_0003_0001.wav,"WORKER3; Other-mixed; ; A:4.0; V:4.0; D:4.0;',
        'MSP-PODCAST_0003_0001.wav,"WORKER4; Angry;; A:4.0; V:4.0; D:4.0',
    )
)


@pytest.mark.parametrize(
    "table",
    [PLAIN.format("Workers") + PLAIN_ROWS, STRINGS, PLAIN.format("WorkerID") + PLAIN_ROWS],
    ids=["1.6", "1.7", "2.0"],
)
def test_msp_podcast_votes_in_three_layouts(
    msp_folder: Path, table: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(msp_folder / "Labels" / "labels_detailed.csv", table)
    first, _, undecided, last = read_corpus("msp_podcast", msp_folder, undecided=True)
    assert first.votes == {"neutral": 1, "happy": 1} and first.raters == ("WORKER1",)
    assert (first.valence_ratings, first.arousal_ratings) == ((4,), (2,))
    assert (undecided.emotion, undecided.votes) == (None, {"other": 1, "angry": 1})
    assert last.votes is None and "2 of 4 turns have no votes" in caplog.text
    assert "1 of 2 arousals are no mean of ratings" in caplog.text
    (first, *_) = read_corpus("msp_podcast", msp_folder, secondary=0.5)
    assert first.votes == {"neutral": 1, "happy": 1, "sad": 0.5, "other": 1.0}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (PLAIN.format("Workers,Gender") + "a,b,c,d,e,1,1,1\n", "none of the known.*\n  Gender"),
        (PLAIN.format("Worker") + "a,b,c,d,1,1,1\n", "Worker"),
        ("FileName,EmoDetail\na,WORKER1; Happy\n", "row 2: 'WORKER1; Happy' is not like"),
        (PLAIN.format("WorkerID") + "a,b,Happy,,9,1,1\n", "row 2: a rating of 9 is outside"),
        (PLAIN.format("WorkerID") + "a,b,Joyous,,1,1,1\n", "'Joyous'"),
        (PLAIN_ROWS.join([PLAIN.format("WorkerID"), ""]).replace("3\r", "5\r", 1), "WORKER1 .* twice"),
    ],
)  # fmt: skip
def test_msp_podcast_refuses_odd_annotations(msp_folder: Path, table: str, message: str) -> None:
    write(msp_folder / "Labels" / "labels_detailed.csv", table)
    with pytest.raises(ValueError, match=message):
        read_corpus("msp_podcast", msp_folder)


def official_with_own_audio(utterances: list[Utterance]) -> list[Utterance]:
    """Gives each file other bytes, or the fold would take them for one recording."""
    for u in utterances:
        Path(str(u.audio)).write_text(u.utterance_id)
    return utterances


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("MSP-PODCAST_0001_0008.wav,H,2.2,4.0,3.0,127,Male,Test1", "msp_podcast_0001_0008"),
        ("MSP-PODCAST_0009_0001.wav,H,2.2,9.0,3.0,127,Male,Test1", "row 8: .* 9 is outside 1 to 7"),
        ("MSP-PODCAST_0009_0001.wav,H,2.2,4.0,3.0,127,Male,Dev", "partition 'Dev' is not one of"),
        ("MSP-PODCAST_0009_0001.wav,Q,2.2,4.0,3.0,127,Male,Train", "0009_0001: 'Q'"),
        ("MSP-PODCAST_0009_0001.wav,H,2.2", "row 8: .* 3, in the header 8"),
    ],
)
def test_msp_podcast_refuses_bad_rows(msp_folder: Path, row: str, message: str) -> None:
    write(msp_folder / "Labels" / "labels_consensus.csv", MSP_HEADER + MSP_ROWS + row + "\r\n")
    with pytest.raises(ValueError, match=message):
        read_corpus("msp_podcast", msp_folder)


def test_msp_podcast_rows_need_audio(msp_folder: Path) -> None:
    (msp_folder / "Audios" / "MSP-PODCAST_0002_0033.wav").unlink()
    with pytest.raises(FileNotFoundError, match="1 audio files are missing"):
        read_corpus("msp_podcast", msp_folder)
    assert len(read_corpus("msp_podcast", msp_folder, partial=True)) == 2


# MELD.

MELD_HEADER = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season\r\n"


@pytest.fixture
def meld_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    train = (
        '1,"Oh, it\x92s you.",Joey/Drake,joy,positive,0,0,4\r\n2,No!,Ross,anger,negative,0,1,4\r\n'
    )
    write(tmp_path / "train_sent_emo.csv", MELD_HEADER + train)
    write(
        tmp_path / "dev_sent_emo.csv", MELD_HEADER + "1,Whatâ€™s up?,Woman,fear,negative,0,0,4\r\n"
    )
    write(tmp_path / "test_sent_emo.csv", MELD_HEADER + "1,Hi.,Joey,neutral,neutral,0,0,4\r\n")
    expected = {
        "train": {"joy": 1, "anger": 1}, "validation": {"fear": 1}, "test": {"neutral": 1},
    }  # fmt: skip
    monkeypatch.setattr(meld, "EXPECTED", expected)
    return tmp_path


def test_meld_reads_lines_and_repairs_marks(meld_folder: Path) -> None:
    lines = read_corpus("meld", meld_folder)
    assert [u.text for u in lines] == ["Oh, it’s you.", "No!", "What’s up?", "Hi."]
    assert [u.emotion for u in lines] == ["joy", "anger", "fear", "neutral"]
    assert [u.split for u in lines] == ["train", "train", "validation", "test"]
    assert lines[0].utterance_id == "meld_train_dia0_utt0"
    assert lines[0].speaker_id == lines[3].speaker_id == "meld_Joey"
    assert lines[0].valence is None and lines[0].audio is None


def test_meld_sentiment_and_audio_are_optional(meld_folder: Path) -> None:
    four = read_corpus("meld", meld_folder, labels="four", sentiment_as_valence=True)
    assert [(u.emotion, u.valence) for u in four] == [
        ("happy", 5.0), ("angry", 1.0), ("neutral", 3.0),
    ]  # fmt: skip
    write(meld_folder / "audio" / "train" / "dia0_utt0.wav")
    audio = meld_folder / "audio"
    with pytest.raises(FileNotFoundError, match="3 audio files are missing"):
        read_corpus("meld", meld_folder, audio_dir=audio)
    (only,) = read_corpus("meld", meld_folder, audio_dir=audio, partial=True)
    assert only.audio == str(audio / "train" / "dia0_utt0.wav")


def test_meld_lines_without_a_video_are_read_as_text(
    meld_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    audio = meld_folder / "audio"
    for name in ("train/dia0_utt0", "train/dia0_utt1", "test/dia0_utt0"):
        write(audio / f"{name}.wav")
    monkeypatch.setattr(meld, "SILENT", {"dev_dia0_utt0", "train_dia0_utt1"})
    lines = read_corpus("meld", meld_folder, audio_dir=audio)
    assert [u.audio is not None for u in lines] == [True, True, False, True]
    assert "dev/dia0_utt0.wav has no readable video" in caplog.text
    assert caplog.text.count("readable video") == 1  # somebody mended the other


def test_meld_official_split_is_asked_for(
    meld_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match="Speaker 'meld_Joey' is in both train and test"):
        make_folds(read_corpus("meld", meld_folder), "official")
    apart = read_corpus("meld", meld_folder, official_split=True)
    assert [u.speaker_id for u in apart][::3] == ["meld_train_Joey", "meld_test_Joey"]
    assert "1 of 3 speakers are in several official splits" in caplog.text
    (fold,) = make_folds(apart, "official")
    assert len(fold.test) == 1


def test_unclosed_quote_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('a,b\n"1,2\n3,4\n')
    with pytest.raises(ValueError, match="rows.csv"):
        read_rows(tmp_path / "rows.csv", ["a"])


def test_meld_refuses_bad_rows(meld_folder: Path) -> None:
    path = meld_folder / "test_sent_emo.csv"
    write(path, MELD_HEADER + "1,Hi.,Joey,neutral,mixed,0,0,4\r\n")
    with pytest.raises(ValueError, match="row 2: .*'mixed'"):
        read_corpus("meld", meld_folder)
    write(path, "Utterance,Speaker\r\nHi.,Joey\r\n")
    with pytest.raises(ValueError, match="missing among Utterance, Speaker:\n  Emotion"):
        read_corpus("meld", meld_folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="test_sent_emo.csv"):
        read_corpus("meld", meld_folder)
    assert len(read_corpus("meld", meld_folder, partial=True)) == 3


# EmoBank.


def test_emobank_ratings_agree_with_the_means(tmp_path: Path) -> None:
    rows = "a,train,3.33,3.0,3.0,x\nb,test,2.0,3,2,No.\n"
    write(tmp_path / "emobank.csv", "id,split,V,A,D,text\n" + rows)
    readers = write(
        tmp_path / "individual_reader_ratings.csv", "id,V,A,D\na,4,4,3\na,1,1,1\na,4,3,3\n"
    )
    write(tmp_path / "individual_writer_ratings.csv", "id,V,A,D\na,2,2,3\nb,2,3,2\nc,5,5,5\n")
    with pytest.raises(ValueError, match="individual_reader_ratings.csv has 3 ratings of 53,055"):
        read_corpus("emobank", tmp_path)
    first, second = read_corpus("emobank", tmp_path, partial=True)
    assert first.valence_ratings == (4, 4, 2) and first.raters == ("reader", "reader", "writer")
    assert second.dominance_ratings == (2,)
    readers.write_text("id,V,A,D\na,4,4,3\n")
    with pytest.raises(ValueError, match="row 2: its valence is 3.33, which is not the mean"):
        read_corpus("emobank", tmp_path, partial=True)


def test_emobank_has_its_known_totals(real_data: Path) -> None:
    sentences = read_corpus("emobank", real_data / "emobank")
    counts = Counter(len(u.raters or ()) for u in sentences)
    assert len(sentences) == 10062 and counts[10] == 6026 and counts[0] == 0
    assert sum(count * number for count, number in counts.items()) == 93612


def test_emobank_documents_are_its_speakers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = 'doc_a_0_9,train,3.0,3.1,3.2,"Yes, sir."\ndoc_a_9_12,test,1.5,4,2,"No."\nSemEval_7,dev,2,2,2,Hm\n'
    write(tmp_path / "emobank.csv", "id,split,V,A,D,text\n" + rows)
    with pytest.raises(ValueError, match="train: 1 found, 8,062 expected"):
        read_corpus("emobank", tmp_path)
    first, second, third = read_corpus("emobank", tmp_path, partial=True)
    assert (first.valence, first.arousal, first.dominance) == (3.0, 3.1, 3.2)
    assert first.speaker_id == second.speaker_id == "emobank_doc_a"
    assert (third.speaker_id, third.split) == ("emobank_SemEval_7", "validation")
    apart = read_corpus("emobank", tmp_path, partial=True, official_split=True)
    assert apart[0].speaker_id == "emobank_train_doc_a"
    assert "1 of 2 documents are in several official splits" in caplog.text
    write(tmp_path / "emobank.csv", "id,split,V,A,D,text\na,train,3,3,6,x\nb,valid,3,3,3,x\n")
    with pytest.raises(
        ValueError, match=r"row 2: a rating is outside 1 to 5\n  row 3: split 'valid'"
    ):
        read_corpus("emobank", tmp_path)


# Corpora of acted sentences.


CREMA_VOTES = """"","A","D","F","H","N","S","fileName","numResponses"
"100001",5,1,0,0,3,0,"1001_IEO_ANG_HI",9
"100002",0,2,0,0,2,1,"1040_ITH_SAD_XX",5
"200001",0,0,0,9,0,0,"1001_IEO_ANG_HI",9
"""


def test_crema_d_votes_are_of_voices_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("1001_IEO_ANG_HI", "1040_ITH_SAD_X"):
        write(tmp_path / "AudioWAV" / f"{name}.wav")
    expected = {"crema_d_1001": {"ANG": 1}, "crema_d_1040": {"SAD": 1}}
    monkeypatch.setattr(crema_d, "EXPECTED", expected)
    assert [u.votes for u in read_corpus("crema_d", tmp_path)] == [None, None]
    table = write(tmp_path / crema_d.VOTES_FILE, CREMA_VOTES)
    with pytest.raises(ValueError, match="14 votes for 2 recordings, of 68,568 for 7,442"):
        read_corpus("crema_d", tmp_path)
    angry, sad = read_corpus("crema_d", tmp_path, partial=True)
    assert angry.votes == {"angry": 5, "other": 1, "neutral": 3}
    assert (sad.emotion, sad.votes) == ("sad", {"other": 2, "neutral": 2, "sad": 1})
    (heard,) = read_corpus("crema_d", tmp_path, partial=True, heard=True)
    assert heard.emotion == "angry" and "no majority 1" in caplog.text
    both = read_corpus("crema_d", tmp_path, partial=True, heard=True, undecided=True)
    assert [u.emotion for u in both] == ["angry", None]
    table.write_text(CREMA_VOTES.replace('SAD_XX",5', 'SAD_XX",6'))
    with pytest.raises(ValueError, match="1040_ITH_SAD_XX"):
        read_corpus("crema_d", tmp_path, partial=True)


def test_crema_d_votes_have_their_known_totals(real_data: Path) -> None:
    votes = crema_d._votes(real_data / "crema_d" / "tabulatedVotes.csv", partial=False)
    actors = Counter(f"crema_d_{name[:4]}" for name in votes)
    assert actors == {name: sum(row.values()) for name, row in crema_d.EXPECTED.items()}
    assert sum(leading(own) is None for own in votes.values()) == 644  # two emotions lead
    assert "1040_ITH_SAD_XX" in votes  # whose recording's name ends in X


def test_crema_d_reads_names_and_genders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("1001_IEO_ANG_HI", "1002_DFA_NEU_XX", "1002_TIE_DIS_XX", "1002_ITH_SAD_X"):
        write(tmp_path / "AudioWAV" / f"{name}.wav")
    write(tmp_path / "AudioWAV" / "._1001_IEO_ANG_HI.wav")
    write(
        tmp_path / "VideoDemographics.csv",
        '"ActorID","Age","Sex","Race","Ethnicity"\n1001,51,"Male","a","b"\n1002,21,"Female","a","b"\n',
    )
    expected = {"crema_d_1001": {"ANG": 1}, "crema_d_1002": {"NEU": 1, "DIS": 1, "SAD": 1}}
    monkeypatch.setattr(crema_d, "EXPECTED", expected)
    angry, neutral, sad = read_corpus("crema_d", tmp_path)
    assert sad.emotion == "sad"  # of the name that lacks an X, as one does in the distribution
    assert (angry.utterance_id, angry.text) == ("crema_d_1001_IEO_ANG_HI", "It's eleven o'clock.")
    assert (angry.emotion, angry.speaker_id, angry.gender) == ("angry", "crema_d_1001", "male")
    assert (neutral.script_id, neutral.gender) == ("crema_d_DFA", "female")
    assert emotions(read_corpus("crema_d", tmp_path, labels="all"))["disgusted"] == 1
    write(tmp_path / "AudioWAV" / "1001_ABC_ANG_HI.wav")
    with pytest.raises(ValueError, match="1001_ABC"):
        read_corpus("crema_d", tmp_path)


def test_ravdess_reads_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("03-01-02-01-02-01-12", "03-01-05-02-01-01-12", "03-01-08-02-01-01-12"):
        write(tmp_path / "Actor_12" / f"{name}.wav")
    write(tmp_path / "Actor_12" / "03-02-05-02-01-01-12.wav")
    expected = {"ravdess_actor_12": {"02": 1, "05": 1, "08": 1}}
    monkeypatch.setattr(ravdess, "EXPECTED", expected)
    calm, angry = read_corpus("ravdess", tmp_path)
    assert (calm.emotion, calm.text) == ("neutral", "Dogs are sitting by the door")
    assert (calm.speaker_id, calm.gender) == ("ravdess_actor_12", "female")
    assert angry.script_id == "ravdess_statement_01"
    assert "left out 1 songs" in caplog.text
    everything = read_corpus("ravdess", tmp_path, labels="all")
    assert emotions(everything) == {"calm": 1, "angry": 1, "surprised": 1}
    write(tmp_path / "copy" / "Actor_12" / "03-01-02-01-02-01-12.wav")
    with pytest.raises(ValueError, match="ravdess_03-01-02-01-02-01-12"):
        read_corpus("ravdess", tmp_path)


def test_emodb_reads_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("03a01Fa", "08b02Wb", "08b02La"):
        write(tmp_path / "wav" / f"{name}.wav")
    monkeypatch.setattr(
        emodb, "EXPECTED", {"emodb_03": {"F": 1}, "emodb_08": {"W": 1, "L": 1, "E": 0}}
    )
    happy, angry = read_corpus("emodb", tmp_path)
    assert (happy.emotion, happy.gender, happy.speaker_id) == ("happy", "male", "emodb_03")
    assert happy.text == "Der Lappen liegt auf dem Eisschrank."
    assert (angry.emotion, angry.gender, angry.script_id) == ("angry", "female", "emodb_b02")
    assert len(read_corpus("emodb", tmp_path, labels="all")) == 3
    write(tmp_path / "wav" / "03a03Fa.wav")
    with pytest.raises(ValueError, match="03a03Fa"):
        read_corpus("emodb", tmp_path)


@pytest.mark.parametrize("nested", [True, False])
def test_esd_reads_both_layouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nested: bool
) -> None:
    places = {
        "0011_000001": "Neutral/evaluation",
        "0011_000351": "Angry/train",
        "0012_000352": "Angry/test",
    }
    for name, place in places.items():
        emotion = place if nested else place.split("/")[0]
        write(tmp_path / name[:4] / emotion / f"{name}.wav")
    write(tmp_path / "0001" / "Angry" / "0001_000351.wav")
    lines = "0011_000001\tThe nine the eggs.\tNeutral\r\n0011_000351 The nine the eggs.\tAngry\r\n"
    write(tmp_path / "0011" / "0011.txt", lines.encode("utf-16"))
    monkeypatch.setattr(
        esd, "EXPECTED", {"esd_0011": {"Neutral": 1, "Angry": 1}, "esd_0012": {"Angry": 1}}
    )
    neutral, angry, other = read_corpus("esd", tmp_path)
    assert neutral.text == angry.text == "The nine the eggs." and other.text is None
    assert neutral.script_id == angry.script_id == "esd_001"
    assert other.script_id == "esd_002"
    assert (angry.emotion, angry.gender, angry.speaker_id) == ("angry", "male", "esd_0011")
    assert neutral.split == ("validation" if nested else None)
    if nested:
        apart = read_corpus("esd", tmp_path, official_split=True)
        assert apart[0].speaker_id == "esd_validation_0011"


# Real data.


def test_real_ravdess4_reads_as_manifest_and_as_corpus(real_data: Path) -> None:
    listed = read_manifest(real_data / "ravdess4" / "manifest.csv")
    read = read_corpus("ravdess", real_data / "ravdess4")
    assert len(listed) == len(read) == 864
    assert emotions(read) == {"angry": 192, "happy": 192, "neutral": 288, "sad": 192}
    by_audio = {u.audio: u for u in listed}
    for u in read:
        twin = by_audio[u.audio]
        assert (u.emotion, u.text, u.gender) == (twin.emotion, twin.text, twin.gender)
        assert u.speaker_id == f"ravdess_{twin.speaker_id}"


@pytest.mark.parametrize(
    ("name", "sizes"), [("meld", [9989, 1109, 2610]), ("emobank", [8062, 1000, 1000])]
)
def test_real_official_splits_are_folds(real_data: Path, name: str, sizes: list[int]) -> None:
    read = read_corpus(name, real_data / name, official_split=True)
    (fold,) = make_folds(read, "official")
    assert [len(fold.train), len(fold.validation), len(fold.test)] == sizes
    assert len(read) == sum(sizes)


def test_real_official_splits_share_documents(real_data: Path) -> None:
    with pytest.raises(ValueError, match="Speaker 'emobank_.* is in both train and validation"):
        make_folds(read_corpus("emobank", real_data / "emobank"), "official")


def test_corpus_behind_links_is_found(tmp_path: Path) -> None:
    """Folders of actors that lie on another disk; a link back to the top is left."""
    (tmp_path / "disk" / "Actor_01").mkdir(parents=True)
    (tmp_path / "disk" / "Actor_01" / "03-01-05-01-02-01-01.wav").touch()
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "Actor_01").symlink_to(tmp_path / "disk" / "Actor_01")
    (tmp_path / "disk" / "Actor_01" / "round").symlink_to(tmp_path / "corpus")
    for pattern in ("*", "[A-Z]*/"):
        found = checks.named_files(tmp_path / "corpus", pattern, re.compile(r"[\d-]+"), "actors")
        assert [path.name for path in found] == ["03-01-05-01-02-01-01.wav"]
