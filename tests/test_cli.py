"""The command `mtmm`: its help, forms of output, exit statuses, and what it needs installed.

Run alone: python -m pytest tests/test_cli.py
"""

import csv
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import unicodedata
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import soundfile
import transformers
from hub_server import HubServer, files_in

from modeling_mtmm import MTMMModel
from mtmm_training.commands import cli, flags, predict
from mtmm_training.commands.cli import main
from mtmm_training.commands.parser import Parser
from mtmm_training.commands.predict_inputs import Input
from mtmm_training.commands.predict_output import rounded
from mtmm_training.data.utterances import Utterance
from mtmm_training.training.ending import WrongUse, hush, run_command
from mtmm_training.training.report import training_data
from pipeline_mtmm import MTMMPipeline
from processing_mtmm import MTMMProcessor

Mtmm = Callable[..., SimpleNamespace]  # the `mtmm` below
Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch
ROOT = Path(__file__).parents[1]
RATE = 16000
EXTRA = ["accelerate", "datasets", "evaluate", "peft", "sklearn", "scipy", "pandas", "pyarrow"]
EXTRA += ["matplotlib", "tensorboard", "sentencepiece", "google.protobuf"]
VERBS = cli.verb_names()


@pytest.fixture(scope="module", autouse=True)
def quiet_libraries() -> None:
    """As in a process of its own, where they read the environment that `hush` has set."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def saved(
    make_model: Callable[..., MTMMModel],
    tiny_processor: MTMMProcessor,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    model = make_model(trained_outputs=("emotion", "valence", "arousal"))
    MTMMPipeline(model=model, processor=tiny_processor).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipe(saved: Path, tiny_processor: MTMMProcessor) -> MTMMPipeline:
    return MTMMPipeline(model=MTMMModel.from_pretrained(saved), processor=tiny_processor)


@pytest.fixture(scope="module")
def wavs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("audio")
    for seed, duration_s in enumerate((0.5, 1.2)):
        noise = np.random.default_rng(seed).uniform(-0.5, 0.5, round(duration_s * RATE))
        soundfile.write(folder / f"speech{seed}.wav", noise, RATE, subtype="PCM_16")
    return sorted(folder.glob("*.wav"))


@pytest.fixture
def mtmm(saved: Path, capsys: Capture) -> Mtmm:
    """Run `mtmm predict` on the saved model in this process."""

    def run(*words: object) -> SimpleNamespace:
        status = main(["predict", *map(str, words), "--model", str(saved), "--device", "cpu"])
        output = capsys.readouterr()
        return SimpleNamespace(status=status, out=output.out, err=output.err)

    return run


def start(*words: object, code: str | None = None, **options: Any) -> subprocess.Popen[str]:
    """`python -m mtmm_training` in a process of its own, or some code."""
    how = ["-m", "mtmm_training"] if code is None else ["-c", code]
    return subprocess.Popen(
        [sys.executable, *how, *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | options.pop("env", {}),
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options,
    )


# ---- the parser ------------------------------------------------------------------------------


def test_help_names_every_verb(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in cli.verb_names():
        assert re.search(rf"^  {name} +\w", shown, re.M)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "mtmm --help"),
        (["predcit"], "predict"),
        (["study"], "mtmm study --help"),
        (["study", "hours"], "hour"),
        (["predict", "a.wav", "--modle", "M"], "--model"),
        (["predict", "a.wav", "--batch", "3"], "--batch_size"),  # never abbreviated
        (["predict", "a.wav"], "--model"),
        (["serve", "M", "--channel", "each"], "is no flag. See"),
    ],
)
def test_wrong_words_name_the_nearest(words: list[str], named: str, capsys: Capture) -> None:
    assert main(words) == 2
    output = capsys.readouterr()
    assert output.out == "" and named in output.err and len(output.err.splitlines()) == 1


@pytest.fixture
def parser() -> Parser:
    parser = Parser("mtmm test", "test")
    parser.add_argument("--batch_size", type=flags.count, help=flags.Advanced("how many"))
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("words", nargs="*")
    return parser


def test_dashes_and_underscores_are_one(parser: Parser) -> None:
    for words in (["--batch-size", "3", "--dry_run"], ["--batch_size=3", "--dry-run"]):
        given = parser.parse_args(words)
        assert (given.batch_size, given.dry_run) == (3, True)
    assert parser.parse_args(["a", "--", "--as-it-is"]).words == ["a", "--as-it-is"]


def test_accents_of_paths_may_be_written_both_ways(parser: Parser, tmp_path: Path) -> None:
    one, two = (unicodedata.normalize(form, str(tmp_path / "é")) for form in ("NFC", "NFD"))
    Path(two).mkdir()
    assert parser.parse_args([one, "é"]).words == [two, "é"]


def test_advanced_flags_are_behind_help_all(parser: Parser, capsys: Capture) -> None:
    for word, shown in (("--help-all", True), ("--help_all", True), ("--help", False)):
        with pytest.raises(SystemExit, match="^0$"):
            parser.parse_args([word])
        assert ("--batch_size" in capsys.readouterr().out) == shown


def examples(text: str) -> list[list[str]]:
    """The commands of `mtmm` in a help text, as words."""
    lines = re.sub(r"\\\n +", "", text).splitlines()
    found = [re.search(r"(?:mtmm_training|\bmtmm) (.*)", line.split(" > ")[0]) for line in lines]
    commands = [match[1].split(" | jq")[0].rstrip("'") for match in found if match]
    return [shlex.split(command) for command in commands if command[0].islower()]


@pytest.mark.parametrize("name", ["", *VERBS])
def test_help_fits_and_its_examples_are_right(
    name: str, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    (tmp_path / "words").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    inner = cli.parser_of(name).verbs if name else None
    for called in [name, *(f"{name} {verb}" for verb in (inner.choices if inner else ()))]:
        assert main([*called.split(), "--help"]) == 0
        shown = capsys.readouterr().out
        lines = shown.splitlines()
        assert len(lines) <= 90 and max(map(len, lines)) <= 100
        for words in examples(shown.partition("\nexamples:\n")[2].partition("\nmore flags")[0]):
            given = cli.parser_of(words[0]).parse_args(words[1:])
            if words[0] == "predict":
                predict.check(given)


LIGHT = """
import sys
from mtmm_training.commands.cli import main
for name in sys.argv[1:]:
    main([name, "--help"]), main([name, "--no-such-flag"])
heavy = {"torch", "numpy", "transformers", "pandas", "matplotlib", "accelerate"} & set(sys.modules)
assert not heavy, heavy
"""


def test_help_and_wrong_use_import_nothing_heavy() -> None:
    process = start("--help", *VERBS, code=LIGHT)
    _, err = process.communicate()
    assert process.returncode == 0, err


# ---- the ending ------------------------------------------------------------------------------


def ended_by(error: BaseException) -> int:
    def work() -> int:
        raise error

    return run_command(work)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("no such fold"), 1, "error: no such fold\n"),
        (WrongUse("--a goes without --b"), 2, "error: --a goes without --b.\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (KeyboardInterrupt("SIGINT: stopped"), 130, "SIGINT: stopped\n"),
        (SystemExit("stopped"), 1, "stopped\n"),
        (SystemExit(), 0, ""),
        (SystemExit(2), 2, ""),
    ],
)
def test_every_end_has_its_status(
    error: BaseException, status: int, said: str, capsys: Capture
) -> None:
    assert ended_by(error) == status
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("package", "extra"), [("pandas.core", "train"), ("onnxruntime", "onnx"), ("gradio", "demo")]
)
def test_missing_package_names_its_extra(
    package: str, extra: str, capsys: Capture, monkeypatch: Patch
) -> None:
    monkeypatch.setitem(sys.modules, package.partition(".")[0], None)
    assert ended_by(ModuleNotFoundError("No module", name=package)) == 1
    said = capsys.readouterr().err
    assert package.partition(".")[0] in said and f"[{extra}]" in said


@pytest.mark.parametrize("package", ["transformers", "pandas.core.gone", "torch"])
def test_package_that_is_there_speaks_for_itself(package: str, capsys: Capture) -> None:
    assert ended_by(ImportError("cannot import name 'Gone'", name=package)) == 1
    assert capsys.readouterr().err == "error: cannot import name 'Gone'\n"


def test_older_transformers_is_named_with_the_version_that_is_needed(
    capsys: Capture, monkeypatch: Patch
) -> None:
    """Whichever of its names is the first that cannot be imported."""
    monkeypatch.delitem(sys.modules, "configuration_mtmm")
    monkeypatch.delattr("transformers.configuration_utils.SubConfigSpec")
    gone = ModuleNotFoundError("No module named 'x'", name="transformers.utils.output_capturing")
    assert ended_by(gone) == 1
    said = f"needs transformers 5.23 or newer; {transformers.__version__} is here"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyError("x"), ImportError("x", name="mtmm_training.gone")])
def test_faults_of_ours_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        ended_by(error)


TERMINATED = """
import os, signal, sys
from mtmm_training.training.ending import hush, run_command
def work():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        print("put away")
sys.exit(run_command(work))
"""


def test_terminated_command_puts_away_its_files() -> None:
    process = start(code=TERMINATED)
    out, err = process.communicate()
    assert (process.returncode, out, err) == (1, "put away\n", "SIGTERM: stopped\n")


@pytest.mark.parametrize("watched", [False, True])
def test_libraries_are_quiet(watched: bool, monkeypatch: Patch) -> None:
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: watched))
    environment = {"TRANSFORMERS_VERBOSITY": "info"}  # a user's own stays
    monkeypatch.setattr(os, "environ", environment)
    with warnings.catch_warnings():
        hush()
    assert environment["TRANSFORMERS_VERBOSITY"] == "info"
    assert environment["HF_HUB_VERBOSITY"] == "error"
    assert ("HF_HUB_DISABLE_PROGRESS_BARS" in environment) != watched


# ---- forms of output -----------------------------------------------------------------------------


def test_json_has_the_pipelines_numbers(mtmm: Mtmm, pipe: MTMMPipeline, wavs: list[Path]) -> None:
    done = mtmm(*wavs, "--json", "--batch_size", 1)
    assert (done.status, done.err) == (0, "")
    records = [json.loads(line) for line in done.out.splitlines()]
    times = [{"start": 0.0, "end": 0.5}, {"start": 0.0, "end": 1.2}]
    for record, wav, own in zip(records, wavs, times, strict=True):
        assert record == rounded({"id": str(wav), **own} | pipe(wav))


def test_csv_has_a_row_for_each_file(mtmm: Mtmm, pipe: MTMMPipeline, wavs: list[Path]) -> None:
    done = mtmm(*wavs, "--csv", "--top_k", 2)
    header, *rows = csv.reader(io.StringIO(done.out))
    assert header == ["id", "emotion", "p_angry", "p_happy", "p_sad", "p_neutral", "valence",
                      "arousal", "missing", "text", "error"]  # fmt: skip
    for row, wav in zip(rows, wavs, strict=True):
        known, expected = dict(zip(header, row, strict=True)), pipe(wav, top_k=2)
        assert known["id"] == str(wav) and known["emotion"] == expected["emotion"]
        assert float(known["valence"]) == pytest.approx(expected["valence"], abs=1e-4)
        shares = {name: known[f"p_{name}"] for name in ("angry", "happy", "sad", "neutral")}
        assert {name for name, share in shares.items() if share} == set(expected["scores"])
        assert known["missing"] == "text" and known["error"] == ""


def test_timeline_has_a_row_for_each_window(
    mtmm: Mtmm, pipe: MTMMPipeline, wavs: list[Path]
) -> None:
    given = ("--window_s", "0.5", "--hop_s", "0.25", "--timeline")
    expected = pipe(wavs[1], window_s=0.5, hop_s=0.25)["timeline"]
    assert len(expected) == 4
    times = [(e["start"], e["end"]) for e in expected]
    rows = list(csv.DictReader(io.StringIO(mtmm(wavs[1], *given, "--csv").out)))
    assert [(float(r["start"]), float(r["end"])) for r in rows] == times
    arousal = [e["arousal"] for e in expected]
    assert [float(r["arousal"]) for r in rows] == pytest.approx(arousal, abs=1e-4)
    lines = mtmm(wavs[1], *given, "--json", "--batch_size", 1).out.splitlines()
    assert [json.loads(line) for line in lines] == [
        rounded({"id": str(wavs[1])} | entry) for entry in expected
    ]
    (short,) = csv.DictReader(io.StringIO(mtmm(wavs[0], "--timeline", "--csv").out))
    assert (short["start"], short["end"]) == ("0.0", "0.5")
    first, *windows = mtmm(wavs[1], *given).out.splitlines()
    assert first.startswith(f"{wavs[1]}: ") and "mean of 4 windows, 1.20 s" in first
    shown = [[f"{start:.2f}", f"{end:.2f}", "s"] for start, end in times]
    assert [line.split()[:3] for line in windows] == shown


def test_model_says_what_it_was_trained_on(
    make_model: Callable[..., MTMMModel],
    tiny_processor: MTMMProcessor,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    said = {"corpora": {"synthetic": 960}, "speakers": 8, "artificial": ["synthetic"]}
    model = make_model(trained_outputs=("valence",), training_data=said)
    MTMMPipeline(model=model, processor=tiny_processor).save_pretrained(tmp_path)
    assert main(["predict", "--transcript", "no", "--model", str(tmp_path)]) == 0
    trained = "trained on 960 utterances of artificial speech, synthetic by 8 speakers"
    assert f"{tmp_path}: {trained}" in capsys.readouterr().err
    utterances = [Utterance(utterance_id="a", corpus="calls", text="a", speaker_id="anna")]
    assert training_data(utterances, said) == {
        "corpora": {"synthetic": 960, "calls": 1}, "speakers": 8, "artificial": ["synthetic"],
    }  # fmt: skip


def test_line_for_people(mtmm: Mtmm, pipe: MTMMPipeline, wavs: list[Path]) -> None:
    expected = pipe({"audio": wavs[0], "text": "so you won"})
    scores = ", ".join(f"{name} {share:.0%}" for name, share in expected["scores"].items())
    values = f"valence {expected['valence']:.2f}, arousal {expected['arousal']:.2f} (1 to 5)"
    done = mtmm(wavs[0], "--transcript", "so you won")
    assert (done.status, done.out) == (0, f"{wavs[0]}: {scores}; {values}\n")
    done = mtmm(wavs[0], "--transcript", "so you won", "--min_confidence", 0.99)
    assert done.out == f"{wavs[0]}: unsure: {scores}; {values}\n"
    (row,) = csv.DictReader(io.StringIO(mtmm(wavs[0], "--min_confidence", 1, "--csv").out))
    assert row["emotion"] == "" and float(row["p_sad"]) > 0


def test_words_alone_and_from_files(
    mtmm: Mtmm, pipe: MTMMPipeline, wavs: list[Path], tmp_path: Path
) -> None:
    record = json.loads(mtmm("--transcript", "so you won", "--json").out)
    assert record == rounded({"id": "transcript"} | pipe({"text": "so you won"}))
    words = [{"text": "no", "start": 0.1, "end": 0.3}, {"text": "go", "start": 0.8, "end": 0.9}]
    (tmp_path / "speech1.json").write_text(json.dumps({"segments": words}))
    record = json.loads(mtmm(wavs[1], "--transcript_file", tmp_path / "speech1.json", "--json").out)
    assert [entry["text"] for entry in record["timeline"]] == ["no", "go"]
    done = mtmm(*wavs, "--transcript_file", tmp_path, "--json")
    assert done.err == f"1 of 2 inputs have no transcript in {tmp_path}; it has speech1.json\n"
    assert [json.loads(line)["missing"] for line in done.out.splitlines()] == [["text"], []]


def test_untrained_outputs_are_named_and_left_out(
    make_model: Callable[..., MTMMModel],
    tiny_processor: MTMMProcessor,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    model = make_model(trained_outputs=("valence",))
    MTMMPipeline(model=model, processor=tiny_processor).save_pretrained(tmp_path)
    words = ["predict", "--transcript", "no", "--model", str(tmp_path)]
    assert main(words) == 0
    output = capsys.readouterr()
    assert re.fullmatch(r"transcript: valence \d\.\d\d \(1 to 5\); no audio\n", output.out)
    assert f"{tmp_path} was never trained on arousal; it is left out" in output.err
    assert main([*words, "--csv"]) == 0
    assert capsys.readouterr().out.startswith("id,valence,missing,text,error\n")


def test_transcriber_is_loaded_once_and_first(
    mtmm: Mtmm, wavs: list[Path], monkeypatch: Patch
) -> None:
    made = []

    def fake(task: str, model: str, **options: object) -> Callable[..., Any]:
        made.append((task, model))
        return lambda audio: {"text": "so you won"}

    monkeypatch.setattr(transformers, "pipeline", fake)
    done = mtmm(*wavs, "--transcriber", "some/recogniser")
    assert made == [("automatic-speech-recognition", "some/recogniser")]
    assert done.out.count("recognised “so you won”") == 2


def test_explanation_is_said_and_kept(mtmm: Mtmm, pipe: MTMMPipeline, wavs: list[Path]) -> None:
    given = {"audio": wavs[0], "text": "so you won"}
    expected = pipe(given, explain="valence")["explanation"]
    words = (wavs[0], "--transcript", "so you won", "--explain", "valence")
    record = json.loads(mtmm(*words, "--json").out)
    assert record["explanation"]["modalities"] == rounded(expected["modalities"])
    _, read, fall = mtmm(*words).out.splitlines()
    assert read.startswith("      read: audio 50%, text 50%, ")
    assert fall.startswith("      fall of valence without it: audio ")
    assert "log p(" in mtmm(*words[:-1], "emotion").out
    most = max(word["share"] for word in expected["words"])
    assert f"{most:.0%}" in read
    row = next(csv.DictReader(io.StringIO(mtmm(*words, "--csv").out)))
    assert rounded(json.loads(row["explanation"])) == record["explanation"]
    done = mtmm(*words[:-1], "dominance")
    assert done.status == 1 and "dominance" in done.err


def test_pictures_are_drawn_and_overwrite_nothing(
    mtmm: Mtmm, wavs: list[Path], tmp_path: Path
) -> None:
    explained = ("--explain", "emotion", "--plot")
    long = shutil.copy(wavs[0], tmp_path / f"{'x' * 240}.wav")
    for _ in range(2):
        assert mtmm(long, "--transcript", "no", *explained, tmp_path / "whole").status == 0
    assert mtmm(wavs[1], "--window_s", "0.7", *explained, tmp_path).status == 0
    first, second = f"{'x' * 146}.wav", re.sub(r"[^\w.-]+", "_", str(wavs[1]))
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")} == {
        *("whole/plane.png", "whole/plane_2.png", "plane.png"),
        *(f"whole/{first}.explanation.png", f"whole/{first}.explanation_2.png"),
        f"{second}.timeline.png",
        f"{second}_00000.00_s.explanation.png",
        f"{second}_00000.50_s.explanation.png",
    }


# ---- exit statuses -------------------------------------------------------------------------------


def test_failures_are_named_and_counted(mtmm: Mtmm, wavs: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF")
    done = mtmm(wavs[0], broken, "gone.wav", wavs[1], "--json")
    assert done.status == 1
    records = [json.loads(line) for line in done.out.splitlines()]
    assert ["error" in record for record in records] == [False, True, True, False]
    first, second, last = done.err.splitlines()
    assert first.startswith(f"{broken}: ") and second.startswith("gone.wav: ")
    assert last.startswith("2 of 4 ")
    assert "gone.wav" not in mtmm("gone.wav", wavs[0]).out  # lines for people: results only


def test_stop_ends_at_the_first_failure(mtmm: Mtmm, wavs: list[Path]) -> None:
    done = mtmm(wavs[0], "gone.wav", wavs[1], "--on_error", "stop", "--json")
    assert done.status == 1 and len(done.out.splitlines()) == 1
    assert "gone.wav: " in done.err


def test_answers_are_printed_as_they_come(
    mtmm: Mtmm, wavs: list[Path], monkeypatch: Patch, capsys: Capture
) -> None:
    """The first answer is out before the third batch is read."""
    seen: list[str] = []

    def given(one: Input) -> dict[str, Any]:
        seen.append(capsys.readouterr().out)
        return {"text": "so you won"}

    monkeypatch.setattr(Input, "given", given)
    done = mtmm(*wavs, "a.wav", "b.wav", "--batch_size", 1, "--json")
    printed = "".join([*seen, done.out]).splitlines()
    assert len(printed) == 4 and done.status == 0
    assert str(wavs[0]) in "".join(seen[:3])


@pytest.mark.parametrize(
    ("words", "status", "named"),
    [
        ([], 2, "no INPUT"),
        (["a.wav", "b.wav", "--transcript", "no"], 2, "--transcript_file"),
        (["a.wav", "b.wav", "--transcript_file", "a.txt"], 2, "--transcript_file"),
        (["m.csv", "--transcript", "no"], 2, "manifest"),
        (["m.csv", "--transcript_file", "."], 2, "manifest"),
        ([".", "--transcript", "no"], 2, "one audio file"),
        (["a.wav", "--transcript", "no", "--transcript_file", "a.txt"], 2, "--transcript"),
        (["--transcript_file", "."], 2, "no INPUT"),
        (["a.wav", "--json", "--csv"], 2, "--csv"),
        (["a.wav", "--out", "o", "--timeline"], 2, "--timeline"),
        (["-", "a.wav"], 2, "- goes without"),
        (["a.wav", "--sampling_rate", "8000"], 2, "--sampling_rate"),
        (["a.wav", "--batch_size", "0"], 2, "--batch_size"),
        (["gone.csv"], 1, "gone.csv"),
        (["a.wav", "--transcript_file", "gone.txt"], 1, "gone.txt"),
        (["--transcript", "no", "--window_s", "99"], 1, "window_s=99.0"),
        (["--transcript", "no", "--transcriber", ""], 1, "--transcriber"),
    ],
)
def test_wrong_words_and_places_are_named(
    mtmm: Mtmm, words: list[str], status: int, named: str
) -> None:
    done = mtmm(*words)
    assert (done.status, done.out) == (status, "")
    assert named in done.err and "Traceback" not in done.err


@pytest.mark.parametrize(
    ("rank", "size"), [("two", "2"), ("2", "2"), ("-1", "2"), ("0", "0"), ("1", "1"), (None, "2")]
)
def test_impossible_process_number_is_refused(
    mtmm: Mtmm, tmp_path: Path, monkeypatch: Patch, rank: str | None, size: str
) -> None:
    """It would leave parts that no process makes; two processes (the last case) need --out."""
    monkeypatch.setenv("WORLD_SIZE", size)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    out = () if rank is None else ("--out", tmp_path / "out")
    assert mtmm("--transcript", "no", *out).status == 2


def test_runs_folder_stands_for_its_model(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "run" / "model")
    words = ["predict", "--transcript", "no", "--device", "cpu", "--model", str(tmp_path / "run")]
    assert main(words) == 0


@pytest.mark.parametrize(
    "words",
    ["--model gone", "--model ./gone/model", "--model some/one", "--device abacus --model gone"],
)
def test_place_that_is_nowhere_is_named(words: str, capsys: Capture, monkeypatch: Patch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert main(["predict", "--transcript", "no", *words.split()]) == 1
    assert words.partition(" --model")[0] in capsys.readouterr().err


def test_interrupt_and_closed_pipe_are_quiet(saved: Path, tmp_path: Path) -> None:
    """Ctrl-C while it waits for standard input; and a reader that has seen enough."""
    raw = ("--sampling_rate", RATE, "--window_s", "0.5")
    # A test run in a shell's background has SIGINT ignored, and children inherit that.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    words = ("predict", "-", *raw, "--model", saved)
    waiting = start(*words, stdin=subprocess.PIPE, preexec_fn=heard)
    assert waiting.stdin and waiting.stdout and waiting.stderr
    waiting.stdin.write("ab" * RATE)  # two windows; the end never comes
    waiting.stdin.flush()
    many = tmp_path / "m.csv"
    many.write_text("text\n" + "no\n" * 2000)
    reader = start("predict", many, "--model", saved, "--json")
    assert reader.stdout and reader.stderr
    reader.stdout.readline()
    reader.stdout.close()
    assert reader.wait() == 1 and reader.stderr.read() == ""
    assert waiting.stdout.readline().split()[:3] == ["0.00", "0.50", "s"]
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait() == 130
    assert waiting.stderr.read() == "interrupted\n"


def test_closed_streams_are_said(saved: Path, mtmm: Mtmm, monkeypatch: Patch) -> None:
    closed = start("predict", preexec_fn=partial(os.close, 1), stdout=None)
    assert closed.stderr and "output is closed" in closed.stderr.read() and closed.wait() == 1
    monkeypatch.setattr(sys, "stdin", None)
    done = mtmm("-")
    assert done.status == 1 and "input is closed" in done.err


def test_name_beyond_the_terminals_alphabet_is_escaped(
    mtmm: Mtmm, wavs: list[Path], tmp_path: Path, monkeypatch: Patch
) -> None:
    name = shutil.copy(wavs[0], tmp_path / "ü.wav")
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    assert mtmm(name).status == 0
    assert b"\\xfc.wav: " in ascii_only.buffer.getvalue()


# ---- standard input ------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [False, True])
def test_standard_input_gives_windows(
    mtmm: Mtmm, pipe: MTMMPipeline, wavs: list[Path], raw: bool, monkeypatch: Patch
) -> None:
    data, given = wavs[1].read_bytes(), []
    if raw:
        data, given = soundfile.read(wavs[1], dtype="int16")[0].tobytes(), ["--sampling_rate", RATE]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    done = mtmm("-", "--window_s", "0.5", "--json", *given)
    expected = pipe(wavs[1], window_s=0.5)["timeline"]
    records = [json.loads(line) for line in done.out.splitlines()]
    assert [r.pop("id") for r in records] == ["-"] * len(expected)
    for record, entry in zip(records, expected, strict=True):
        assert record["start"] == entry["start"] and record["emotion"] == entry["emotion"]
        assert record["valence"] == pytest.approx(entry["valence"], abs=1e-4)


def test_standard_input_that_is_no_audio_fails(mtmm: Mtmm, monkeypatch: Patch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"no audio at all")))
    done = mtmm("-")
    assert done.status == 1 and "no wav" in done.err


# ---- what must be installed, and what is trusted -------------------------------------------------

BASE_ONLY = f"""
import sys
for name in {[*EXTRA, "fcntl"]}:  # which Windows lacks
    sys.modules[name] = None
from mtmm_training.commands.cli import main
model, wav, out = sys.argv[1:]
words = ["predict", wav, "--model", model, "--transcript", "so you won"]
print("STATUS", main([*words, "--json"]), main([*words, "--csv"]))
print("STATUS", main([*words, "--out", out]), main([*words, "--plot", out]))
"""


def test_predict_needs_the_base_installation_only(
    pipe: MTMMPipeline, saved: Path, wavs: list[Path], tmp_path: Path
) -> None:
    process = start(saved, wavs[0], tmp_path / "out", code=BASE_ONLY)
    out, err = process.communicate()
    assert process.returncode == 0, err[-3000:]
    record = json.loads(next(line for line in out.splitlines() if line.startswith("{")))
    assert record["emotion"] == pipe({"audio": wavs[0], "text": "so you won"})["emotion"]
    assert "STATUS 0 0" in out and "STATUS 1 1" in out
    assert "'pyarrow'" in err and "'matplotlib'" in err and ".[train]" in err
    assert "Traceback" not in err


HUB = """
import sys
from mtmm_training.commands.cli import main
out, old, new = sys.argv[1:]
words = ["predict", "--transcript", "so you won", "--model", "some/one"]
print("STATUS", main([*words, "--json"]))
print("STATUS", main([*words, "--out", out, "--revision", old]))
print("STATUS", main([*words, "--out", out, "--revision", new]))
print("STATUS", main([*words, "--json", "--trust_remote_code", "--revision", old]))
"""


def test_hub_model_by_commit_and_its_own_code_only_where_trusted(
    saved: Path, pipe: MTMMPipeline, tmp_path: Path
) -> None:
    files = files_in(saved)
    files["modeling_mtmm.py"] += b"\nprint('ITS OWN CODE RAN')\n"
    with HubServer() as hub:
        old = hub.put("some/one", files)
        new = hub.put("some/one", files | {"README.md": b"news"})
        env = hub.environment(tmp_path / "home")
        out, err = start(tmp_path / "out", old, new, code=HUB, env=env).communicate()
    before, ran, after = out.partition("ITS OWN CODE RAN\n")
    assert re.findall(r"^STATUS (\d)", before, re.M) == ["0", "0", "1"], err
    assert ran and "STATUS 0" in after
    first, second = (json.loads(line) for line in out.splitlines() if line.startswith("{"))
    expected = {"id": "transcript"} | pipe({"text": "so you won"})
    assert first == second and first.keys() == expected.keys()
    assert first["valence"] == pytest.approx(
        expected["valence"], abs=1e-4
    )  # other threads, other rounding
    record = json.loads((tmp_path / "out.run.json").read_text())
    assert record["model"] == f"commit {old}"
    assert old in err and new in err
