"""MTMM: two pretrained encoders, refinement, bridge fusion, two heads.

The architecture of Ispas, Deschamps-Berger and Devillers 2023 (arXiv 2401.00536), uploaded to the Hub
beside the weights. Encoders, fusion and loss are in files of their own, as are waveforms and
transcripts (processing_mtmm.py); training is elsewhere.

Shapes: "frames" are the acoustic encoder's output positions (50 a second for HuBERT and Whisper),
"tokens" the linguistic one's, "keys" the longer of the two, "width" an encoder's hidden size.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils.generic import can_return_tuple

# The only imports among the Hub files. Relative first: as remote code these are neighbours in a
# package; in a checkout they are top-level modules. Processor and pipeline are named here so that
# saving a model takes their files along: transformers copies what a model's file imports.
try:
    if not TYPE_CHECKING:  # a relative import without a package means nothing to mypy
        from .composing_mtmm import MTMMLoading
        from .configuration_mtmm import MTMMConfig
        from .encoders_mtmm import UNUSED_WEIGHTS, build_encoder, refuse_rows
        from .fusion_mtmm import MTMMFusion, MTMMHead, MTMMInput, carry_to_values
        from .loss_mtmm import at_least_float32, labels_seen, multi_task_loss
        from .outputs_mtmm import MTMMOutput
        from .pipeline_mtmm import MTMMPipeline
        from .pooled_mtmm import MTMMFamiliarity, MTMMLinearPath
        from .processing_mtmm import MTMMProcessor
        from .reference_mtmm import STATISTICS, Reference, distance, standardisation, standardise
except ImportError:
    from composing_mtmm import MTMMLoading
    from configuration_mtmm import MTMMConfig
    from encoders_mtmm import UNUSED_WEIGHTS, build_encoder, refuse_rows
    from fusion_mtmm import MTMMFusion, MTMMHead, MTMMInput, carry_to_values
    from loss_mtmm import at_least_float32, labels_seen, multi_task_loss
    from outputs_mtmm import MTMMOutput
    from pipeline_mtmm import MTMMPipeline
    from pooled_mtmm import MTMMFamiliarity, MTMMLinearPath
    from processing_mtmm import MTMMProcessor
    from reference_mtmm import STATISTICS, Reference, distance, standardisation, standardise


# Of the range of the scale: 0.02 to 2 on a scale from 1 to 5.
LEAST_DEVIATION, MOST_DEVIATION = 0.005, 0.495
# Distance from which on a recording takes the other domain's regression: of a new speaker's, one in
# twenty is beyond 1.
FAR = 1.25


def _is_recorded(given: Tensor) -> bool:
    """Whether a CUDA graph is: it would read again and again what the next batch replaces."""
    return given.is_cuda and torch.cuda.is_current_stream_capturing()


class MTMMModel(MTMMLoading):
    """Emotions and dimensions of utterances, from audio, text or both.

    Built from a configuration alone, with random weights. [`from_encoders_pretrained`] starts from
    pretrained encoders, [`from_pretrained`] loads a trained model.

    Args:
        config ([`MTMMConfig`]): Checked again, since fields may have been set after it was made.
    """

    config: MTMMConfig
    config_class = MTMMConfig
    base_model_prefix = "model"
    main_input_name = "input_values"
    input_modalities = ["audio", "text"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["MTMMRefinementLayer", "MTMMInteractionLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # Trainer must not divide by the number of labelled items: CCC is no sum over items.
    accepts_loss_kwargs = False
    # Statistics that models saved by earlier versions lack, and do without.
    _keys_to_ignore_on_load_missing = [r"fusion\.reference_", r"fusion\.expected_states"]
    # Differences of large numbers, and what was fitted in closed form, need more than 8 bits.
    _keep_in_fp32_modules_strict = [
        "reference_mean",
        "reference_deviation",
        "expected_states",
        "linear_path",
        "familiarity",
    ]

    def __init__(self, config: MTMMConfig) -> None:
        config.validate()
        super().__init__(config)
        self.audio_model = build_encoder(config.encoder_config("audio"))
        self.text_model = build_encoder(config.encoder_config("text"))
        self._adopt_encoders()
        self.fusion = MTMMFusion(config, self._audio_input.width, self._text_input.width)
        self.emotion_head = MTMMHead(config, len(config.emotion_names))
        self.dimension_head = MTMMHead(config, len(config.dimension_names))
        self.deviation_head: MTMMHead | None = None
        if config.rated_dimensions:
            self.add_deviation_head(config.rated_dimensions)
        self.linear_path: MTMMLinearPath | None = None
        if config.linear_path is not None:
            self.add_linear_path(config.linear_path)
        self.familiarity: MTMMFamiliarity | None = None
        if config.familiarity:
            self.add_familiarity()
        self._labels_seen: Tensor | None = None
        self.post_init()

    def add_linear_path(self, pooled: dict[str, Any]) -> MTMMLinearPath:
        """A new linear path, of zeros, which adds nothing; `pooled` becomes `config.linear_path`."""
        self.config.linear_path = pooled
        widths = self._audio_input.width, self._text_input.width
        self.linear_path = MTMMLinearPath(self.config, widths)
        return self.linear_path

    def add_deviation_head(self, rated: Sequence[str]) -> None:
        """A new head for the raters' spread; `rated` becomes `config.rated_dimensions`."""
        self.config.rated_dimensions = tuple(rated)
        self.deviation_head = MTMMHead(self.config, len(self.config.dimension_names))

    def add_familiarity(self) -> MTMMFamiliarity:
        """New statistics of the training data, of zeros, by which nothing is unfamiliar."""
        self.config.familiarity = True
        pairs = ("audio", self._audio_input.width), ("text", self._text_input.width)
        sizes = [width * max(len(self.config.mixed_layers(m)), 1) for m, width in pairs]
        self.familiarity = MTMMFamiliarity((sizes[0], sizes[1]))
        return self.familiarity

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = float(self.config.initializer_range or 0)  # None is filled in when it is made
        if isinstance(module, MTMMFusion):
            init.zeros_(module.reference_mean)
            init.ones_(module.reference_deviation)
            init.zeros_(module.expected_states)
            if module.config.use_bridge_tokens:
                init.normal_(module.acoustic_bridge_tokens, std=std)
                init.normal_(module.linguistic_bridge_tokens, std=std)
        if isinstance(module, (MTMMLinearPath, MTMMFamiliarity)):
            for buffer in module.buffers():
                init.zeros_(buffer)
        if isinstance(module, MTMMInput) and module.weighted:
            init.zeros_(module.layer_weights)  # all layers count alike

    def _forget_outputs(self, drawn: set[str]) -> None:
        """Weights of these names are random now, so what is predicted through them is untrained."""
        dimensions = self.config.dimension_names
        of_heads = {"emotion_head": ["emotion"], "dimension_head": dimensions, "deviation_head": ()}
        if any(key.startswith("deviation_head.") for key in drawn):
            self.deviation_head, self.config.rated_dimensions = None, ()
        # Of zeros it would silence the rest.
        if any(key.startswith("linear_path.") for key in drawn):
            self.linear_path = self.config.linear_path = None
        lost: set[str] = set()
        for key in drawn:
            if not key.startswith((*UNUSED_WEIGHTS, "fusion.expected_states", "familiarity.")):
                lost.update(of_heads.get(key.partition(".")[0], self.config.output_names))
        kept = (name for name in self.config.trained_outputs if name not in lost)
        self.config.trained_outputs = tuple(kept)

    def get_input_embeddings(self) -> Any:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    def train(self, mode: bool = True) -> "MTMMModel":
        """As `nn.Module.train`; a frozen encoder goes back to eval mode at its next forward pass."""
        self._record_trained_outputs()
        return super().train(mode)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As `forward`; `labels` are `emotion_labels`, by the name that the `Trainer` gives them."""
        if "labels" in kwargs:  # in `forward` it would be one that every batch needs
            kwargs["emotion_labels"] = kwargs.pop("labels")
        return super().__call__(*args, **kwargs)

    @can_return_tuple  # type: ignore[untyped-decorator]  # of transformers
    def forward(
        self,
        input_values: Tensor | None = None,
        audio_attention_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        acoustic_states: Tensor | None = None,
        acoustic_attention_mask: Tensor | None = None,
        linguistic_states: Tensor | None = None,
        linguistic_attention_mask: Tensor | None = None,
        reference_mean: Tensor | None = None,
        reference_deviation: Tensor | None = None,
        emotion_labels: Tensor | None = None,
        dimension_labels: Tensor | None = None,
        emotion_votes: Tensor | None = None,
        dimension_weights: Tensor | None = None,
        dimension_ratings: Tensor | None = None,
        class_weights: Tensor | None = None,
        reduce_sum: Callable[[Tensor], Tensor] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        input_features: Tensor | None = None,
    ) -> MTMMOutput:
        """Predict, and compute the loss where labels are given.

        A modality is absent for the batch if neither its inputs nor its states are given, and for
        one utterance if its mask row is all zero; either way the result is the same.

        Args:
            input_values: Waveforms (batch, time), −1 to 1 before the processor's normalisation, or
                log-mel spectra as [`encode_audio`] takes them.
            audio_attention_mask: (batch, time or frames), 1 = real, real positions first.
            input_ids: (batch, tokens).
            attention_mask: The text's: (batch, tokens), 1 = real, real positions first.
            acoustic_states: Used instead of `input_values`: what [`encode_audio`] returned.
            acoustic_attention_mask: (batch, frames).
            linguistic_states: Used instead of `input_ids`: what [`encode_text`] returned.
            linguistic_attention_mask: (batch, tokens).
            reference_mean, reference_deviation: By which acoustic states are standardised, for each
                utterance: (batch, mixed layers, width), one layer where none are mixed; what
                [`standardisation`] gives. The training data's own if not given.
            emotion_labels: (batch,), −100 = absent.
            dimension_labels: (batch, dimensions), on the scale of `config.dimension_range`,
                NaN = absent.
            emotion_votes, dimension_weights, dimension_ratings: What each listener said, see
                [`multi_task_loss`]; the first takes the place of `emotion_labels`.
            class_weights: (emotions,), weights of the emotions in the cross-entropy.
            reduce_sum: Adds a vector over all processes, differentiably; see [`multi_task_loss`].
            output_attentions: Return the bridge tokens' attention weights.
            output_hidden_states: Return the refined states.
            input_features: `input_values` of log-mel encoders, as their feature extractors call them.
                Without text, `attention_mask` is the audio's, as a plain feature extractor gives it.

        Raises:
            ValueError: No modality at all; different numbers of utterances; labels of another shape.
                In the CPU's memory only, since a GPU's host would have to wait: an utterance without
                either modality (its outputs are NaN elsewhere), audio shorter than the encoder's
                receptive field, padding on the left.
        """
        if output_attentions is None:
            output_attentions = bool(self.config.output_attentions)
        if output_hidden_states is None:
            output_hidden_states = bool(self.config.output_hidden_states)
        input_values = input_features if input_values is None else input_values
        if input_ids is None and input_values is not None and audio_attention_mask is None:
            audio_attention_mask, attention_mask = attention_mask, None
            if audio_attention_mask is not None:  # Whisper's own has one for each sample
                frames = input_values.shape[self._audio_input.time_axis(input_values)]
                every = max(audio_attention_mask.shape[-1] // frames, 1)
                audio_attention_mask = audio_attention_mask[:, ::every][:, :frames]
        audio = (input_values, audio_attention_mask, acoustic_states, acoustic_attention_mask)
        text = (input_ids, attention_mask, linguistic_states, linguistic_attention_mask)
        given = _first_given(*audio[::2], *text[::2])
        acoustic, acoustic_mask = self._states_of("audio", given, *audio)
        linguistic, linguistic_mask = self._states_of("text", given, *text)
        acoustic = self._standardised(acoustic, reference_mean, reference_deviation)
        if given.device.type == "cpu" and not torch.compiler.is_compiling():
            refuse_rows(input_values, (*audio[1::2], *text[1::2]), acoustic_mask, linguistic_mask)
        streams = {"audio": (acoustic, acoustic_mask), "text": (linguistic, linguistic_mask)}
        familiarity = None if self.training else self.familiarity
        unfamiliarity = None if familiarity is None else familiarity(streams)
        away = self._away(reference_deviation, unfamiliarity)
        fused = self.fusion(streams, output_attentions)
        logits, dimensions, deviations = self._answer(fused.fused_state, streams, away)
        loss = emotion_loss = dimension_loss = None
        labels = emotion_labels, emotion_votes, dimension_labels
        if any(label is not None for label in labels):
            emotion_loss, dimension_loss = multi_task_loss(
                self.config, logits, dimensions, emotion_labels, dimension_labels, class_weights,
                reduce_sum, emotion_votes=emotion_votes, dimension_weights=dimension_weights,
                deviations=deviations, dimension_ratings=dimension_ratings,
            )  # fmt: skip
            loss = emotion_loss + dimension_loss
            if self.training and not torch.compiler.is_compiling() and not _is_recorded(given):
                outputs = len(self.config.output_names)
                self._labels_seen = labels_seen(outputs, self._labels_seen, *labels)
                if given.device.type == "cpu":  # on a GPU later, since that is a wait
                    self._record_trained_outputs()
        if not output_hidden_states:
            fused = fused._replace(hidden_states=None)
        return MTMMOutput(
            loss=loss, emotion_loss=emotion_loss, dimension_loss=dimension_loss,
            emotion_logits=logits, dimensions=dimensions, dimension_deviations=deviations,
            unfamiliarity=unfamiliarity, logits=at_least_float32(logits) / self.config.temperature,
            **fused._asdict(),
        )  # fmt: skip

    def _standardised(
        self, acoustic: Tensor, mean: Tensor | None, deviation: Tensor | None
    ) -> Tensor:
        """By the reference that is given, or the training data's own."""
        if self.config.reference == "none" and mean is None:
            return acoustic
        own = self.fusion.reference_mean, self.fusion.reference_deviation
        given = (own[0] if mean is None else mean), (own[1] if deviation is None else deviation)
        return standardise(acoustic, *given)

    def _away(self, deviation: Tensor | None, unfamiliarity: Tensor | None) -> Tensor | None:
        """(batch,) of booleans: of another domain, by its deviation or by itself; None = nothing is."""
        if self.linear_path is None:
            return None
        away = None if unfamiliarity is None else unfamiliarity[:, 0] > FAR
        if deviation is not None and self.config.reference_spread:
            apart = distance(deviation, self.fusion.reference_deviation)
            far = torch.atleast_1d(apart) > self.config.reference_spread
            away = far if away is None else away | far
        return away

    def _answer(
        self, fused_state: Tensor, streams: dict[str, tuple[Tensor, Tensor]], away: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits (batch, emotions), and dimensions and raters' spread (batch, dimensions)."""
        logits = self.emotion_head(fused_state)
        low, high = self.config.dimension_range
        scores = at_least_float32(self.dimension_head(fused_state))
        if self.linear_path is not None:
            added = self.linear_path(streams, away)
            if away is not None:
                logits, scores = (torch.where(away[:, None], 0, x) for x in (logits, scores))
            logits, scores = logits + added[0].to(logits.dtype), scores + added[1]
        dimensions = low + (high - low) * scores.sigmoid()
        if self.deviation_head is None:
            return logits, dimensions, None
        spread = at_least_float32(self.deviation_head(fused_state)).sigmoid()
        return logits, dimensions, (high - low) * (LEAST_DEVIATION + MOST_DEVIATION * spread)

    def standardisation(
        self, domain: Reference | None = None, speaker: Reference | None = None
    ) -> dict[str, Tensor]:
        """`reference_mean` and `reference_deviation` of `forward` for one utterance: (1, layers, width).

        Args:
            domain: Reference of recordings of the same kind; None = the training data.
            speaker: Reference of recordings of the same speaker; None = nobody.

        Raises:
            ValueError: The model was trained without references, or with another encoder's.
        """
        own = {name: getattr(self.fusion, name).cpu().double().numpy() for name in STATISTICS}
        made = standardisation(self.config, own, domain, speaker)
        return {name: torch.from_numpy(values).to(self.device) for name, values in made.items()}

    @torch.no_grad()
    def adopt_domain(self, reference: Reference, parts: Sequence[Reference] = ()) -> None:
        """Make a domain's statistics the model's own, as if its training data had been recorded there.

        The model then answers without a reference as it did with this one, also when it is saved,
        exported or published; a reference that is given later counts against these statistics.

        Args:
            reference: A domain's.
            parts: The references of its single recordings: the linear path learns from their means, where
                the domain is another one. () = it does not.

        Raises:
            ValueError: As [`standardisation`]; or it is a speaker's.
        """
        if reference.kind != "domain":
            raise ValueError("A model adopts a domain's reference, and this is a speaker's.")
        given = self.standardisation(domain=reference)
        away = self._away(given["reference_deviation"], None)
        if away is not None and away.any():
            path: Any = self.linear_path
            if parts and "audio" in path.pooled:
                means = torch.stack([torch.from_numpy(one.mean) for one in parts])
                states = means[:, :, None].to(self.device)
                path.refit(standardise(states, *given.values())[:, :, 0])
            path.settle()
            self.emotion_head.scale(0.0)
            self.dimension_head.scale(0.0)
        self.config.reference_skew = MTMMConfig.reference_skew  # how its speakers speak is unknown
        for name, made in given.items():
            getattr(self.fusion, name).copy_(made[0])

    def bridge_contributions(
        self, output: MTMMOutput, acoustic_attention_mask: Tensor, linguistic_attention_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Where the states came from that the interaction read, by its attention weights.

        The mean over heads, bridge tokens and layers. In crossed wiring a weight on a key stands for
        values of the other modality, and is carried to them.

        Args:
            output: What [`forward`] gave with `output_attentions=True`.
            acoustic_attention_mask: As [`encode_audio`] gave it: (batch, frames).
            linguistic_attention_mask: As [`encode_text`] gave it: (batch, tokens).

        Returns:
            Shares (batch, frames) and (batch, tokens); 0 at padding; the two rows of an utterance
            sum to 1 together.

        Raises:
            ValueError: The model has no bridge tokens.

        Source: ours; attention weights say what was read, not what decided (Jain & Wallace 2019).
        """
        if not self.config.use_bridge_tokens:
            raise ValueError("Contributions are read from bridge tokens, which this model has not.")
        a_mask, l_mask = acoustic_attention_mask != 0, linguistic_attention_mask != 0
        a_read = _mean_attention(output.acoustic_bridge_attentions)
        l_read = _mean_attention(output.linguistic_bridge_attentions)
        acoustic, linguistic = a_read, l_read
        if self.config.bridge_wiring == "crossed":
            acoustic, linguistic = carry_to_values(a_read, a_mask, l_read, l_mask)
        acoustic, linguistic = acoustic[:, : a_mask.shape[1]], linguistic[:, : l_mask.shape[1]]
        total = (acoustic.sum(-1) + linguistic.sum(-1))[:, None]
        return acoustic / total, linguistic / total

    def _record_trained_outputs(self) -> None:
        """Note in the config which outputs have now seen labels."""
        if self._labels_seen is None:
            return
        seen = dict(zip(self.config.output_names, self._labels_seen.tolist(), strict=True))
        self._labels_seen = None
        known, weights = self.config.trained_outputs, self.config.loss_weights
        new = [name for name in seen if seen[name] and weights[name] > 0 and name not in known]
        self.config.trained_outputs = (*known, *new)


def _mean_attention(layers: tuple[Tensor, ...] | None) -> Tensor:
    """Over layers, heads and bridge tokens: (batch, keys), float32 at least."""
    assert layers is not None, "without `output_attentions`"
    weights = torch.stack(layers)
    return weights.to(torch.promote_types(weights.dtype, torch.float32)).mean(dim=(0, 2, 3))


def _first_given(*inputs: Tensor | None) -> Tensor:
    """The first input that is there; all are of the same utterances."""
    given = [tensor for tensor in inputs if tensor is not None]
    if not given or any(tensor.shape[0] != given[0].shape[0] for tensor in given):
        raise ValueError(
            "MTMMModel needs audio (`input_values` or `acoustic_states`), text (`input_ids` or "
            "`linguistic_states`) or both, of the same utterances; it got "
            f"{[tensor.shape[0] for tensor in given]} utterances."
        )
    return given[0]


MTMMModel.register_for_auto_class("AutoModel")  # saving the model saves the Hub files with it

__all__ = ["MTMMModel", "MTMMPipeline", "MTMMProcessor"]
