from mlflow_store import migrated_database, new_storage, run_storage

__all__ = ["migrated_database", "new_storage", "run_storage"]
