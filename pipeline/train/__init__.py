"""Masked-autoencoder pretraining under Ray Train and DeepSpeed: the loop, its hooks, guards and checkpoints."""
