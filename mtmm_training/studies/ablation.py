"""The paper's ablations: one experiment per variant, in the same folds, and one table.

    python -m mtmm_training.studies.ablation --out out/ablation --jobs 2             (the embedded corpus)
    python -m mtmm_training.studies.ablation --out out/iemocap --corpus iemocap --corpus_dir DIR

Takes every flag of train_accelerate.py; they are the reference variant, and each other variant changes
one thing of it. The same command goes on where it was stopped, as `evaluate run` does.
"""

import argparse
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configuration_mtmm import MTMMConfig
from mtmm_training.data.corpora.synthetic import write_corpus, write_encoders
from mtmm_training.files import replacing, write_json
from mtmm_training.pictures import figures
from mtmm_training.studies import embedded_demo as demo
from mtmm_training.studies.compare import Difference, as_json, compare, gain, notes
from mtmm_training.studies.experiments import (
    COMPARED,
    Experiment,
    markdown_table,
    read_experiment,
    spread,
    summarise,
    title,
)
from mtmm_training.studies.protocol import (
    Plan,
    add_run_flags,
    make_plan,
    of_share,
    parse,
    run_plans,
    uses_cache,
)
from mtmm_training.studies.tables import write_tables
from mtmm_training.training.config import TrainConfig

REFERENCE = "full"


@dataclass(frozen=True)
class Variant:
    """What a variant changes of the reference.

    Args:
        label: its row in the table.
        flags: of train_accelerate.py, by name.
        model_config: fields of MTMMConfig; one number of `dimension_loss_weights` is every
            dimension's. An output whose loss has weight 0 is not trained, and has no scores.
    """

    label: str
    flags: Mapping[str, Any] = field(default_factory=dict)
    model_config: Mapping[str, Any] = field(default_factory=dict)


VARIANTS = {
    REFERENCE: Variant("multi-task, audio and text, all parts"),
    "categories_only": Variant("categories only", model_config={"dimension_loss_weights": 0.0}),
    "dimensions_only": Variant("dimensions only", model_config={"emotion_loss_weight": 0.0}),
    "audio_only": Variant("audio only", flags={"modalities": ["audio"]}),
    "text_only": Variant("text only", flags={"modalities": ["text"]}),
    "no_refinement": Variant("without refinement", model_config={"use_refinement": False}),
    "no_bridge_tokens": Variant("without bridge tokens", model_config={"use_bridge_tokens": False}),
    "no_masking": Variant("without random modality masking", flags={"rmm_start": 0.0}),
    "crossed": Variant("crossed wiring", model_config={"bridge_wiring": "crossed"}),
    "direct": Variant("direct wiring", model_config={"bridge_wiring": "direct"}),
    "last_layer": Variant("encoders' last layer", model_config={"encoder_layers": "last"}),
    "weighted_layers": Variant(
        "encoders' layers, weighted", model_config={"encoder_layers": "weighted"}
    ),
} | {
    f"bridge_tokens_{n}": Variant(f"bridge tokens: {n}", model_config={"num_bridge_tokens": n})
    for n in (1, 8, 30, 60)
}

# On the embedded corpus every speaker is tested once, which an interval over speakers needs.
EMBEDDED_UTTERANCES = 500
EMBEDDED_RECIPE = ["--protocol", "grouped", "--k", "3", "--batch_size", "8", "--epochs", "10"]
EMBEDDED_RECIPE += ["--learning_rate", "1e-3", "--encoder_learning_rate", "1e-3"]
EMBEDDED_RECIPE += ["--rmm_start", "0.5", "--tracker", "none"]


def embedded_flags(out: Path) -> list[str]:
    """Writes the embedded corpus and its untrained encoders; the flags that train on them."""
    write_corpus(out / "corpus", utterances=EMBEDDED_UTTERANCES)
    audio, text = write_encoders(out / "encoders")
    flags = ["--manifest", str(out / "corpus" / "manifest.csv"), "--audio_encoder", str(audio)]
    flags += ["--text_encoder", str(text), "--model_config", json.dumps(demo.MODEL_CONFIG)]
    return flags + EMBEDDED_RECIPE


def is_reference(variant: Variant, config: TrainConfig) -> bool:
    """Whether the variant's values are those of the flags already."""
    fields = json.loads(config.model_config)
    same_flags = all(getattr(config, name) == value for name, value in variant.flags.items())
    return same_flags and all(
        fields.get(name, getattr(MTMMConfig, name)) == value
        for name, value in variant.model_config.items()
    )


def flags_of(variant: Variant, flags: Sequence[str], config: TrainConfig) -> list[str]:
    """The reference's flags with those of the variant after them, where they take precedence."""
    fields = json.loads(config.model_config) | dict(variant.model_config)
    if "dimension_loss_weights" in variant.model_config:
        weight = variant.model_config["dimension_loss_weights"]
        fields["dimension_loss_weights"] = [weight] * len(config.resolve().dimensions)
    changed = [*flags, "--model_config", json.dumps(fields)]
    for name, value in variant.flags.items():
        changed += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return changed


def make_plans(
    out: Path, flags: Sequence[str], names: Sequence[str], folds: Sequence[int] | None
) -> dict[str, Plan]:
    """One checked experiment for each variant that differs from the reference, which comes first.

    Raises:
        ValueError: a variant cannot be trained with these flags, or would not test the same
            utterances as the reference.
    """
    config = parse(flags)
    if config.model is not None:
        raise ValueError(
            f"`--model` is {config.model!r}; variants differ in what the model is made of, so they are "
            "trained from --audio_encoder and --text_encoder."
        )
    config.check()  # before anything reads it; each variant is checked again
    if config.cache_dir is None and uses_cache(config):
        flags = [*flags, "--cache_dir", str(out / "cache")]  # one for all variants
    plans: dict[str, Plan] = {}
    for name in dict.fromkeys([REFERENCE, *names]):
        variant = VARIANTS[name]
        if name != REFERENCE and is_reference(variant, config):
            print(f"{name}: the reference itself has {variant.label}, so it is not run again")
            continue
        plans[name] = make_plan(out / name, flags_of(variant, flags, config), folds)
        if plans[name].folds != plans[REFERENCE].folds:
            raise ValueError(
                f"Variant {name} would not have the folds of the reference: some utterances lack a "
                "modality. Leave these utterances out, or name other --variants."
            )
    return plans


# ---- results -----------------------------------------------------------------------------------


def write_ablation(out: Path, names: Sequence[str]) -> str:
    """Writes ablation.md, ablation.json and figures/ from the variants' experiments.

    Returns:
        The Markdown of ablation.md.
    """
    experiments = {name: read_experiment(out / name) for name in names}
    reference = experiments[REFERENCE]
    summaries = {name: summarise(experiment) for name, experiment in experiments.items()}
    differences = {
        name: compare(reference, experiment)
        for name, experiment in experiments.items()
        if name != REFERENCE
    }
    markdown = ablation_markdown(summaries, differences)
    write_json(
        {
            "reference": REFERENCE,
            "variants": {
                name: {
                    "label": VARIANTS[name].label,
                    "flags": VARIANTS[name].flags,
                    "model_config": VARIANTS[name].model_config,
                    "summary": summaries[name],
                    "minus_reference": as_json(differences[name]) if name in differences else None,
                }
                for name in names
            },
        },
        out / "ablation.json",
    )
    draw(reference, differences, out / "figures")
    with replacing(out / "ablation.md") as temporary:
        temporary.write_text(markdown, encoding="utf-8")
    return markdown


def ablation_markdown(
    summaries: Mapping[str, Mapping[str, Any]],
    differences: Mapping[str, Mapping[str, Difference]],
) -> str:
    """One row per variant; in each cell mean ± sd and, below, the difference to the reference."""
    reference = summaries[REFERENCE]
    metrics = [name for name in COMPARED if reference["metrics"].get(name, {}).get("n")]
    rows = []
    for name, summary in summaries.items():
        cells = [VARIANTS[name].label]
        for metric in metrics:
            values = summary["metrics"].get(metric, {"mean": None, "sd": None})
            cell = spread(values)
            if name != REFERENCE and values["mean"] is not None:
                cell += f"<br>{gain(differences[name].get(metric))}"
            cells.append(cell)
        rows.append(cells)
    header = ["variant", *map(title, metrics)]
    first = (
        "Each cell: mean ± sd over folds; below, the pooled difference to the first row with its "
        "95 % interval.\n"
    )
    seconds = sum(summary["wall_time_s"] for summary in summaries.values())
    last = f"{seconds:.0f} s of training and test in all.\n"
    return "\n".join([first, markdown_table(header, rows), *notes(reference, differences), last])


def draw(
    reference: Experiment, differences: Mapping[str, Mapping[str, Difference]], folder: Path
) -> None:
    """One chart per metric: the variants' differences to the reference, where there is an interval."""
    for metric in COMPARED:
        rows = [
            (VARIANTS[name].label, d.pooled.point, d.pooled.low, d.pooled.high)
            for name, by_metric in differences.items()
            if (d := by_metric.get(metric)) is not None and d.pooled is not None
        ]
        if rows:
            rows = [(VARIANTS[REFERENCE].label, 0.0, 0.0, 0.0), *rows]
            label = f"{title(metric)} minus that of the first row"
            figures.plot_ablation(rows, folder / f"ablation_{metric}.png", label)


def main(words: Sequence[str] | None = None) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("SIGTERM: stopped"))  # folds are stopped too
    variants = "\n".join(f"  {name:18} {variant.label}" for name, variant in VARIANTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m mtmm_training.studies.ablation", description=__doc__.split("\n")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        epilog=f"variants:\n{variants}\n\nAll other flags are those of train_accelerate.py (see its "
        "--help). Without --manifest and --corpus: the embedded corpus.",
    )  # fmt: skip
    add_run_flags(parser)
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME",
        help="only these beside the reference",
    )  # fmt: skip
    arguments, flags = parser.parse_known_args(words)
    try:
        given = parse(flags)
        if given.manifest is None and given.corpus is None:
            flags = [*embedded_flags(arguments.out), *flags]
        plans = make_plans(arguments.out, flags, arguments.variants, arguments.folds)
        run_plans([of_share(plan, arguments.share) for plan in plans.values()], arguments.jobs)
        if any(plan.unfinished() for plan in plans.values()):
            print("This share is done; the table comes with the command whose share is the last.")
            return
        for plan in plans.values():
            write_tables(plan.out)
        print("\n" + write_ablation(arguments.out, list(plans)))
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
