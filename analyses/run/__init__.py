"""From samples to a run on disk, shard by shard."""
