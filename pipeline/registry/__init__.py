"""From a run to a model that people use: package, register, promote, resolve by name, predict on raw media."""
