"""Answer over HTTP: recordings and transcripts in, the pipeline's answers out.

examples:
  mtmm serve out/demo/fused/model
  curl -F audio=@speech.wav -F text="We won!" http://127.0.0.1:8000/predict
  mtmm serve someone/mtmm --revision 1a2b3c --host 0.0.0.0 --port 80

Requests that wait share batches. POST /predict takes a form or an audio file, /stream raw samples
over WebSocket; /health and /metrics are for machines, /docs shows all. A path or URL in a request
is never opened. There is no password and no TLS: put a proxy in front where strangers can reach it.

SIGTERM or Ctrl-C: no new connection is taken, what was asked is answered, and the exit status is 0.
"""

import argparse
from pathlib import Path

from mtmm_training.commands.flags import declare


def add_flags(parser: argparse.ArgumentParser) -> None:
    declare(parser, "machine", "serve")


def run(given: argparse.Namespace) -> None:
    """Serves until it is stopped."""
    from mtmm_training.commands.predict_work import load_pipeline, transcriber_of
    from mtmm_training.serving import server  # before the model: it comes with an extra
    from mtmm_training.serving.limits import Limits
    from reference_mtmm import References

    pipe = load_pipeline(given)
    always = transcriber_of(given, pipe)
    if given.reference is not None:
        always["reference"] = References.of(given.reference)
    names = ("max_bytes", "max_seconds", "timeout_s", "queue", "streams", "batch_size")
    numbers = {name: getattr(given, name) for name in names}
    limits = Limits(**numbers, wait_s=given.wait_ms / 1000)
    name = "/".join(Path(given.model).parts[-2:])  # no private path of this machine
    server.serve(pipe, limits, name, given.host, given.port, always)
