"""The configuration files of accelerate in launch/: read by its own loader, and one of them launched.

Run alone: python -m pytest tests/test_launch.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from accelerate import Accelerator
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DistributedType
from torch import nn
from transformers.models.deberta_v2 import modeling_deberta_v2
from transformers.models.hubert import modeling_hubert

import fusion_mtmm
from mtmm_training.training.config import TrainConfig
from mtmm_training.training.launch import check_launch

LAUNCH = Path(__file__).parents[1] / "launch"
KINDS = {
    "cpu": (DistributedType.MULTI_GPU, 1, 2),
    "ddp": (DistributedType.MULTI_GPU, 1, 2),
    "multi_node": (DistributedType.MULTI_GPU, 2, 8),
    "fsdp": (DistributedType.FSDP, 1, 2),
    "deepspeed_zero2": (DistributedType.DEEPSPEED, 1, 2),
}
RUN = ("cpu",)  # the others need GPUs


def load(name: str) -> ClusterConfig:
    return load_config_from_file(str(LAUNCH / f"{name}.yaml"))


def test_every_file_is_known() -> None:
    assert {path.stem for path in LAUNCH.glob("*.yaml")} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_the_file(name: str) -> None:
    config = load(name)
    assert (config.distributed_type, config.num_machines, config.num_processes) == KINDS[name]
    assert config.use_cpu == (name == "cpu")
    text = (LAUNCH / f"{name}.yaml").read_text()
    assert f"--config_file launch/{name}.yaml" in text
    assert ("Not run" in text) == (name not in RUN)


def test_layers_that_fsdp_shards_exist() -> None:
    names = load("fsdp").fsdp_config["fsdp_transformer_layer_cls_to_wrap"].split(",")
    for name in names:
        sources = (fusion_mtmm, modeling_hubert, modeling_deberta_v2)
        (layer,) = (vars(source)[name] for source in sources if name in vars(source))
        assert issubclass(layer, nn.Module)


def test_deepspeed_reads_its_own_file() -> None:
    config = load("deepspeed_zero2").deepspeed_config
    path = Path(config["deepspeed_config_file"])
    settings = json.loads((LAUNCH.parent / path).read_text())
    assert settings["zero_optimization"]["stage"] == 2
    assert settings["gradient_accumulation_steps"] == 1
    # accelerate refuses both files naming a precision
    assert "mixed_precision" not in yaml.safe_load((LAUNCH / "deepspeed_zero2.yaml").read_text())


def test_cpu_launch_starts_two_processes(tmp_path: Path) -> None:
    """Left to itself, accelerate would start one, or two that know nothing of each other."""
    script = tmp_path / "count.py"
    script.write_text(
        "from mtmm_training.training.config import TrainConfig\n"
        "from mtmm_training.training.launch import make_accelerator\n"
        "state = make_accelerator(TrainConfig(tracker='none')).state\n"
        "line = f'process {state.process_index} of {state.num_processes} {state.backend} {state.device}'\n"
        "print(line + '\\n', end='')\n"  # in one piece: both write to one pipe
    )
    config = str(LAUNCH / "cpu.yaml")
    output = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", config),
            *("--main_process_port", "0", str(script)),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(LAUNCH.parent)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "process 0 of 2 gloo cpu" in output and "process 1 of 2 gloo cpu" in output


def accelerator_of(kind: DistributedType, zero_stage: int = 2) -> Accelerator:
    """What check_launch asks of an Accelerator; a real one of these kinds needs a GPU."""
    plugin = SimpleNamespace(zero_stage=zero_stage)
    state = SimpleNamespace(deepspeed_plugin=plugin)
    return SimpleNamespace(num_processes=2, distributed_type=kind, state=state)


def test_sharding_launches_refuse_what_they_cannot_do() -> None:
    whole = {"train": {"utterances": 9, "with_audio": 9, "with_text": 0, "dimensions": {}}}
    partial = {"train": {"utterances": 9, "with_audio": 7, "with_text": 9, "dimensions": {}}}
    config = TrainConfig(accumulation=1)
    message = "2 of the train split lack audio"
    for kind, stage in ((DistributedType.FSDP, 0), (DistributedType.DEEPSPEED, 3)):
        check_launch(config, accelerator_of(kind, stage), whole)
        with pytest.raises(ValueError, match=message):
            check_launch(config, accelerator_of(kind, stage), partial)
    check_launch(config, accelerator_of(DistributedType.MULTI_GPU), partial)
    check_launch(config, accelerator_of(DistributedType.DEEPSPEED, 2), partial)
    with pytest.raises(ValueError, match="`--accumulation` is 2"):
        config = TrainConfig(accumulation=2)
        check_launch(config, accelerator_of(DistributedType.DEEPSPEED), whole)
