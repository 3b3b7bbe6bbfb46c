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

from mtmm_training.commands.flags import Advanced, count, whole
from mtmm_training.commands.predict import add_machine_flags, find_model


def seconds(text: str) -> float:
    """A number of seconds above 0."""
    if not 0 < (value := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be above 0")
    return value


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder of a model or run, or an id on the Hub")
    add_machine_flags(parser.add_argument)
    add = parser.add_argument_group("answers").add_argument
    add("--reference", nargs="+", metavar="FILE",
        help="files of `mtmm reference`, for every recording")  # fmt: skip
    add("--transcriber", metavar="PLACE",
        help="a speech recogniser of transformers, for recordings without a transcript")  # fmt: skip
    add = parser.add_argument_group("service").add_argument
    add("--host", default="127.0.0.1", help="0.0.0.0 for other machines")
    add("--port", type=whole, default=8000, help="0 = any that is free")
    add("--max_bytes", type=count, default=25_000_000, metavar="N", help="of a request")
    add("--max_seconds", type=seconds, default=600.0, metavar="S", help="of a recording")
    add("--timeout_s", type=seconds, default=60.0, metavar="S",
        help="for a request, and between the messages of a stream")  # fmt: skip
    add("--queue", type=count, default=256, metavar="N", help="requests at a time; others get 503")
    add("--streams", type=count, default=8, metavar="N", help="streams at a time")
    add("--wait_ms", type=whole, default=5, metavar="MS",
        help=Advanced("how long a request waits for others to share a batch"))  # fmt: skip


def run(given: argparse.Namespace) -> None:
    """Serves until it is stopped."""
    from mtmm_training.serving import server  # before the model: it comes with an extra

    find_model(given)
    from mtmm_training.commands.predict_work import load_pipeline, transcriber_of
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
