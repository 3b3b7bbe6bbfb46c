"""Faster ways give the same numbers: masks, distances, sizes of batches, CUDA graphs where there is a GPU.

Run alone: python -m pytest tests/test_graphs.py
"""

import copy
from typing import Any

import pytest
import torch
from conftest import MakeModel
from test_device import LABELS, VARIANTS, raw, states_of
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import HubertConfig, HubertModel, masking_utils
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from batching_mtmm import regions, rounded_states
from configuration_mtmm import MTMMConfig
from fast_mtmm import Graphs, in_buckets, use_fast_ways
from modeling_mtmm import MTMMModel
from mtmm_training.training.graphs import PassGraphs

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def hubert() -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "conv_bias": True,
    }
    sizes |= {"intermediate_size": 32, "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16}
    sizes |= {"num_conv_pos_embedding_groups": 4, "feat_extract_norm": "layer"}
    return HubertModel(HubertConfig(**sizes)).eval()


@torch.no_grad()
def test_encoders_mask_is_transformers_own() -> None:
    plain = hubert()
    fast = copy.deepcopy(plain)
    use_fast_ways(fast)
    lengths = torch.tensor([[9000], [5000], [400], [100]])
    mask = (torch.arange(9000) < lengths).long()
    own = plain._get_feature_vector_attention_mask(28, mask)
    assert torch.equal(fast._get_feature_vector_attention_mask(28, mask), own)
    sound = torch.randn(4, 9000)
    states = [model(sound, attention_mask=mask).last_hidden_state for model in (plain, fast)]
    assert torch.equal(*states)
    assert (
        copy.deepcopy(fast).feature_extractor.conv_layers[0].forward.__self__
        is not (fast.feature_extractor.conv_layers[0])
    )


@pytest.mark.parametrize("overrides", [{}, {"encoder_layers": "weighted"}])
def test_batches_of_few_sizes_have_the_same_losses(
    make_model: MakeModel, overrides: dict[str, Any]
) -> None:
    model = make_model(**overrides).eval()
    given = states_of(model) | LABELS
    padded = rounded_states(given)
    assert padded["acoustic_states"].shape[-2:] == (24, model.audio_model.config.hidden_size)
    assert padded["linguistic_attention_mask"].shape == (3, 16)
    assert model(**padded).loss.item() == pytest.approx(model(**given).loss.item(), abs=1e-5)


@pytest.mark.parametrize(("buckets", "farthest"), [(8, 64), (256, 512)])
def test_distances_are_in_transformers_buckets(buckets: int, farthest: int) -> None:
    distances = torch.arange(-1500, 1501)
    own = make_log_bucket_position(distances, buckets, farthest).long()
    assert torch.equal(in_buckets(distances, buckets, farthest), own)


class FromHost(TorchDispatchMode):
    """Operations that bring a number or tensor of the host to the device, which no CUDA graph can record."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        devices = {t.device.type for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        # A number that is put at places of a tensor of CUDA is one on the host first.
        copied = name in ("copy_", "_to_copy") and "cpu" in devices and made.device.type == "meta"
        put = name == "index_put_" and args[2].dim() == 0 and args[1][0].dtype != torch.bool
        if copied or put:
            self.found.append(name)
        return made


@torch.no_grad()
@pytest.mark.parametrize("overrides", VARIANTS)
def test_nothing_comes_from_the_host(
    overrides: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As CUDA graphs ask for it, in which transformers leaves out its own look at the mask."""
    monkeypatch.setattr(masking_utils, "is_tracing", lambda *_: True)
    with torch.device("meta"):
        model = MTMMModel(MTMMConfig.tiny(**overrides)).eval()
    given = {name: tensor.to("meta") for name, tensor in raw().items()}
    plain: Any = HubertModel(model.audio_model.config)
    plain.to("meta").eval()
    with FromHost() as theirs:
        plain(given["input_values"], attention_mask=given["audio_attention_mask"])
    assert theirs.found  # the test can fail
    with FromHost() as ours:
        model(**given)
    assert ours.found == []


@needs_gpu
@torch.no_grad()
def test_graphs_answer_like_the_model() -> None:
    """From raw inputs of two sizes in turns, padding among them; recorded at the second time."""
    torch.manual_seed(0)
    model = MTMMModel(MTMMConfig.tiny()).eval().cuda()
    graphs = Graphs(lambda given: {"logits": model(**given).emotion_logits})
    for _ in range(4):
        for rows in (3, 2):
            given = {name: tensor[:rows].cuda() for name, tensor in raw().items()}
            given["audio_attention_mask"][0, 3000:] = 0
            made = graphs(given)["logits"]
            torch.testing.assert_close(made, model(**given).emotion_logits, atol=1e-5, rtol=0)


@needs_gpu
@torch.no_grad()
def test_compiled_parts_are_recorded_without_padding() -> None:
    """transformers leaves out a mask of ones, but not in a recording: what is compiled knows both."""
    model = MTMMModel(MTMMConfig.tiny()).eval().cuda()
    given = {name: tensor.cuda() for name, tensor in raw().items()}
    plain = model(**given).emotion_logits
    for part in regions(model):
        part.compile(dynamic=True)
    graphs = Graphs(lambda given: {"logits": model(**given).emotion_logits})
    for _ in range(3):
        torch.testing.assert_close(graphs(given)["logits"], plain, atol=1e-4, rtol=0)


@needs_gpu
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_graphs_train_like_launches_one_by_one(dropout: float) -> None:
    """Weights after eight steps of two sizes in turns; dropout draws the same numbers."""
    names = ("hidden_dropout", "attention_dropout", "head_dropout")
    weights: list[list[Tensor]] = []
    for recorded in (False, True):
        torch.manual_seed(0)
        model: Any = MTMMModel(MTMMConfig.tiny(**dict.fromkeys(names, dropout))).train()
        model.to("cuda")
        generator = torch.Generator().manual_seed(1)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimiser = torch.optim.SGD(trained, lr=0.01)

        def passes(batch: dict[str, Tensor], model: Any = model) -> Tensor:
            loss: Tensor = model(**batch).loss
            loss.backward()
            return loss.detach()

        graphs = PassGraphs(passes, model)
        torch.manual_seed(2)
        for number in range(8):
            given = states_of(model) | LABELS
            for name in ("acoustic_states", "linguistic_states"):
                given[name] = torch.randn(given[name].shape, generator=generator)
            rows = {name: tensor[: 3 - number % 2].cuda() for name, tensor in given.items()}
            batch = rounded_states(rows)
            (graphs if recorded else passes)(batch)
            clip_grad_norm_(trained, 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=False)
        weights.append([p.detach().cpu() for p in trained])
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-4)
