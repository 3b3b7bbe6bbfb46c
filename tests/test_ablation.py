"""python -m pytest tests/test_ablation.py -q"""

import json
from pathlib import Path
from typing import Any

import pytest
from test_evaluate import all_folds, without, write_experiment

from configuration_mtmm import MTMMConfig
from mtmm_training.data.corpora.synthetic import write_corpus, write_encoders
from mtmm_training.data.manifest import read_manifest, write_manifest
from mtmm_training.studies import ablation
from mtmm_training.studies import compare as comparison
from mtmm_training.studies.ablation import VARIANTS, flags_of, is_reference, main, make_plans
from mtmm_training.studies.protocol import parse
from mtmm_training.training.prepare import trained_outputs

BASE = ["--manifest", "x.csv", "--model_config", '{"num_bridge_tokens": 8}']


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablation")
    write_corpus(folder / "corpus", utterances=50)
    write_encoders(folder / "encoders")
    return folder


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_is_a_model_and_a_recipe(name: str) -> None:
    config = parse(BASE)
    changed = parse(flags_of(VARIANTS[name], BASE, config))
    changed.check()
    fields = json.loads(changed.model_config)
    MTMMConfig(**fields)
    assert fields["num_bridge_tokens"] == VARIANTS[name].model_config.get("num_bridge_tokens", 8)
    others = {"model_config", *VARIANTS[name].flags}
    same = {key: value for key, value in vars(changed).items() if key not in others}
    assert same == {key: value for key, value in vars(config).items() if key not in others}


def test_categories_only_weighs_every_dimension_with_zero() -> None:
    flags = [*BASE, "--dimensions", "valence", "arousal", "dominance"]
    changed = parse(flags_of(VARIANTS["categories_only"], flags, parse(flags)))
    assert json.loads(changed.model_config)["dimension_loss_weights"] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("flags", "same"),
    [
        ([], {"full", "crossed", "last_layer", "bridge_tokens_8"}),
        (["--model_config", '{"bridge_wiring": "direct"}'], {"full", "direct", "last_layer",
                                                             "bridge_tokens_30"}),
        (["--rmm_start", "0", "--modalities", "text"], {"full", "crossed", "last_layer",
                                                        "bridge_tokens_8", "no_masking",
                                                        "text_only"}),
    ],
)  # fmt: skip
def test_variant_equal_to_reference_is_found(flags: list[str], same: set[str]) -> None:
    config = parse([*BASE, *flags])
    assert {name for name, variant in VARIANTS.items() if is_reference(variant, config)} == same


def test_all_variants_share_folds_and_cache(corpus: Path, tmp_path: Path) -> None:
    flags = ["--manifest", str(corpus / "corpus" / "manifest.csv"), "--protocol", "session"]
    plans = make_plans(tmp_path, flags, ["text_only", "no_masking"], [1])
    assert list(plans) == ["full", "text_only", "no_masking"]
    assert len({tuple(plan.folds) for plan in plans.values()}) == 1
    assert {plan.config.cache_dir for plan in plans.values()} == {str(tmp_path / "cache")}
    assert {plan.config.seed for plan in plans.values()} == {0}
    unfrozen = [*flags, "--lora_rank", "2"]
    assert make_plans(tmp_path, unfrozen, [], None)["full"].config.cache_dir is None


def test_variant_that_loses_utterances_is_refused(corpus: Path, tmp_path: Path) -> None:
    import dataclasses

    utterances = read_manifest(corpus / "corpus" / "manifest.csv")
    utterances[0] = dataclasses.replace(utterances[0], text=None)
    write_manifest(utterances, tmp_path / "manifest.csv")
    flags = ["--manifest", str(tmp_path / "manifest.csv"), "--protocol", "session"]
    make_plans(tmp_path, flags, ["audio_only"], None)
    with pytest.raises(ValueError, match="text_only would not have the folds of the reference"):
        make_plans(tmp_path, flags, ["text_only"], None)
    with pytest.raises(ValueError, match="`--model` is 'm'"):
        make_plans(tmp_path, [*flags, "--model", "m"], [], None)


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


def table_lines(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("full", ("emotion", "valence", "arousal")),
        ("categories_only", ("emotion",)),
        ("dimensions_only", ("valence", "arousal")),
    ],
)
def test_variant_trains_its_own_tasks(corpus: Path, name: str, trained: tuple[str, ...]) -> None:
    fields = json.loads(parse(flags_of(VARIANTS[name], BASE, parse(BASE))).model_config)
    utterances = read_manifest(corpus / "corpus" / "manifest.csv")
    assert trained_outputs(MTMMConfig(**fields), utterances) == trained


def test_task_that_is_not_trained_has_no_scores(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command once in earnest: one fold, the reference and one task alone."""
    model_config: dict[str, Any] = {"freeze_audio_encoder": False, "freeze_text_encoder": False}
    model_config |= {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
    flags = ["--manifest", str(corpus / "corpus" / "manifest.csv"), "--protocol", "session"]
    flags += ["--audio_encoder", str(corpus / "encoders" / "audio")]
    flags += ["--text_encoder", str(corpus / "encoders" / "text"), "--tracker", "none"]
    flags += ["--model_config", json.dumps(model_config), "--epochs", "1", "--batch_size", "16"]
    flags += ["--folds", "4", "--variants", "categories_only", "--jobs", "2"]
    main(["--out", str(tmp_path / "out"), *flags])
    _, _, full, categories = table_lines(capsys.readouterr().out)
    assert "–" not in full
    assert "–" not in categories[1:5] and categories[5:] == ["–", "–"]


def test_command_without_corpus_takes_the_embedded_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = []
    monkeypatch.setattr(ablation, "EMBEDDED_UTTERANCES", 60)
    monkeypatch.setattr(ablation, "run_plans", lambda plans, jobs: begun.extend(plans))
    main(["--out", str(tmp_path), "--share", "1/3", "--variants", "direct"])
    assert [plan.out.name for plan in begun] == ["full", "direct"]
    assert [plan.chosen for plan in begun] == [[1], [1]]
    assert len(read_manifest(tmp_path / "corpus" / "manifest.csv")) == 60
    assert "the table comes with the command whose share is the last" in capsys.readouterr().out


def test_command_ends_with_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: There is no manifest at .*none.csv"):
        main(["--out", str(tmp_path), "--manifest", str(tmp_path / "none.csv")])
    with pytest.raises(SystemExit, match="^error: `--model_config` is '{a:1}'; it must be a JSON"):
        main(["--out", str(tmp_path), "--manifest", "x.csv", "--model_config", "{a:1}"])


def test_jobs_below_one_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--out", str(tmp_path), "--jobs", "0"])
    assert "--jobs: '0' must be a whole number of at least 1" in capsys.readouterr().err
