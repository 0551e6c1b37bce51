"""From shards to batches: a deterministic order, and threads that read ahead."""
