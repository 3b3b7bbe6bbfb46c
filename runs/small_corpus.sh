# The recipe for a corpus of a few hours or less with frozen encoders; sourced by the others.
# Chosen on validation speakers of three of RAVDESS's grouped folds (docs/LOG.md says what else was tried).
SMALL_CORPUS=(--model_config '{"encoder_layers": "weighted", "acoustic_stride": 25, "hidden_size": 128,
    "num_attention_heads": 4, "intermediate_size": 256, "num_bridge_tokens": 8,
    "hidden_dropout": 0.3, "attention_dropout": 0.3, "head_dropout": 0.3}')
SMALL_CORPUS+=(--weight_decay 1.0 --rmm_start 0.5 --epochs 30 --workers 0)
# Recordings of speech: each also at other speeds and with noise.
SMALL_SPEECH=("${SMALL_CORPUS[@]}" --augment speed noise --augment_variants 4 --epochs 40)
