"""Offline mode is the Hub's: audio from one's own server is fetched all the same."""

import io
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audio_mtmm import load_audio


def test_own_server_while_the_hub_is_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(800, 0.25), 16000)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("sys.stderr", io.StringIO())  # where the server writes
    try:
        waveform, rate = load_audio(f"http://127.0.0.1:{server.server_port}/a.wav")
        assert rate == 16000 and np.allclose(waveform, 0.25, atol=1e-4)
        with pytest.raises(OSError, match="gone.wav cannot be fetched"):
            load_audio(f"http://127.0.0.1:{server.server_port}/gone.wav")
    finally:
        server.shutdown()
