"""What was said, by whom, and with which labels: utterances, manifests, recordings, folds, corpora."""
