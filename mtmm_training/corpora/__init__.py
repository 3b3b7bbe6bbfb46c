"""Speech emotion corpora: one module each, every one ends in a list of Utterances."""
