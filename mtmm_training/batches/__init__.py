"""From utterances to tensors: collation, batches by length, masking, variants, the cache of states."""
