"""The processor: waveforms, transcripts, padding and masks, and decoding of files.

What it refuses is in bad_inputs/audio.py and bad_inputs/text.py.
"""

import http.server
import io
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE, WHISPER, encoded, noise
from transformers import (
    AutoProcessor,
    BertConfig,
    BertModel,
    BertTokenizer,
    HubertConfig,
    HubertModel,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

import audio_mtmm
from audio_mtmm import InputError, load_audio, open_recording, resample
from encoders_mtmm import receptive_field
from processing_mtmm import MTMMProcessor
from waveforms_mtmm import to_mono


@pytest.fixture
def processor(tiny_processor: MTMMProcessor) -> MTMMProcessor:
    return tiny_processor


@pytest.fixture
def whisper(whisper_processor: MTMMProcessor) -> MTMMProcessor:
    return whisper_processor


def sine(frequency: float, duration_s: float, rate: int) -> np.ndarray:
    time = np.arange(round(duration_s * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def values(processor: MTMMProcessor, audio: Any, rate: Any = RATE) -> np.ndarray:
    return processor(audio=audio, sampling_rate=rate)["input_values"].numpy()


# ---- waveforms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 96000])
def test_any_rate_keeps_length_and_frequency(processor: MTMMProcessor, rate: int) -> None:
    waveform = values(processor, sine(440, 1.0, rate), rate)[0]
    assert abs(len(waveform) - RATE) <= 1
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    assert abs(spectrum.argmax() * RATE / len(waveform) - 440) < 1.5


def test_resampling_keeps_amplitude_and_removes_what_is_too_high() -> None:
    low, high = sine(1000, 1.0, 48000), sine(12000, 1.0, 48000)
    kept = resample(low, 48000, RATE)[1000:-1000]
    assert abs(kept.std() - low.std()) < 1e-3
    assert resample(high, 48000, RATE)[1000:-1000].std() < 1e-4
    assert resample(low, RATE, RATE) is low


@pytest.mark.parametrize("rate", [np.int64(8000), 8000.0, np.float32(8000), torch.tensor(8000)])
def test_sampling_rate_may_be_any_whole_number(processor: MTMMProcessor, rate: object) -> None:
    assert values(processor, noise(0.5, 8000), rate).shape == (1, 8000)


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_channels_are_averaged_in_both_layouts(processor: MTMMProcessor, channels: int) -> None:
    waveforms = [noise(seed=i) for i in range(channels)]
    for rows in (waveforms, waveforms[:1] * channels):
        expected = values(processor, np.mean(rows, axis=0))
        for layout in (np.stack(rows), np.stack(rows, axis=1)):
            np.testing.assert_allclose(values(processor, layout), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", ">i2"])
def test_integer_pcm_equals_floats(dtype: str) -> None:
    info = np.iinfo(dtype)
    scale, offset = (info.max + 1) / 2 if info.min == 0 else -float(info.min), 128
    pcm = np.array([info.min, info.min // 2, 0, 1, info.max], dtype=dtype)
    centred = pcm.astype(np.float64) - (offset if info.min == 0 else 0)
    np.testing.assert_allclose(to_mono(pcm), centred / (128 if scale == 128 else scale), atol=1e-7)
    assert np.abs(to_mono(pcm)).max() <= 1


def test_integer_stereo_is_scaled_then_averaged() -> None:
    stereo = np.array([[16384, 0], [-32768, -32768], [0, 16384]], dtype=np.int16)
    np.testing.assert_allclose(to_mono(stereo), [0.25, -1.0, 0.25])


def test_every_kind_of_array_gives_the_same(processor: MTMMProcessor) -> None:
    waveform = noise()
    before, expected = waveform.copy(), values(processor, waveform)
    tensor = torch.from_numpy(waveform.copy())
    read_only = waveform.copy()
    read_only.flags.writeable = False
    decoded = SimpleNamespace(data=tensor[None], sample_rate=RATE)
    kinds = {
        "list": waveform.tolist(),
        "numbers": list(waveform),
        "tensor": tensor,
        "with gradient": tensor.clone().requires_grad_(),
        "float64": waveform.astype(np.float64),
        "big-endian": waveform.astype(">f4"),
        "read-only": read_only,
        "reversed": waveform[::-1].copy()[::-1],
        "dict": {"array": waveform, "sampling_rate": RATE, "path": None},
        "decoder": SimpleNamespace(get_all_samples=lambda: decoded),
    }
    for kind, audio in kinds.items():
        np.testing.assert_allclose(values(processor, audio), expected, atol=1e-6, err_msg=kind)
        np.testing.assert_allclose(values(processor, [audio]), expected, atol=1e-6, err_msg=kind)
    for half in (waveform.astype(np.float16), tensor.bfloat16()):
        np.testing.assert_allclose(values(processor, half), expected, atol=2e-2)
    processor(audio=waveform, sampling_rate=RATE)["input_values"].zero_()
    np.testing.assert_array_equal(waveform, before)  # nothing that was given is changed


def test_dict_rate_wins_over_the_argument(processor: MTMMProcessor) -> None:
    audio = {"array": noise(0.5, 8000), "sampling_rate": 8000}
    assert values(processor, audio, RATE).shape == (1, 8000)
    assert values(processor, {"array": noise(0.5)}, RATE).shape == (1, 8000)


@pytest.mark.parametrize(
    ("given", "index"),
    [
        ({"audio": [noise(), None, noise(0.01)], "text": ["a", "b", "c"]}, 2),
        ({"audio": [noise(), noise(41)]}, 1),
        ({"audio": [noise(), "b"]}, 1),
        ({"audio": [{"array": noise(), "sampling_rate": 16}, noise()]}, 0),
        ({"text": ["a", " ", None]}, 1),
        ({"text": ["a", "b", float("nan")]}, 2),
        ({"text": ["a", "b " * 100]}, 1),
    ],
)
def test_refused_utterance_is_numbered(
    processor: MTMMProcessor, given: dict[str, Any], index: int
) -> None:
    with pytest.raises(InputError) as refused:
        processor(**given, sampling_rate=RATE)
    assert refused.value.index == index
    assert isinstance(refused.value.__cause__, (ValueError, TypeError))
    again = pickle.loads(pickle.dumps(refused.value))  # as a worker process hands it over
    assert (again.index, str(again)) == (index, str(refused.value))


@pytest.mark.parametrize(
    "given",
    [{"audio": [noise()] * 2, "text": ["a"]}, {"audio": noise(), "text": ["a", "b"]}, {"text": []}],
)
def test_unequal_lists_are_refused(processor: MTMMProcessor, given: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        processor(**given, sampling_rate=RATE)


def test_limits_hold_in_seconds_at_any_rate(processor: MTMMProcessor) -> None:
    assert values(processor, np.zeros(200, np.float32), 8000).shape == (1, 400)
    assert values(processor, np.zeros(40 * 8000, np.float32), 8000).shape == (1, 40 * RATE)
    with pytest.raises(ValueError, match="at least 0.025 s"):
        processor(audio=np.zeros(199, np.float32), sampling_rate=8000)
    # A rate that is a hundred times too low must not make a hundred times the samples first.
    with pytest.raises(ValueError, match=r"lasts 1e\+04 s; at most 40 s"):
        processor(audio=np.zeros(10_000_000, np.float32), sampling_rate=1000)


def test_library_that_lacks_is_named(
    processor: MTMMProcessor, wav: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio_mtmm, "soxr", None)
    assert values(processor, noise()).shape == (1, 8000)
    with pytest.raises(ImportError, match="8000 to 16000 Hz .*pip install soxr"):
        processor(audio=noise(0.5, 8000), sampling_rate=8000)
    monkeypatch.setattr(audio_mtmm, "soundfile", None)
    with pytest.raises(ImportError, match="pip install soundfile"):
        load_audio(wav)


# ---- padding and masks ---------------------------------------------------------------------------


def test_batch_equals_singles_and_normalisation_ignores_padding(processor: MTMMProcessor) -> None:
    waveforms = [noise(d, seed=i) + 0.1 * i for i, d in enumerate((0.5, 0.03, 1.0))]
    batch = processor(audio=waveforms, sampling_rate=RATE)
    mask = batch["audio_attention_mask"]
    assert mask.sum(-1).tolist() == [8000, 480, 16000]
    assert batch["input_values"].dtype == torch.float32 and mask.dtype == torch.int64
    for row, waveform in enumerate(waveforms):
        single = values(processor, waveform)[0]
        np.testing.assert_array_equal(batch["input_values"][row, : len(single)], single)
        assert mask[row, : len(single)].all() and not mask[row, len(single) :].any()
        assert not batch["input_values"][row, len(single) :].any()
        assert abs(single.mean()) < 1e-4 and abs(single.std() - 1) < 1e-3


def test_features_equal_the_extractor_alone(
    processor: MTMMProcessor, whisper: MTMMProcessor
) -> None:
    waveform = noise(0.7)
    alone = processor.feature_extractor(waveform, sampling_rate=RATE, return_tensors="np")
    np.testing.assert_array_equal(values(processor, waveform), alone["input_values"])
    alone = whisper.feature_extractor(waveform, sampling_rate=RATE, return_tensors="np")
    np.testing.assert_array_equal(values(whisper, waveform), alone["input_features"])


@pytest.mark.parametrize("samples", [400, 401, 479, 480, 481, 8000, 15999, 16000])
def test_whisper_fills_its_window_and_masks_the_rest(whisper: MTMMProcessor, samples: int) -> None:
    batch = whisper(audio=np.ones(samples, np.float32) / 2, sampling_rate=RATE)
    assert batch["input_values"].shape == (1, 20, 100)
    real = -(-samples // 160)
    assert batch["audio_attention_mask"][0].tolist() == [1] * real + [0] * (100 - real)


def test_whisper_refuses_audio_past_its_window(whisper: MTMMProcessor) -> None:
    assert whisper.longest_audio_s() == 1.0
    assert values(whisper, np.zeros(44100, np.float32), 44100).shape == (1, 20, 100)
    for rate in (RATE, 44100):
        with pytest.raises(ValueError, match="at most 1 s"):
            whisper(audio=np.zeros(rate + 1, np.float32), sampling_rate=rate)
    short = MTMMProcessor(whisper.feature_extractor, whisper.tokenizer, max_duration_s=0.5)
    assert short.longest_audio_s() == 0.5
    with pytest.raises(ValueError, match="at most 0.5 s"):
        short(audio=noise(0.6), sampling_rate=RATE)


@pytest.mark.parametrize(
    ("options", "samples", "tokens"),
    [
        ({"padding": True}, 4800, 19),
        ({"padding": "longest"}, 4800, 19),
        ({"max_length": 9, "truncation": True}, 4800, 9),
        ({"text_kwargs": {"max_length": 5, "truncation": True}}, 4800, 5),
        ({"audio_kwargs": {"pad_to_multiple_of": 1000}}, 5000, 19),
    ],
)
def test_options_reach_one_modality(
    processor: MTMMProcessor,
    whisper: MTMMProcessor,
    options: dict[str, Any],
    samples: int,
    tokens: int,
) -> None:
    """Those of lengths that name none reach the text; Whisper's window stays."""
    given: dict[str, Any] = {"audio": noise(0.3), "text": "abcdefghijklmnop", "sampling_rate": RATE}
    batch, log_mel = processor(**given, **options), whisper(**given, **options)
    assert list(batch) == processor.model_input_names
    assert batch["input_values"].shape == (1, samples)
    assert batch["audio_attention_mask"].sum() == 4800
    assert batch["input_ids"].shape == log_mel["input_ids"].shape == (1, tokens)
    assert torch.equal(log_mel["input_values"], whisper(**given)["input_values"])


def test_text_may_be_padded_to_a_fixed_length(processor: MTMMProcessor) -> None:
    batch = processor(
        text=["a", None, "abc"],
        audio=[None, noise(), None],
        sampling_rate=RATE,
        text_kwargs={
            "padding": "max_length",
            "max_length": 12,
            "padding_side": "left",
            "return_attention_mask": False,
        },
    )
    assert batch["input_ids"].shape == (3, 12)
    mask = batch["attention_mask"]
    assert mask.diff(dim=-1).max() <= 0  # real tokens first
    assert mask.sum(-1).tolist()[1] == 0


# ---- missing modalities --------------------------------------------------------------------------


def test_absent_modality_of_one_utterance_has_zero_mask(processor: MTMMProcessor) -> None:
    batch = processor(
        audio=[noise(0.5), None, noise(0.3)], text=["abc", "d", None], sampling_rate=RATE
    )
    assert set(batch) == {"input_values", "audio_attention_mask", "input_ids", "attention_mask"}
    assert batch["audio_attention_mask"].sum(-1).tolist() == [8000, 0, 4800]
    assert not batch["input_values"][1].any()
    assert batch["attention_mask"].any(-1).tolist() == [True, True, False]
    assert (batch["input_ids"][2] == processor.tokenizer.pad_token_id).all()
    singles = processor(audio=[noise(0.5), noise(0.3)], sampling_rate=RATE)
    assert torch.equal(batch["input_values"][[0, 2]], singles["input_values"])
    texts = processor(text=["abc", "d"])
    assert torch.equal(batch["input_ids"][:2], texts["input_ids"])


@pytest.mark.parametrize("text", [None, [None, None], [" ", ""]])
def test_modality_absent_from_the_batch_is_left_out(processor: MTMMProcessor, text: Any) -> None:
    batch = processor(audio=[noise(), noise()], text=text, sampling_rate=RATE)
    assert set(batch) == {"input_values", "audio_attention_mask"}
    for audio in (None, [None, None]):
        assert set(processor(audio=audio, text=["a", "b"])) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("blank", ["", "\n\t", "\u00a0", "\u3000", "\u200b \ufeff", "\0"])
def test_blank_text_is_absent(processor: MTMMProcessor, blank: str) -> None:
    assert "input_ids" not in processor(audio=noise(), text=blank, sampling_rate=RATE)
    with pytest.raises(ValueError, match="neither audio nor text"):
        processor(text=blank)


# ---- text ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("\ufb01ne", "fine"),
        ("\uff48\uff45\uff4c\uff4c\uff4f", "hello"),
        ("  hello ", "hello"),
        ("wait\u2026", "wait..."),
        ("a\u00a0b", "a b"),
    ],
)
def test_text_is_nfkc_normalised(processor: MTMMProcessor, written: str, meant: str) -> None:
    assert torch.equal(processor(text=written)["input_ids"], processor(text=meant)["input_ids"])


def test_texts_equal_the_tokenizer_alone(processor: MTMMProcessor) -> None:
    texts = ["i am fine.", "no"]
    batch = processor(text=texts)
    alone = processor.tokenizer(texts, padding=True, return_tensors="pt")
    assert torch.equal(batch["input_ids"], alone["input_ids"])
    assert torch.equal(batch["attention_mask"], alone["attention_mask"])
    assert "token_type_ids" not in batch
    assert "token_type_ids" not in processor(text=texts, return_token_type_ids=True)
    for row, text in enumerate(texts):
        single = processor(text=text)["input_ids"][0]
        assert torch.equal(batch["input_ids"][row, : len(single)], single)


@pytest.mark.parametrize(("kind", "expected"), [("np", np.ndarray), ("pt", torch.Tensor)])
def test_return_tensors_is_obeyed(processor: MTMMProcessor, kind: str, expected: type) -> None:
    given: dict[str, Any] = {"audio": noise(), "text": "a", "sampling_rate": RATE}
    for batch in (
        processor(**given, return_tensors=kind),
        processor(**given, text_kwargs={"return_tensors": kind}),
    ):
        assert {type(value) for value in batch.values()} == {expected}


# ---- made from encoders, saved and loaded ----------------------------------------------------------


@pytest.fixture(scope="module")
def encoder_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny checkpoints as they lie on the Hub: a model with its feature extractor or tokenizer."""
    root = tmp_path_factory.mktemp("encoders")
    sizes: dict[str, Any] = {
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    hubert = HubertConfig(
        hidden_size=16,
        conv_dim=[8, 8],
        conv_kernel=[10, 8],
        conv_stride=[5, 4],
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer",
        **sizes,
    )
    HubertModel(hubert).save_pretrained(root / "hubert")
    Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(root / "hubert")
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    whisper = WhisperConfig.from_dict(WHISPER | tokens | {"vocab_size": 32})
    WhisperModel(whisper).save_pretrained(root / "whisper")
    extractor = WhisperFeatureExtractor(feature_size=20, chunk_length=1)
    extractor.save_pretrained(root / "whisper")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "i", "am", "fine"]
    bert = BertConfig(hidden_size=16, vocab_size=len(words), max_position_embeddings=24, **sizes)
    BertModel(bert).save_pretrained(root / "bert")
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    tokenizer.save_pretrained(root / "bert")
    return {path.name: path for path in root.iterdir()}


def test_processor_from_encoders_knows_their_limits(encoder_folders: dict[str, Path]) -> None:
    hubert = MTMMProcessor.from_encoders_pretrained(
        str(encoder_folders["hubert"]), str(encoder_folders["bert"])
    )
    config = HubertConfig.from_pretrained(encoder_folders["hubert"])
    assert hubert.min_duration_s == receptive_field(config) / RATE == 45 / RATE
    assert receptive_field(HubertConfig()) == 400
    assert (hubert.max_tokens, hubert.max_duration_s) == (24, 40.0)
    batch = hubert(audio=noise(45 / RATE), text="hello", sampling_rate=RATE)
    assert batch["audio_attention_mask"].sum() == 45
    assert HubertModel(config).eval()(batch["input_values"]).last_hidden_state.shape[1] == 1
    with pytest.raises(ValueError, match="at least"):
        hubert(audio=noise(44 / RATE), sampling_rate=RATE)
    whisper = MTMMProcessor.from_encoders_pretrained(
        str(encoder_folders["whisper"]), str(encoder_folders["bert"]), max_tokens=8
    )
    assert (whisper.longest_audio_s(), whisper.max_tokens) == (1.0, 8)


def test_saved_processor_loads_with_its_limits(
    processor: MTMMProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = "transformers.dynamic_module_utils.HF_MODULES_CACHE"
    monkeypatch.setattr(modules, str(tmp_path / "modules"))
    limits: dict[str, Any] = {"min_duration_s": 0.1, "max_duration_s": 3.5, "max_tokens": 11}
    saved = MTMMProcessor(processor.feature_extractor, processor.tokenizer, **limits)
    saved.save_pretrained(tmp_path / "saved")
    loaded = AutoProcessor.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    assert type(loaded).__name__ == "MTMMProcessor"
    for a_processor in (loaded, MTMMProcessor.from_pretrained(tmp_path / "saved")):
        assert {name: getattr(a_processor, name) for name in limits} == limits
        given: dict[str, Any] = {"audio": [noise(), None], "text": ["abc", "d"]}
        given["sampling_rate"] = RATE
        for name, value in saved(**given).items():
            assert torch.equal(a_processor(**given)[name], value)


# ---- files ---------------------------------------------------------------------------------------

FORMATS = [
    ("wav", "PCM_U8", 2e-2),
    ("wav", "PCM_16", 1e-4),
    ("wav", "PCM_24", 1e-6),
    ("wav", "PCM_32", 1e-6),
    ("wav", "FLOAT", 1e-7),
    ("wav", "DOUBLE", 1e-7),
    ("flac", "PCM_16", 1e-4),
    ("ogg", "VORBIS", 5e-2),
    ("ogg", "OPUS", 0.3),
    ("mp3", "MPEG_LAYER_III", 0.3),
]


@pytest.mark.parametrize(("extension", "subtype", "tolerance"), FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_files_of_every_format_are_decoded(
    tmp_path: Path, extension: str, subtype: str, tolerance: float, channels: int
) -> None:
    written = sine(440, 0.5, RATE)
    path = tmp_path / f"speech.{extension}"
    soundfile.write(path, np.stack([written] * channels, axis=1), RATE, subtype=subtype)
    array, rate = load_audio(path)
    assert rate == RATE and array.dtype == np.float32
    assert array.shape[1:] == (() if channels == 1 else (2,))
    read = to_mono(array)
    assert abs(len(read) - len(written)) <= 1
    inner = slice(1500, 6500)
    assert np.abs(read[inner] - written[inner]).max() < tolerance
    data = path.read_bytes()
    sources: list[Any] = [str(path), data, bytearray(data), memoryview(data), io.BytesIO(data)]
    for source in sources:
        np.testing.assert_array_equal(load_audio(source)[0], array)
    with open(path, "rb") as file:
        np.testing.assert_array_equal(load_audio(file)[0], array)


@pytest.fixture(scope="module")
def wav(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audio") / "spoken words.wav"
    soundfile.write(path, noise(2.0), RATE, subtype="FLOAT")
    return path


@pytest.mark.parametrize(
    ("start_s", "end_s", "first", "last"),
    [
        (None, None, 0, 32000),
        (0, 2.0, 0, 32000),
        (0.5, None, 8000, 32000),
        (None, 0.25, 0, 4000),
        (1.0, 1.5, 16000, 24000),
        (1.9, 9.0, 30400, 32000),
        (np.float64(1.0), np.float32(1.5), 16000, 24000),
    ],
)
def test_segment_is_cut_out(
    wav: Path, start_s: float | None, end_s: float | None, first: int, last: int
) -> None:
    array, _ = load_audio(wav, start_s, end_s)
    np.testing.assert_array_equal(array, noise(2.0)[first:last])


@pytest.mark.parametrize("extension", ["wav", "flac", "mp3", "ogg", "aiff", "au"])
def test_what_lies_before_a_cut_is_read(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"speech.{extension}"
    soundfile.write(path, noise(2.0), RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(ValueError, match=f"speech.{extension}' (is cut off|cannot be decoded)"):
        load_audio(path)
    assert len(load_audio(path, 0.1, 0.5)[0]) == 6400


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000, 0x80000000, 16100])
def test_wav_with_careless_sizes_is_read(size: int) -> None:
    """ffmpeg, sox and arecord write such headers into a pipe; some writers err by a few bytes."""
    data = bytearray(encoded(noise(0.5)))
    assert data[36:40] == b"data"
    data[4:8] = data[40:44] = size.to_bytes(4, "little")
    assert len(load_audio(bytes(data))[0]) == 8000


@pytest.fixture(scope="module")
def server(wav: Path) -> Iterator[str]:
    """A web server on this machine that has the recording, and a page."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            pages = {"/a.wav": wav.read_bytes(), "/page": b"<html>hello</html>" * 50}
            if self.path == "/moved.wav":
                self.send_response(302)
                self.send_header("Location", "/a.wav")
                self.end_headers()
            elif self.path in pages:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(pages[self.path])
            else:
                self.send_error(404, "Not Found")

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("page", ["a.wav", "moved.wav"])
def test_url_is_read(server: str, page: str) -> None:
    assert open_recording(f"{server}/{page}").duration_s == 2.0
    array, rate = load_audio(f"{server}/{page}", 0.5, 1.0)
    np.testing.assert_array_equal(array, noise(2.0)[8000:16000])
    assert rate == RATE


def test_bad_url_is_named(server: str) -> None:
    with pytest.raises(OSError, match="missing.wav.*404"):
        load_audio(f"{server}/missing.wav")
    with pytest.raises(ValueError, match="/page cannot be decoded"):
        load_audio(f"{server}/page")
    with pytest.raises(OSError, match="http://127.0.0.1:9/a.wav cannot be fetched"):
        load_audio("http://127.0.0.1:9/a.wav")
