"""The embedded corpus: pytest tests/test_synthetic.py -q"""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from transformers import AutoFeatureExtractor, AutoModel, AutoTokenizer

from mtmm_training.data.corpora import synthetic, synthetic_speech
from mtmm_training.data.corpora.synthetic import write_corpus, write_encoders
from mtmm_training.data.utterances import Utterance


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("synthetic") / "corpus"


@pytest.fixture(scope="module")
def corpus(folder: Path) -> list[Utterance]:
    return write_corpus(folder, utterances=80)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_encoders(tmp_path_factory.mktemp("synthetic") / "encoders")


def digests(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def arousal_cues(utterance: Utterance) -> list[float]:
    """Level in dB and the share of the energy above 1 kHz: two of what arousal moves."""
    waveform, rate = soundfile.read(utterance.audio)
    power = np.abs(np.fft.rfft(waveform)) ** 2
    treble = power[int(1000 / rate * len(waveform)) :].sum() / power.sum()
    return [10 * np.log10(np.mean(waveform**2)), np.log(treble)]


def test_same_seed_gives_same_bytes(folder: Path, corpus: list[Utterance], tmp_path: Path) -> None:
    write_corpus(tmp_path / "again", utterances=80)
    assert digests(tmp_path / "again") == digests(folder)


def test_folder_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written = write_corpus("corpus", utterances=2)
    assert all(Path(str(u.audio)).is_relative_to(tmp_path / "corpus" / "audio") for u in written)


def test_emotion_is_the_quadrant(corpus: list[Utterance]) -> None:
    assert len({u.emotion for u in corpus}) == 4
    for utterance in corpus:
        assert utterance.valence is not None and utterance.arousal is not None
        quadrant = (utterance.valence > 3, utterance.arousal > 3)
        assert synthetic.EMOTIONS[quadrant] == utterance.emotion
        for label in (utterance.valence, utterance.arousal):
            assert 0.3 <= abs(label - 3) <= 1.8


def test_listeners_confuse_what_is_near_the_midpoint(folder: Path) -> None:
    corpus = write_corpus(folder.with_name("more"), utterances=200)
    heard = [synthetic._heard(utterance) for utterance in corpus]
    right: list[tuple[float, float]] = []
    for meant, own in zip(corpus, heard, strict=True):
        assert meant.votes and meant.valence and meant.arousal and meant.valence_ratings
        assert sum(meant.votes.values()) == len(meant.raters or ()) == len(meant.valence_ratings)
        assert 3 <= len(meant.valence_ratings) <= 10
        assert own.valence == pytest.approx(np.mean(meant.valence_ratings), abs=1e-4)
        near = min(abs(meant.valence - 3), abs(meant.arousal - 3))
        right.append((near, meant.votes.get(str(meant.emotion), 0) / sum(meant.votes.values())))
    shares = np.array([share for _, share in sorted(right)])
    assert shares[:50].mean() < 0.65 and shares[-50:].mean() > 0.85
    undecided = sum(own.emotion is None for own in heard)
    wrong = sum(own.emotion not in (None, u.emotion) for u, own in zip(corpus, heard, strict=True))
    assert (undecided, wrong) == (9, 13)


def test_ten_speakers_in_five_sessions(corpus: list[Utterance]) -> None:
    assert set(Counter(u.speaker_id for u in corpus).values()) == {8}
    pairs = {(u.session_id, u.gender, u.speaker_id) for u in corpus}
    assert pairs == {(f"Ses0{n}", g, f"Ses0{n}{g}") for n in range(1, 6) for g in "FM"}
    assert len({u.utterance_id for u in corpus}) == len(corpus)
    assert "Ses01F_impro01_F000" in {u.utterance_id for u in corpus}


def test_scripts_fix_words_and_valence_only(corpus: list[Utterance]) -> None:
    scripted = [u for u in corpus if u.script_id is not None]
    assert scripted and all(u.improvised == (u.script_id is None) for u in corpus)
    for script_id in {u.script_id for u in scripted}:
        lines = [u for u in scripted if u.script_id == script_id]
        assert len({u.session_id for u in lines}) == 5
        assert len({(u.text, u.valence) for u in lines}) == 1
        assert len({u.arousal for u in lines}) > 1


def test_audio_is_short_mono_pcm(corpus: list[Utterance]) -> None:
    for utterance in corpus:
        info = soundfile.info(utterance.audio)
        assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
        assert 1.2 - 0.01 <= info.duration <= 4.0  # cut to whole hops of 8 ms
        waveform, _ = soundfile.read(utterance.audio)
        assert 0.05 < np.abs(waveform).max() and np.mean(np.abs(waveform) > 0.99) < 0.001


def test_longest_sentence_fits_the_window() -> None:
    slow = synthetic_speech.Voice(pitch_hz=90, tract=1, level_db=-27, rate=3, tilt_db=-8)
    for seed in range(10):
        waveform = synthetic_speech.speak(np.random.default_rng(seed), slow, arousal=1.2, words=12)
        assert 3.0 < len(waveform) / 16_000 <= 4.0


def test_sentence_length_and_template_ignore_valence() -> None:
    low, high = (
        [synthetic._sentence(np.random.default_rng(seed), valence) for seed in range(200)]
        for valence in (1.3, 4.7)
    )
    # The first draw picks the template, so the same seed gives the same one at either valence.
    assert [len(s.split()) for s in low] == [len(s.split()) for s in high]
    assert all(a != b for a, b in zip(low, high, strict=True))
    negative, positive = (Counter(" ".join(s).lower().split()) for s in (low, high))
    assert negative["terrible."] > positive["terrible."]
    assert negative["wonderful."] < positive["wonderful."]


def test_vocabulary_covers_every_sentence() -> None:
    words = set(synthetic.vocabulary())
    assert 150 <= len(words) <= 250
    for seed in range(300):
        rng = np.random.default_rng(seed)
        sentence = synthetic._sentence(rng, rng.uniform(1.2, 4.8))
        assert set(sentence.lower().rstrip(".").split()) <= words
        assert 6 <= len(sentence.split()) <= 10


def test_audio_tells_arousal_but_not_valence(corpus: list[Utterance]) -> None:
    cues = np.array([arousal_cues(u) for u in corpus])
    speakers = np.array([u.speaker_id for u in corpus])
    for speaker in set(speakers):
        cues[speakers == speaker] -= cues[speakers == speaker].mean(axis=0)
    cue = (cues / cues.std(axis=0)).sum(axis=1)
    arousal, valence = ([getattr(u, name) for u in corpus] for name in ("arousal", "valence"))
    assert np.corrcoef(cue, arousal)[0, 1] > 0.5
    assert abs(np.corrcoef(cue, valence)[0, 1]) < 0.3


def test_finished_folder_is_not_rewritten_but_replaced_by_another(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", utterances=20)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    assert write_corpus(tmp_path / "corpus", utterances=20) == corpus
    assert before == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    other = write_corpus(tmp_path / "corpus", seed=1, utterances=10)
    assert len(other) == 10 and not {u.text for u in other} <= {u.text for u in corpus}
    assert len(list((tmp_path / "corpus" / "audio").iterdir())) == 10


def test_interrupted_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(synthetic, "write_manifest", interrupt)
        write_corpus(tmp_path / "corpus", utterances=10)
    assert list(tmp_path.iterdir()) == []


def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=str(tmp_path)):
        write_corpus(tmp_path, utterances=10)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_encoders_load_and_know_the_words(encoders: tuple[Path, Path]) -> None:
    audio, text = map(str, encoders)
    extractor = AutoFeatureExtractor.from_pretrained(audio)
    heard = extractor(np.zeros(16000, np.float32), sampling_rate=16000, return_tensors="pt")
    states = AutoModel.from_pretrained(audio).encoder(heard.input_features).last_hidden_state
    assert states.shape == (1, 200, 64)
    tokenizer = AutoTokenizer.from_pretrained(text)
    read = tokenizer("The Movie was not bad, zebra.", return_tensors="pt")
    tokens = tokenizer.convert_ids_to_tokens(read.input_ids[0])
    assert " ".join(tokens) == "[CLS] the movie was not bad [UNK] [UNK] . [SEP]"
    assert AutoModel.from_pretrained(text)(**read).last_hidden_state.shape == (1, 10, 64)


def test_encoders_follow_the_seed(encoders: tuple[Path, Path], tmp_path: Path) -> None:
    folder = encoders[0].parent
    write_encoders(tmp_path / "same")
    write_encoders(tmp_path / "other", seed=1)
    assert digests(tmp_path / "same") == digests(folder)
    ours, other = digests(folder), digests(tmp_path / "other")
    changed = {name for name in ours if ours[name] != other[name]}
    assert changed == {synthetic.RECIPE_FILE, "audio/model.safetensors", "text/model.safetensors"}
