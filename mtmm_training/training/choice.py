"""What is chosen from the data where no flag says it, and said: preset, linear path, how folds are made."""

import argparse
import os
from collections import defaultdict
from collections.abc import Sequence

from mtmm_training.data import sounds
from mtmm_training.data.recordings import Recordings
from mtmm_training.data.utterances import SPLITS, Utterance
from mtmm_training.training.config import TrainConfig, from_options
from mtmm_training.training.ending import unlogged
from mtmm_training.training.prepare import cache_folder, read_named

# Of speech; below it the preset is small: RAVDESS, .9 hours, overfits the paper's sizes.
SMALL_HOURS = 10.0
SENTENCE_S = 4.0  # what a transcript without a recording counts
GROUPS = 5


def settled(options: argparse.Namespace, *, preset: bool = True) -> TrainConfig:
    """The settings that parsed flags describe, with what the data says in the place of missing ones.

    Args:
        options: As of `from_options`; gets what is chosen.
        preset: Whether to choose --preset and --linear_path too, not --protocol alone.

    Raises:
        ValueError: A flag or the data is not as it should be.
        OSError: The data cannot be read.
    """
    config = from_options(options)
    fixed = ("protocol", "folds_file", "test_speakers", "validation_speakers")
    folds_open = not any(hasattr(options, name) for name in fixed)
    preset_open = preset and not hasattr(options, "preset")
    goes_on = isinstance(getattr(options, "resume", None), str)
    named = config.manifest is not None or config.corpus is not None
    if goes_on or not named or not (folds_open or preset_open):
        return config
    config.check()
    with unlogged():  # what there is to say of them is said when they are used
        utterances = read_named(config.resolve())
    said = []
    if folds_open:
        options.protocol, k, why = protocol_of(utterances, config.k)
        if k is not None:
            options.k = k
        said.append(f"--protocol {options.protocol}{f' --k {k}' if k else ''}: {why}")
    if preset_open:
        options.preset, why = preset_of(config, utterances)
        said.append(f"--preset {options.preset}: {why}")
        able = cache_folder(config) and not any(u.votes for u in utterances)  # it learns no votes
        if options.preset == "small" and able and not hasattr(options, "linear_path"):
            options.linear_path = True
            said.append("--linear_path: few utterances need a regression beside the fusion")
    if os.environ.get("RANK", "0") == "0":
        print(*said, sep="\n", flush=True)
    return from_options(options)


def protocol_of(utterances: Sequence[Utterance], k: int | None) -> tuple[str, int | None, str]:
    """The protocol that the columns allow, its number of groups, and why.

    Args:
        utterances: All of them.
        k: --k, where it is given.

    Raises:
        ValueError: There are fewer speakers than splits.
    """
    splits, sessions = defaultdict(set), defaultdict(set)
    for u in utterances:
        splits[u.speaker_id].add(u.split)
        sessions[u.session_id].add(u.speaker_id)
    apart = all(len(own) == 1 for own in splits.values())
    if k is None and set().union(*splits.values()) == set(SPLITS) and apart:
        return "official", None, "every utterance has its split"
    homes = sum(map(len, sessions.values())) == len(splits)  # each speaker is in one session
    if k is None and None not in sessions and homes:
        if len(sessions) > 1 and all(len(own) == 2 for own in sessions.values()):
            return "speaker", None, "every session has two speakers; one tests, the other validates"
        if len(sessions) >= len(SPLITS):
            return "session", None, "one session tests, the next validates"
    count = min(k or GROUPS, len(splits))
    if count < len(SPLITS):
        raise ValueError(f"Three splits need three speakers or more; there are {len(splits)}.")
    lack = "no session" if set(sessions) == {None} else "sessions that share speakers, or are few"
    return "grouped", count, f"{lack}: {count} folds of grouped speakers; one tests, one validates"


def preset_of(config: TrainConfig, utterances: Sequence[Utterance]) -> tuple[str, str]:
    """ "small" or "paper", and why."""
    layers = config.unfreeze_audio_layers + config.unfreeze_text_layers + config.lora_rank
    if config.model is not None or layers:
        return "paper", "more than the fusion trains, or a model is given"
    heard = "audio" in config.modalities
    files = {u.audio for u in utterances if heard and u.audio and sounds.is_there(u.audio)}
    known = Recordings(cache_folder(config)).of(files)
    seconds = 0.0
    for u in utterances:
        if u.audio not in files:
            seconds += SENTENCE_S
            continue
        end = u.end_s if u.end_s is not None else known[u.audio].duration_s or 0.0
        seconds += max(end - (u.start_s or 0.0), 0.0)
    hours = seconds / 3600
    compared = "under" if hours < SMALL_HOURS else "not under"
    why = f"{hours:.1f} hours of speech are {compared} {SMALL_HOURS:g}"
    return ("small" if hours < SMALL_HOURS else "paper"), why
