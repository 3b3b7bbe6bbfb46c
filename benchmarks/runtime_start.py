"""The runtime without torch in its three precisions: size, answers, speed, and start to first answer.

    python benchmarks/runtime_start.py [--python venv/bin/python] [--encoders real] [--precisions int8]

Each export is read by a process of its own, of the interpreter of --python (this one if not given), which
needs `pip install ./runtime` and nothing else. Start to first answer is from the start of that process
to its end, with the interpreter and all imports: one utterance of 3.6 s with a transcript, as a file, on
one thread. Its CPU seconds stand beside it: on a machine that others use too, they are what it takes. The
same utterance is then timed warm, on --threads, against the pipeline. Answers are compared with the
pipeline's, over utterances of IEMOCAP-like lengths.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

import batched_pipeline
import common
import numpy as np
import soundfile

from mtmm_training.publishing.export import Precision, size_of
from mtmm_training.publishing.folder import GRAPH, write_folder

TOLERANCE, START_S, RATE = 1e-4, 1.5, 16000
SPEED = {"float32": 1.0, "int8": 0.8}  # an answer ÷ the pipeline's
FIRST = """
import sys
sys.modules["torch"] = None  # as where it is not installed
import mtmm_runtime
mtmm_runtime.load(sys.argv[1], threads=1)({"audio": sys.argv[2], "text": "so it is"})
assert "transformers" not in sys.modules
"""
ALL = """
import json, statistics, sys, time
sys.modules["torch"] = None
import mtmm_runtime
predict = mtmm_runtime.load(sys.argv[1], threads=int(sys.argv[3]))
inputs = [{"audio": f"{sys.argv[2]}/{i}.wav", "text": text} for i, text in enumerate(json.load(sys.stdin))]
answers, seconds = predict(inputs), []
for _ in range(int(sys.argv[4])):
    began = time.perf_counter()
    predict(inputs[0])
    seconds.append(time.perf_counter() - began)
print(json.dumps({"answers": answers, "ms": 1000 * statistics.median(seconds)}))
"""


def main() -> None:
    parser = common.make_parser(__doc__, rounds=10)
    parser.add_argument("--python", default=sys.executable, help="an interpreter with the runtime")
    parser.add_argument("--precisions", nargs="+", default=get_args(Precision))
    batched_pipeline.add_encoders(parser)
    arguments, device = common.begin(parser)
    predict = batched_pipeline.make_pipeline(arguments, device)
    longest_s = 1.0 if arguments.quick else predict.processor.longest_audio_s()
    inputs = batched_pipeline.make_inputs(4 if arguments.quick else 8, longest_s)
    samples = round(min(common.MEDIAN_S, longest_s) * RATE)
    inputs[0]["audio"] = np.resize(inputs[0]["audio"], samples)  # the one that is timed
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, given in enumerate(inputs):
            soundfile.write(folder / f"{number}.wav", given["audio"], RATE, subtype="FLOAT")
        watch = common.Stopwatch(device)
        watch.rounds(arguments.rounds, {"torch": lambda: predict(inputs[0])})
        torch_ms = 1000 * watch.median("torch")
        print(f"the pipeline with torch: {torch_ms:.1f} ms for one utterance")
        print(f"{'':<10}{'MB':>8}{'largest difference':>20}{'ms':>9}{'start s':>9}{'CPU s':>7}")
        for precision in arguments.precisions:
            write_folder(predict.model, predict.processor, folder / precision, precision)
            row = measure(folder, precision, predict, inputs, arguments)
            columns = "{:<10}{:>8.1f}{:>20.2g}{:>9.1f}{:>9.2f}{:>7.2f}"
            print(columns.format(precision, *row), flush=True)
            if precision == "float32":
                common.print_result("largest difference from the pipeline", row[1], TOLERANCE)
            if precision in SPEED:
                common.print_result(f"{precision}: start to first answer, s", row[3], START_S)
                claim = f"{precision}: an answer ÷ the pipeline's"
                common.print_result(claim, row[2] / torch_ms, SPEED[precision])


def measure(
    folder: Path, precision: str, predict: Any, inputs: list[dict[str, Any]], arguments: Any
) -> tuple[float, ...]:
    """MB, the largest difference, ms for the first utterance; start to first answer, its CPU seconds."""
    export, texts = folder / precision, json.dumps([given["text"] for given in inputs])
    here = {"PYTHONPATH": f"{common.ROOT}:{common.ROOT / 'runtime'}"}
    command, path = [arguments.python, "-c"], here if arguments.python == sys.executable else None
    threads, rounds = str(arguments.threads or 2), str(arguments.rounds)
    words = [*command, ALL, str(export), str(folder), threads, rounds]
    found = json.loads(subprocess.check_output(words, input=texts, env=path, text=True))
    apart = batched_pipeline.numbers(found["answers"]) - batched_pipeline.numbers(predict(inputs))
    first = [*command, FIRST, str(export), str(folder / "0.wav")]
    start = min(common.time_process(first, env=path) for _ in range(min(3, arguments.rounds)))
    return size_of(export / GRAPH) / 1e6, float(np.abs(apart).max()), found["ms"], *start


if __name__ == "__main__":
    main()
