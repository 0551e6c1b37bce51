"""Token shards: raw integer tokens on disk, checked row by row when they are read."""
