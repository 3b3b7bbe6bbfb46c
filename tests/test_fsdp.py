"""Two processes on the CPU, replicated (DDP) and sharded (FSDP2), against one with the whole batch.

The first has no emotions and no arousal to learn from, the second no valence and no audio at all.
Run alone: python -m pytest tests/test_fsdp.py
"""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_runs
import torch
import torch.distributed as dist
import yaml
from accelerate import PartialState
from accelerate.utils import DistributedType
from conftest import gradient, two_processes
from small_runs import (
    TRAINED,
    Run,
    main_without_pictures,
    results_of,
    train,
    weights,
    words,
)
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from configuration_mtmm import MTMMConfig
from modeling_mtmm import MTMMModel
from mtmm_training.training.adapters import add_lora
from mtmm_training.training.optimiser import sum_over_processes

ROOT = Path(__file__).parents[1]
NO_DROPOUT = (
    "hidden_dropout activation_dropout attention_dropout feat_proj_dropout final_dropout "
    "hidden_dropout_prob attention_probs_dropout_prob head_dropout"
).split()
WAYS = ("ddp", "fsdp", "fsdp_lora")


def make_model(way: str) -> nn.Module:
    """Trained in whole, or by adapters that are no longer zero; the same in every process."""
    torch.manual_seed(0)
    config = MTMMConfig.tiny(freeze_audio_encoder=False, freeze_text_encoder=False)
    for part in (config, config.audio_config, config.text_config):
        for name in NO_DROPOUT:
            if hasattr(part, name):
                setattr(part, name, 0.0)
    plain = MTMMModel(config)
    model: nn.Module = plain
    if way == "fsdp_lora":
        model = add_lora(plain, rank=2, alpha=4, dropout=0.0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
    return model.train()


def whole_batch() -> dict[str, Tensor]:
    """Six utterances; every other one is the second process's."""
    generator = torch.Generator().manual_seed(0)
    second = torch.arange(6) % 2 == 1
    emotions = torch.tensor([-100, 0, -100, 1, -100, 2])
    dimensions = torch.rand(6, 2, generator=generator) * 4 + 1
    dimensions[second, 0] = dimensions[~second, 1] = torch.nan
    return {
        "input_values": torch.randn(6, 2000, generator=generator),
        "audio_attention_mask": (~second)[:, None].expand(-1, 2000).long(),
        "input_ids": torch.randint(5, 100, (6, 7), generator=generator),
        "attention_mask": torch.ones(6, 7, dtype=torch.long),
        "emotion_labels": emotions,
        "dimension_labels": dimensions,
    }


def share_of(rank: int) -> dict[str, Tensor]:
    share = {name: tensor[rank::2] for name, tensor in whole_batch().items()}
    if rank == 1:
        del share["input_values"], share["audio_attention_mask"]
    return share


def step(model: nn.Module, batch: dict[str, Tensor], **inputs: Any) -> dict[str, Any]:
    """One step of plain gradient descent: loss, gradients, and the weights after it."""
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimiser = torch.optim.SGD(trained.values(), lr=0.1)
    loss = model(**batch, **inputs).loss
    loss.backward()
    gradients = {name: whole(gradient(parameter)) for name, parameter in trained.items()}
    optimiser.step()
    weights = {name: whole(parameter.detach()) for name, parameter in trained.items()}
    return {"loss": float(loss.detach()), "gradients": gradients, "weights": weights}


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def shard(model: nn.Module) -> nn.Module:
    """As accelerate does with launch/fsdp.yaml: the layers named there, then the rest."""
    settings = yaml.safe_load((ROOT / "launch" / "fsdp.yaml").read_text())["fsdp_config"]
    layers = settings["fsdp_transformer_layer_cls_to_wrap"].split(",")
    mesh = init_device_mesh("cpu", (2,))
    found = set()
    for module in list(model.modules()):
        if type(module).__name__ in layers:
            found.add(type(module).__name__)
            fully_shard(module, mesh=mesh)
    assert found == set(layers)
    fully_shard(model, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    return model


def work(rank: int, folder: str) -> None:
    """One of the two processes; the first writes down what it saw."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    results = {}
    for way in WAYS:
        model = make_model(way)
        replicate: Callable[..., Any] = DistributedDataParallel if way == "ddp" else shard
        model = replicate(model)
        results[way] = step(model, share_of(rank), reduce_sum=sum_over_processes)
        # Nothing waits for the step before: DDP would stop here, had a parameter had no gradient.
        again = model(**share_of(rank), reduce_sum=sum_over_processes).loss
        again.backward()
        results[way]["next_loss"] = float(again.detach())
    if rank == 0:
        torch.save(results, Path(folder) / "results.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("fsdp")
    spawn(work, args=(str(folder),), nprocs=2)
    return torch.load(folder / "results.pt")


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_that_lack_different_things_equal_one(
    way: str, results: dict[str, dict[str, Any]]
) -> None:
    model = make_model(way)
    before = copy.deepcopy(model)
    alone, pair = step(model, whole_batch()), results[way]
    assert pair["loss"] == pytest.approx(alone["loss"], abs=1e-6)
    assert pair["next_loss"] == pytest.approx(float(model(**whole_batch()).loss.detach()), abs=1e-5)
    assert pair["next_loss"] < pair["loss"]
    trained = {name for name, p in before.named_parameters() if p.requires_grad}
    assert trained == set(alone["gradients"])
    for kind in ("gradients", "weights"):
        names = {name.removeprefix("module."): tensor for name, tensor in pair[kind].items()}
        assert names.keys() == trained
        for name, tensor in alone[kind].items():
            torch.testing.assert_close(names[name], tensor, atol=1e-5, rtol=1e-4, msg=name)


NO_LORA_DROPOUT = tuple(0.0 if each == 0.05 else each for each in add_lora.__defaults__ or ())


def sharded_main(flags: list[str]) -> int:
    """`train_accelerate.main` with accelerate's FSDP, which it gives to what it takes for GPUs alone."""
    dist.init_process_group("gloo")
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    add_lora.__defaults__ = NO_LORA_DROPOUT
    return main_without_pictures(flags)


@pytest.mark.parametrize("lora", [False, True])
def test_sharded_run_trains_as_one(
    lora: bool, embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoders that train, launch/fsdp.yaml, two processes; weights and epochs are one process's."""
    monkeypatch.setattr(add_lora, "__defaults__", NO_LORA_DROPOUT)
    (tmp_path / "corpus").symlink_to(embedded / "corpus")
    shutil.copytree(embedded / "encoders", tmp_path / "encoders")
    for path in (tmp_path / "encoders").glob("*/config.json"):
        off = {name: 0.0 for name in json.loads(path.read_text()) if "drop" in name}
        path.write_text(json.dumps(json.loads(path.read_text()) | off))
    settings = yaml.safe_load((ROOT / "launch" / "fsdp.yaml").read_text())["fsdp_config"]
    layers = "WhisperEncoderLayer,BertLayer,MTMMRefinementLayer,MTMMInteractionLayer"
    sharding = {name.upper(): str(value) for name, value in settings.items()}
    sharding |= {"ACCELERATE_USE_FSDP": "true", "FSDP_TRANSFORMER_CLS_TO_WRAP": layers}
    how: dict[str, Any] = small_runs.NO_DROPOUT | ({} if lora else TRAINED)
    flags = ("--lora_rank", "2", "--cache_dir", "off") if lora else ()
    train(words(tmp_path, tmp_path / "alone", *flags, "--batch_size", "6", **how))
    pair = words(tmp_path, tmp_path / "pair", *flags, "--batch_size", "3", **how)
    processes = [Run(sharded_main, pair, **(e | sharding)) for e in two_processes()]
    for process in processes:
        process.finish()
    one, two = results_of(tmp_path / "alone"), results_of(tmp_path / "pair")
    assert two["processes"] == 2
    # Not of weights: Adam moves those whose gradient is nothing but rounding as far as all others.
    for a, b in zip(one["epochs"], two["epochs"], strict=True):
        for split in ("train", "validation"):
            assert a[split]["loss"] == pytest.approx(b[split]["loss"], abs=1e-4)
    assert weights(tmp_path / "alone").keys() == weights(tmp_path / "pair").keys()


def test_whole_batch_trains_every_part(results: dict[str, dict[str, Any]]) -> None:
    """Else the comparison above would compare zeros."""
    gradients = results["ddp"]["gradients"]
    for part in ("audio_model", "text_model", "fusion", "emotion_head", "dimension_head"):
        assert any(g.abs().max() > 1e-4 for name, g in gradients.items() if part in name)
