"""The demo: record or upload speech, and read what a model makes of it.

    python demo/app.py MODEL [MODEL ...] [--port 7860] [--share]

MODEL is a folder, an id on the Hub, or ID@COMMIT. On a Space, which gives no arguments, the models
are named in the variable MTMM_MODELS, separated by spaces. Nothing here needs a network, except for
models from the Hub and for --share.
"""

import argparse
import math
import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it when it is imported

import drawings
import gradio as gr
import numpy as np
from transformers import pipeline

MODELS = "MTMM_MODELS"  # the Space's variable
MOST_MB = 20
LONGEST_S = 600.0
SHORTEST_S = 0.3
SILENT = 1e-3  # the loudest sample of what counts as silence: −60 dB of full scale
MOST_CHARACTERS = 2000
BATCH_SIZE = 8
PEAKS_PER_S = 100
KEPT_S, LOOKED_AT_EVERY_S = 3600, 600  # uploads, before they are deleted

# The system's own fonts: nothing is fetched.
THEME = gr.themes.Default(
    primary_hue="blue", secondary_hue="blue", neutral_hue="slate",
    font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"],
)  # fmt: skip
TITLE = "# How does this voice sound?"
ABOUT = """Record or upload speech. With what was said, the model also reads the words."""
NOTICE = f"""Recordings stay on the machine that runs this page and are deleted after an hour. At most
{MOST_MB} MB and {LONGEST_S / 60:g} minutes. Models repeat what listeners perceived in their training corpora,
and err: do not use them to judge, hire, grade or monitor people."""
NOTHING = "There is nothing to hear or read yet: record or upload speech, or type what was said."
# Where the embedded corpus cannot be made, as on a Space, which has no checkout.
SENTENCES = ("I love it, this is wonderful!", "It was a terrible mistake.")

# In the browser gradio refuses other files itself, with a list of MIME types; one sentence will do.
PLAIN_WORDS = """() => new MutationObserver(() => {
  for (const toast of document.querySelectorAll("[data-testid=toast-text]"))
    if (toast.textContent.includes("Invalid file type"))
      toast.textContent = "This is no audio file. Give wav, flac, ogg or mp3.";
}).observe(document.body, {childList: true, subtree: true})"""

# On a phone the answer is far below the button.
SCROLL = """() => {
  const outcome = document.querySelector("#outcome");
  if (outcome.getBoundingClientRect().top > innerHeight / 2)
    outcome.scrollIntoView({behavior: "smooth"});
}"""


class Answer(NamedTuple):
    """What the page shows.

    Args:
        result: The pipeline's.
        peaks: (PEAKS_PER_S · seconds,) largest amplitude of each stretch; None without audio.
    """

    result: dict[str, Any]
    peaks: np.ndarray | None


# ---- from an input to an answer ------------------------------------------------------------------


def analyse(pipe: Any, path: str | None, text: str) -> Answer:
    """Predict from a recording, a transcript, or both; explained, unless it becomes a timeline.

    Args:
        pipe: The model's pipeline.
        path: Of the recording; None for none.
        text: The transcript; blank for none.

    Raises:
        ValueError: Input that is refused, in words for the page.
    """
    utterance: dict[str, str] = {"text": text.strip()} if text and text.strip() else {}
    if not path and not utterance:
        raise ValueError(NOTHING)
    peaks, in_windows = None, False
    if path:
        try:
            duration_s, peaks = listen(pipe.processor, path)
        except (ValueError, OSError) as error:
            raise ValueError(str(error).replace(path, Path(path).name)) from error
        in_windows = duration_s > pipe.processor.longest_audio_s()
        if in_windows and utterance:
            raise ValueError(
                f"{Path(path).name} lasts {spoken(duration_s)}; more than "
                f"{spoken(pipe.processor.longest_audio_s())} are heard in windows, and which words belong to "
                "which is unknown. Leave the text empty, or trim the recording."
            )
        utterance["audio"] = path
    explain = can_explain(pipe.model.config) and not in_windows
    return Answer(pipe(utterance, explain=explain, batch_size=BATCH_SIZE), peaks)


def listen(processor: Any, path: str) -> tuple[float, np.ndarray]:
    """Check a recording, reading it block by block.

    Returns:
        Its duration in seconds, and its peaks, as in `Answer`.

    Raises:
        ValueError: A file that is no audio, too short, too long, or silent.
    """
    name, recording = Path(path).name, processor.open_recording(path)
    duration_s, shortest_s = recording.duration_s, max(SHORTEST_S, processor.min_duration_s)
    if duration_s < shortest_s:
        raise ValueError(
            f"{name} lasts {duration_s:.2f} s; at least {shortest_s:g} s are needed. Record a little more."
        )
    if duration_s > LONGEST_S:
        raise ValueError(
            f"{name} lasts {spoken(duration_s)}; at most {spoken(LONGEST_S)} are taken here. Trim it, or run "
            "the model on your own machine."
        )
    step = max(recording.sampling_rate // PEAKS_PER_S, 1)
    blocks = (np.abs(block) for block in recording.blocks(0, None))
    peaks = np.concatenate([np.maximum.reduceat(b, range(0, len(b), step)) for b in blocks])
    if peaks.max() < SILENT:
        loudness = f"{20 * math.log10(peaks.max()):.0f} dB" if peaks.any() else "all zeros"
        raise ValueError(
            f"{name} is silent ({loudness}). Is the microphone muted? Record again, or upload another file."
        )
    return duration_s, peaks


def can_explain(config: Any) -> bool:
    """Whether the model has what `explain=True` needs."""
    return config.use_bridge_tokens and "emotion" in config.trained_outputs


def spoken(seconds: float) -> str:
    """40 → "40 s", 725 → "12 min 5 s"."""
    minutes, rest = divmod(round(seconds), 60)
    parts = [f"{minutes} min"] * (minutes > 0) + [f"{rest} s"] * (rest > 0 or not minutes)
    return " ".join(parts)


# ---- the page ------------------------------------------------------------------------------------


def respond(pipes: dict[str, Any], model: str, path: str | None, text: str) -> list[dict[str, Any]]:
    """Updates of the message, the answer's group, the scores and the drawings."""
    try:
        result, peaks = analyse(pipes[model], path, text)
    except ValueError as error:
        return [
            gr.update(value=drawings.message(str(error)), visible=True),
            gr.update(visible=False),
        ] + [gr.update()] * 5
    config = pipes[model].model.config
    names = list(config.id2label.values())
    drawn = [
        drawings.summary(result, config.dimension_range),
        drawings.plane(result, names, config.dimension_range),
        drawings.timeline(result, names, config.dimension_range),
        drawings.explanation(result, peaks),
    ]
    return [
        gr.update(visible=False),
        gr.update(visible=True),
        gr.update(value=result.get("scores"), visible="scores" in result),
        *(gr.update(value=html, visible=bool(html)) for html in drawn),
    ]


def build(pipes: dict[str, Any], examples: Sequence[list[str | None]]) -> gr.Blocks:
    """The page.

    Args:
        pipes: Pipelines by the name that the page shows.
        examples: Path of a recording, or None, and transcript of each.
    """
    names = list(pipes)
    kept = (LOOKED_AT_EVERY_S, KEPT_S)
    page = gr.Blocks(title="MTMM: emotion in speech", delete_cache=kept)
    with page:
        gr.Markdown(f"{TITLE}\n{ABOUT}")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                audio = gr.Audio(
                    label="Speech", sources=["upload", "microphone"], type="filepath", buttons=[],
                    elem_id="speech",
                )  # fmt: skip
                text = gr.Textbox(
                    label="What was said (may be left empty)", lines=2, max_length=MOST_CHARACTERS
                )
                model = gr.Dropdown(names, label="Model", value=names[0], visible=len(names) > 1)
                button = gr.Button("Analyse", variant="primary")
                gr.Examples(
                    list(examples), [audio, text], label="Examples",
                    example_labels=[said or "" for _, said in examples],
                )  # fmt: skip
            with gr.Column(scale=3, min_width=320, elem_id="outcome"):
                message = gr.HTML(drawings.hint())
                with gr.Column(visible=False) as answer:
                    summary = gr.HTML(elem_id="summary")
                    with gr.Row():
                        with gr.Column(min_width=260):
                            scores = gr.Label(label="Emotion")
                        with gr.Column(min_width=260):
                            plane = gr.HTML()
                    timeline = gr.HTML()
                    explanation = gr.HTML()
        gr.Markdown(NOTICE, elem_id="notice")
        button.click(
            partial(respond, pipes), [model, audio, text],
            [message, answer, scores, summary, plane, timeline, explanation],
            api_name="predict",
        ).then(fn=None, js=SCROLL)  # fmt: skip
    return page


def make_examples(folder: str) -> list[list[str | None]]:
    """Path and transcript of an utterance of each emotion, made from a seed; or sentences alone."""
    try:
        from mtmm_training.data.corpora.synthetic import write_corpus
    except ImportError:
        return [[None, sentence] for sentence in SENTENCES]
    by_emotion = {u.emotion: u for u in write_corpus(Path(folder) / "corpus", utterances=40)}
    return [[str(u.audio), u.text] for u in by_emotion.values()]


def load(name: str) -> Any:
    """The pipeline of a folder, of an id on the Hub, or of ID@COMMIT."""
    make: Any = pipeline  # its types ask for a task, which the model's configuration names
    if os.path.exists(name):
        return make(model=name, trust_remote_code=True)
    model, _, revision = name.partition("@")
    return make(model=model, revision=revision or None, trust_remote_code=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help="folder, id on the Hub, or ID@COMMIT"
    )
    parser.add_argument("--port", type=int, help="the first free one from 7860 on, if not given")
    parser.add_argument(
        "--share", action="store_true", help="a public address, through gradio's servers"
    )
    given = parser.parse_args()
    names = given.models or os.environ.get(MODELS, "").split()
    if not names:
        parser.error(f"no MODEL; give folders or ids on the Hub, or set {MODELS}")
    # All of them now: a model that cannot be loaded stops the demo here, not a visitor later.
    pipes = {name: load(name) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        page = build(pipes, make_examples(folder))
        page.queue(max_size=20).launch(
            server_port=given.port, share=given.share, max_file_size=f"{MOST_MB}mb",
            theme=THEME, css_paths=Path(__file__).with_name("style.css"), js=PLAIN_WORDS,
            footer_links=[], run_history=False,
        )  # fmt: skip


if __name__ == "__main__":
    main()
