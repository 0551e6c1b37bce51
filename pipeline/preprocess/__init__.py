"""From raw media to token shards: list, identify, decode in a box, align, flatten; nothing lost, nothing twice."""
