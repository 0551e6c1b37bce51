"""Experiment tracking that never stops training: MLflow behind a spool on disk."""
