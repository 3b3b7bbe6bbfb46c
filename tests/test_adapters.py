"""LoRA on every family of encoders, merging, top layers, and whole runs with either.

Run alone: python -m pytest tests/test_adapters.py
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import gradient
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from small_runs import results_of, train, words
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from configuration_mtmm import MTMMConfig
from modeling_mtmm import MTMMModel, MTMMProcessor
from mtmm_training.training import adapters
from mtmm_training.training.adapters import add_lora, merge, unfreeze_top_layers
from mtmm_training.training.launch import Stopped, StopSignal
from mtmm_training.training.model import parameter_counts

SIZES: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
WAVEFORM = {
    "num_hidden_layers": 2,
    "conv_dim": [32, 32, 32],
    "conv_kernel": [10, 8, 4],
    "conv_stride": [5, 4, 4],
    "feat_extract_norm": "layer",
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "layerdrop": 0.0,
    "apply_spec_augment": False,
}
WHISPER = {
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "num_mel_bins": 8,
    "max_source_positions": 50,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 64,
    "pad_token_id": 0,
}
TEXT = {"num_hidden_layers": 2, "vocab_size": 128, "max_position_embeddings": 64}
STABLE = {"do_stable_layer_norm": True}
AUDIO = ("hubert", "wav2vec2", "wavlm", "whisper", "wav2vec2-conformer")
ENCODERS = {
    "hubert": SIZES | WAVEFORM | STABLE,
    "wav2vec2": SIZES | WAVEFORM,
    "wavlm": SIZES | WAVEFORM | STABLE,
    "whisper": WHISPER,
    "bert": SIZES | TEXT,
    "roberta": SIZES | TEXT | {"pad_token_id": 1},
    "xlm-roberta": SIZES | TEXT | {"pad_token_id": 1},
    "camembert": SIZES | TEXT | {"pad_token_id": 1},
    "electra": SIZES | TEXT | {"embedding_size": 32},
    "deberta-v2": SIZES | TEXT,
    "mpnet": SIZES | TEXT | {"pad_token_id": 1},
    "wav2vec2-conformer": SIZES | WAVEFORM,
}


def batch(model: MTMMModel) -> dict[str, Tensor]:
    """Two utterances with both modalities and all labels."""
    generator = torch.Generator().manual_seed(0)
    time = (2, 8, 100) if model.audio_model.main_input_name == "input_features" else (2, 4000)
    return {
        "input_values": torch.randn(time, generator=generator),
        "input_ids": torch.randint(5, 60, (2, 6), generator=generator),
        "emotion_labels": torch.tensor([0, 1]),
        "dimension_labels": torch.tensor([[2.0, 4.0], [4.0, 1.5]]),
    }


def use_adapters(model: nn.Module) -> None:
    """As after some training: adapters begin as zero, and would be seen nowhere."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)


# ---- LoRA --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_adapter_learns_in_every_family(kind: str) -> None:
    """Nothing but adapters and new parts gets a gradient, and each of them gets one that is not zero."""
    part = "audio" if kind in AUDIO else "text"
    override = {f"{part}_config": {"model_type": kind} | ENCODERS[kind]}
    torch.manual_seed(0)
    model = MTMMModel(MTMMConfig.tiny(**override))
    encoder = adapters.ENCODERS[part]
    adapted = add_lora(model, rank=2, alpha=4, dropout=0.0)
    adapted.train()
    assert model.audio_model.training and model.text_model.training  # though their flag says frozen
    trained = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    per_layer = {"wavlm": 2, "wav2vec2-conformer": 5}.get(kind, 4)
    assert sum("lora_A" in name and encoder in name for name in trained) == 2 * per_layer
    assert not any(encoder in name and "lora_" not in name for name in trained)
    optimiser = torch.optim.SGD(trained.values(), lr=1.0)
    adapted(**batch(model)).loss.backward()
    optimiser.step()  # until now the second half of each adapter is zero, and so the first's gradient
    optimiser.zero_grad()
    adapted(**batch(model)).loss.backward()
    still = [
        name for name, p in trained.items() if "lora_" in name and not gradient(p).abs().max() > 0
    ]
    assert not still
    assert not [name for name, p in trained.items() if p.grad is None]


def test_adapters_change_nothing_before_training(make_model: Callable[..., MTMMModel]) -> None:
    model = make_model()
    with torch.no_grad():
        before = model(**batch(model)).emotion_logits
        after = add_lora(model, 2, 4, 0.5).eval()(**batch(model)).emotion_logits
    assert torch.equal(before, after)


def test_dropout_of_a_frozen_encoder_is_active_with_adapters(
    make_model: Callable[..., MTMMModel],
) -> None:
    model = make_model(hidden_dropout=0.0, attention_dropout=0.0, head_dropout=0.0)
    inputs = batch(model)
    model.train()
    assert torch.equal(model(**inputs).emotion_logits, model(**inputs).emotion_logits)
    adapted = add_lora(model, 2, 4, 0.0).train()
    assert not torch.equal(adapted(**inputs).emotion_logits, adapted(**inputs).emotion_logits)
    adapted.eval()
    assert torch.equal(adapted(**inputs).emotion_logits, adapted(**inputs).emotion_logits)


def test_parameters_are_counted_once(make_model: Callable[..., MTMMModel]) -> None:
    model = make_model()
    plain = parameter_counts(model)
    adapted = parameter_counts(add_lora(model, 2, 4, 0.0))
    assert adapted["fusion"] == plain["fusion"] and adapted["emotion_head"][1] == 0
    # 2 layers x 4 maps x two matrices of 2 x 32
    assert adapted["audio_model"] == (1024, sum(plain["audio_model"]))


def test_adapters_of_one_modality_leave_the_other_alone(
    make_model: Callable[..., MTMMModel],
) -> None:
    counts = parameter_counts(add_lora(make_model(), 2, 4, 0.0, modalities=["text"]))
    assert counts["audio_model"][0] == 0 and counts["text_model"][0] == 1024


def test_encoder_without_a_list_of_layers_is_refused(make_model: Callable[..., MTMMModel]) -> None:
    model = make_model()
    model.text_model.config.num_hidden_layers = 9  # as ALBERT's, which share their weights
    with pytest.raises(ValueError, match=type(model.text_model).__name__):
        add_lora(model, 2, 4, 0.0)


@pytest.mark.parametrize("encoder_layers", ["last", "weighted"])
@pytest.mark.parametrize("way", ["lora", "layers"])
def test_checkpointing_gives_the_same_gradients(
    way: str, encoder_layers: str, make_model: Callable[..., MTMMModel]
) -> None:
    gradients: list[dict[str, Any]] = []
    for checkpointing in (False, True):
        plain = make_model(encoder_layers=encoder_layers)
        model: nn.Module = plain
        if way == "lora":
            model = add_lora(plain, 2, 4, 0.1)
            use_adapters(model)
        else:
            unfreeze_top_layers(plain.audio_model, 1)
            unfreeze_top_layers(plain.text_model, 2)
        if checkpointing:
            plain.activation_checkpointing_enable()
        torch.manual_seed(0)
        model.train()(**batch(plain)).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


# ---- merging -----------------------------------------------------------------------------------


@pytest.fixture
def folders(
    make_model: Callable[..., MTMMModel], tiny_processor: MTMMProcessor, tmp_path: Path
) -> tuple[Path, dict[str, Tensor]]:
    """A folder with base/ and adapter/, and what the model with adapters says."""
    model = make_model()
    model.save_pretrained(tmp_path / "base")
    model = MTMMModel.from_pretrained(tmp_path / "base")
    base = adapters.describe_base(model, model=str(tmp_path / "base"))
    model.config.temperature, model.config.trained_outputs = 1.5, ("emotion",)
    adapted = add_lora(model, 2, 4, 0.1).eval()
    use_adapters(adapted)
    with torch.no_grad():
        model.fusion.output_norm.weight.mul_(1.5)
        output = adapted(**batch(model))
    adapters.save_adapters(adapted, tmp_path / "adapter", base)
    tiny_processor.save_pretrained(tmp_path / "adapter")
    return tmp_path, {"emotion_logits": output.emotion_logits, "dimensions": output.dimensions}


def test_merged_folder_equals_model_with_adapters(folders: tuple[Path, dict[str, Tensor]]) -> None:
    folder, expected = folders
    merge(folder / "adapter", folder / "out", base=str(folder / "base"))
    model = MTMMModel.from_pretrained(folder / "out").eval()
    with torch.no_grad():
        output = model(**batch(model))
        unlike = MTMMModel.from_pretrained(folder / "base").eval()(**batch(model))
    for name, tensor in expected.items():
        torch.testing.assert_close(output[name], tensor, atol=1e-5, rtol=0)
    assert (unlike.emotion_logits - output.emotion_logits).abs().max() > 1e-2
    assert model.config.temperature == 1.5 and model.config.trained_outputs == ("emotion",)
    assert not any("lora" in name for name in model.state_dict())
    assert MTMMProcessor.from_pretrained(folder / "out").max_tokens == 64


def test_folder_of_adapters_is_small_and_names_no_place(
    folders: tuple[Path, dict[str, Tensor]],
) -> None:
    folder, _ = folders
    names = load_file(folder / "adapter" / "adapter_model.safetensors").keys()
    assert {name.split(".")[2] for name in names if "lora_" not in name} == set(
        adapters.IN_FULL[:3]
    )
    for file in (folder / "adapter").glob("*.json"):
        assert str(folder) not in file.read_text(encoding="utf-8"), file
    assert not (folder / "adapter" / "README.md").exists()


def test_merging_without_its_base_is_refused(
    folders: tuple[Path, dict[str, Tensor]], make_model: Callable[..., MTMMModel]
) -> None:
    folder, _ = folders
    with pytest.raises(ValueError, match="--base"):
        merge(folder / "adapter", folder / "out")
    model = MTMMModel.from_pretrained(folder / "base")
    with torch.no_grad():
        model.text_model.get_input_embeddings().weight.mul_(2)
    for other, named in (
        (model, "another text"),
        (make_model(seed=1), "another audio and another"),
    ):
        other.save_pretrained(folder / "other")
        with pytest.raises(ValueError, match=f"of {named}"):
            merge(folder / "adapter", folder / "out", base=str(folder / "other"))
    assert not (folder / "out").exists()


def without_weights(words: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        save_file({n: t for n, t in load_file(path).items() if words not in n}, path)

    return change


WEIGHTS = "adapter_model.safetensors"


@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        (WEIGHTS, Path.unlink, FileNotFoundError),
        (WEIGHTS, lambda path: os.truncate(path, 9999), SafetensorError),
        (WEIGHTS, without_weights("lora_B"), ValueError),
        (WEIGHTS, without_weights("emotion_head"), ValueError),
        ("base.json", lambda path: path.write_text("{}"), ValueError),
        ("base.json", Path.unlink, FileNotFoundError),
    ],
)
def test_damaged_folder_of_adapters_is_refused(
    folders: tuple[Path, dict[str, Tensor]],
    name: str,
    change: Callable[[Path], object],
    error: type[Exception],
) -> None:
    folder, _ = folders
    change(folder / "adapter" / name)
    with pytest.raises(error):
        merge(folder / "adapter", base=str(folder / "base"))


def test_hub_ids_are_kept_and_folders_are_not(
    make_model: Callable[..., MTMMModel], tmp_path: Path
) -> None:
    names = {"audio_encoder": "facebook/hubert-large-ll60k", "text_encoder": str(tmp_path)}
    base = adapters.describe_base(make_model(), **names)
    assert base["audio_encoder"] == "facebook/hubert-large-ll60k"
    assert base["text_encoder"] is None


@pytest.mark.parametrize("name", ["audio_model.feature_extractor", "text_model.embeddings"])
def test_base_is_known_by_every_weight_that_is_read(
    make_model: Callable[..., MTMMModel], name: str
) -> None:
    model = make_model(text_config={"model_type": "bert"} | ENCODERS["bert"])
    base = adapters.describe_base(model)["encoders"]
    with torch.no_grad():
        model.text_model.pooler.dense.weight.add_(1)
        model.audio_model.masked_spec_embed.add_(1)
        assert adapters.describe_base(model)["encoders"] == base
        next(model.get_submodule(name).parameters()).add_(1)
    after = adapters.describe_base(model)["encoders"]
    changed = [modality for modality in base if after[modality] != base[modality]]
    assert changed == [name.split("_")[0]]


# ---- top layers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "trained"),
    [
        ("hubert", ("encoder.layers.1.", "encoder.layer_norm.")),
        ("wav2vec2", ("encoder.layers.1.",)),  # its norm comes before the layers
        ("whisper", ("layers.1.", "layer_norm.")),
        ("bert", ("encoder.layer.1.",)),
        ("deberta-v2", ("encoder.layer.1.",)),
    ],
)
def test_top_layer_trains_alone_and_with_its_norm(kind: str, trained: tuple[str, ...]) -> None:
    encoder = AutoModel.from_config(AutoConfig.for_model(kind, **ENCODERS[kind]))
    encoder = encoder.get_encoder() if kind == "whisper" else encoder
    unfreeze_top_layers(encoder, 1)
    names = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert names == {n for n, _ in encoder.named_parameters() if n.startswith(trained)}
    assert names


def test_top_layers_learn_and_lower_ones_keep_no_graph(
    make_model: Callable[..., MTMMModel],
) -> None:
    model = make_model()
    unfreeze_top_layers(model.audio_model, 1)
    model.train()
    seen = []
    layers = model.audio_model.encoder.layers
    layers[0].register_forward_hook(lambda *args: seen.append(args[2].requires_grad))
    layers[1].register_forward_hook(lambda *args: seen.append(args[2].requires_grad))
    model(**batch(model)).loss.backward()
    assert seen == [False, True]
    assert model.audio_model.training and not model.text_model.training
    for name, parameter in model.audio_model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_more_layers_than_there_are_is_refused(make_model: Callable[..., MTMMModel]) -> None:
    with pytest.raises(ValueError, match="HubertModel has 2 layers, not 3"):
        unfreeze_top_layers(make_model().audio_model, 3)


# ---- whole runs --------------------------------------------------------------------------------


def test_stopped_lora_run_ends_as_one_never_stopped(
    embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--lora_rank", "2", "--gradient_checkpointing", "--learning_rate", "1e-2")
    straight = train(words(embedded, tmp_path / "straight", "--cache_dir", "off", *flags))
    stopped = words(embedded, tmp_path / "stopped", "--cache_dir", "off", *flags)
    requests = iter([False] * 6 + [True])
    monkeypatch.setattr(StopSignal, "requested", lambda *_: next(requests))
    with pytest.raises(Stopped):  # in the second epoch of five steps each
        train(stopped)
    monkeypatch.undo()
    (state,) = (tmp_path / "stopped" / "checkpoints").glob("step-000000007/model.safetensors")
    buffers = ("reference_mean", "reference_deviation", "expected_states")
    kept = [name for name in load_file(state) if not name.endswith(buffers)]
    assert all("lora_" in name or "modules_to_save" in name for name in kept)
    resumed = train([*stopped, "--resume"])
    for file in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        first, second = load_file(straight / file), load_file(resumed / file)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    # adapter/ gives model/ again, and model/ has what was added to the encoders
    encoders = {f"{name}_encoder": str(embedded / "encoders" / name) for name in ("audio", "text")}
    model = load_file(straight / "model" / "model.safetensors")
    again = merge(straight / "adapter", **encoders).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.items())
    before = AutoModel.from_pretrained(encoders["text_encoder"], dtype=torch.float32).state_dict()
    name = "encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(before[name], model[f"text_model.{name}"])
    config = MTMMConfig.from_pretrained(straight / "adapter")
    assert config.temperature == results_of(straight)["temperature"]
    assert results_of(straight)["parameters"]["audio_model"][0] == 2 * 4 * 2 * 2 * 64


def test_run_with_top_layers_changes_these_alone(
    embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    monkeypatch.setattr(MTMMModel, "compile", lambda self, **options: compiled.append(options))
    flags = ("--unfreeze_text_layers", "1", "--epochs", "1", "--cache_dir", "off", "--compile")
    run = train(words(embedded, tmp_path / "top", *flags))
    assert compiled == [{"dynamic": True}]
    model = load_file(run / "model" / "model.safetensors")
    text = embedded / "encoders" / "text"
    before = AutoModel.from_pretrained(text, dtype=torch.float32).state_dict()
    changed = {n for n, t in before.items() if not torch.equal(t, model[f"text_model.{n}"])}
    assert changed and all(name.startswith("encoder.layer.1.") for name in changed)
    assert not (run / "adapter").exists()
