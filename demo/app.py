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
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it when it is imported

try:
    from spaces import GPU  # a ZeroGPU Space has it; imported before anything that uses CUDA
except ImportError:

    def GPU(function: Any) -> Any:
        return function


import drawings
import gradio as gr
import numpy as np
import pandas as pd
from transformers import pipeline

try:
    from mtmm_training.pictures import palette
except ImportError:  # a Space has no checkout, but this file beside it
    import palette  # type: ignore[import-not-found, no-redef]

HERE = Path(__file__).parent
MODELS = "MTMM_MODELS"  # the Space's variable
MOST_MB = 20
LONGEST_S = 600.0
SHORTEST_S = 0.3
SILENT = 1e-3  # the loudest sample of what counts as silence: −60 dB of full scale
MOST_CHARACTERS = 2000
BATCH_SIZE = 8
KEPT_S, LOOKED_AT_EVERY_S = 3600, 600  # uploads, before they are deleted

# As gradio's HighlightedText shades positive and negative scores.
SIGN_COLOURS = {"for it": "#EF4444", "against it": "#805AD5"}

# The system's own fonts: nothing is fetched.
THEME = gr.themes.Default(
    primary_hue="blue", secondary_hue="blue", neutral_hue="slate",
    font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"],
)  # fmt: skip
ABOUT = """# How does this voice sound?
Record or upload speech. With what was said, the model also reads the words."""
NOTICE = f"""Recordings stay on the machine that runs this page and are deleted after an hour. At most
{MOST_MB} MB and {LONGEST_S / 60:g} minutes. Models repeat what listeners perceived in their training corpora,
and err: do not use them to judge, hire, grade or monitor people."""
NOTHING = "There is nothing to hear or read yet: record or upload speech, or type what was said."
# Where the embedded corpus cannot be made, as on a Space, which has no checkout.
SENTENCES = ("I love it, this is wonderful!", "It was a terrible mistake.")


class Answer(NamedTuple):
    """What the page shows.

    Args:
        result: of the pipeline.
        colours: of each emotion of the model.
        dimension_range: lowest and highest value of the model's dimensions.
    """

    result: dict[str, Any]
    colours: dict[str, str]
    dimension_range: tuple[float, float]


# ---- from an input to an answer ------------------------------------------------------------------


def analyse(pipe: Any, path: str | None, text: str) -> Answer:
    """Predict from a recording, a transcript, or both; explained, unless it becomes a timeline.

    Args:
        pipe: The model's pipeline.
        path: the recording; None for none.
        text: The transcript; blank for none.

    Raises:
        ValueError: Input that is refused, in words for the page.
    """
    utterance: dict[str, str] = {"text": text.strip()} if text and text.strip() else {}
    if not path and not utterance:
        raise ValueError(NOTHING)
    config, in_windows = pipe.model.config, False
    if path:
        try:
            duration_s = listen(pipe.processor, path)
        except (ValueError, OSError) as error:
            raise ValueError(str(error).replace(path, Path(path).name)) from error
        in_windows = duration_s > pipe.processor.longest_audio_s()
        utterance["audio"] = path
    can_explain = config.use_bridge_tokens and "emotion" in config.trained_outputs
    result = pipe(utterance, explain=can_explain and not in_windows, batch_size=BATCH_SIZE)
    colours = palette.colours([*config.id2label.values(), "unsure"])
    return Answer(result, colours, tuple(config.dimension_range))


def listen(processor: Any, path: str) -> float:
    """Check a recording, reading it block by block, and return its duration in seconds.

    Raises:
        ValueError: A file that is no audio, too short, too long, or silent.
    """
    name, recording = Path(path).name, processor.open_recording(path)
    duration_s, least_s = recording.duration_s, max(SHORTEST_S, processor.min_duration_s)
    if not least_s <= duration_s <= LONGEST_S:
        raise ValueError(f"{name} lasts {duration_s:.2f} s; from {least_s:g} to {LONGEST_S:g} s.")
    if all(np.abs(block).max() < SILENT for block in recording.blocks(0, None)):
        raise ValueError(f"{name} is silent. Is the microphone muted? Record again.")
    return duration_s


# ---- the page ------------------------------------------------------------------------------------


def respond(
    pipes: dict[str, Any], model: str, path: str | None, text: str
) -> tuple[str, Answer | None]:
    """What the page says in place of an answer, as HTML, and the answer."""
    try:
        return "", analyse(pipes[model], path, text)
    except ValueError as error:
        return drawings.message(str(error)), None


def show(answer: Answer | None) -> None:
    """Put an answer's components on the page."""
    if answer is None:
        return
    result, numbers = answer.result, palette.dimensions_of(answer.result)
    gr.HTML(drawings.summary(result, numbers, answer.dimension_range), elem_id="summary")
    with gr.Row():
        if result.get("scores"):
            with gr.Column(min_width=260):
                gr.Label(result["scores"], label="Emotion")
        if None not in (result.get("valence"), result.get("arousal")):
            with gr.Column(min_width=260):
                gr.HTML(drawings.plane(result, answer.colours, answer.dimension_range))
    if "timeline" in result:
        show_timeline(answer)
    if "explanation" in result:
        show_explanation(result["explanation"])


def show_timeline(answer: Answer) -> None:
    """A bar for each window, as high as its emotion is probable; curves of dimensions; the numbers."""
    entries = answer.result["timeline"]
    words = " All words are read with each: when they were said is unknown."
    gr.Markdown(
        f"### Over time\n{len(entries)} windows, each heard by itself."
        f"{words if 'untimed_text' in answer.result else ''}"
    )
    frame = windows(entries)
    window_s = entries[0]["end"] - entries[0]["start"]
    ends: dict[str, Any] = {"x_lim": [0, entries[-1]["end"]], "x_title": "time (s)"}
    if "emotion" in frame:
        bars = frame[["emotion", "probability"]].assign(middle=window_s * (frame.index + 0.5))
        gr.BarPlot(
            bars, x="middle", y="probability", color="emotion", x_bin=window_s, height=170,
            color_map=answer.colours, color_title=" ", y_lim=[0, 1], **ends,
        )  # fmt: skip
    names = list(palette.dimensions_of(*entries))
    if names:
        middles = frame.assign(middle=(frame["start"] + frame["end"]) / 2)
        lines = middles.melt("middle", names, "dimension", "value")
        paint = {name: palette.DIMENSIONS[name][0] for name in names if name in palette.DIMENSIONS}
        gr.LinePlot(
            lines, x="middle", y="value", color="dimension", height=190, color_map=paint,
            color_title=" ", y_title=" ", y_lim=list(answer.dimension_range), **ends,
        )  # fmt: skip
    with gr.Accordion("All windows in numbers", open=False):
        shown = frame.to_html(index=False, border=0, float_format="{:.2f}".format)
        gr.HTML(f'<div class="windows">{shown}</div>')  # gradio's own table is too wide for a phone


def windows(entries: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A timeline as a table: start and end in seconds, emotion, its probability, dimensions."""
    frame = pd.DataFrame(entries)
    if "emotion" in frame:
        frame["emotion"] = frame["emotion"].fillna("unsure")
        frame["probability"] = [max(entry["scores"].values(), default=None) for entry in entries]
    names = ["start", "end", "emotion", "probability", *palette.dimensions_of(*entries)]
    return frame[[name for name in names if name in frame]]


def show_explanation(explanation: Mapping[str, Any]) -> None:
    """What mattered when it was left out, and what the bridge tokens read."""
    left_out = explanation["occlusion"]
    of = left_out["of"]
    gr.Markdown(
        f"### Why {of}?\nEach part is left out once. Red: without it {of} is less probable. Purple: "
        f"without it {of} is more probable. The stronger the colour, or the longer the bar, the more it "
        f"mattered.{without(left_out['modalities'])}"
    )
    show_places(left_out, f"Moments: fall of the probability of {of}, %", fall_percent)
    known = {name: rho for name, rho in explanation["agreement"].items() if rho is not None}
    agreement = [f" Its rank correlation with the above over {n}: {known[n]:.2f}." for n in known]
    gr.Markdown(
        "### What the model read\nThe attention of its bridge tokens, which is no proof that it "
        f"mattered.{''.join(agreement)}"
    )
    show_places(explanation, "Moments: share of the attention, %", lambda share: 100 * share)


def show_places(side: Mapping[str, Any], label: str, percent: Callable[[float], float]) -> None:
    """Bars over moments, and words shaded by their share of the strongest one's."""
    known = [place for place in side["time"] if place["share"] is not None]
    if known:
        length_s = known[0]["end"] - known[0]["start"]
        frame = pd.DataFrame(known)
        frame["time (s)"] = frame["start"] + length_s / 2
        frame["percent"] = frame["share"].map(percent)
        frame["sign"] = np.where(frame["percent"] < 0, "against it", "for it")
        gr.BarPlot(
            frame, x="time (s)", y="percent", color="sign", x_bin=length_s, height=190, label=label,
            y_title=" ", color_map=SIGN_COLOURS, colors_in_legend=[], x_lim=[0, side["time"][-1]["end"]],
        )  # fmt: skip
    if side["words"]:
        strongest = max(abs(word["share"] or 0.0) for word in side["words"]) or 1.0
        gr.HighlightedText(
            [(f"{word['text']} ", (word["share"] or 0.0) / strongest) for word in side["words"]],
            label="Words", elem_classes="words",
        )  # fmt: skip


def without(modalities: Mapping[str, float | None]) -> str:
    """Markdown: what the answer's probability would be without each modality, where two were given."""
    falls = {name: fall for name, fall in modalities.items() if fall is not None}
    if len(falls) < 2:
        return ""
    changes = [f"without {name} **{-fall_percent(fall):+.0f} %**" for name, fall in falls.items()]
    return f" Its probability {', '.join(changes)}.".replace("-", "−")


def fall_percent(fall: float) -> float:
    """A fall of the log probability as percent of the probability."""
    return -100 * math.expm1(-fall)


def build(pipes: dict[str, Any], examples: Sequence[list[str | None]]) -> gr.Blocks:
    """The page.

    Args:
        pipes: Pipelines by the name that the page shows.
        examples: Path of a recording, or None, and transcript of each.
    """
    names = list(pipes)
    page = gr.Blocks(title="MTMM: emotion in speech", delete_cache=(LOOKED_AT_EVERY_S, KEPT_S))
    with page:
        gr.Markdown(ABOUT)
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
                message = gr.HTML(drawings.HINT)
                answer = gr.State()
                gr.render(inputs=answer)(show)
        gr.Markdown(f"{NOTICE} {origins(pipes)}", elem_id="notice")
        # A GPU's process is forked and has the pipelines; what it is given is pickled.
        button.click(
            GPU(partial(respond, pipes)),
            [model, audio, text],
            [message, answer],
            api_name="predict",
        ).then(fn=None, js=HERE.joinpath("scroll.js").read_text())
    return page


def origins(pipes: Mapping[str, Any]) -> str:
    """Which models these are, and what each was trained on, as far as that is recorded."""
    unknown = "data that is not recorded"
    known = {n: getattr(pipe.model.config, "trained_on", unknown) for n, pipe in pipes.items()}
    return " ".join(f"{name} was trained on {data}." for name, data in known.items())


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
    model, _, revision = (name, "", "") if os.path.exists(name) else name.partition("@")
    return make(model=model, revision=revision or None, trust_remote_code=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("models", nargs="*", metavar="MODEL", help="folder, id on the Hub, or ID@COMMIT")
    add("--port", type=int, help="the first free one from 7860 on, if not given")
    add("--share", action="store_true", help="a public address, through gradio's servers")
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
            theme=THEME, css_paths=HERE / "style.css", footer_links=[], run_history=False,
        )  # fmt: skip


if __name__ == "__main__":
    main()
