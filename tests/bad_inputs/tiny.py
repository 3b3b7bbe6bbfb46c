"""The tiny model that the bad inputs are fed to, made once per process."""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import DebertaV2Tokenizer, Wav2Vec2FeatureExtractor

from configuration_mtmm import MTMMConfig
from modeling_mtmm import MTMMModel
from pipeline_mtmm import MTMMPipeline
from processing_mtmm import MTMMProcessor


@functools.cache
def model() -> MTMMModel:
    """With new weights; trained, so it says, for every output."""
    torch.manual_seed(0)
    config = MTMMConfig.tiny(trained_outputs=("emotion", "valence", "arousal"))
    return MTMMModel(config).eval()


@functools.cache
def processor() -> MTMMProcessor:
    """16 kHz waveforms, and a tokenizer of letters."""
    pieces = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "▁", *"abcdefghijklmnopqrstuvwxyz.,?!'", "[MASK]"]
    tokenizer = DebertaV2Tokenizer(vocab=[(piece, -1.0) for piece in pieces])
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    return MTMMProcessor(extractor, tokenizer, max_tokens=64)


@functools.cache
def pipe() -> MTMMPipeline:
    return MTMMPipeline(model=model(), processor=processor())


@functools.cache
def saved() -> Path:
    """Folder of the saved model and processor, removed at exit; copy it before damaging it."""
    folder = Path(tempfile.mkdtemp(prefix="mtmm-tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    pipe().save_pretrained(folder)
    return folder
