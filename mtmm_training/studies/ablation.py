"""The paper's ablations: one experiment per variant, in the same folds, and one table.

The settings are the reference variant's; each other variant changes one thing of them. The same call
goes on where it was stopped, as a protocol does.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from configuration_mtmm import MTMMConfig
from mtmm_training.data.files import write_json
from mtmm_training.scoring.texts import render, title
from mtmm_training.studies.compare import compare, draw_intervals, notes
from mtmm_training.studies.experiments import COMPARED, read_experiment, summarise
from mtmm_training.studies.protocol import Part, Plan, make_plan, run_part, uses_cache
from mtmm_training.studies.tables import write_tables, write_text
from mtmm_training.studies.variants import REFERENCE, VARIANTS, Variant
from mtmm_training.training.config import TrainConfig

# On the embedded corpus every speaker is tested once, which an interval over speakers needs.
EMBEDDED_UTTERANCES = 500
EMBEDDED_RECIPE = {"protocol": "grouped", "k": 3, "batch_size": 8, "epochs": 10, "tracker": "none"}


def run_ablation(out: Path, config: TrainConfig, variants: Sequence[str], part: Part) -> None:
    """Trains what is missing of the reference and the variants; prints the table once all is there.

    Args:
        out: the folder of the experiments, and of ablation.md, ablation.json and figures/.
        config: the settings of the reference.
        variants: names from `VARIANTS`.
        part: the folds.
    """
    plans = make_plans(out, config, variants, part.folds)

    def write() -> str:
        for plan in plans.values():
            write_tables(plan.out)
        return write_ablation(out, list(plans))

    run_part(list(plans.values()), part, write)


def make_plans(
    out: Path, config: TrainConfig, names: Sequence[str], folds: Collection[int] | None = None
) -> dict[str, Plan]:
    """One checked experiment for each variant that differs from the reference, which comes first.

    Raises:
        ValueError: a variant cannot be trained with these settings, or would not test the same
            utterances as the reference.
    """
    if config.model is not None:
        raise ValueError(
            f"`--model` is {config.model!r}; variants begin with --audio_encoder and --text_encoder."
        )
    config.check()  # before anything reads it; each variant is checked again
    if config.cache_dir is None and uses_cache(config):
        config = replace(config, cache_dir=str(out / "cache"))  # one for all variants
    plans: dict[str, Plan] = {}
    for name in dict.fromkeys([REFERENCE, *names]):
        variant = VARIANTS[name]
        if name != REFERENCE and is_reference(variant, config):
            print(f"{name}: the reference itself has {variant.label}, so it is not run again")
            continue
        plans[name] = make_plan(out / name, with_variant(config, variant), folds)
        if plans[name].folds != plans[REFERENCE].folds:
            raise ValueError(f"Leave out variant {name}, or utterances that lack a modality.")
    return plans


def is_reference(variant: Variant, config: TrainConfig) -> bool:
    """Whether the variant's values are those of the settings already."""
    fields = json.loads(config.model_config)
    same_flags = all(getattr(config, name) == value for name, value in variant.flags.items())
    return same_flags and all(
        fields.get(name, getattr(MTMMConfig, name)) == value
        for name, value in variant.model_config.items()
    )


def with_variant(config: TrainConfig, variant: Variant) -> TrainConfig:
    """The settings with what the variant changes of them."""
    fields = json.loads(config.model_config) | dict(variant.model_config)
    if "dimension_loss_weights" in variant.model_config:
        weight = variant.model_config["dimension_loss_weights"]
        fields["dimension_loss_weights"] = [weight] * len(config.resolve().dimensions)
    return replace(config, model_config=json.dumps(fields), **variant.flags)


# ---- results -----------------------------------------------------------------------------------


def write_ablation(out: Path, names: Sequence[str]) -> str:
    """Writes ablation.md, ablation.json and figures/ from the variants' experiments.

    The table has a row for each variant, in each cell mean ± sd and the difference to the reference.

    Returns:
        The Markdown of ablation.md.
    """
    experiments = {name: read_experiment(out / name) for name in names}
    reference = experiments[REFERENCE]
    summaries = {name: summarise(experiment) for name, experiment in experiments.items()}
    differences = {n: compare(reference, own) for n, own in experiments.items() if n != REFERENCE}
    first = summaries[REFERENCE]
    metrics = [m for m in COMPARED if first["metrics"].get(m, {}).get("n")]
    markdown = render(
        "ablation.md", metrics=metrics, labels={name: VARIANTS[name].label for name in names},
        summaries=summaries, differences=differences, notes=notes(differences.values()),
        seconds=sum(summary["wall_time_s"] for summary in summaries.values()),
    )  # fmt: skip
    variants = {
        name: asdict(VARIANTS[name]) | {"summary": summary, "minus_reference": None}
        for name, summary in summaries.items()
    }
    for name, by_metric in differences.items():
        variants[name]["minus_reference"] = {m: asdict(d) for m, d in by_metric.items()}
    write_json({"reference": REFERENCE, "variants": variants}, out / "ablation.json")
    for metric in COMPARED:
        drawn = {VARIANTS[name].label: each.get(metric) for name, each in differences.items()}
        path = out / "figures" / f"ablation_{metric}.png"
        heading = f"{title(metric)}, 95 % intervals"
        draw_intervals(drawn, path, heading, VARIANTS[REFERENCE].label)
    write_text(markdown, out / "ablation.md")
    return markdown
