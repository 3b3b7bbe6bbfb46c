"""The embedded corpus: speech-like audio and sentences, made on the spot from a seed.

Arousal is only in the audio and valence only in the words, so the emotion, which is the quadrant
of the two, needs both. Also writes the two small untrained encoders that learn it in the demo.
Run `python -m mtmm_training.data.corpora.synthetic FOLDER` to write FOLDER/corpus and FOLDER/encoders.
"""

import argparse
import json
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from mtmm_training.data.utterances import Utterance, read_manifest, write_manifest

# Raise this when a seed starts to give other bytes, so that finished folders are written anew.
VERSION = 1

CORPUS = "synthetic"
EXPECTED = None  # what this file writes needs no count
DIMENSION_RANGE = (1.0, 5.0)
SPEAKERS = 10  # a woman and a man per session, as in IEMOCAP
GENDERS = ("F", "M")
DIALOGUES = ("impro01", "impro02", "impro03", "script01")
# Whether valence and arousal are high -> emotion; independent halves of these sizes give classes
# about as unequal as IEMOCAP's, 30 % neutral, 30 % happy, 20 % angry and 20 % sad.
EMOTIONS = {
    (True, False): "neutral",
    (True, True): "happy",
    (False, True): "angry",
    (False, False): "sad",
}
HIGH_VALENCE_SHARE, HIGH_AROUSAL_SHARE = 0.6, 0.5
MIDPOINT = 3.0  # of the 1-5 scale; above and below it lie the quadrants
MARGIN, REACH = 0.3, 1.8  # how near to and how far from the midpoint a label may lie

# --- words ---------------------------------------------------------------------------------------

# Word class -> strongly negative, mildly negative, mildly positive, strongly positive words.
POLAR_WORDS = {
    "adjective": (
        "terrible awful horrible dreadful miserable hopeless rotten disgraceful".split(),
        "bad poor dull weak unpleasant useless unfair wrong".split(),
        "good nice pleasant fine decent helpful useful fair".split(),
        "wonderful perfect lovely beautiful splendid superb delightful marvelous".split(),
    ),
    "noun": (
        "disaster catastrophe nightmare curse tragedy".split(),
        "problem mistake nuisance bother letdown".split(),
        "success pleasure comfort bonus favor".split(),
        "blessing treasure triumph miracle jewel".split(),
    ),
    "verb": (
        "hated despised loathed detested".split(),
        "disliked regretted doubted mistrusted".split(),
        "liked enjoyed welcomed trusted".split(),
        "loved adored treasured cherished".split(),
    ),
    "opener": (
        "tragically horribly disastrously".split(),
        "unfortunately regrettably unluckily".split(),
        "fortunately luckily thankfully".split(),
        "wonderfully beautifully marvelously".split(),
    ),
}
DEGREES = {
    True: "very really truly absolutely".split(),
    False: "fairly quite rather mostly".split(),
}
PLAIN_WORDS = {
    "person": (
        "brother sister mother father neighbor teacher doctor boss cousin friend uncle aunt "
        "roommate landlord"
    ).split(),
    "thing": (
        "meeting trip movie letter dinner report exam apartment interview lesson concert journey "
        "car phone book holiday class meal paper coffee jacket visit"
    ).split(),
    "place": (
        "office kitchen school garden station city village hotel library airport market church "
        "museum river"
    ).split(),
    "day": "yesterday today lately recently again".split(),
}
# Every template takes either polarity and has two opinions in it.
TEMPLATES = (
    "I {verb} the {thing} and it was {degree} {adjective}",
    "{opener} the {thing} was {degree} {adjective}",
    "my {person} said the {adjective} {thing} was a {noun}",
    "{opener} my {person} {verb} the {thing}",
    "we {verb} the {adjective} {thing} at the {place}",
    "the {place} was {degree} {adjective} and a {noun}",
    "it was a {noun} and I {verb} it",
    "I think this {adjective} {thing} is a {noun}",
    "{day} my {person} {verb} the {adjective} {thing}",
    "you know we {verb} that {degree} {adjective} {place}",
    "{opener} the new {thing} is a {noun}",
    "that {thing} was a {noun} and {degree} {adjective}",
    "they {verb} the {place} because it was {degree} {adjective}",
    "{opener} they said the {place} looked {degree} {adjective}",
    "what a {noun} that {degree} {adjective} {thing} was",
    "he told me {day} the {adjective} {thing} was a {noun}",
    "she {verb} the {place} with the {adjective} {thing}",
    "my {person} {verb} the {thing} and called it a {noun}",
    "{opener} I {verb} the old {thing} {day}",
    "for my {person} the {adjective} {place} was a {noun}",
)
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


# --- voices --------------------------------------------------------------------------------------

SAMPLING_RATE = 16_000
SHORTEST_S, LONGEST_S = 1.2, 4.0
WINDOW, HOP = 512, 128  # samples: 32 ms and 8 ms
FREQUENCIES = np.fft.rfftfreq(WINDOW, 1 / SAMPLING_RATE)  # Hz
# First three formants in Hz of i, e, a, o, u, schwa of an adult male.
VOWELS = np.array(
    [[280, 2250, 2900], [450, 1900, 2550], [730, 1150, 2440], [520, 880, 2400], [310, 800, 2250]]
    + [[500, 1500, 2500]],
    dtype=float,
)
FORMANT_BANDWIDTHS = np.array([90.0, 120.0, 180.0])  # Hz
FORMANT_GAINS = np.array([1.0, 0.6, 0.35])
DELIVERY_NOISE = 0.15  # of an utterance around its arousal, where the scale's half is one


@dataclass(frozen=True)
class Voice:
    """What stays the same in everything that one speaker says."""

    pitch_hz: float
    tract: float  # scale of the formant frequencies
    level_db: float  # loudness, relative to full scale
    rate: float  # syllables per second
    tilt_db: float  # fall of the source's spectrum, dB per octave


def _voice(rng: np.random.Generator, gender: str) -> Voice:
    female = gender == "F"
    return Voice(
        pitch_hz=(195 if female else 115) * 2 ** rng.normal(0, 0.12),
        tract=(1.15 if female else 1.0) * 2 ** rng.normal(0, 0.06),
        level_db=-27 + rng.normal(0, 1.5),
        rate=4.6 * 2 ** rng.normal(0, 0.08),
        tilt_db=-8 + rng.normal(0, 0.7),
    )


def _speech(rng: np.random.Generator, voice: Voice, arousal: float, words: int) -> np.ndarray:
    """Babble as long as a sentence, in the way that the arousal asks for.

    Args:
        arousal: 1-5; moves pitch, pitch range, rate, spectral tilt and level.
        words: how many words the sentence has; all that the audio knows of it.

    Returns:
        Waveform (time,) at 16 kHz, -1 to 1.
    """
    delivery = (arousal - MIDPOINT) / 2 + rng.normal(0, DELIVERY_NOISE)
    rate = voice.rate * 2 ** (0.35 * delivery + rng.normal(0, 0.08))
    starts, lengths = _syllables(rng, rate, count=round(words * 1.35 + rng.normal(0, 1)))
    duration_s = np.clip(starts[-1] + lengths[-1] + 0.15, SHORTEST_S, LONGEST_S)
    # A whole number of hops, so that overlapping windows add up to the same weight everywhere.
    samples = int(duration_s * SAMPLING_RATE) // HOP * HOP
    frame_times = (np.arange(samples // HOP + WINDOW // HOP - 1) - 1) * HOP / SAMPLING_RATE

    pitch_hz = voice.pitch_hz * 2 ** ((5.0 * delivery + rng.normal(0, 1.0)) / 12)
    pitch_range = 2.0 * 2 ** (0.7 * delivery + rng.normal(0, 0.3))  # semitones
    accents = rng.normal(0, pitch_range, len(starts)) - np.linspace(0, 2, len(starts))
    sample_times = np.arange(samples) / SAMPLING_RATE
    semitones = np.interp(sample_times, starts + lengths / 2, accents)

    pulses = _glottal_pulses(rng, pitch_hz * 2 ** (semitones / 12))
    source = pulses + rng.normal(0, 0.01, samples)  # a little breath in the voice
    tilt_db = voice.tilt_db + 3.5 * delivery + rng.normal(0, 0.7)
    vowels, consonants = _spectra(rng, voice.tract, tilt_db, starts, lengths, frame_times)
    level_db = voice.level_db + 3.2 * delivery + rng.normal(0, 2.0)
    speech = (
        _at_level(_filter(source, vowels), level_db)
        + _at_level(_filter(rng.normal(0, 1, samples), consonants), level_db - 12)
        + _at_level(_room_noise(rng, samples), level_db - rng.uniform(12, 30))
    )
    return np.clip(speech, -1, 1)


def _syllables(rng: np.random.Generator, rate: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and lengths in seconds of as many of the syllables as fit into the longest audio."""
    lengths = rng.lognormal(0, 0.2, count) / rate
    lengths[-1] *= 1.4  # phrases end slowly
    pauses = np.where(rng.random(count) < 0.12, rng.uniform(0.08, 0.25, count), 0)
    pauses[0] = rng.uniform(0.08, 0.2)
    ends = np.cumsum(lengths + pauses)
    fits = ends < LONGEST_S - 0.1
    return (ends - lengths)[fits], lengths[fits]


def _glottal_pulses(rng: np.random.Generator, pitch_hz: np.ndarray) -> np.ndarray:
    """A train of unit pulses with jitter and shimmer; pitch_hz and result are (time,)."""
    jitter = np.repeat(rng.normal(1, 0.03, len(pitch_hz) // HOP), HOP)
    cycles = np.cumsum(pitch_hz * jitter / SAMPLING_RATE)
    at = np.flatnonzero(np.diff(np.floor(cycles)) > 0)
    # A pulse falls between two samples and is shared by them, or high voices would sound rough.
    share = (np.ceil(cycles[at]) - cycles[at]) / (cycles[at + 1] - cycles[at])
    height = rng.normal(1, 0.08, len(at))
    pulses = np.zeros(len(pitch_hz))
    pulses[at] += (1 - share) * height
    pulses[at + 1] += share * height
    return pulses


def _spectra(
    rng: np.random.Generator,
    tract: float,
    tilt_db: float,
    starts: np.ndarray,
    lengths: np.ndarray,
    frame_times: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Magnitudes (frames, frequencies) of the vowels' and of the consonants' filter."""
    count = len(starts)
    onsets = starts + lengths * rng.uniform(0.2, 0.45, count)  # where the vowel begins
    centres = (onsets + starts + lengths) / 2
    targets = VOWELS[rng.integers(len(VOWELS), size=count)] * tract
    targets *= 2 ** rng.normal(0, 0.05, targets.shape)
    # Formants glide from one vowel's middle to the next one's.
    formants = np.stack([np.interp(frame_times, centres, f) for f in targets.T], axis=1)
    peaks = (FREQUENCIES - formants[..., None]) / FORMANT_BANDWIDTHS[:, None]
    vowels = FORMANT_GAINS @ (1 / (1 + peaks**2)) + 0.003  # (frames, frequencies)
    vowels *= (np.maximum(FREQUENCIES, 100) / 100) ** (tilt_db / 20 / np.log10(2))
    vowels *= _bumps(frame_times, onsets, starts + lengths, rng.normal(1, 0.15, count))[:, None]

    hiss_hz = rng.uniform(2500, 6000, count) * tract
    loudness = rng.choice([0.03, 0.3, 1.0], size=count) * rng.uniform(0.5, 1, count)
    hiss = np.interp(frame_times, starts, hiss_hz)
    consonants = 1 / (1 + ((FREQUENCIES - hiss[:, None]) / 900) ** 2)
    consonants *= _bumps(frame_times, starts, onsets, loudness)[:, None]
    return vowels, consonants


def _bumps(
    times: np.ndarray, starts: np.ndarray, ends: np.ndarray, heights: np.ndarray
) -> np.ndarray:
    """One raised arch per stretch of time and silence between them, (times,)."""
    index = np.maximum(np.searchsorted(starts, times, side="right") - 1, 0)
    place = np.clip((times - starts[index]) / (ends - starts)[index], 0, 1)
    return heights[index] * np.sin(np.pi * place) ** 0.7


def _filter(source: np.ndarray, magnitudes: np.ndarray) -> np.ndarray:
    """Shape the source (time,) by one spectrum per hop, (frames, frequencies): overlap-add."""
    parts = WINDOW // HOP
    padded = np.pad(source, WINDOW - HOP)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP] * np.hanning(WINDOW)
    frames = np.fft.irfft(np.fft.rfft(frames) * magnitudes).reshape(len(frames), parts, HOP)
    hops = np.zeros((len(frames) + parts - 1, HOP))
    for part in range(parts):
        hops[part : part + len(frames)] += frames[:, part]
    return hops.ravel()[WINDOW - HOP :][: len(source)]


def _room_noise(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Noise (time,) that is stronger at low frequencies."""
    spectrum = np.fft.rfft(rng.normal(0, 1, samples))
    return np.fft.irfft(spectrum / np.sqrt(np.arange(len(spectrum)) + 20), samples)


def _at_level(waveform: np.ndarray, level_db: float) -> np.ndarray:
    """Scale to a root mean square in dB relative to full scale."""
    return waveform * 10 ** (level_db / 20) / np.sqrt(np.mean(waveform**2))


# --- the corpus ----------------------------------------------------------------------------------


def read(folder: Path | str) -> list[Utterance]:
    """Read the embedded corpus of 1,200 utterances, written to the folder first where it is not."""
    return write_corpus(folder)


def write_corpus(folder: Path | str, *, seed: int = 0, utterances: int = 1200) -> list[Utterance]:
    """Write audio/*.wav (16 kHz, mono, 16 bit) and manifest.csv, all of them or nothing.

    A folder that already holds this very corpus is read, not written again.

    Args:
        folder: where to; replaced if it holds another synthetic corpus.
        seed: same seed, same bytes.
        utterances: how many, dealt out to the ten speakers in turn.

    Raises:
        ValueError: no utterances are asked for.
        FileExistsError: the folder holds something that is not a synthetic corpus.
    """
    if utterances < 1:
        raise ValueError(f"`utterances`={utterances!r} makes no corpus; give at least 1.")
    folder = Path(folder)
    recipe = {"version": VERSION, "seed": seed, "utterances": utterances}
    if not _holds(folder, recipe):
        with _complete_or_absent(folder, recipe) as unfinished:
            (unfinished / "audio").mkdir()
            write_manifest(_write_audio(unfinished, seed, utterances), unfinished / "manifest.csv")
    return read_manifest(folder / "manifest.csv")


def _write_audio(folder: Path, seed: int, count: int) -> list[Utterance]:
    # [seed, purpose, ...]: every utterance has a stream of its own and so depends on no other.
    voices = [
        _voice(np.random.default_rng([seed, 0, speaker]), GENDERS[speaker % 2])
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
        script = np.random.default_rng([seed, 4, role, turn])
        high = (bool(high_valence[turn, role]), bool(high_arousal[turn, speaker]))
        utterance = _utterance(rng, script, folder, speaker, turn, high)
        assert utterance.arousal is not None and utterance.text is not None  # made just now
        waveform = _speech(rng, voices[speaker], utterance.arousal, len(utterance.text.split()))
        soundfile.write(utterance.audio, waveform, SAMPLING_RATE, subtype="PCM_16")
        written.append(utterance)
    return written


def _deal(rng: np.random.Generator, share: float, turns: int, columns: int) -> np.ndarray:
    """Booleans (turns, columns), true for the same share of each column, shuffled within it."""
    dealt = np.arange(turns) < round(share * turns)
    return rng.permuted(np.tile(dealt[:, None], columns), axis=0)


def _utterance(
    rng: np.random.Generator,
    script: np.random.Generator,
    folder: Path,
    speaker: int,
    turn: int,
    high: tuple[bool, bool],
) -> Utterance:
    """Names in IEMOCAP's manner, labels, and words.

    Args:
        rng: randomness of this utterance alone.
        script: randomness that the same turn of all sessions shares.
        high: whether valence and arousal are above the midpoint.
    """
    gender = GENDERS[speaker % 2]
    session = f"Ses{speaker // 2 + 1:02d}"
    dialogue = DIALOGUES[turn % len(DIALOGUES)]
    line = f"{dialogue}_{gender}{turn // len(DIALOGUES):03d}"
    improvised = dialogue.startswith("impro")
    words = rng if improvised else script
    valence = _label(words, high[0])
    return Utterance(
        utterance_id=f"{session}F_{line}",
        corpus=CORPUS,
        audio=str(folder / "audio" / f"{session}F_{line}.wav"),
        text=_sentence(words, valence),
        emotion=EMOTIONS[high],
        valence=valence,
        arousal=_label(rng, high[1]),
        speaker_id=f"{session}{gender}",
        session_id=session,
        dialogue_id=f"{session}F_{dialogue}",
        script_id=None if improvised else line,
        improvised=improvised,
        gender=gender,
    )


def _label(rng: np.random.Generator, high: bool) -> float:
    """A value of the upper or lower half of the 1-5 scale, clear of its midpoint."""
    distance = rng.uniform(MARGIN, REACH)
    return round(MIDPOINT + (distance if high else -distance), 2)


# --- the encoders --------------------------------------------------------------------------------


def write_encoders(folder: Path | str, *, seed: int = 0) -> tuple[Path, Path]:
    """Write two small untrained checkpoints that load with transformers' Auto classes.

    Returns:
        folder/audio, a Whisper with an empty decoder that hears 4 s, and its feature extractor;
        folder/text, a BERT, and a tokenizer that knows the corpus' words.
    """
    folder = Path(folder)
    recipe = {"version": VERSION, "seed": seed}
    if not _holds(folder, recipe):
        # transformers takes seconds to import and the corpus does not need it.
        import torch

        with _complete_or_absent(folder, recipe) as unfinished, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _write_audio_encoder(unfinished / "audio")
            _write_text_encoder(unfinished / "text")
    return folder / "audio", folder / "text"


def _write_audio_encoder(folder: Path) -> None:
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    config = WhisperConfig(
        d_model=64,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=128,
        num_mel_bins=40,
        max_source_positions=int(LONGEST_S * 50),  # 20 ms per encoder frame
        decoder_layers=0,  # only the encoder is ever used
        decoder_attention_heads=4,
        decoder_ffn_dim=128,
        max_target_positions=4,
        vocab_size=8,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=0,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    WhisperModel(config).save_pretrained(folder)
    extractor = WhisperFeatureExtractor(
        feature_size=config.num_mel_bins, chunk_length=int(LONGEST_S), sampling_rate=SAMPLING_RATE
    )
    extractor.save_pretrained(folder)


def _write_text_encoder(folder: Path) -> None:
    from transformers import BertConfig, BertModel, BertTokenizer

    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *vocabulary()]
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        model_max_length=config.max_position_embeddings,
    ).save_pretrained(folder)


# --- complete or absent --------------------------------------------------------------------------

RECIPE_FILE = "synthetic_recipe.json"  # the mark of a finished folder


def _holds(folder: Path, recipe: dict[str, int]) -> bool:
    mark = folder / RECIPE_FILE
    return mark.is_file() and json.loads(mark.read_text()) == recipe


@contextmanager
def _complete_or_absent(folder: Path, recipe: dict[str, int]) -> Iterator[Path]:
    """Give an empty folder beside the wanted one, which takes its place if nothing goes wrong."""
    if folder.exists() and not (folder / RECIPE_FILE).is_file() and any(folder.iterdir()):
        raise FileExistsError(
            f"{str(folder)!r} is not empty and has no {RECIPE_FILE}, so it was not written here. "
            "Choose another folder or remove it."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
        unfinished = Path(beside) / folder.name
        unfinished.mkdir()
        yield unfinished
        (unfinished / RECIPE_FILE).write_text(json.dumps(recipe) + "\n")
        if folder.exists():
            shutil.rmtree(folder)
        unfinished.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mtmm_training.data.corpora.synthetic",
        description="Write the embedded corpus and its encoders.",
    )
    parser.add_argument("folder", type=Path, help="gets the folders corpus and encoders")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    parser.add_argument("--utterances", type=int, default=1200, help="how many; 1200 if not given")
    arguments = parser.parse_args()

    started = time.perf_counter()
    corpus = arguments.folder / "corpus"
    written = write_corpus(corpus, seed=arguments.seed, utterances=arguments.utterances)
    encoders = write_encoders(arguments.folder / "encoders", seed=arguments.seed)
    seconds = sum(soundfile.info(file).duration for file in (corpus / "audio").iterdir())
    print(f"{corpus}: {len(written)} utterances, {seconds / 3600:.2f} h")
    for name in ("emotion", "speaker_id"):
        counts = Counter(getattr(utterance, name) for utterance in written)
        print(f"  {name}: " + ", ".join(f"{key} {counts[key]}" for key in sorted(counts)))
    print("encoders: " + ", ".join(map(str, encoders)))
    print(f"took {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
