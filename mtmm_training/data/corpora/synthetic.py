"""The embedded corpus: speech-like audio and sentences, made on the spot from a seed.

Arousal is only in the audio and valence only in the words, so the emotion, which is the quadrant
of the two, needs both. Also writes the two small untrained encoders that learn it in the demo.

Simulated listeners vote and rate: each of LISTENERS hears valence and arousal with a normal error of
his own size, votes for the quadrant that he heard, and rates in whole points. So listeners disagree
where a label is near the midpoint, and some utterances have no majority. Emotion and dimensions are
what was meant, as in CREMA-D; `heard` makes them what was heard, as in IEMOCAP.
"""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from mtmm_training.data.corpora import synthetic_speech as speech
from mtmm_training.data.corpora.synthetic_speech import LONGEST_S, MIDPOINT, SAMPLING_RATE
from mtmm_training.data.files import appearing, facts_beside, read_json, write_json
from mtmm_training.data.manifest import read_manifest, write_manifest
from mtmm_training.data.utterances import Utterance, leading

# Raise this when a seed starts to give other bytes, so that finished folders are written anew.
VERSION = 2
RECIPE_FILE = "synthetic_recipe.json"  # the mark of a finished folder

CORPUS = "synthetic"
DIMENSION_RANGE = (1.0, 5.0)
SPEAKERS = 10  # a woman and a man per session, as in IEMOCAP
GENDERS = ("F", "M")
DIALOGUES = ("impro01", "impro02", "impro03", "script01")
# Whether valence and arousal are high -> emotion; independent halves of these sizes give classes
# about as unequal as IEMOCAP's, 30 % neutral, 30 % happy, 20 % angry and 20 % sad.
EMOTIONS = {
    (True, False): "neutral", (True, True): "happy", (False, True): "angry", (False, False): "sad",
}  # fmt: skip
HIGH_VALENCE_SHARE, HIGH_AROUSAL_SHARE = 0.6, 0.5
MARGIN, REACH = 0.3, 1.8  # how near to and how far from the midpoint a label may lie
LISTENERS = {f"listener_{number:02d}": 0.5 + 0.05 * number for number in range(13)}  # sd of errors
FEWEST, MOST = 3, 10  # listeners of an utterance

# --- words ---------------------------------------------------------------------------------------

FACTS = facts_beside(__file__, "synthetic.toml")
TEMPLATES: list[str] = FACTS["templates"]
# Word class -> strongly negative, mildly negative, mildly positive, strongly positive words.
POLAR_WORDS = {kind: [level.split() for level in own] for kind, own in FACTS["polar"].items()}
DEGREES = {True: FACTS["degree"]["strong"].split(), False: FACTS["degree"]["mild"].split()}
PLAIN_WORDS: dict[str, list[str]] = {kind: own.split() for kind, own in FACTS["plain"].items()}
OPINION_NOISE = 0.45  # of each opinion word around the speaker's valence, in points of its scale
NEGATION_SHARE = 0.15  # of the degree words: "not bad" for "rather good"


def vocabulary() -> list[str]:
    """All words that a sentence can have, in lower case and sorted."""
    words = {"not", *sum(DEGREES.values(), []), *sum(PLAIN_WORDS.values(), [])}
    words.update(*(level for levels in POLAR_WORDS.values() for level in levels))
    words.update(re.sub(r"{\w+}", "", " ".join(TEMPLATES)).lower().split())
    return sorted(words)


def _sentence(rng: np.random.Generator, valence: float) -> str:
    """Fill a template; each opinion word follows the valence (1-5), give or take some noise."""
    words = []
    negated = False
    for slot in TEMPLATES[rng.integers(len(TEMPLATES))].split():
        kind = slot.strip("{}")
        opinion = valence - MIDPOINT + rng.normal(0, OPINION_NOISE)
        strong = abs(opinion) > (MARGIN + REACH) / 2
        if kind == "degree":
            negated = rng.random() < NEGATION_SHARE
            choices = ["not"] if negated else DEGREES[strong]
        elif slot.startswith("{") and kind in POLAR_WORDS:
            if negated and kind == "adjective":
                opinion, strong, negated = -opinion, False, False
            # Levels run from strongly negative (0) to strongly positive (3).
            level = (2 + strong) if opinion > 0 else (1 - strong)
            choices = POLAR_WORDS[kind][level]
        else:
            choices = PLAIN_WORDS[kind] if slot.startswith("{") else [slot]
        words.append(choices[rng.integers(len(choices))])
    sentence = " ".join(words)
    return sentence[0].upper() + sentence[1:] + "."


# --- the corpus ----------------------------------------------------------------------------------


def read(folder: Path, *, heard: bool = False) -> list[Utterance]:
    """Read the embedded corpus of 1,200 utterances, written to the folder first where it is not.

    Args:
        folder: where it is.
        heard: whether labels are what listeners heard: the emotion with most votes, none where two
            lead, and the ratings' means; else what was meant.
    """
    utterances = write_corpus(folder)
    return [_heard(utterance) for utterance in utterances] if heard else utterances


def _heard(utterance: Utterance) -> Utterance:
    votes, rated = utterance.votes, [utterance.valence_ratings, utterance.arousal_ratings]
    assert votes is not None  # all have been heard
    valence, arousal = (round(float(np.mean(ratings or ())), 4) for ratings in rated)
    return replace(utterance, emotion=leading(votes), valence=valence, arousal=arousal)


def _listen(rng: np.random.Generator, valence: float, arousal: float) -> dict[str, Any]:
    """Votes, ratings and raters of some of the LISTENERS, as fields of Utterance."""
    names = list(LISTENERS)
    chosen = sorted(rng.choice(len(names), rng.integers(FEWEST, MOST + 1), replace=False))
    errors = rng.normal(0, [[LISTENERS[names[i]]] * 2 for i in chosen])
    heard = np.array([valence, arousal]) + errors
    votes = Counter(EMOTIONS[v > MIDPOINT, a > MIDPOINT] for v, a in heard)
    rated = heard.round().clip(*DIMENSION_RANGE).T.tolist()
    return {
        "votes": {name: float(votes[name]) for name in EMOTIONS.values() if votes[name]},
        "valence_ratings": tuple(rated[0]),
        "arousal_ratings": tuple(rated[1]),
        "raters": tuple(names[i] for i in chosen),
    }


def write_corpus(folder: Path | str, *, seed: int = 0, utterances: int = 1200) -> list[Utterance]:
    """Write audio/*.wav (16 kHz, mono, 16 bit) and manifest.csv, all of them or nothing.

    A folder that already holds this very corpus is read, not written again.

    Args:
        folder: where to; replaced if it holds another synthetic corpus.
        seed: same seed, same bytes.
        utterances: how many, dealt out to the ten speakers in turn.

    Raises:
        FileExistsError: the folder holds something that is not a synthetic corpus.
    """
    folder = Path(folder)
    recipe = {"version": VERSION, "seed": seed, "utterances": utterances}
    if not _is_there(folder, recipe):
        with appearing(folder, RECIPE_FILE) as unfinished:
            (unfinished / "audio").mkdir(parents=True)
            write_manifest(_write_audio(unfinished, seed, utterances), unfinished / "manifest.csv")
            write_json(recipe, unfinished / RECIPE_FILE)
    return read_manifest(folder / "manifest.csv")


def _is_there(folder: Path, recipe: dict[str, int]) -> bool:
    mark = folder / RECIPE_FILE
    return mark.is_file() and read_json(mark) == recipe


def _write_audio(folder: Path, seed: int, count: int) -> list[Utterance]:
    # [seed, purpose, ...]: every utterance has a stream of its own and so depends on no other.
    voices = [
        speech.make_voice(np.random.default_rng([seed, 0, speaker]), GENDERS[speaker % 2])
        for speaker in range(SPEAKERS)
    ]
    turns = -(-count // SPEAKERS)
    # The women of all sessions play one role and the men the other: scripted turns have the same
    # words in every session, and so the same valence. Arousal is each speaker's own.
    high_valence = _deal(np.random.default_rng([seed, 1]), HIGH_VALENCE_SHARE, turns, 2)
    high_arousal = _deal(np.random.default_rng([seed, 2]), HIGH_AROUSAL_SHARE, turns, SPEAKERS)
    written = []
    for index in range(count):
        turn, speaker = divmod(index, SPEAKERS)
        role = speaker % 2
        rng = np.random.default_rng([seed, 3, index])
        script = np.random.default_rng([seed, 4, role, turn])  # the same in all sessions
        high = (bool(high_valence[turn, role]), bool(high_arousal[turn, speaker]))
        # Names in IEMOCAP's manner.
        gender, session = GENDERS[role], f"Ses{speaker // 2 + 1:02d}"
        dialogue = DIALOGUES[turn % len(DIALOGUES)]
        line = f"{dialogue}_{gender}{turn // len(DIALOGUES):03d}"
        improvised = dialogue.startswith("impro")
        words = rng if improvised else script
        valence = _label(words, high[0])
        text = _sentence(words, valence)
        arousal = _label(rng, high[1])
        path = folder / "audio" / f"{session}F_{line}.wav"
        waveform = speech.speak(rng, voices[speaker], arousal, len(text.split()))
        soundfile.write(path, waveform, SAMPLING_RATE, subtype="PCM_16")
        utterance = Utterance(
            utterance_id=path.stem,
            corpus=CORPUS,
            audio=str(path),
            text=text,
            emotion=EMOTIONS[high],
            valence=valence,
            arousal=arousal,
            speaker_id=f"{session}{gender}",
            session_id=session,
            dialogue_id=f"{session}F_{dialogue}",
            script_id=None if improvised else line,
            improvised=improvised,
            gender=gender,
            **_listen(np.random.default_rng([seed, 5, index]), valence, arousal),
        )
        written.append(utterance)
    return written


def _deal(rng: np.random.Generator, share: float, turns: int, columns: int) -> np.ndarray:
    """Booleans (turns, columns), true for the same share of each column, shuffled within it."""
    dealt = np.arange(turns) < round(share * turns)
    return rng.permuted(np.tile(dealt[:, None], columns), axis=0)


def _label(rng: np.random.Generator, high: bool) -> float:
    """A value of the upper or lower half of the 1-5 scale, clear of its midpoint."""
    distance = rng.uniform(MARGIN, REACH)
    return round(MIDPOINT + (distance if high else -distance), 2)


# --- the encoders --------------------------------------------------------------------------------

MODEL_CONFIG: dict[str, Any] = FACTS["model"]


def write_encoders(folder: Path | str, *, seed: int = 0) -> tuple[Path, Path]:
    """Write two small untrained checkpoints that load with transformers' Auto classes.

    Returns:
        folder/audio, a Whisper with an empty decoder that hears 4 s, and its feature extractor;
        folder/text, a BERT, and a tokenizer that knows the corpus' words.
    """
    folder = Path(folder)
    recipe = {"version": VERSION, "seed": seed}
    if _is_there(folder, recipe):
        return folder / "audio", folder / "text"
    # They take seconds to import and the corpus does not need them.
    import torch
    import transformers

    with appearing(folder, RECIPE_FILE) as unfinished:
        silent: dict[str, Any] = {"suppress_tokens": None, "begin_suppress_tokens": None}
        audio_config = transformers.WhisperConfig(**FACTS["audio_encoder"], **silent)
        extractor = transformers.WhisperFeatureExtractor(
            feature_size=40, chunk_length=int(LONGEST_S), sampling_rate=SAMPLING_RATE
        )
        tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *vocabulary()]
        text_config = transformers.BertConfig(vocab_size=len(tokens), **FACTS["text_encoder"])
        numbers = {token: index for index, token in enumerate(tokens)}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            transformers.WhisperModel(audio_config).save_pretrained(unfinished / "audio")
            extractor.save_pretrained(unfinished / "audio")
            transformers.BertModel(text_config).save_pretrained(unfinished / "text")
            tokenizer = transformers.BertTokenizer(vocab=numbers, model_max_length=64)
            tokenizer.save_pretrained(unfinished / "text")
        write_json(recipe, unfinished / RECIPE_FILE)
    return folder / "audio", folder / "text"
