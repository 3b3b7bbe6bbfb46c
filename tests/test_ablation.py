"""python -m pytest tests/test_ablation.py -q"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fake_experiments import all_folds, without, write_experiment
from small_runs import main_without_pictures

import train_accelerate
from configuration_mtmm import MTMMConfig
from mtmm_training.data.manifest import read_manifest, write_manifest
from mtmm_training.studies import ablation, protocol
from mtmm_training.studies import compare as comparison
from mtmm_training.studies.ablation import is_reference, make_plans, run_ablation, with_variant
from mtmm_training.studies.embedded_demo import embedded_settings
from mtmm_training.studies.protocol import Part, Plan
from mtmm_training.studies.variants import VARIANTS
from mtmm_training.training.config import TrainConfig
from mtmm_training.training.prepare import trained_outputs

BASE = TrainConfig(manifest=["x.csv"], model_config='{"num_bridge_tokens": 8}')


@pytest.fixture
def corpus(embedded: Path) -> TrainConfig:
    return TrainConfig(manifest=[str(embedded / "corpus" / "manifest.csv")], protocol="session")


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_is_a_model_and_a_recipe(name: str) -> None:
    changed = with_variant(BASE, VARIANTS[name])
    changed.check()
    fields = json.loads(changed.model_config)
    MTMMConfig(**fields)
    assert fields["num_bridge_tokens"] == VARIANTS[name].model_config.get("num_bridge_tokens", 8)
    others = {"model_config", *VARIANTS[name].flags}
    same = {key: value for key, value in vars(changed).items() if key not in others}
    assert same == {key: value for key, value in vars(BASE).items() if key not in others}


@pytest.mark.parametrize(
    ("name", "weights", "trained"),
    [
        ("full", None, ("emotion", "valence", "arousal")),
        ("categories_only", [0.0, 0.0], ("emotion",)),
        ("dimensions_only", None, ("valence", "arousal")),
    ],
)
def test_variant_trains_its_own_tasks(
    corpus: TrainConfig, name: str, weights: list[float] | None, trained: tuple[str, ...]
) -> None:
    fields = json.loads(with_variant(corpus, VARIANTS[name]).model_config)
    utterances = read_manifest(corpus.manifest[0])  # type: ignore[index]  # it has one
    assert fields.get("dimension_loss_weights") == weights
    assert trained_outputs(MTMMConfig(**fields), utterances) == trained


@pytest.mark.parametrize(
    ("config", "same"),
    [
        (BASE, {"crossed", "last_layer", "bridge_tokens_8"}),
        (
            replace(BASE, model_config='{"bridge_wiring": "direct"}'),
            {"direct", "last_layer", "bridge_tokens_30"},
        ),
        (
            replace(BASE, rmm_start=0, modalities=["text"]),
            {"crossed", "last_layer", "bridge_tokens_8", "no_masking", "text_only"},
        ),
    ],
)
def test_variant_equal_to_reference_is_found(config: TrainConfig, same: set[str]) -> None:
    found = {name for name, variant in VARIANTS.items() if is_reference(variant, config)}
    assert found == same | {"full"}


def test_all_variants_share_folds_and_cache(corpus: TrainConfig, tmp_path: Path) -> None:
    plans = make_plans(tmp_path, corpus, ["text_only", "no_masking"], [1])
    assert list(plans) == ["full", "text_only", "no_masking"]
    assert len({tuple(plan.folds) for plan in plans.values()}) == 1
    assert {plan.config.cache_dir for plan in plans.values()} == {str(tmp_path / "cache")}
    unfrozen = replace(corpus, lora_rank=2)
    assert make_plans(tmp_path, unfrozen, [])["full"].config.cache_dir is None


def test_variant_that_loses_utterances_is_refused(corpus: TrainConfig, tmp_path: Path) -> None:
    utterances = read_manifest(corpus.manifest[0])  # type: ignore[index]  # it has one
    utterances[0] = replace(utterances[0], text=None)
    write_manifest(utterances, tmp_path / "manifest.csv")
    config = replace(corpus, manifest=[str(tmp_path / "manifest.csv")])
    make_plans(tmp_path, config, ["audio_only"])
    with pytest.raises(ValueError, match="text_only"):
        make_plans(tmp_path, config, ["text_only"])
    with pytest.raises(ValueError, match="--model"):
        make_plans(tmp_path, replace(config, model="m"), [])


def table_lines(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_table_has_intervals_and_dashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "RESAMPLES", 100)
    write_experiment(tmp_path / "full", all_folds(1, 1.5))
    emotions_only = ("valence", "valence_label", "arousal", "arousal_label")
    categories = {f: without(rows, *emotions_only) for f, rows in all_folds(2, 1.0).items()}
    write_experiment(tmp_path / "categories_only", categories)
    names = ["full", "categories_only"]
    header, _, full, changed = table_lines(ablation.write_ablation(tmp_path, names))
    assert header[:5] == ["variant", "UAR", "WAR", "macro F1", "weighted F1"]
    assert header[5:] == ["CCC valence", "CCC arousal"]
    content = json.loads((tmp_path / "ablation.json").read_text())["variants"]
    assert full[0] == VARIANTS["full"].label and "<br>" not in full[1]
    assert full[5].startswith(f"{content['full']['summary']['metrics']['CCC_valence']['mean']:.3f}")
    assert changed[5:] == ["–", "–"]  # not trained, so neither a score nor a difference
    difference = content["categories_only"]["minus_reference"]["UAR"]["pooled"]
    shown = "<br>{point:+.3f} [{low:+.3f}, {high:+.3f}]".format(**difference).replace("-", "−")
    assert changed[1].endswith(shown)
    pictures = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert pictures == {f"ablation_{name}" for name in ("UAR", "WAR", "macro_F1", "weighted_F1")}


def test_shares_of_all_variants_are_run(
    corpus: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Plan] = []
    monkeypatch.setattr(protocol, "run_plans", lambda plans, jobs: begun.extend(plans))
    run_ablation(tmp_path, corpus, ["direct"], Part(share=(1, 3)))
    assert [plan.out.name for plan in begun] == ["full", "direct"]
    assert [plan.chosen for plan in begun] == [[1, 4], [1, 4]]
    assert not (tmp_path / "ablation.md").exists()


def test_embedded_settings_train_on_what_they_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The study once in earnest: one fold, the reference and one task alone."""
    monkeypatch.setattr(comparison, "RESAMPLES", 100)
    monkeypatch.setattr(train_accelerate, "main", main_without_pictures)
    recipe = embedded_settings(tmp_path, 60) | ablation.EMBEDDED_RECIPE
    config = TrainConfig(**recipe | {"epochs": 1, "workers": 0})
    run_ablation(tmp_path, config, ["categories_only"], Part([0], jobs=2))
    head, _, full, categories = table_lines(capsys.readouterr().out)
    assert "–" not in full
    of_dimensions = [title.startswith("CCC") for title in head]
    assert sum(of_dimensions) == 2
    assert [cell == "–" for cell in categories] == of_dimensions
