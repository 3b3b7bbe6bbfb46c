"""A model behind HTTP: requests into batches, streams, limits, numbers for monitoring."""
