"""Recordings of any length: windows and segments, timed transcripts, transcribers, streams, memory.

What a window says is always compared with the pipeline on that part alone.
"""

import io
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers
from bad_inputs import tiny
from conftest import RATE, MakeModel, audio, encoded
from transformers import (
    AutomaticSpeechRecognitionPipeline,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)

import reading_mtmm
from audio_mtmm import InputError, open_recording, resample
from modeling_mtmm import MTMMModel
from pipeline_mtmm import MTMMPipeline
from processing_mtmm import MTMMProcessor
from timeline_mtmm import Windows
from waveforms_mtmm import to_mono

LONGEST_S = 2.0
EMOTIONS = ("angry", "happy", "sad", "neutral")


def noise(duration_s: float, seed: int = 0) -> np.ndarray:
    """Noise whose loudness and colour drift, so that every window sounds different."""
    samples = round(duration_s * RATE)
    white = np.random.default_rng(seed).uniform(-0.5, 0.5, samples)
    time = np.arange(samples) / RATE
    return (white * (0.2 + 0.8 * np.cos(time) ** 2) * np.sin(60 * time**1.5)).astype(np.float32)


@pytest.fixture(scope="module")
def pipe(model: MTMMModel, tiny_processor: MTMMProcessor) -> MTMMPipeline:
    parts = tiny_processor.feature_extractor, tiny_processor.tokenizer
    processor = MTMMProcessor(*parts, max_tokens=64, max_duration_s=LONGEST_S)
    return MTMMPipeline(model=model, processor=processor)


@pytest.fixture(scope="module")
def long_wav(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audio") / "long.wav"
    soundfile.write(path, noise(7.3), RATE, subtype="FLOAT")
    return path


def spans(result: dict[str, Any] | list[dict[str, Any]]) -> list[tuple[float, float]]:
    entries = result["timeline"] if isinstance(result, dict) else result
    return [(entry["start"], entry["end"]) for entry in entries]


def assert_alike(entry: dict[str, Any], alone: dict[str, Any], tolerance: float = 1e-5) -> None:
    """An entry of the timeline says what the pipeline says of that part alone."""
    assert entry["emotion"] == alone["emotion"]
    assert entry["scores"] == pytest.approx(alone["scores"], abs=tolerance)
    for name in ("valence", "arousal"):
        assert entry[name] == pytest.approx(alone[name], abs=tolerance)
    assert entry["missing"] == alone["missing"]


def assert_same_timeline(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    np.testing.assert_allclose(spans(one), spans(other), atol=1e-9)
    for entry, expected in zip(one, other, strict=True):
        assert_alike(entry, expected)
        assert entry.get("text") == expected.get("text")


# ---- windows -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("duration_s", "window_s", "hop_s", "expected"),
    [
        (7.3, None, None, [(0, 2), (2, 4), (4, 6), (5.3, 7.3)]),
        (6.0, None, None, [(0, 2), (2, 4), (4, 6)]),
        (6.02, None, None, [(0, 2), (2, 4), (4, 6)]),  # 20 ms are less than the encoder needs
        (6.03, None, None, [(0, 2), (2, 4), (4, 6), (4.03, 6.03)]),
        (2.5, None, None, [(0, 2), (0.5, 2.5)]),
        (1.5, 1.0, None, [(0, 1), (0.5, 1.5)]),
        (1.5, 1.0, 0.5, [(0, 1), (0.5, 1.5)]),
        (1.6, 1.0, 0.5, [(0, 1), (0.5, 1.5), (0.6, 1.6)]),
        (0.8, 1.0, None, [(0, 0.8)]),
        (4.0, None, 1.0, [(0, 2), (1, 3), (2, 4)]),
        (1.0, 0.3, 0.3, [(0, 0.3), (0.3, 0.6), (0.6, 0.9), (0.7, 1.0)]),
    ],
)
def test_windows_cover_the_recording(
    pipe: MTMMPipeline,
    duration_s: float,
    window_s: float,
    hop_s: float,
    expected: list[tuple[float, float]],
) -> None:
    waveform = noise(duration_s)
    result = pipe(audio(waveform), window_s=window_s, hop_s=hop_s)
    np.testing.assert_allclose(spans(result), expected, atol=1e-9)
    for entry in result["timeline"]:
        start, end = (round(entry[name] * RATE) for name in ("start", "end"))
        assert_alike(entry, pipe(audio(waveform[start:end])))


def test_default_window_is_six_seconds_or_what_the_model_takes(
    model: MTMMModel,
    tiny_processor: MTMMProcessor,
    pipe: MTMMPipeline,
    whisper_pipe: MTMMPipeline,
) -> None:
    short = pipe(audio(noise(LONGEST_S)))
    assert list(short) == ["emotion", "scores", "valence", "arousal", "missing", "untrained"]
    forty = MTMMPipeline(model=model, processor=tiny_processor)
    assert "timeline" not in forty(audio(noise(7.0)))
    assert spans(forty(audio(noise(40.5))))[:2] == [(0, 6), (6, 12)]
    assert spans(whisper_pipe(audio(noise(2.5)))) == [(0, 1), (1, 2), (1.5, 2.5)]


def test_whole_result_is_the_mean_over_time(pipe: MTMMPipeline) -> None:
    result = pipe(audio(noise(5.0)), window_s=2.0, hop_s=1.5)
    assert spans(result) == [(0, 2), (1.5, 3.5), (3, 5)]
    # By definition: at each instant the mean of the windows that hear it, then the mean over time.
    instants = np.linspace(0, 5, 50_001)[:-1] + 5e-5
    heard = np.array([(a <= instants) & (instants < b) for a, b in spans(result)])
    for name in ("valence", "arousal", *EMOTIONS):
        values = [entry[name] if name in entry else entry["scores"][name]
                  for entry in result["timeline"]]  # fmt: skip
        at_instants = np.array(values) @ (heard / heard.sum(0))
        whole = result[name] if name in result else result["scores"][name]
        assert whole == pytest.approx(at_instants.mean(), abs=1e-4)
    assert result["emotion"] == max(result["scores"], key=result["scores"].get)
    assert sum(result["scores"].values()) == pytest.approx(1, abs=1e-6)
    assert list(result)[-1] == "timeline" and result["missing"] == ["text"]


def test_top_k_and_untrained_hold_in_the_timeline(
    make_model: MakeModel, pipe: MTMMPipeline
) -> None:
    result = pipe(audio(noise(3.0)), top_k=2)
    assert {len(entry["scores"]) for entry in (result, *result["timeline"])} == {2}
    model = make_model(trained_outputs=("arousal",))
    result = MTMMPipeline(model=model, processor=pipe.processor)(audio(noise(3.0)))
    assert list(result) == ["arousal", "missing", "untrained", "timeline"]
    assert [list(e) for e in result["timeline"]] == [["start", "end", "arousal", "missing"]] * 2


@pytest.mark.parametrize(
    "options", [{"window_s": 2.1}, {"window_s": 0.01}, {"window_s": 1, "hop_s": 1.5}, {"hop_s": 0}]
)
def test_bad_option_is_refused(pipe: MTMMPipeline, options: dict[str, Any]) -> None:
    """As an option, not as an input."""
    for ask in (
        lambda: pipe([noise(3.0)], **options),
        lambda: next(pipe.stream("gone.wav", **options)),
    ):
        with pytest.raises(ValueError, match="from 0.025 to 2 s") as refused:
            ask()
        assert not isinstance(refused.value, InputError)


# ---- reading in blocks ---------------------------------------------------------------------------


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_blocks_of_a_file_are_the_whole_file(tmp_path: Path, extension: str, rate: int) -> None:
    path = tmp_path / f"speech.{extension}"
    soundfile.write(path, np.stack([noise(3.3)] * 2, 1), rate)
    for source in (path, path.read_bytes(), io.BytesIO(path.read_bytes())):
        recording = open_recording(source)
        whole, whole_rate = MTMMProcessor.load_audio(path)
        assert (recording.sampling_rate, recording.duration_s) == (whole_rate, len(whole) / rate)
        blocks = np.concatenate(list(recording.blocks(0, None)))
        np.testing.assert_allclose(blocks, whole.mean(1), atol=1e-6)
        segment = np.concatenate(list(recording.blocks(1000, 40000)))
        np.testing.assert_allclose(segment, whole[1000:40000].mean(1), atol=1e-3)


def test_resampling_in_blocks_is_that_of_the_whole(pipe: MTMMPipeline, tmp_path: Path) -> None:
    path = tmp_path / "speech.wav"
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (44100 * 4, 2)).astype(np.float32)
    soundfile.write(path, samples, 44100, subtype="FLOAT")
    mono = resample(to_mono(samples[:80000]), 44100, RATE)
    (_, _, first), *_ = Windows(RATE, 1.5, 1.5, 0.025).cut(open_recording(path))
    np.testing.assert_allclose(first, mono[:24000], atol=1e-6)


MEMORY = """
import resource, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests"]
from bad_inputs import tiny
peaks = []
for path in sys.argv[2:]:
    timeline = tiny.pipe()(path, window_s=1.0)["timeline"]
    print(len(timeline), file=sys.stderr)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(*peaks)
"""


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    """Five minutes take 19 MB as float32; the peak may not grow by half of that."""
    for name, repeats in (("short", 1), ("long", 10)):
        with soundfile.SoundFile(tmp_path / f"{name}.wav", "w", RATE, 1) as file:
            for _ in range(repeats):
                file.write(noise(30.0))
    script = [sys.executable, "-c", MEMORY, str(Path(__file__).parents[1])]
    files = [str(tmp_path / f"{name}.wav") for name in ("short", "long")]
    done = subprocess.run([*script, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.split()[-2:] == ["30", "300"]
    short, long = map(int, done.stdout.split())  # kB
    assert long - short < 9_500


# ---- transcripts with times ----------------------------------------------------------------------

WORDS = [
    {"text": "so", "start": 0.1, "end": 0.4},
    {"text": " you ", "start": 1.8, "end": 2.1},  # its middle is in the first window
    {"text": "won", "start": 1.9, "end": 2.2},
    {"text": "at", "start": 6.6, "end": 6.8},
    {"text": "last", "start": 7.1, "end": 7.5},  # ends after the recording, as recognisers say it
]
CHUNKS = [{"text": w["text"], "timestamp": (w["start"], w["end"])} for w in WORDS]


@pytest.mark.parametrize("words", [WORDS, CHUNKS, tuple(WORDS[::-1])])
def test_words_go_to_the_window_of_their_middle(
    pipe: MTMMPipeline, words: Sequence[dict[str, Any]]
) -> None:
    waveform = noise(7.3)
    result = pipe({"audio": audio(waveform), "words": words})
    assert [entry.get("text") for entry in result["timeline"]] == [
        "so you", "won", None, "at last",
    ]  # fmt: skip
    assert [entry["missing"] for entry in result["timeline"]] == [[], [], ["text"], []]
    assert result["missing"] == []
    for number, text in ((0, "so you"), (2, None)):
        entry = result["timeline"][number]
        start, end = (round(entry[name] * RATE) for name in ("start", "end"))
        assert_alike(entry, pipe({"audio": audio(waveform[start:end]), "text": text}))


def test_words_of_a_short_recording_are_its_transcript(pipe: MTMMPipeline) -> None:
    words = [WORDS[0], {"text": "x", "timestamp": (0.9, None)}]
    given = {"audio": audio(noise(1.0)), "words": words}
    assert pipe(given) == pipe({"audio": audio(noise(1.0)), "text": "so x"})
    assert pipe({"audio": audio(noise(1.0)), "words": []}) == pipe(audio(noise(1.0)))


def test_segments_are_the_timeline(pipe: MTMMPipeline, long_wav: Path) -> None:
    waveform = noise(7.3)
    segments = [
        {"start": 5.0, "end": 6.5, "text": "hello"},
        {"start": 0.5, "end": 1.25},
        {"start": 1.0, "end": 5.5, "text": "in the middle"},  # longer than the model takes
        {"start": 7.0, "end": 9.0, "text": "end"},
    ]
    result = pipe({"audio": str(long_wav), "segments": segments})
    expected = [(5, 6.5), (0.5, 1.25), (1, 3), (3, 5), (3.5, 5.5), (7, 7.3)]
    np.testing.assert_allclose(spans(result), expected, atol=1e-9)
    texts = [entry.get("text") for entry in result["timeline"]]
    # A text belongs where its middle is: 3.25 s, in one of the three windows of its segment.
    assert texts == ["hello", None, None, "in the middle", None, "end"]
    assert_alike(
        result["timeline"][0], pipe({"audio": audio(waveform[80000:104000]), "text": "hello"})
    )
    assert_alike(result["timeline"][1], pipe(audio(waveform[8000:20000])))
    with_words = pipe({"audio": str(long_wav), "segments": segments[:2], "words": WORDS})
    assert [entry.get("text") for entry in with_words["timeline"]] == [None, None]


def test_segments_of_text_need_no_audio(pipe: MTMMPipeline) -> None:
    segments = [{"start": 0, "end": 2, "text": "hello"}, {"start": 2, "end": 8, "text": "no"}]
    result = pipe({"segments": segments})
    assert spans(result) == [(0, 2), (2, 8)] and result["missing"] == ["audio"]
    assert_alike(result["timeline"][1], pipe({"text": "no"}))
    first, second = (entry["valence"] for entry in result["timeline"])
    assert result["valence"] == pytest.approx((2 * first + 6 * second) / 8)


def test_text_without_times_goes_to_every_window(
    pipe: MTMMPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    waveform = noise(3.0)
    for _ in range(2):
        result = pipe({"audio": audio(waveform), "text": "a"}, window_s=1.75)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert result["untimed_text"] is True and result["missing"] == []
    assert spans(result) == [(0, 1.75), (1.25, 3)]
    last = pipe({"audio": audio(waveform[20000:]), "text": "a"})
    assert_alike(result["timeline"][1], last)
    assert "text" not in result["timeline"][1] and "untimed_text" not in last


def test_words_need_a_recording(pipe: MTMMPipeline) -> None:
    with pytest.raises(ValueError, match='"words" have times'):
        pipe({"words": WORDS})


# ---- transcribers --------------------------------------------------------------------------------


class Recogniser:
    """Says how loud it was, and counts its calls."""

    def __init__(self) -> None:
        self.heard: list[np.ndarray] = []

    def __call__(self, given: dict[str, Any]) -> dict[str, Any]:
        assert given["sampling_rate"] == RATE and given["raw"].dtype == np.float32
        self.heard.append(given["raw"])
        return {"text": " loud " if given["raw"].std() > 0.05 else ""}


def test_transcriber_writes_what_is_missing(pipe: MTMMPipeline) -> None:
    recogniser, waveform = Recogniser(), noise(1.0)
    result = pipe(audio(waveform), transcriber=recogniser)
    spoken = pipe({"audio": audio(waveform), "text": "loud"})
    assert result == spoken | {"text": "loud", "transcribed": True}
    np.testing.assert_array_equal(recogniser.heard[0], waveform)
    silent = pipe(audio(waveform / 100), transcriber=recogniser)
    assert (silent["text"], silent["transcribed"], silent["missing"]) == ("", True, ["text"])
    count = len(recogniser.heard)
    for given in ({"text": "a"}, {"words": [WORDS[0]]}):
        with_text = {"audio": audio(waveform)} | given
        assert pipe(with_text, transcriber=recogniser) == pipe(with_text)
    assert pipe({"text": "a"}, transcriber=recogniser) == pipe({"text": "a"})
    assert len(recogniser.heard) == count


def test_transcriber_runs_once_per_window(model: MTMMModel, pipe: MTMMPipeline) -> None:
    recogniser, waveform = Recogniser(), noise(5.0)
    with_ears = MTMMPipeline(model=model, processor=pipe.processor, transcriber=recogniser)
    result = with_ears(audio(waveform), batch_size=2)
    assert [len(heard) for heard in recogniser.heard] == [2 * RATE] * 3
    for entry, heard in zip(result["timeline"], recogniser.heard, strict=True):
        assert entry["transcribed"] and entry["text"] == ("loud" if heard.std() > 0.05 else "")
        assert_alike(entry, pipe({"audio": audio(heard), "text": entry["text"]}))
    segments = [{"start": 1, "end": 2}]
    result = with_ears({"audio": audio(waveform), "segments": segments})
    assert [entry["transcribed"] for entry in result["timeline"]] == [True]


@pytest.fixture(scope="module")
def recogniser_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recogniser of the real classes with random weights."""
    folder = tmp_path_factory.mktemp("asr")
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz'"]
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    sizes |= {"num_hidden_layers": 1, "vocab_size": len(letters)}
    strides = [20, 20, 10]
    config = Wav2Vec2Config(conv_dim=[16] * 3, conv_kernel=strides, conv_stride=strides, **sizes)
    recogniser = Wav2Vec2ForCTC(config)
    torch.nn.init.normal_(recogniser.lm_head.weight)
    recogniser.save_pretrained(folder)
    tokenizer = Wav2Vec2CTCTokenizer(str(vocabulary))
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), tokenizer).save_pretrained(folder)
    return folder


def test_recogniser_of_transformers_is_loaded_by_its_folder(
    pipe: MTMMPipeline, recogniser_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []

    def make(*given: Any, **options: Any) -> Any:
        loads.append(options["model"])
        return transformers.pipeline(*given, **options)

    monkeypatch.setattr(reading_mtmm, "pipeline", make)
    waveform = noise(3.0)
    assert "timeline" in pipe({"audio": audio(waveform)}) and not loads
    result = pipe([audio(waveform), audio(noise(1.0))], transcriber=recogniser_folder)
    assert loads == [str(recogniser_folder)]
    recogniser = transformers.pipeline(
        "automatic-speech-recognition", model=str(recogniser_folder), device="cpu"
    )
    assert isinstance(recogniser, AutomaticSpeechRecognitionPipeline)
    spoken: Any = recogniser(audio(waveform[: 2 * RATE]))
    first = spoken["text"]
    assert first and result[0]["timeline"][0]["text"] == first.strip()
    assert pipe([audio(waveform), audio(noise(1.0))], transcriber=recogniser) == result


def test_transcriber_runs_where_the_model_runs(pipe: MTMMPipeline) -> None:
    recogniser = Recogniser()
    pipe([audio(noise(1.0))], transcriber=recogniser, num_workers=1)
    assert len(recogniser.heard) == 1  # in a worker process, it would not be counted here


def test_transcriber_with_code_of_its_own_is_refused_without_a_question(
    pipe: MTMMPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(question: str) -> str:
        raise AssertionError(f"it asks: {question}")

    monkeypatch.setattr("builtins.input", ask)
    folder = str(tiny.saved())
    with pytest.raises(ValueError, match="custom code"):
        pipe(audio(noise(1.0)), transcriber=folder)


# ---- streams -------------------------------------------------------------------------------------


class Pipe(io.RawIOBase):
    """Bytes that can be read once, and not sought in: as standard input."""

    def __init__(self, data: bytes) -> None:
        self.file = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self.file.readinto(buffer)


def pcm(waveform: np.ndarray) -> np.ndarray:
    return np.round(waveform * 32768).astype("<i2")


def test_every_stream_gives_the_timeline_of_the_file(pipe: MTMMPipeline, long_wav: Path) -> None:
    waveform = noise(7.3)
    expected = pipe(audio(waveform), window_s=2.0, hop_s=1.5)["timeline"]
    raw = pcm(waveform).tobytes()
    odd = iter(np.array_split(waveform, [100, 101, 50_000, 50_000, 90_000]))
    endless = bytearray(encoded(waveform, subtype="PCM_16"))
    endless[4:8] = endless[40:44] = b"\xff\xff\xff\xff"  # as ffmpeg writes into a pipe
    streams = {
        "wav": (Pipe(encoded(waveform, subtype="PCM_16")), None),
        "24 bits, stereo": (Pipe(encoded(np.stack([waveform] * 2, 1), subtype="PCM_24")), None),
        "32 bits": (io.BufferedReader(Pipe(encoded(waveform, subtype="PCM_32"))), None),
        "length unknown": (Pipe(bytes(endless)), None),
        "raw": (io.BufferedReader(Pipe(raw)), RATE),
        "chunks": (odd, RATE),
        "integers": (iter(np.array_split(pcm(waveform), 9)), RATE),
        "stereo chunks": (iter(np.array_split(np.stack([waveform] * 2, 1), 7)), RATE),
        "path": (str(long_wav), None),
        "array": (waveform, RATE),
        "dict": ({"audio": iter([waveform])}, RATE),
    }
    for name, (source, rate) in streams.items():
        entries = list(pipe.stream(source, sampling_rate=rate, window_s=2.0, hop_s=1.5))
        np.testing.assert_allclose(spans(entries), spans(expected), err_msg=name)
        for entry, wanted in zip(entries, expected, strict=True):
            assert_alike(entry, wanted, tolerance=1e-3)


def test_result_follows_the_last_sample_of_its_window(pipe: MTMMPipeline) -> None:
    given: list[float] = []

    def microphone() -> Iterator[np.ndarray]:
        for start in range(0, 5 * RATE, 1600):
            given.append((start + 1600) / RATE)
            yield noise(5.0)[start : start + 1600]

    results = pipe.stream(microphone(), sampling_rate=RATE, window_s=1.0, hop_s=0.5)
    assert given == []
    for end in (1.0, 1.5, 2.0):
        assert next(results)["end"] == end == given[-1]


def test_stream_hears_words_and_transcriber(pipe: MTMMPipeline) -> None:
    source = {"audio": iter([noise(4.0)]), "words": WORDS[:3]}
    texts = [entry.get("text") for entry in pipe.stream(source, sampling_rate=RATE)]
    assert texts == ["so you", "won"]
    entries = list(pipe.stream(iter([noise(4.0)]), RATE, transcriber=Recogniser(), top_k=1))
    assert all(entry["transcribed"] and len(entry["scores"]) == 1 for entry in entries)


# ---- in batches, beside short ones -----------------------------------------------------------------


@pytest.mark.parametrize("which", ["pipe", "whisper_pipe"])
def test_long_and_short_inputs_share_batches(
    request: pytest.FixtureRequest, which: str, long_wav: Path
) -> None:
    pipe = request.getfixturevalue(which)
    inputs = [
        audio(noise(0.7)),
        str(long_wav),
        {"text": "hello"},
        {"audio": audio(noise(3.5, seed=1)), "words": WORDS[:3]},
        {"segments": [{"start": 0, "end": 1, "text": "a"}, {"start": 1, "end": 2, "text": "b c"}]},
        {"audio": audio(noise(0.4)), "text": "a"},
    ]
    singles = [pipe(given) for given in inputs]
    for batch_size in (2, 5):
        for result, single in zip(pipe(inputs, batch_size=batch_size), singles, strict=True):
            assert_alike(result, single)
            assert_same_timeline(result.get("timeline", []), single.get("timeline", []))
