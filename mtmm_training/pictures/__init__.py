"""Every figure: of runs, of answers, of corpora; one palette."""
