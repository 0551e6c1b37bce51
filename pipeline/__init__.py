"""From raw media to a registered model: one package a stage, the modules beside them are the common ground."""
