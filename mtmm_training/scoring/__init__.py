"""Numbers of finished runs: predictions, metrics, intervals, tables."""
