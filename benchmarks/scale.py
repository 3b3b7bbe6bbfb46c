"""Tables of 1,000 to 300,000 utterances: reading, folds, batches, start of a run, memory, a step.

    nice python benchmarks/scale.py [--sizes 1000 10000 100000 300000]

A simulated table has lengths like IEMOCAP's, 1,500 speakers at most, an audio file of its own for each
utterance (empty: its length and digest are in the index of recordings), and states of small encoders with
an eighth of the real number of frames, as many to a shard as fit at HuBERT-large's width. Each size has a
process of its own; memory is what the process holds for itself, without mapped files. At the end three
processes that do not know each other encode one embedded corpus into one cache.
"""

import csv
import hashlib
import itertools
import json
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch

from mtmm_training.batches.cache import STATES, FeatureCache
from mtmm_training.batches.sampler import LengthBatches, frame_lengths
from mtmm_training.data.corpora.synthetic import write_corpus, write_encoders
from mtmm_training.data.folds import make_folds
from mtmm_training.data.manifest import read_manifest
from mtmm_training.data.recordings import INDEX, Recordings
from mtmm_training.training.config import TrainConfig
from mtmm_training.training.job import prepare
from mtmm_training.training.launch import StopSignal
from mtmm_training.training.model import build_model

SIZES = (1000, 10_000, 100_000, 300_000)
SPEAKERS, STEPS, TO_A_SHARD = 1500, 60, 260
TARGETS = {
    "reading (CPU s)": 5, "folds (CPU s)": 5, "batches (CPU s)": 5, "start of a run (CPU s)": 30,
    "memory (GiB)": 3,
}  # fmt: skip  # of CPU: on a machine that does other things too, a clock says little


def main() -> None:
    parser = common.make_parser(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="N")
    arguments, _ = common.begin(parser)
    sizes = (60, 120) if arguments.quick else arguments.sizes
    columns = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            common.in_own_process(simulate, Path(folder), size)
            columns.append(common.in_own_process(measure, Path(folder)))
    for name in columns[0]:
        print(f"{name:<24}" + "".join(f"{column[name]:>12,.4g}" for column in columns))
    for name, target in TARGETS.items():
        common.print_result(f"{name}, {sizes[-1]:,} utterances", columns[-1][name], target)
    with tempfile.TemporaryDirectory() as folder:
        share_cache(Path(folder), 24 if arguments.quick else 300)


def config_of(folder: Path) -> TrainConfig:
    return TrainConfig(
        manifest=[str(folder / "manifest.csv")], out=str(folder / "run"), cache_dir=str(folder / "cache"),
        audio_encoder=str(folder / "encoders" / "audio"), text_encoder=str(folder / "encoders" / "text"),
        protocol="grouped", k=5, epochs=1, workers=0, tracker="none",
        model_config=json.dumps({"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}),
    ).resolve()  # fmt: skip


def simulate(folder: Path, size: int) -> None:
    """Writes table, empty recordings, their index, encoders, and a filled cache."""
    seconds, draw = common.iemocap_like_seconds(size), np.random.default_rng(0)
    write_encoders(folder / "encoders")
    (folder / "cache").mkdir()
    with open(folder / "manifest.csv", "w") as table, open(folder / "cache" / INDEX, "w") as index:
        rows = csv.writer(table)
        rows.writerow("id audio text emotion valence arousal speaker".split())
        for number, length in enumerate(seconds.round(3).tolist()):
            path = folder / "audio" / f"{number // 1000:03}" / f"{number:06}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            digest = hashlib.sha256(str(number).encode()).hexdigest()
            known = [str(path), 0, path.stat().st_mtime_ns, digest, length, 16000]
            index.write(json.dumps(known) + "\n")
            label = ("angry", "happy", "sad", "neutral")[number % 4]
            text = f"utterance {number} of the {label} people"
            rated = draw.uniform(1, 5, 2).round(2).tolist()
            speaker = f"s{number % min(SPEAKERS, size // 6)}"
            rows.writerow([number, path.relative_to(folder), text, label, *rated, speaker])
    config = config_of(folder)
    utterances = read_manifest(folder / "manifest.csv")
    model, processor = build_model(config)
    cache = FeatureCache(folder / "cache", model, processor, Recordings(folder / "cache"))
    for modality, shards in cache.shards.items():
        width = getattr(model.config, f"{modality}_config").hidden_size
        frames = np.maximum(seconds * 50 / 8, 1) if modality == "audio" else np.full(size, 4)
        keys = zip(cache._keys(modality, utterances), frames.astype(int).tolist(), strict=True)
        while part := list(itertools.islice(keys, TO_A_SHARD)):
            shards.write({key: torch.rand(n, width).half() for key, n in part if key})


def measure(folder: Path) -> dict[str, float]:
    """Seconds of each part of a run's beginning, memory, and time of a step."""
    found, config, recordings = {}, config_of(folder), Recordings(folder / "cache")
    torch.set_num_threads(1)

    def timed(name: str, function: Any) -> Any:
        began, computed = time.perf_counter(), time.process_time()
        result = function()
        found[f"{name} (s)"] = time.perf_counter() - began
        found[f"{name} (CPU s)"] = time.process_time() - computed
        return result

    utterances = timed("reading", partial(read_manifest, folder / "manifest.csv"))
    timed("folds", partial(make_folds, utterances, "grouped", k=5, recordings=recordings))
    lengths = partial(frame_lengths, utterances, recordings)
    timed("batches", lambda: LengthBatches(lengths(), 16).global_batches())
    del utterances
    with StopSignal() as stop:
        job: Any = timed("start of a run", lambda: prepare(config, Path(config.out), stop))
    for turn in ("first steps", "step"):  # the first open the cache's files
        began = time.process_time()
        for batch in itertools.islice(job.loaders["train"], STEPS):
            batch.pop("utterance_ids")
            job.model(**batch).loss.backward()
        found[f"{turn} (CPU ms)"] = 1000 * (time.process_time() - began) / STEPS
    status = Path("/proc/self/status").read_text()
    found["memory (GiB)"] = int(status.partition("RssAnon:")[2].split()[0]) / 2**20
    return found


# ---- three processes, one cache --------------------------------------------------------------------


def share_cache(folder: Path, size: int) -> None:
    """Encodes a corpus by one process, and by three at once, into a cache; the states are equal."""
    write_corpus(folder / "corpus", utterances=size)
    write_encoders(folder / "encoders")
    one = encode(folder, "one", 0, 1)
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        shares = list(pool.map(partial(encode, folder, "three", world_size=3), range(3)))
    for modality in STATES:
        each = [share[modality] for share in shares]
        print(f"{modality}: one process {one[modality]}, three {each}")
    every = sum(sum(share.values()) for share in shares)
    common.print_result("encoded by three ÷ by one", every / sum(one.values()), 1.0)


def encode(folder: Path, name: str, rank: int, world_size: int) -> dict[str, int]:
    """This process's share of the corpus, into folder/name; how many it encoded."""
    torch.set_num_threads(1)
    model, processor = build_model(config_of(folder))
    cache = FeatureCache(folder / name, model, processor, Recordings(folder / name))
    utterances = read_manifest(folder / "corpus" / "manifest.csv")
    return cache.encode(utterances, rank=rank, world_size=world_size)


if __name__ == "__main__":
    main()
