"""Loading and saving models: whole, or heads-only, whose encoders are composed from where they are.

A heads-only model has its fusion and heads in half precision. Of its two encoders it has names and
fingerprints; the encoders' own repositories have the weights, and the tokenizer. They are read as
safetensors only, and no code of theirs is run.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.utils.hub import cached_file, extract_commit_hash

# Relative first: as remote code these are neighbours in a package; in a checkout they are top-level
# modules.
try:
    if not TYPE_CHECKING:  # a relative import without a package means nothing to mypy
        from .encoders_mtmm import UNUSED_WEIGHTS, MTMMEncoders, load_encoder
except ImportError:
    from encoders_mtmm import UNUSED_WEIGHTS, MTMMEncoders, load_encoder

MODALITIES = ("audio", "text")
ENCODERS = ("audio_model.", "text_model.")  # how the names of their weights begin
# Environment variables that name local encoders, where a call does not.
LOCAL_ENCODERS = {"audio": "MTMM_AUDIO_ENCODER", "text": "MTMM_TEXT_ENCODER"}
# What a call says of the Hub, for all repositories, and of the model's alone.
HUB_OPTIONS = ("cache_dir", "force_download", "proxies", "local_files_only", "token")
OWN_OPTIONS = (*HUB_OPTIONS, "revision", "subfolder")
# Half precision rounds a weight by 2^-11 of it at most, and the least ones by 3e-8.
ROUNDING, LEAST_ROUNDING = 2.0**-10, 6e-8
# Not halved: what is subtracted and divided by, and what was fitted in closed form.
EXACT = ("reference_mean", "reference_deviation", "linear_path")
# Not in 8 or 4 bits, unless a call says otherwise: the last maps, which are as small as they are sensitive.
FEW_ROWS = ("emotion_head.projection", "dimension_head.projection", "deviation_head.projection")
POSITIONS_A_SECOND = 50  # of Whisper's encoder
PROBE = "The quick brown fox, naïve as ever, isn't over 1,234 lazy dogs: DON'T ask why!"


class MTMMLoading(MTMMEncoders):
    """The part of [`MTMMModel`] that loads and saves."""

    _record_trained_outputs: Any
    _forget_outputs: Any

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *args: Any,
        encoders: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a saved model; as `PreTrainedModel.from_pretrained`, with its frozen encoders frozen.

        transformers draws weights that it does not find at random, and goes on with a warning. Here
        that must be asked for: by `ignore_mismatched_sizes=True`, or by `output_loading_info=True`
        where weights are missing or left over, since the caller is then told.

        Args:
            pretrained_model_name_or_path, *args, **kwargs: As there.
            encoders: Folders or Hub ids in the place of those that a heads-only model names: {"audio":
                ..., "text": ...}. The environment variables MTMM_AUDIO_ENCODER and MTMM_TEXT_ENCODER do
                the same.

        Raises:
            ValueError: The weights are not those that the configuration describes, or an encoder's
                are not those that the model was trained with.
            OSError: A file is missing or damaged, or an encoder is not to be had.
        """
        name = pretrained_model_name_or_path
        told = kwargs.pop("output_loading_info", False)
        # Without a name the caller brings the weights, and those that are missing are drawn.
        drawn = kwargs.pop("ignore_mismatched_sizes", False) or name is None
        kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        for skipped in ("llm_int8_skip_modules", "modules_to_not_convert"):
            if getattr(kwargs.get("quantization_config"), skipped, "") is None:
                setattr(kwargs["quantization_config"], skipped, [*FEW_ROWS])
        sources = encoder_sources(name, kwargs)
        if encoders and sources is None:
            raise ValueError(f"{name} has its own encoders, so `encoders` cannot name others.")
        try:
            if sources is None:
                loaded: Any = super().from_pretrained(name, *args, **kwargs)
            else:
                kwargs = _composed(cls.config_class, name, encoders or {}, kwargs)
                loaded = super().from_pretrained(None, *args, **kwargs)
                loaded[0].name_or_path = loaded[0].config.name_or_path = str(name)
        except Exception as error:
            if kwargs.get("quantization_config") and "conversion of the weights" in str(error):
                raise ValueError(
                    f"The weights in {name} cannot be quantised as `quantization_config` says: torchao's"
                    " Int4WeightOnlyConfig has no kernel for a CPU, IntxWeightOnlyConfig(torch.int4) has."
                ) from error
            if type(error).__name__ != "SafetensorError":
                raise
            raise OSError(f"Weights in {name} are damaged ({error}); copy them again.") from error
        model, found = loaded
        if not drawn:
            refuse_other_weights(name, found, told)
        mismatched = {key for key, *_ in found["mismatched_keys"]}
        model._forget_outputs(found["missing_keys"] | mismatched)
        model._freeze_encoders()  # loading makes new parameters, all of them with gradients
        answer: Any = (model, found) if told else model
        return answer

    @classmethod
    def from_encoders_pretrained(
        cls, audio: str, text: str, *, dtype: torch.dtype = torch.float32, **config_fields: Any
    ) -> Self:
        """A model with pretrained encoders and new fusion and heads.

        Args:
            audio: Folder or Hub id of the acoustic encoder (of Whisper only the encoder is kept).
            text: Folder or Hub id of the linguistic encoder.
            dtype: Type of all weights. Checkpoints often are float16, in which training fails; so
                float32 unless asked otherwise.
            config_fields: Fields of [`MTMMConfig`].

        Raises:
            ValueError: A field is not allowed.
            OSError: An encoder cannot be found.
        """
        window_s = config_fields.get("audio_window_s")
        positions = None if window_s is None else POSITIONS_A_SECOND * window_s
        audio_model, audio_config = load_encoder(audio, dtype, positions)
        text_model, text_config = load_encoder(text, dtype)
        kind: Any = cls.config_class
        config = kind(
            audio_config=audio_config, text_config=text_config, dtype=dtype, **config_fields
        )
        with torch.device("meta"):  # random encoders would be made only to be replaced
            model = cls(config)
        for name, module in model.named_children():
            if name not in ("audio_model", "text_model"):
                module.to_empty(device="cpu").to(dtype).apply(model._init_weights)
        model.audio_model, model.text_model = audio_model, text_model
        model._adopt_encoders()
        return model.eval()

    def save_pretrained(
        self,
        save_directory: Any,
        *args: Any,
        heads_only: bool = False,
        encoders: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        """As `PreTrainedModel.save_pretrained`; or fusion and heads alone, in half precision.

        Args:
            save_directory, *args, **kwargs: As there.
            heads_only: Leave out the encoders. Save the processor with `heads_only=True`, too.
            encoders: Where loading finds them then: {"audio": "owner/name@commit", "text": ...}, as Hub
                ids; without a commit the newest is loaded, and compared with these. Those that the
                model was composed of if not given.

        Raises:
            ValueError: The encoders train, or nothing says where they are.
        """
        self._record_trained_outputs()
        config: Any = self.config
        kept, config.encoder_sources = config.encoder_sources, None
        try:
            if heads_only:
                config.encoder_sources = kept = _named(encoders) or kept
                kwargs["state_dict"] = self._heads()
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            config.encoder_sources = kept

    def _heads(self) -> dict[str, Tensor]:
        """All but the encoders, in half precision where that does no harm, and their fingerprints."""
        trains = [
            n for n, p in self.named_parameters() if p.requires_grad and n.startswith(ENCODERS)
        ]
        if trains or not self.config.encoder_sources:
            reason = f"the encoders train, such as {trains[0]}" if trains else "no ids are given"
            raise ValueError(
                f"A heads-only model names two frozen encoders by their Hub ids, and {reason}; save "
                "the whole model, or give `encoders`."
            )
        heads = {
            name: value
            if any(part in name for part in EXACT) or not value.is_floating_point()
            else value.half()
            for name, value in self.state_dict().items()
            if not name.startswith(ENCODERS)
        }
        for modality in MODALITIES:
            state = self.encoder_of(modality).state_dict()
            heads[_fingerprint_key(modality)] = fingerprint(modality, state)
        return heads


def encoder_sources(name: Any, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """Where a heads-only model's encoders are, {"audio": {"id", "revision"}, "text": ...}; None = whole.

    Args:
        name: Folder or Hub id of a model.
        options: Those of the call that loads it.
    """
    config = options.get("config")
    if isinstance(config, PreTrainedConfig):
        return getattr(config, "encoder_sources", None)
    own = {key: options[key] for key in OWN_OPTIONS if key in options}
    if name is None and config is None:
        return None
    found, _ = PreTrainedConfig.get_config_dict(name if config is None else config, **own)
    return found.get("encoder_sources")


def where_is(
    modality: str, sources: Mapping[str, Any], given: Mapping[str, str], options: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Folder or Hub id of an encoder, and how it is loaded from there."""
    hub: dict[str, Any] = {key: options[key] for key in HUB_OPTIONS if key in options}
    hub["trust_remote_code"] = False
    local = given.get(modality) or os.environ.get(LOCAL_ENCODERS[modality])
    if local:
        return local, hub
    return sources[modality]["id"], hub | {"revision": sources[modality]["revision"] or "main"}


def _composed(kind: Any, name: Any, given: Mapping[str, str], options: dict[str, Any]) -> Any:
    """What `PreTrainedModel.from_pretrained` takes in the place of a heads-only model's name.

    Args:
        kind: Class of the configuration.
        name: Folder or Hub id of the model.
        given: Encoders that take the place of those that the model names.
        options: Of the call.
    """
    own = {key: options.pop(key) for key in OWN_OPTIONS if key in options}
    config, state = options.pop("config", None), options.pop("state_dict", None)
    if not isinstance(config, PreTrainedConfig):
        dtype = {key: options.pop(key) for key in ("dtype",) if key in options}
        config, options = kind.from_pretrained(
            name if config is None else config, return_unused_kwargs=True, **own, **options
        )
        options = {key: value for key, value in options.items() if key not in own} | dtype
    if state is None:
        state = load_file(str(cached_file(name, "model.safetensors", **own)))
    state = dict(state)
    for modality in MODALITIES:
        known = state.pop(_fingerprint_key(modality), None)
        if not any(key.startswith(f"{modality}_model.") for key in state):
            state |= _encoder(modality, config, given, own, known)
    return options | {"config": config, "state_dict": state}


def _encoder(
    modality: str, config: Any, given: Mapping[str, str], own: dict[str, Any], known: Tensor | None
) -> dict[str, Tensor]:
    """One encoder's weights, by their names in the model; notes the commit, if it was not known."""
    sources = config.encoder_sources
    where, hub = where_is(modality, sources, given, own)
    positions = getattr(config.encoder_config(modality), "max_source_positions", None)
    try:
        encoder, _ = load_encoder(where, "auto", positions, use_safetensors=True, **hub)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise OSError(
            f"The {modality} encoder {where} of this heads-only model cannot be loaded ({reason}); give a "
            f"folder that has it, as `encoders` or in {LOCAL_ENCODERS[modality]}."
        ) from error
    state = encoder.state_dict()
    refuse_other_encoder(modality, where, state, known)
    if "revision" in hub and sources[modality]["revision"] is None:
        hub.pop("trust_remote_code")
        commit = extract_commit_hash(cached_file(where, "config.json", **hub), None)
        new = {**sources[modality], "revision": commit}
        config.encoder_sources = {**sources, modality: new}
    return {f"{modality}_model.{key}": value for key, value in state.items()}


# ---- the right weights, encoder and tokenizer -----------------------------------------------------


def refuse_other_weights(name: Any, found: dict[str, Any], told: bool) -> None:
    """`found` is what transformers tells of loading; `told`: the caller will read of it."""
    kinds = (
        ("missing", () if told else found["missing_keys"]),
        ("of another shape", {key for key, *_ in found["mismatched_keys"]}),
        ("left over", () if told else found["unexpected_keys"]),
    )
    problems = [f"{len(keys)} {words}, such as {min(keys)!r}" for words, keys in kinds if keys]
    if problems:
        raise ValueError(
            f"{name} does not have the weights that its configuration describes: {'; '.join(problems)}. "
            "Give the folder as it was saved; to draw new weights in their place, and train them, give "
            "ignore_mismatched_sizes=True."
        )


def fingerprint(modality: str, state: Mapping[str, Tensor]) -> Tensor:
    """Statistics of each weight of an encoder that is read, in the order of their names: (weights, 3).

    Mean, root mean square, and the weights' sum along two cosines over √size, which other weights of
    the same mean and size change; float32. Names and shapes follow from the configuration.
    """
    rows = []
    for name, value in sorted(state.items()):
        if not f"{modality}_model.{name}".startswith(UNUSED_WEIGHTS):
            matrix = value.detach().float().reshape(len(value) if value.dim() else 1, -1)
            down, along = (torch.arange(size, device=matrix.device).cos() for size in matrix.shape)
            across = down @ matrix @ along / matrix.numel() ** 0.5
            rows.append(torch.stack([matrix.mean(), matrix.square().mean().sqrt(), across]))
    return torch.stack(rows).cpu()


def refuse_other_encoder(
    modality: str, where: str, state: Mapping[str, Tensor], known: Tensor | None
) -> None:
    """Raise ValueError unless the weights have this fingerprint, up to rounding to half precision."""
    own = fingerprint(modality, state)
    other = None
    if known is None or own.shape != known.shape:
        other = f"it has {len(own)} weights"
    else:
        allowed = ROUNDING * known[:, 1:2] + LEAST_ROUNDING
        differ = ~((own - known).abs() <= allowed).all(dim=1)
        if differ.any():
            other = f"{int(differ.sum())} of its {len(own)} weights differ"
    if other:
        raise ValueError(
            f"{where} is not the {modality} encoder that the heads were trained with: {other}. Name "
            "the encoder, at the commit, that the model's card names."
        )


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of a tokenizer's vocabulary and of what it makes of one sentence."""
    known = [sorted(tokenizer.get_vocab().items()), tokenizer(PROBE)["input_ids"]]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def _named(given: Mapping[str, str] | None) -> dict[str, Any] | None:
    """{"audio": "owner/name@commit", ...} as `config.encoder_sources`."""
    if given is None:
        return None
    pairs = {modality: given[modality].partition("@") for modality in MODALITIES}
    return {key: {"id": pair[0], "revision": pair[2] or None} for key, pair in pairs.items()}


def _fingerprint_key(modality: str) -> str:
    return f"encoder_fingerprints.{modality}"
