"""Search over group and latent geometry and training settings at equal cost, under Ray Tune."""
