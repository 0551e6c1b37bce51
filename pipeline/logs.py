"""One line an event on standard error; the verbs call this once."""

from __future__ import annotations

import logging
import os
import sys


def set_up_logs() -> None:
    """Send our log lines to standard error (``HIP_LOG_LEVEL``, default INFO) and quieten the libraries' chatter."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(name)s: %(message)s", "%H:%M:%S"))
    ours = logging.getLogger("pipeline")
    ours.handlers = [handler]
    ours.propagate = False
    ours.setLevel(os.environ.get("HIP_LOG_LEVEL", "INFO").upper())
    for noisy in ("DeepSpeed", "alembic", "mlflow", "matplotlib", "ray.data", "torch.distributed"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
