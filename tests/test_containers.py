"""What a file's header says of its length, and what is there; files that libsndfile does not read."""

import io
import re
import struct
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from bad_inputs.audio import without_end
from conftest import RATE, encoded

import audio_mtmm
from audio_mtmm import load_audio, open_recording
from containers_mtmm import _frame, corrected, what_it_is
from mtmm_training.data.recordings import Recordings
from pipeline_mtmm import MTMMPipeline

RNG = np.random.default_rng(0)
LOUD = RNG.uniform(-0.8, 0.8, 3 * RATE).astype(np.float32)
QUIET = 0.001 * np.sin(0.02 * np.arange(5 * RATE)).astype(np.float32)
SPEECH = RNG.uniform(-0.5, 0.5, 4 * RATE).astype(np.float32)


def bare_mp3(*parts: np.ndarray) -> bytes:
    """Of variable bit rate, without the first frame, which counts the others."""
    data = encoded(np.concatenate(parts), "MP3")
    size = (_frame(data[:4]) or (0,))[0]
    return data[size:]


def in_wav(data: bytes) -> bytes:
    """An mp3 inside a wav."""
    form = struct.pack("<HHIIHHH", 0x55, 1, RATE, 4000, 1, 0, 0)
    body = (
        b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data))
    )
    return b"RIFF" + struct.pack("<I", len(body) + len(data)) + body + data


def told(data: bytes, marker: bytes, size: int, order: str = "<I") -> bytes:
    """With another size behind the marker."""
    place = data.index(marker) + len(marker)
    return data[:place] + struct.pack(order, size) + data[place + struct.calcsize(order) :]


def flac_told(samples: int) -> bytes:
    data = bytearray(encoded(SPEECH, "FLAC"))
    value = int.from_bytes(data[18:26], "big") >> 36 << 36 | samples
    data[18:26] = value.to_bytes(8, "big")
    return bytes(data)


MADE: dict[str, tuple[Callable[[], bytes], float]] = {
    "mp3 of variable rate, loud first": (lambda: bare_mp3(LOUD, QUIET), 8.0),
    "mp3 of variable rate, quiet first": (lambda: bare_mp3(QUIET, LOUD), 8.0),
    "mp3 with a tag before and behind": (
        lambda: b"ID3\3\0\0\0\0\2\0" + bytes(256) + bare_mp3(LOUD, QUIET) + b"TAG" + bytes(125),
        8.0,
    ),
    "two mp3 in one": (lambda: encoded(SPEECH, "MP3") * 2, 8.1),
    "mp3 in a wav": (lambda: in_wav(bare_mp3(LOUD, QUIET)), 8.0),
    "wav that says half": (lambda: told(encoded(SPEECH, "WAV"), b"data", 2 * RATE), 4.0),
    "wav that says nothing is there": (lambda: told(encoded(SPEECH, "WAV"), b"data", 0), 4.0),
    "aiff that says half": (lambda: told(encoded(SPEECH, "AIFF"), b"SSND", 2 * RATE, ">I"), 4.0),
    "au that says half": (lambda: told(encoded(SPEECH, "AU"), b".snd\0\0\0\x18", RATE, ">I"), 4.0),
    "au that says nothing is there": (
        lambda: told(encoded(SPEECH, "AU"), b".snd\0\0\0\x18", 0, ">I"),
        4.0,
    ),
    "caf that says half": (lambda: told(encoded(SPEECH, "CAF"), b"data", 2 * RATE, ">q"), 4.0),
    "caf whose recorder was stopped": (
        lambda: told(encoded(SPEECH, "CAF"), b"data", -1, ">q"),
        4.0,
    ),
    "rf64 that says half": (
        lambda: told(encoded(SPEECH, "RF64"), b"ds64" + struct.pack("<IQ", 28, 128096), RATE, "<Q"),
        4.0,
    ),
    "rf64 that says nothing is there": (
        lambda: told(encoded(SPEECH, "RF64"), b"ds64" + struct.pack("<IQ", 28, 128096), 0, "<Q"),
        4.0,
    ),
    "flac that says less": (lambda: flac_told(8000), 4.0),
    "flac that says nothing": (lambda: flac_told(0), 4.0),
    "wav with a long chunk behind": (
        lambda: encoded(SPEECH, "WAV") + b"LIST" + struct.pack("<I", 50000) + b"\x81" * 50000,
        4.0,
    ),
    "wav with room of zeros behind": (lambda: encoded(SPEECH, "WAV") + bytes(50000), 4.0),
}


@pytest.mark.parametrize("name", MADE)
def test_all_that_is_there_is_heard(
    name: str, tmp_path: Path, pipe: MTMMPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And prediction, training and folds agree on its length."""
    monkeypatch.setattr(audio_mtmm, "av", None)
    make, seconds = MADE[name]
    path = tmp_path / "speech.bin"
    path.write_bytes(make())
    waveform, rate = load_audio(path)
    assert len(waveform) / rate == pytest.approx(seconds, abs=0.2)
    answer = pipe(path, window_s=1.0)
    assert answer["timeline"][-1]["end"] == pytest.approx(len(waveform) / rate, abs=1e-3)
    known = Recordings().of([str(path)])[str(path)]
    assert known.duration_s == pytest.approx(len(waveform) / rate)


def test_samples_are_what_was_written() -> None:
    data = told(encoded(SPEECH, "WAV"), b"data", 0)
    assert np.abs(load_audio(data)[0] - SPEECH).max() < 1e-4
    part, _ = load_audio(data, 2.0, 3.0)
    assert np.abs(part - SPEECH[2 * RATE : 3 * RATE]).max() < 1e-4


@pytest.mark.parametrize("form", ["WAV", "FLAC", "MP3", "AIFF", "OGG", "AU", "CAF"])
def test_a_true_header_is_left(form: str) -> None:
    assert open_recording(encoded(SPEECH, form)).duration_s == 4.0


JOINED: dict[str, tuple[Callable[[], bytes], float]] = {
    "two ogg in one": (lambda: encoded(SPEECH, "OGG") * 2, 8.0),
    "two opus in one": (lambda: encoded(SPEECH, "OGG", "OPUS") * 2, 8.0),
    "two flac in one": (lambda: encoded(SPEECH, "FLAC") * 2, 8.0),
}


@pytest.mark.parametrize("name", JOINED)
def test_longer_than_said_is_heard_whole_or_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, seconds = JOINED[name]
    if find_spec("av"):
        assert open_recording(make()).duration_s == pytest.approx(seconds, abs=0.05)
    monkeypatch.setattr(audio_mtmm, "av", None)
    with pytest.raises(ValueError, match="its header says .* length, and more is there"):
        open_recording(make())


@pytest.mark.parametrize("rate, channels, samples", [(8000, 1, 100), (44100, 2, 70001)])
def test_flac_is_counted_by_its_last_frame(rate: int, channels: int, samples: int) -> None:
    data = encoded(RNG.uniform(-0.5, 0.5, (samples, channels)), "FLAC", "PCM_24", rate)
    count = int.from_bytes(data[18:26], "big")
    wrong = data[:18] + (count >> 36 << 36 | 1).to_bytes(8, "big") + data[26:]
    assert corrected(io.BytesIO(wrong)).read() == data


def test_a_cut_off_caf_is_refused_also_where_ffmpeg_reads_it() -> None:
    with pytest.raises(ValueError, match="cut off or damaged"):
        open_recording(encoded(SPEECH, "CAF")[:60000])


@pytest.mark.parametrize(
    "form", ["NIST", "AU", "AIFF", "CAF", "W64", "VOC", "IRCAM", "WAV", "FLAC"]
)
def test_a_file_that_is_cut_in_its_header_has_no_sound(form: str) -> None:
    """Also where FFmpeg would read its text as samples."""
    data = encoded(SPEECH, form)
    for size in range(1, 1024 if form in ("NIST", "IRCAM") else 44, 9):
        with pytest.raises(ValueError, match="cannot be decoded|has no audio|cut off"):
            load_audio(data[:size])


@pytest.mark.parametrize("form", ["RF64", "W64", "NIST", "VOC", "SVX", "MAT4"])
def test_a_cut_off_file_whose_decoder_says_nothing(form: str) -> None:
    data = encoded(SPEECH, form)
    for share in (0.5, 0.9):
        with pytest.raises(ValueError, match="cut off after") as error:
            load_audio(data[: int(share * len(data))])
        assert float(re.findall(r"[\d.]+ s", str(error.value))[0][:-2]) == pytest.approx(
            4 * share, abs=0.05
        )


def test_gsm_is_cut_by_segments() -> None:
    data = encoded(SPEECH, "WAV", "GSM610")
    whole, part = load_audio(data)[0], load_audio(data, 1.0, 2.5)[0]
    assert np.array_equal(part, whole[RATE : int(2.5 * RATE)])


# ---- what libsndfile does not read ---------------------------------------------------------------


def media(form: str, codec: str, rate: int) -> bytes:
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        samples = (SPEECH[None] * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.rate, frame.pts = RATE, 0
        size = stream.codec_context.frame_size or None
        kind = stream.codec_context.format
        resampler = av.AudioResampler(format=kind, layout="mono", rate=rate, frame_size=size)
        for part in (*resampler.resample(frame), *resampler.resample(None), None):
            container.mux(stream.encode(part))
    return file.getvalue()


FORMS = [("ipod", "aac", RATE), ("mp4", "aac", 44100), ("webm", "libopus", 48000),
         ("amr", "libopencore_amrnb", 8000), ("adts", "aac", RATE), ("mov", "aac", RATE),
         ("wav", "g722", RATE), ("caf", "alac", RATE), ("rm", "ac3", 48000)]  # fmt: skip


@pytest.mark.parametrize("form, codec, rate", FORMS)
def test_media_is_decoded(form: str, codec: str, rate: int) -> None:
    data = media(form, codec, rate)
    recording = open_recording(data)
    assert recording.sampling_rate == rate
    assert recording.duration_s == pytest.approx(4.0, abs=0.15)
    assert 0.05 < np.sqrt(np.square(recording.whole(RATE)).mean()) < 0.4
    with pytest.raises(ValueError, match="cannot be decoded|cut off"):
        open_recording(data[: len(data) // 2])


def test_what_only_ffmpeg_reads_is_found_behind_other_beginnings() -> None:
    tagged = b"ID3\4\0\0\0\0\0\x15" + bytes(21) + media("adts", "aac", RATE)
    others = [media("mpegts", "mp2", RATE), media("ac3", "ac3", 48000), media("mp2", "mp2", 48000)]
    for data in (tagged, *others):
        assert open_recording(data).duration_s == pytest.approx(4.0, abs=0.15)
    with pytest.raises(ValueError, match="mp4 or m4a; FFmpeg cannot read it: .* cut off"):
        open_recording(media("ipod", "aac", RATE)[:9000])


def test_ogg_of_ffmpeg_is_cut_off_where_its_last_page_is_not_whole() -> None:
    data = media("ogg", "flac", RATE)
    assert open_recording(data).duration_s == 4.0
    for size in (len(data) // 2, len(data) - 3):
        with pytest.raises(ValueError, match="cut off after"):
            open_recording(data[:size])


@pytest.mark.parametrize("codec", ["OPUS", "VORBIS"])
def test_ogg_whose_recorder_marks_no_end(codec: str) -> None:
    """BCR 922: what Android records; where it is cut off, its last page is not whole."""
    pytest.importorskip("av")
    data = encoded(SPEECH, "OGG", codec)
    whole = without_end(data)
    assert open_recording(whole).duration_s == pytest.approx(4.0, abs=0.02)
    with pytest.raises(ValueError, match="cut off"):
        load_audio(whole[:-3])


def test_media_without_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = media("ipod", "aac", RATE)
    monkeypatch.setattr(audio_mtmm, "av", None)
    with pytest.raises(ValueError, match=r"mp4 or m4a; install the extra `media`"):
        open_recording(data)


OTHERS: dict[bytes, str] = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:1": "git lfs pull",
    b"<!DOCTYPE html><html>": "web page",
    b'\n{"audio_filepath": "a.wav"}': "JSON; a manifest ends in",
    b'[{"audio": 1}]': "JSON",
    b"PK\x03\x04abc": "zip",
    b"PAR1abc": "Parquet",
    b"only words": "text",
    b"": "empty",
    b"\x01\x02\x03": "no known kind",
    b"\0\0\0\x20ftypM4A ": "m4a",
    b"#!AMR\n": "amr",
    b"0&\xb2u\x8ef\xcf\x11": "wma",
    b"RIFF\4\0\0\0WAVEfmt \x10\0\0\0": "damaged; install",
    b"\0\5\x16\7\0\2\0\0Mac OS X": "macOS",
    b"/annex/objects/SHA256E-s9--a.wav": "git annex get",
    b"#EXTM3U\nhttp://127.0.0.1:1/a.ts\n": "a playlist",
    b"\x89PNG\r\n\x1a\n": "a picture",
    b"7z\xbc\xaf\x27\x1c": "unpack it",
    bytes(64): "zeros",
}


@pytest.mark.parametrize("head", OTHERS)
def test_what_is_no_audio_is_called_by_its_name(head: bytes) -> None:
    assert OTHERS[head] in what_it_is(head)
    with pytest.raises(ValueError, match="cannot be decoded|no audio"):
        load_audio(head)
