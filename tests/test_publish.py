"""From a run to the Hub, through the real client and a Hub on the loopback.

The isolated processes really run in the tests named "isolated"; elsewhere a stand-in gives what they
would print, so that each refusal costs no process.
"""

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from hub_server import READER, WRITER, Break, HubServer, files_in, trained_run
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load, load_file, save, save_file

from modeling_mtmm import MTMMModel, MTMMPipeline, MTMMProcessor
from mtmm_training.commands.cli import main
from mtmm_training.publishing import isolation
from mtmm_training.publishing.card import Facts, metric_values
from mtmm_training.publishing.hub import Target
from mtmm_training.publishing.isolation import Recorded, outputs_here
from mtmm_training.publishing.publish import publish
from mtmm_training.publishing.stage import clean_results, leave_out, refuse_private_text
from mtmm_training.training.run import Run

ROOT = Path(__file__).parents[1]
HUB_FILES = {path.name for path in ROOT.glob("*_mtmm.py")}
Publish = Callable[..., Any]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(tmp_path_factory.getbasetemp())


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def put(hub: HubServer, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Publish the run, with the isolated processes replaced by this one's own outputs."""
    of_target = Target.__dataclass_fields__
    of_call = ("adapter", "heads_only", "dry_run", "out", "api")

    def put(folder: Path = run, token: str = WRITER, **given: Any) -> Any:
        monkeypatch.setattr(isolation, "run_isolated", stand_in(folder))
        api = HfApi(hub.url, token=token)
        chosen: dict[str, Any] = {"repo_id": "writer/mtmm", "out": tmp_path / "staged", "api": api}
        chosen |= given
        target = Target(**{k: v for k, v in chosen.items() if k in of_target})
        others = {k: v for k, v in chosen.items() if k not in of_target and k not in of_call}
        call = {k: v for k, v in chosen.items() if k in of_call}
        return publish(folder, target, Facts(**others), **call)

    return put


def stand_in(folder: Path, shift: float = 0.0) -> Callable[..., tuple[Any, str]]:
    """In the place of `run_isolated`: the folder's model in this process, one output shifted."""

    def run_here(api: Any, example: Any, model: str, inputs: Any, *_: Any, **__: Any) -> Any:
        base = MTMMModel.from_pretrained(folder / "model").eval()
        processor = MTMMProcessor.from_pretrained(folder / "model", trust_remote_code=False)
        outputs: Any = outputs_here(base, processor, inputs)
        outputs[1]["dimensions"][0] += shift
        return outputs, "{'emotion': 'sad'}"

    return run_here


def read(run: str | Path) -> dict[str, Any]:
    return json.loads((Path(run) / "results.json").read_text(encoding="utf-8"))


def files_on_hub(
    hub: HubServer, repo_id: str = "writer/mtmm", name: str = "main"
) -> dict[str, Any]:
    repo = hub.repos[repo_id]
    return repo.commits[str(repo.find(name))]


def copy_of(run: Path, tmp_path: Path, **changes: Any) -> Path:
    """The run in another folder, with some of results.json replaced."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    results = read(run) | changes
    (copy / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return copy


# ---- the whole path ------------------------------------------------------------------------------


def test_isolated_run_reaches_hub_whole(
    hub: HubServer, run: Path, tmp_path: Path, capsys: Capture
) -> None:
    wav = next((run.parent / "corpus" / "audio").glob("*.wav"))
    commit = publish(
        run,
        Target("writer/mtmm", private=True, tag="v1"),
        Facts(licence="cc-by-nc-4.0", example=wav, example_text="we won"),
        api=HfApi(hub.url, token=WRITER),
    )
    assert commit is not None
    repo = hub.repos["writer/mtmm"]
    assert repo.private and repo.tags == {"v1": commit.oid} == {"v1": repo.branches["main"]}
    assert set(files_on_hub(hub)) == {
        ".gitattributes", "README.md", "results.json", "config.json", "model.safetensors",
        "processor_config.json", "tokenizer.json", "tokenizer_config.json", *HUB_FILES,
        "figures/confusion.png", "figures/curves.png", "figures/valence_arousal.png",
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert "4 test utterances as in predictions.csv" in printed
    assert f"loaded back at {commit.oid[:12]}: same outputs" in printed
    card = files_on_hub(hub)["README.md"].decode()
    assert f'predict({{"audio": "{wav.name}", "text": "we won"}})' in card
    assert "'scores': {" in card and "pure tone" not in card


def test_isolated_heads_find_their_encoders(
    hub: HubServer, run: Path, tmp_path: Path, capsys: Capture
) -> None:
    """First where the run had them, then on the Hub, at their commits."""
    ids = {"audio": "lab/audio", "text": "lab/text"}
    for name, repo in ids.items():
        hub.put(repo, files_in(run.parent / "encoders" / name))
    api, out = HfApi(hub.url, token=WRITER), tmp_path / "staged"
    facts = Facts(base_model=[*ids.values()])
    publish(run, Target("writer/heads"), facts, heads_only=True, api=api, out=out)
    files = files_on_hub(hub, "writer/heads")
    assert "tokenizer.json" not in files and "loaded back at" in capsys.readouterr().out
    assert len(files["model.safetensors"]) < (run / "model/model.safetensors").stat().st_size / 2
    sources = json.loads(files["config.json"])["encoder_sources"]
    assert sources == {
        name: {"id": repo, "revision": hub.repos[repo].branches["main"]}
        for name, repo in ids.items()
    }
    assert sources["audio"]["revision"] in files["README.md"].decode()
    with pytest.raises(ValueError, match="base_model"):
        publish(run, Target("writer/heads"), heads_only=True, api=api)
    with pytest.raises(ValueError, match="trained its encoders"):
        publish(lora_run(run, tmp_path), Target("writer/heads"), facts, heads_only=True, api=api)


def test_isolated_adapter_and_merged_model_agree(
    hub: HubServer, put: Publish, run: Path, tmp_path: Path
) -> None:
    """Each is compared with this process's model of its kind, and the two with each other."""
    hub.put("writer/base", files_in(run / "model"))
    lora = lora_run(run, tmp_path)
    api = HfApi(hub.url, token=WRITER)
    publish(lora, Target("writer/lora"), Facts(base_model=["writer/base"]), adapter=True, api=api)
    files = files_on_hub(hub, "writer/lora")
    assert "adapter_model.safetensors" in files and "config.json" not in files
    config = json.loads(files["adapter_config.json"])
    assert config["base_model_name_or_path"] == "writer/base" and config["auto_mapping"] is None
    card = ModelCard(files["README.md"].decode())
    data: Any = card.data
    assert data.base_model == ["writer/base"] and data.library_name == "peft"
    assert data.to_dict()["base_model_relation"] == "adapter"
    assert "predict.model.config.temperature = 1.25" in card.text
    put(lora, repo_id="writer/merged", dry_run=True)  # a whole model is tried isolated above
    assert "adapters are merged" in ModelCard.load(tmp_path / "staged" / "README.md").text


def test_adapter_of_other_base_is_refused(
    hub: HubServer, put: Publish, run: Path, tmp_path: Path
) -> None:
    files = files_in(run / "model")
    weights = load(files["model.safetensors"])
    name = next(n for n in weights if n.startswith("text_model") and n.endswith("query.weight"))
    weights[name] = torch.randn_like(weights[name])
    hub.put("writer/other", files | {"model.safetensors": save(weights, {"format": "pt"})})
    config = json.loads(files["config.json"]) | {"dimension_range": [0, 1]}
    hub.put("writer/scale", files | {"config.json": json.dumps(config).encode()})
    lora = lora_run(run, tmp_path)
    with pytest.raises(ValueError, match="writer/other"):
        put(lora, adapter=True, base_model=["writer/other"])
    with pytest.raises(ValueError, match="writer/scale"):
        put(lora, adapter=True, base_model=["writer/scale"])


def lora_run(run: Path, tmp_path: Path) -> Path:
    """The run as --lora_rank leaves it: an adapter, and the model that it was merged into."""
    folder = tmp_path / "lora"
    shutil.copytree(run, folder)
    results = read(run)
    results["config"]["lora_rank"] = 2
    results["model_config"]["temperature"] = 1.25
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (folder / "predictions.csv").unlink()
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=2,
        target_modules=r".*text_model\.encoder\.layer\.\d+\.attention\.self\.(query|value)",
        modules_to_save=["fusion", "emotion_head", "dimension_head"],
    )
    model = peft.get_peft_model(MTMMModel.from_pretrained(run / "model").eval(), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
    for path in (run / "model").iterdir():
        if "processor" in path.name or "tokenizer" in path.name:
            shutil.copy(path, folder / "adapter")
    merged: Any = model.merge_and_unload()
    merged.config.temperature = 1.25
    merged.config.save_pretrained(folder / "adapter")
    merged.save_pretrained(folder / "model")
    return folder


def test_dry_run_stages_and_uploads_nothing(
    hub: HubServer, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """By the command, from another folder than the one that the run was started in."""
    monkeypatch.setattr(isolation, "run_isolated", stand_in(run))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.chdir(tmp_path)
    staged = tmp_path / "staged"
    (staged / "figures").mkdir(parents=True)
    (staged / "figures" / "older.txt").touch()  # what is there stays
    words = ["--licence", "mit", "--language", "de", "en", "--dry_run", "--out", "staged"]
    words += ["--branch", "next", "--private"]
    assert main(["publish", str(run), "someone/mtmm", *words]) == 0
    assert hub.requests == []
    printed = capsys.readouterr().out
    wrong = [*words[:1], "cc-by-nc-4", *words[2:]]
    assert main(["publish", str(run), "someone/mtmm", *wrong]) == 2
    assert "is cc-by-nc-4.0 meant?" in capsys.readouterr().err
    data: Any = ModelCard.load(staged / "README.md").data
    assert (data.license, data.language) == ("mit", ["de", "en"])
    assert "would go to someone/mtmm, private if new, branch next:" in printed
    for path in staged.rglob("*.*"):
        listed = f"{path.stat().st_size:,}  {path.relative_to(staged)}" in printed
        assert listed == (path.name != "older.txt")


def test_branch_and_pull_request_leave_main_alone(hub: HubServer, put: Publish) -> None:
    first = put()
    put(branch="next", licence="mit")
    request = put(pull_request=True, licence="apache-2.0")
    repo = hub.repos["writer/mtmm"]
    assert repo.branches["main"] == first.oid
    assert request.pr_num == 1 and repo.pull_requests == {"refs/pr/1": request.oid}
    licences = [
        ModelCard(files_on_hub(hub, name=name)["README.md"].decode()).data.to_dict().get("license")
        for name in ("main", "next", "refs/pr/1")
    ]
    assert licences == [None, "mit", "apache-2.0"]


def test_new_version_removes_old_weights(hub: HubServer, put: Publish) -> None:
    first = put()
    older = files_on_hub(hub)
    older |= {"notes.txt": b"", "adapter_model.safetensors": b"", "figures/old.png": b""}
    commit = put(licence="mit")
    files = files_on_hub(hub)
    assert "model.safetensors" in files and "adapter_model.safetensors" not in files
    assert "figures/old.png" not in files and "notes.txt" in files  # somebody else's, so it stays
    assert len(hub.repos["writer/mtmm"].commits) == 3  # the first one, and one for each version
    assert first.oid != commit.oid


# ---- what must not be published ------------------------------------------------------------------


def test_published_files_hold_no_private_path(put: Publish, run: Path, tmp_path: Path) -> None:
    put(dry_run=True)
    private = [str(run), str(run.parent), str(tmp_path.parent), str(Path.home()), WRITER]
    config = read(run)["config"]
    private += [*config["manifest"], config["audio_encoder"], config["out"]]
    for path in (tmp_path / "staged").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert [text for text in private if text.encode() in content] == []


def test_results_lose_paths_and_speakers(run: Path) -> None:
    results = read(run)
    results["config"] |= {
        "manifest": ["/data/private person/manifest.csv"],
        "audio_dir": "~/corpora/iemocap",
        "out": "../secret/run",
        "folds_file": r"C:\Users\someone\folds.json",
        "audio_encoder": "facebook/hubert-large-ll60k",
        "model_config": '{"note": "/home/someone/x"}',
        "test_speakers": ["Ann", "Bob"],
    }
    cleaned = clean_results(results)
    config = cleaned["config"]
    assert [config[name] for name in ("manifest", "audio_dir", "out", "folds_file")] == [
        ["manifest.csv"],
        "iemocap",
        "run",
        "folds.json",
    ]
    assert config["audio_encoder"] == "facebook/hubert-large-ll60k"
    assert json.loads(config["model_config"]) == {"note": "x"}
    assert cleaned["splits"]["test"]["speakers"] == 2 and config["test_speakers"] == 2
    assert not any(word in json.dumps(cleaned) for word in ("private person", "someone", "Ses01F"))
    assert clean_results(results, name_speakers=True)["splits"]["test"]["speakers"] == [
        "Ses01F",
        "Ses01M",
    ]
    assert cleaned["test"] == results["test"]


@pytest.mark.parametrize(
    ("content", "found"),
    [("see {run}/x", "run"), ("hf_" + "a" * 30, "access token"), ("my-token", "token")],
)
def test_private_text_is_refused(tmp_path: Path, content: str, found: str) -> None:
    staged, run = tmp_path / "staged", tmp_path / "run"
    staged.mkdir()
    api = HfApi(token="my-token")
    text = content.format(run=run)
    (staged / "README.md").write_text(text)
    with pytest.raises(ValueError, match=f"README.md.*{found}"):
        refuse_private_text(staged, run, api)
    (staged / "README.md").write_text(f"see {run}s/x")  # another folder
    refuse_private_text(staged, run, api)
    save_file({"x": torch.zeros(1)}, staged / "model.safetensors", metadata={"from": text})
    with pytest.raises(ValueError, match="model.safetensors"):
        refuse_private_text(staged, run, api)


def test_only_allowed_files_are_staged(tmp_path: Path, capsys: Capture) -> None:
    allowed = {"config.json", "model-00001-of-00002.safetensors", "fusion_mtmm.py"}
    others = {"predictions.csv", "pytorch_model.bin", "other.py", ".env"}
    for name in allowed | others:
        (tmp_path / name).touch()
    leave_out(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == allowed
    assert all(name in capsys.readouterr().out for name in {"other.py"})


# ---- what must agree -----------------------------------------------------------------------------


def test_other_outputs_are_refused(
    hub: HubServer, put: Publish, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "run_isolated", stand_in(run, shift=1e-4))
    with pytest.raises(ValueError, match="dimensions .* input 1: .* 0.0001"):
        publish(run, Target("writer/mtmm"), api=HfApi(hub.url, token=WRITER))
    assert "writer/mtmm" not in hub.repos


def test_foreign_predictions_are_refused(
    hub: HubServer, put: Publish, run: Path, tmp_path: Path
) -> None:
    copy = copy_of(run, tmp_path)
    path = copy / "model" / "model.safetensors"
    weights = load_file(path)
    weights["dimension_head.projection.bias"] += 0.5
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"predictions\.csv"):
        put(copy)
    assert "writer/mtmm" not in hub.repos


@pytest.mark.parametrize("change", ["manifest", "row", "column", "recordings"])
def test_changed_data_skips_comparison(
    run: Path, tmp_path: Path, capsys: Capture, change: str
) -> None:
    results = read(run)
    manifest = Path(results["config"]["manifest"][0])
    corpus = tmp_path / "corpus"
    shutil.copytree(manifest.parent, corpus)
    results["config"]["manifest"] = [str(corpus / manifest.name)]
    copy = copy_of(run, tmp_path, config=results["config"])
    assert len(Recorded.of(Run.open(copy), tmp_path).rows) == 4
    table = copy / "predictions.csv"
    if change == "manifest":
        (corpus / manifest.name).unlink()
    elif change == "row":
        gone = Run.open(copy).predictions()["id"][0]
        lines = (corpus / manifest.name).read_text().splitlines()
        (corpus / manifest.name).write_text("\n".join(line for line in lines if gone not in line))
    elif change == "column":
        table.write_text(table.read_text().replace("split", "part", 1))
    else:
        for path in corpus.rglob("*.wav"):
            path.unlink()
    assert not Recorded.of(Run.open(copy), tmp_path).rows
    assert "predictions.csv not compared: " in capsys.readouterr().out


# ---- the card ------------------------------------------------------------------------------------


@pytest.fixture
def card_of(put: Publish, tmp_path: Path) -> Callable[..., ModelCard]:
    def card_of(*args: Any, **options: Any) -> ModelCard:
        put(*args, dry_run=True, **options)
        return ModelCard.load(tmp_path / "staged" / "README.md")

    return card_of


def test_card_is_parsed_by_hubs_classes(card_of: Callable[..., ModelCard], run: Path) -> None:
    card = card_of(
        licence="mit", corpus_name="Tiny Corpus", datasets=["a/tiny"], base_model=["a/x", "b/y"]
    )
    data: Any = card.data
    assert (data.pipeline_tag, data.library_name) == ("audio-classification", "transformers")
    assert (data.license, data.language, data.datasets) == ("mit", ["en"], ["a/tiny"])
    assert data.base_model == ["a/x", "b/y"]
    assert data.to_dict()["base_model_relation"] == "finetune"
    results = read(run)
    for split in ("validation", "test"):
        expected = metric_values(results[split], ["emotion", "valence", "arousal"])
        found = {r.metric_name: r for r in data.eval_results if r.dataset_split == split}
        assert {m.title: round(m.value, 6) for m in expected.values()} == {
            name: r.metric_value for name, r in found.items()
        }
        assert found["UAR (unweighted average recall)"].metric_type == "recall"
        assert found["CCC of valence"].dataset_args["protocol"] == "session"
    assert all(r.dataset_type == "a/tiny" for r in data.eval_results)
    assert "{{" not in card.content and "{%" not in card.content


def test_card_leaves_untrained_output_out(
    card_of: Callable[..., ModelCard], run: Path, tmp_path: Path
) -> None:
    copy = copy_of(run, tmp_path)
    config = json.loads((copy / "model" / "config.json").read_text())
    config["trained_outputs"] = ["emotion", "valence"]
    (copy / "model" / "config.json").write_text(json.dumps(config))
    (copy / "predictions.csv").unlink()
    card = card_of(copy)
    assert "Never trained, for lack of labels, and left out of the pipeline's answer: arousal." in (
        card.text
    )
    data: Any = card.data
    assert not any("arousal" in r.metric_name for r in data.eval_results)
    assert "| `arousal` |" not in card.text and "| `valence` |" in card.text


def test_card_lists_all_that_the_pipeline_gives(
    card_of: Callable[..., ModelCard], run: Path
) -> None:
    processor = MTMMProcessor.from_pretrained(run / "model")
    pipe = MTMMPipeline(model=MTMMModel.from_pretrained(run / "model"), processor=processor)
    seconds = math.ceil(processor.longest_audio_s()) + 1
    result = pipe(np.random.default_rng(0).uniform(-0.5, 0.5, 16000 * seconds), sampling_rate=16000)
    text = card_of().text
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.M)) == set(result)
    assert "heard in windows" in text and "is refused" not in text


def test_card_gives_spread_over_folds(
    card_of: Callable[..., ModelCard], run: Path, tmp_path: Path
) -> None:
    test = read(run)["test"] | {"UAR": read(run)["test"]["UAR"] + 0.2}
    other = copy_of(run, tmp_path, fold="Ses02", test=test)
    card = card_of(folds=[str(other)])
    data: Any = card.data
    uar = next(r for r in data.eval_results if r.dataset_split == "test")
    assert uar.metric_args["folds"] == 2
    assert uar.metric_args["mean"] == pytest.approx(uar.metric_value + 0.1, abs=1e-6)
    assert uar.metric_args["standard_deviation"] == pytest.approx(0.2 / 2**0.5)
    mean = f"{uar.metric_args['mean']:.3f} ± {0.2 / 2**0.5:.3f}"
    assert f"| {mean} |" in card.text and "over 2 folds" in card.text


def test_folds_must_be_of_one_protocol(put: Publish, run: Path, tmp_path: Path) -> None:
    config = read(run)["config"] | {"protocol": "speaker"}
    other = copy_of(run, tmp_path, fold="x", config=config)
    with pytest.raises(ValueError, match="protocol"):
        put(folds=[str(other)], dry_run=True)
    (other / "results.json").write_text((run / "results.json").read_text())
    with pytest.raises(ValueError, match="Ses01, Ses01"):
        put(folds=[str(other)], dry_run=True)


@pytest.mark.parametrize("modality", ["audio", "text"])
def test_example_uses_what_was_trained(
    card_of: Callable[..., ModelCard], run: Path, tmp_path: Path, modality: str
) -> None:
    config = read(run)["config"] | {"modalities": [modality], "manifest": None}
    config["folds_file"] = "IEMOCAP.json"
    card = card_of(copy_of(run, tmp_path, config=config))
    call = next(line for line in card.text.splitlines() if line.startswith("pprint"))
    assert ('"audio"' in call, '"text"' in call) == (modality == "audio", modality == "text")
    assert f"trained and tested on {modality} alone" in card.text
    assert "Fold 0 of IEMOCAP.json. No speaker" in card.text


def test_card_states_use_cost_and_source(card_of: Callable[..., ModelCard], run: Path) -> None:
    text = card_of().text
    hours = read(run)["wall_time_s"] / 3600
    assert f"{hours:.2f} device-hours on cpu" in text and "CO2" not in text
    for phrase in ("Article 5(1)(f)", "10.1145/3610661.3616190", "| angry, happy, sad, neutral |"):
        assert phrase.strip("| ") in text
    for picture in (run / "figures").glob("*.png"):
        assert f"](figures/{picture.name})" in text


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["mtmm"], "user/name"),
        (["a/b", "--pull_request", "--tag", "v1"], "--pull_request"),
        (["a/b", "--adapter"], "--base_model"),
        (["a/b", "--adapter", "--base_model", "{run}/model"], "--base_model"),
        (["a/b", "--example", "gone.wav"], "gone.wav"),
    ],
)
def test_wrong_use_is_named(run: Path, words: list[str], named: str, capsys: Capture) -> None:
    words = [word.format(run=run) for word in words]
    assert main(["publish", str(run), *words]) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    "lost", ["results.json", "model", "model/model.safetensors", "model/processor_config.json"]
)
def test_incomplete_run_is_refused(put: Publish, run: Path, tmp_path: Path, lost: str) -> None:
    copy = copy_of(run, tmp_path)
    shutil.rmtree(copy / lost) if lost == "model" else (copy / lost).unlink()
    with pytest.raises(OSError, match=str(copy)):
        put(copy, dry_run=True)


@pytest.mark.parametrize(
    ("token", "repo_id"),
    [("hf_wrong", "writer/mtmm"), (READER, "writer/mtmm"), (WRITER, "reader/mtmm")],
)
def test_token_is_refused(put: Publish, token: str, repo_id: str) -> None:
    with pytest.raises(PermissionError, match=repo_id):
        put(token=token, repo_id=repo_id)


def test_taken_names_are_refused(hub: HubServer, put: Publish) -> None:
    put(tag="v1")
    with pytest.raises(ValueError, match="tag v1"):
        put(tag="v1")
    with pytest.raises(ValueError, match="--private"):
        put(private=True)
    with pytest.raises(PermissionError, match="writer/other"):  # there is nothing to ask to pull
        put(repo_id="writer/other", pull_request=True)


def test_broken_connection_is_named_and_the_command_can_be_repeated(
    hub: HubServer, put: Publish
) -> None:
    hub.breaks.append(Break("POST", "/api/repos/create", after_bytes=10))
    with pytest.raises(ConnectionError, match="writer/mtmm"):
        put()
    assert "writer/mtmm" not in hub.repos
    hub.breaks.append(Break("POST", "/commit/main", after_bytes=10000))  # the client tries again
    put()
    assert "model.safetensors" in files_on_hub(hub)


def test_unreachable_hub_is_named(run: Path) -> None:
    api = HfApi("http://127.0.0.1:9", token=WRITER)
    with pytest.raises(ConnectionError, match="writer/mtmm"):
        publish(run, Target("writer/mtmm"), api=api)


def test_full_disk_of_temporary_files_is_named(
    put: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tokenizers has no type of its own for it."""

    def refuse(*given: object, **options: object) -> None:
        raise Exception("No space left on device (os error 28)")

    monkeypatch.setattr(MTMMProcessor, "save_pretrained", refuse)
    with pytest.raises(OSError, match="could not be written"):
        put(dry_run=True)
