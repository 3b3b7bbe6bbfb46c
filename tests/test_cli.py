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
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import soundfile
from hub_server import HubServer
from mtmm_training.commands.predict_files import Input

import train_accelerate
from modeling_mtmm import MTMMModel
from mtmm_training.commands import cli, predict_command
from mtmm_training.commands.cli import main
from mtmm_training.commands.predict_output import Pictures
from pipeline_mtmm import MTMMPipeline
from processing_mtmm import MTMMProcessor

Mtmm = Callable[..., SimpleNamespace]  # the `mtmm` below
ROOT = Path(__file__).parents[1]
RATE = 16000
EXTRA = ["accelerate", "datasets", "evaluate", "peft", "sklearn", "scipy", "pandas", "pyarrow"]
EXTRA += ["matplotlib", "tensorboard", "jinja2", "sentencepiece", "google.protobuf"]


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
def mtmm(saved: Path, capsys: pytest.CaptureFixture[str]) -> Mtmm:
    """Run `mtmm predict` on the saved model in this process."""

    def run(*words: object) -> SimpleNamespace:
        status: int | str | None
        try:
            status = main(["predict", *map(str, words), "--model", str(saved), "--device", "cpu"])
        except SystemExit as left:
            status = left.code
        output = capsys.readouterr()
        return SimpleNamespace(status=status, out=output.out, err=output.err)

    return run


def start(*words: object, code: str | None = None, **options: Any) -> subprocess.Popen[str]:
    """`python -m mtmm_training.commands.cli` in a process of its own, or after some code."""
    how = ["-m", "mtmm_training.commands.cli"] if code is None else ["-c", code]
    return subprocess.Popen(
        [sys.executable, *how, *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | options.pop("env", {}),
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options,
    )


# ---- help and dispatch ---------------------------------------------------------------------------


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="^0$"):
        main(["--help"])
    shown = capsys.readouterr().out
    for command in ("predict", *cli.MODULES):
        assert re.search(rf"^  {command} +\w", shown, re.M)


@pytest.mark.parametrize("words", [[], ["predicts"], ["--model", "x"]])
def test_no_such_command_is_wrong_usage(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="^2$"):
        main(words)
    assert "usage: mtmm" in capsys.readouterr().err


def examples(text: str) -> list[list[str]]:
    """The commands in a help text that begin with mtmm or hold `mtmm_training.commands.cli`."""
    lines = re.sub(r"\\\n +", "", text).splitlines()
    found = [line.split("|")[-1] if "| mtmm" in line else line.split("|")[0] for line in lines]
    found = [line.split(" > ")[0].strip().replace("...", "corpus") for line in found]
    found = [re.sub(r"^.*(-m mtmm_training\.cli|WORLD_SIZE=\S+ mtmm) ", "mtmm ", f) for f in found]
    return [shlex.split(f.rstrip("'"))[1:] for f in found if f.startswith("mtmm ")]


def test_examples_of_the_help_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "words").mkdir()
    monkeypatch.chdir(tmp_path)
    parser, shown = predict_command._parser(), examples(predict_command.EPILOG)
    assert len(shown) == 12
    for command, *words in shown:
        assert command == "predict"
        words += [] if "--model" in words else ["--model", "M"]
        predict_command._check(parser, parser.parse_args(words))
    assert {words[0] for words in examples(cli.EPILOG)} <= {"predict", *cli.MODULES}


def test_every_flag_of_predict_is_explained() -> None:
    for action in predict_command._parser()._actions:
        assert action.help, action.dest


@pytest.mark.parametrize("command", cli.MODULES)
def test_commands_show_their_own_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)  # evaluate sets its own
    with pytest.raises(SystemExit, match="^0$"):
        main([command, "--help"])
    signal.signal(signal.SIGTERM, before)
    assert "usage:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "said"),
    [("encode", "Run the frozen encoders once"), ("train", "Train on one fold")],
)
def test_commands_of_one_module_say_which_they_are(
    command: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="^0$"):
        main([command, "--help"])
    assert f"\n\n{said}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "last"), [("train", []), ("encode", ["--encode_only", "True"])]
)
def test_commands_give_their_flags_on(
    command: str, last: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(train_accelerate, "main", seen.append)
    assert main([command, "--manifest", "m.csv"]) == 0
    assert seen == [["--manifest", "m.csv", *last]]


def test_errors_of_commands_are_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--manifest", str(tmp_path / "m.csv"), "--epochs", "0"]) == 1
    assert capsys.readouterr().err.startswith("error: `--epochs` is 0")
    assert main(["inspect", "--manifest", str(tmp_path / "m.csv")]) == 1
    assert "error: There is no manifest at" in capsys.readouterr().err

    def run_out(words: list[str]) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(train_accelerate, "main", run_out)
    assert main(["train"]) == 1
    assert "Lower --batch_size" in capsys.readouterr().err  # as train_accelerate.py itself says it


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 1)])
def test_interrupted_training_says_what_to_do(number: signal.Signals, status: int) -> None:
    training = (
        "import os, sys, train_accelerate\n"
        "from mtmm_training.commands import cli\n"
        "from mtmm_training.training import checkpoints\n"
        "def stopped(words):\n"
        f"    with checkpoints.StopSignal(): os.kill(os.getpid(), {number.value})\n"
        "train_accelerate.main = stopped\n"
        "sys.exit(cli.main(['train']))"
    )
    done = start(code=training)
    assert done.stderr and done.wait() == status
    assert re.match(rf"{number.name}: stopped.* --resume .*\.\n$", done.stderr.read())


def test_inspect_counts_a_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.csv").write_text("speaker,text,emotion\na,yes,happy\nb,no,sad\n")
    assert main(["inspect", "--manifest", str(tmp_path / "m.csv")]) == 0
    assert "2 utterances, 2 speakers" in capsys.readouterr().out


# ---- forms of output -----------------------------------------------------------------------------


def test_json_has_the_pipelines_numbers(mtmm: Mtmm, pipe: MTMMPipeline, wavs: list[Path]) -> None:
    done = mtmm(*wavs, "--json", "--batch_size", 1)
    assert (done.status, done.err) == (0, "")
    records = [json.loads(line) for line in done.out.splitlines()]
    assert records == [{"id": str(wav)} | pipe(wav) for wav in wavs]


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
    rows = list(csv.DictReader(io.StringIO(mtmm(wavs[1], *given, "--csv").out)))
    assert [(float(r["start"]), float(r["end"])) for r in rows] == [
        (e["start"], e["end"]) for e in expected
    ]
    assert [float(r["arousal"]) for r in rows] == pytest.approx(
        [e["arousal"] for e in expected], abs=1e-4
    )
    lines = mtmm(wavs[1], *given, "--json", "--batch_size", 1).out.splitlines()
    assert [json.loads(line) for line in lines] == [{"id": str(wavs[1])} | e for e in expected]
    first, *windows = mtmm(wavs[1], *given).out.splitlines()
    assert first.startswith(f"{wavs[1]}: ") and "mean of 4 windows, 1.20 s" in first
    assert [line.split()[:3] for line in windows] == [
        [f"{e['start']:.2f}", f"{e['end']:.2f}", "s"] for e in expected
    ]


def test_line_for_people(mtmm: Mtmm, pipe: MTMMPipeline, wavs: list[Path]) -> None:
    expected = pipe({"audio": wavs[0], "text": "so you won"})
    scores = ", ".join(f"{name} {share:.0%}" for name, share in expected["scores"].items())
    values = f"valence {expected['valence']:.2f}, arousal {expected['arousal']:.2f} (1 to 5)"
    done = mtmm(wavs[0], "--transcript", "so you won")
    assert (done.status, done.out) == (0, f"{wavs[0]}: {scores}; {values}\n")


def test_words_alone_and_from_files(
    mtmm: Mtmm, pipe: MTMMPipeline, wavs: list[Path], tmp_path: Path
) -> None:
    record = json.loads(mtmm("--transcript", "so you won", "--json").out)
    assert record == {"id": "transcript"} | pipe({"text": "so you won"})
    words = [{"text": "no", "start": 0.1, "end": 0.3}, {"text": "go", "start": 0.8, "end": 0.9}]
    (tmp_path / "speech1.json").write_text(json.dumps({"segments": words}))
    record = json.loads(mtmm(wavs[1], "--transcript_file", tmp_path / "speech1.json", "--json").out)
    assert [entry["text"] for entry in record["timeline"]] == ["no", "go"]
    done = mtmm(*wavs, "--transcript_file", tmp_path, "--json")
    assert done.err == f"1 of 2 inputs have no transcript in {tmp_path}\n"
    assert [json.loads(line)["missing"] for line in done.out.splitlines()] == [["text"], []]


def test_untrained_outputs_are_named_and_left_out(
    make_model: Callable[..., MTMMModel],
    tiny_processor: MTMMProcessor,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
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
    mtmm: Mtmm, wavs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

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
    assert record["explanation"]["modalities"] == pytest.approx(expected["modalities"])
    _, read, fall = mtmm(*words).out.splitlines()
    assert read.startswith("      read: audio 50%, text 50%, ")
    assert fall.startswith("      fall of valence without it: audio ")
    assert "log p(" in mtmm(*words[:-1], "emotion").out
    most = max(word["share"] for word in expected["words"])
    assert f"{most:.0%}" in read
    row = next(csv.DictReader(io.StringIO(mtmm(*words, "--csv").out)))
    assert json.loads(row["explanation"]) == record["explanation"]
    done = mtmm(*words[:-1], "dominance")
    assert done.status == 2 and "`explain='dominance'` is not allowed" in done.err


def test_pictures_are_drawn(mtmm: Mtmm, wavs: list[Path], tmp_path: Path) -> None:
    given = ("--transcript", "no", "--explain", "emotion")
    assert mtmm(wavs[0], *given, "--plot", tmp_path / "whole").status == 0
    assert (
        mtmm(wavs[1], "--window_s", "0.7", "--explain", "emotion", "--plot", tmp_path).status == 0
    )
    stem = re.sub(r"[^\w.-]+", "_", str(wavs[1]))
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")} == {
        "whole/plane.png",
        f"whole/{stem.replace('speech1', 'speech0')}.explanation.png",
        "plane.png",
        f"{stem}.timeline.png",
        f"{stem}_00000.00_s.explanation.png",
        f"{stem}_00000.50_s.explanation.png",
    }
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.rglob("*.png"))


# ---- exit statuses -------------------------------------------------------------------------------


def test_failures_are_named_and_counted(mtmm: Mtmm, wavs: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF")
    done = mtmm(wavs[0], broken, "gone.wav", wavs[1], "--json")
    assert done.status == 1
    records = [json.loads(line) for line in done.out.splitlines()]
    assert ["error" in record for record in records] == [False, True, True, False]
    first, second, last = done.err.splitlines()
    assert first.startswith(f"{broken}: ") and second.startswith("gone.wav: No audio file")
    assert last == "2 of 4 inputs failed"
    assert "gone.wav" not in mtmm("gone.wav", wavs[0]).out  # lines for people: results only


def test_stop_ends_at_the_first_failure(mtmm: Mtmm, wavs: list[Path]) -> None:
    done = mtmm(wavs[0], "gone.wav", wavs[1], "--on_error", "stop", "--json")
    assert done.status == 1 and len(done.out.splitlines()) == 1
    assert done.err.startswith("gone.wav: No audio file")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no INPUT; give files"),
        (["a.wav", "b.wav", "--transcript", "no"], "--transcript is for one INPUT"),
        (["a.wav", "b.wav", "--transcript_file", "a.txt"], "must be a folder"),
        (
            ["a.wav", "--transcript", "no", "--transcript_file", "a.txt"],
            "not allowed with argument",
        ),
        (["--transcript_file", "."], "is a folder, and there is no INPUT"),
        (["a.wav", "--json", "--csv"], "not allowed with argument"),
        (["a.wav", "--out", "o", "--timeline"], "--out goes without --plot and --timeline"),
        (["-", "a.wav"], "- goes without other inputs"),
        (["a.wav", "--sampling_rate", "8000"], "is for raw samples from -"),
        (["a.wav", "--batch_size", "0"], "'0' must be a whole number of at least 1"),
        (["a.wav", "--window", "3"], "unrecognized arguments"),
        (["gone.csv"], "There is no manifest at 'gone.csv'"),
        (["a.wav", "--transcript_file", "gone.txt"], "There is no transcript at 'gone.txt'"),
        (["--transcript", "no", "--window_s", "99"], "`window_s=99.0` is not allowed"),
        (["--transcript", "no", "--transcriber", ""], "`--transcriber ''` cannot be used as a"),
    ],
)
def test_wrong_usage_says_what_is_right(mtmm: Mtmm, words: list[str], message: str) -> None:
    done = mtmm(*words)
    assert (done.status, done.out) == (2, "")
    assert message in done.err and "Traceback" not in done.err


def test_one_transcript_for_a_manifest_is_refused(mtmm: Mtmm, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("text\nno\nyes\n")
    done = mtmm(tmp_path / "m.csv", "--transcript", "maybe")
    assert done.status == 2 and "which holds 2 utterances" in done.err


def test_several_processes_need_a_folder(mtmm: Mtmm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = mtmm("a.wav")
    assert done.status == 2 and "need --out" in done.err


@pytest.mark.parametrize(
    ("rank", "world_size"), [("two", "2"), ("2", "2"), ("-1", "2"), ("0", "0"), ("1", None)]
)
def test_impossible_process_number_is_refused(
    mtmm: Mtmm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str, world_size: str
) -> None:
    """It would leave parts that no process makes."""
    monkeypatch.setenv("RANK", rank)
    if world_size is not None:
        monkeypatch.setenv("WORLD_SIZE", world_size)
    done = mtmm("--transcript", "no", "--out", tmp_path / "out")
    assert done.status == 2 and f"RANK='{rank}'" in done.err and "set both, or none" in done.err


def test_names_of_pictures_fit_and_differ(tmp_path: Path) -> None:
    pictures = Pictures(tmp_path, SimpleNamespace(dimension_range=(1, 5)))
    names = ["a/b.wav", "a_b.wav", "x" * 300 + "1.wav", "x" * 300 + "2.wav", "é" * 200, "a/b.wav"]
    stems = [pictures._stem(Input(name)) for name in names]
    assert stems[0] == stems[-1] == "a_b.wav" and stems[2].endswith("1.wav")
    assert len(set(stems)) == len(names) - 1
    for stem in stems:
        (tmp_path / f"{stem}_00000.00_s.explanation.png").touch()


def test_model_that_does_not_fit_is_refused(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    from safetensors.torch import load_file, save_file

    weights = load_file(saved / "model.safetensors")
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    removed = next(name for name in weights if name.startswith("emotion_head"))
    kept = {name: tensor for name, tensor in weights.items() if name != removed}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    words = ["predict", "--transcript", "no", "--model"]
    assert main([*words, str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert f"describes: 1 missing, such as {removed!r}." in told
    assert "code of its own that you trust, give --trust_remote_code." in told
    for gone, message in (
        ("gone", "`--model gone` is no folder, and no id on the Hub, which is OWNER/NAME."),
        ("some/one", "`--model some/one` is no folder here, and cannot be had from the Hub: "),
    ):
        assert main([*words, gone]) == 2
        assert message in capsys.readouterr().err
    assert main([*words, str(saved), "--device", "abacus"]) == 2
    assert "`--device abacus` cannot be used here" in capsys.readouterr().err
    assert main([*words, str(saved), "--device", "meta"]) == 2
    assert "`--device meta` cannot be used here" in capsys.readouterr().err
    shutil.copytree(saved, tmp_path / "run" / "model")
    assert main([*words, str(tmp_path / "run")]) == 2
    assert f"its model is {tmp_path / 'run' / 'model'}: give that." in capsys.readouterr().err


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


def test_closed_and_full_standard_streams_are_said(saved: Path) -> None:
    words = ("predict", "--transcript", "no", "--model", saved, "--device", "cpu")
    closed = start(*words, preexec_fn=partial(os.close, 1), stdout=None)
    assert closed.stderr and "standard output is closed" in closed.stderr.read()
    assert closed.wait() == 2
    nothing = start("predict", "-", "--model", saved, preexec_fn=partial(os.close, 0), stdin=None)
    assert nothing.stderr and "Standard input is closed" in nothing.stderr.read()
    assert nothing.wait() == 2
    with open("/dev/full", "w") as full:
        told = start(*words, stdout=full)
        assert told.stderr is not None
        assert told.stderr.read() == (
            "error: Standard output cannot be written: No space left on device.\n"
        )
        assert told.wait() == 2


def test_name_beyond_the_terminals_alphabet_is_escaped(saved: Path, wavs: list[Path]) -> None:
    folder = wavs[0].parent / "é"
    folder.mkdir()
    name = shutil.copy(wavs[0], folder / "ü.wav")
    process = start("predict", name, "--model", saved, env={"PYTHONIOENCODING": "ascii"})
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert r"\xe9/\xfc.wav: " in out


# ---- standard input ------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [False, True])
def test_standard_input_gives_windows(
    mtmm: Mtmm, pipe: MTMMPipeline, wavs: list[Path], raw: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, given = wavs[1].read_bytes(), []
    if raw:
        data, given = soundfile.read(wavs[1], dtype="int16")[0].tobytes(), ["--sampling_rate", RATE]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    done = mtmm("-", "--window_s", "0.5", "--json", *given)
    expected = pipe(wavs[1], window_s=0.5)["timeline"]
    records = [json.loads(line) for line in done.out.splitlines()]
    assert [r.pop("id") for r in records] == ["-"] * len(expected)
    assert [(r["start"], r["emotion"]) for r in records] == [
        (e["start"], e["emotion"]) for e in expected
    ]
    assert [r["valence"] for r in records] == pytest.approx(
        [e["valence"] for e in expected], abs=1e-4
    )


def test_standard_input_that_is_no_audio_fails(mtmm: Mtmm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"no audio at all")))
    done = mtmm("-")
    assert done.status == 1 and done.err.startswith("-: The stream is no wav")


# ---- what must be installed, and what is trusted -------------------------------------------------

BASE_ONLY = f"""
import sys
for name in {EXTRA}:
    sys.modules[name] = None
from mtmm_training.commands.cli import main
try:
    main(["predict", "--help"])
except SystemExit:
    pass
assert "torch" not in sys.modules and "transformers" not in sys.modules
model, wav, out = sys.argv[1:]
words = ["predict", wav, "--model", model, "--transcript", "so you won"]
print("STATUS", main([*words, "--json"]), main([*words, "--csv"]))
print("STATUS", main([*words, "--out", out]), main([*words, "--plot", out]))
for command in ("encode", "train", "evaluate", "inspect"):
    print("STATUS", command, main([command]))
"""


def test_predict_needs_the_base_installation_only(
    pipe: MTMMPipeline, saved: Path, wavs: list[Path], tmp_path: Path
) -> None:
    process = start(saved, wavs[0], tmp_path / "out", code=BASE_ONLY)
    out, err = process.communicate()
    assert process.returncode == 0, err[-3000:]
    record = json.loads(next(line for line in out.splitlines() if line.startswith("{")))
    assert record["emotion"] == pipe({"audio": wavs[0], "text": "so you won"})["emotion"]
    assert "STATUS 0 0" in out and "STATUS 2 2" in out
    assert "`mtmm predict` needs the package 'pyarrow'" in err
    assert "`mtmm predict` needs the package 'matplotlib'" in err
    for command in ("encode", "train", "evaluate", "inspect"):
        assert f"STATUS {command} 2" in out
        assert re.search(rf"error: `mtmm {command}` needs the package .*\.\[train\]", err)
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
    files = {path.name: path.read_bytes() for path in saved.iterdir()}
    files["modeling_mtmm.py"] += b"\nprint('ITS OWN CODE RAN')\n"
    with HubServer() as hub:
        old = hub.put("some/one", files)
        new = hub.put("some/one", files | {"README.md": b"news"})
        env = hub.environment(tmp_path / "home")
        out, err = start(tmp_path / "out", old, new, code=HUB, env=env).communicate()
    lines = out.splitlines()
    statuses = [place for place, line in enumerate(lines) if line.startswith("STATUS")]
    assert [lines[place] for place in statuses] == [f"STATUS {n}" for n in (0, 0, 2, 0)], err
    assert lines.index("ITS OWN CODE RAN") > statuses[2]
    results = [json.loads(line) for line in lines if line.startswith("{")]
    expected = {"id": "transcript"} | pipe({"text": "so you won"})
    assert results[0] == results[1]
    for name in ("scores", "valence", "arousal"):  # other threads, other rounding
        assert results[0].pop(name) == pytest.approx(expected.pop(name))
    assert results[0] == expected
    record = json.loads((tmp_path / "out" / "_run.json").read_text())
    assert record["model"] == f"commit {old}"
    assert f"model was 'commit {old}', now is 'commit {new}'" in err
