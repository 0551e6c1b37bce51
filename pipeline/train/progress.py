"""What a run says while it trains: a bar on a terminal, one line an interval in a log.

Workers may be on other machines, so they hand their news to a mailbox, a Ray actor without a CPU of its own beside the
driver, and never wait for it.
"""

from __future__ import annotations

import logging
import math
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

logger = logging.getLogger(__name__)

Show = Callable[[int, int, Mapping[str, float]], None]  # step, steps in all, metrics of the interval
_BAR_WIDTH = 20
_KEPT_LETTERS = 10_000
_RUN_ID_SECONDS = 60.0


def duration(seconds: float) -> str:
    """A duration in the unit that a person would use."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def line(step: int, total_steps: int, values: Mapping[str, Any]) -> str:
    """An interval in one line."""
    decibels = [
        f"{name.removeprefix('psnr_db/')} {value:.1f} dB" for name, value in values.items() if name.startswith("psnr_")
    ]
    parts = [
        f"step {step}/{total_steps}",
        f"loss {values.get('loss', math.nan):.4f}",
        *decibels,
        f"lr {values['learning_rate']:.2e}",
        f"grad {values.get('gradient_norm', math.nan):.3g}",
        f"{values['examples_per_second']:.1f} examples/s",
        f"wait {100 * values['data_wait_share']:.1f} %",
        f"{values['memory_gib']:.1f} GiB",
        f"{duration(values.get('seconds_to_finish', 0.0))} left",
    ]
    bad = int(values.get("skipped_steps", 0) + values.get("non_finite_loss", 0) + values.get("loss_spikes", 0))
    return " | ".join(parts + ([f"{bad} bad steps"] if bad else []))


def bar(step: int, total_steps: int, values: Mapping[str, Any]) -> str:
    """An interval as a bar and what a person waits for."""
    filled = round(_BAR_WIDTH * step / max(1, total_steps))
    parts = [
        f"{'█' * filled}{'░' * (_BAR_WIDTH - filled)} step {step}/{total_steps}",
        f"loss {values.get('loss', math.nan):.4f}",
        f"{values['examples_per_second']:.1f} examples/s",
        f"{duration(values.get('seconds_to_finish', 0.0))} left",
    ]
    return " | ".join(parts)


class Progress:
    """Shows intervals to a person; as a context manager it keeps log lines and the bar apart."""

    def __init__(self, on_terminal: bool | None = None) -> None:
        self._on_terminal = sys.stderr.isatty() if on_terminal is None else on_terminal
        self._drawn = False

    def __enter__(self) -> Progress:
        for handler in logging.getLogger("pipeline").handlers:
            handler.addFilter(self._clear)
        return self

    def __exit__(self, *_: object) -> None:
        for handler in logging.getLogger("pipeline").handlers:
            handler.removeFilter(self._clear)
        if self._drawn:
            _draw("\n")
            self._drawn = False

    def show(self, step: int, total_steps: int, values: Mapping[str, float]) -> None:
        """Draw the bar again, or log a line."""
        if not self._on_terminal:
            logger.info("%s", line(step, total_steps, values))
            return
        width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be drawn over
        _draw(f"\r\x1b[K{bar(step, total_steps, values)[:width]}")
        self._drawn = True

    def _clear(self, _: logging.LogRecord) -> bool:
        if self._drawn:
            _draw("\r\x1b[K")
            self._drawn = False
        return True


def _draw(text: str) -> None:
    with suppress(OSError):  # the terminal is gone: no reason to end a run
        print(text, end="", file=sys.stderr, flush=True)


class _Mailbox:
    """The actor: letters in, letters out; the oldest go when nobody takes them."""

    def __init__(self) -> None:
        self._letters: deque[tuple[Any, ...]] = deque(maxlen=_KEPT_LETTERS)
        self._run_id: tuple[bool, str | None] = (False, None)
        self._outcome: Any = None

    def put(self, letter: tuple[Any, ...]) -> None:
        self._letters.append(letter)

    def take(self) -> list[tuple[Any, ...]]:
        letters = list(self._letters)
        self._letters.clear()
        return letters

    def tell_run_id(self, run_id: str | None) -> None:
        self._run_id = (True, run_id)

    def run_id(self) -> tuple[bool, str | None]:
        return self._run_id

    def tell_outcome(self, outcome: Any) -> None:
        self._outcome = outcome

    def outcome(self) -> Any:
        return self._outcome


def tracked_run_id(mailbox: Any) -> str | None:
    """In a worker: the run that the driver has opened, waited for; none when the tracking server is away."""
    if mailbox is None:
        return None
    import ray

    deadline = time.monotonic() + _RUN_ID_SECONDS
    while time.monotonic() < deadline:
        try:
            is_known, run_id = ray.get(mailbox.run_id.remote(), timeout=_RUN_ID_SECONDS)
        except (ray.exceptions.RayError, TimeoutError):
            return None
        if is_known:
            return run_id  # type: ignore[no-any-return]
        time.sleep(0.1)
    return None


def open_mailbox() -> Any:
    """A mailbox on this node; its handle travels to the workers."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return ray.remote(_Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()


class Reader:
    """The driver's side of a mailbox: never waits for it while training runs."""

    def __init__(self, mailbox: Any, show: Show) -> None:
        self._mailbox = mailbox
        self._show = show
        self._asked: Any = None

    def poll(self, timeout_seconds: float = 0.0) -> None:
        """Show what has come; what an actor that died would have said is lost, and nothing else."""
        import ray

        with suppress(Exception):  # news is never worth a run
            if self._asked is None:
                self._asked = self._mailbox.take.remote()
            ready, _ = ray.wait([self._asked], timeout=timeout_seconds)
            if ready:
                self._asked = None
                for letter in ray.get(ready[0]):
                    self._deliver(letter)

    def close(self) -> None:
        """Show the rest and end the actor."""
        import ray

        self.poll(2.0)
        self.poll(2.0)  # the first may have been asked before the last letter came
        with suppress(Exception):
            ray.kill(self._mailbox)

    def _deliver(self, letter: tuple[Any, ...]) -> None:
        kind, *content = letter
        if kind == "progress":
            self._show(*content)
        else:
            name, level, text = content
            logging.getLogger(name).log(level, "%s", text)


class _MailHandler(logging.Handler):
    """Sends a worker's log records to the driver."""

    def __init__(self, mailbox: Any, prefix: str, level: int, told: str) -> None:
        super().__init__(level)
        self._mailbox = mailbox
        self._prefix = prefix
        self._told = told

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING and not record.name.startswith(self._told):
            return  # the driver says the same of itself
        with suppress(Exception):  # a log line never ends a worker
            self._mailbox.put.remote(("log", record.name, record.levelno, self._prefix + record.getMessage()))


@contextmanager
def worker_news(mailbox: Any, rank: int, told: str = "pipeline.train") -> Iterator[Show]:
    """In a worker: rank 0 tells all that ``told`` and below log, the others warnings; yields where intervals go."""
    if mailbox is None:
        with Progress() as progress:
            yield progress.show
        return
    handler = _MailHandler(
        mailbox, "" if rank == 0 else f"rank {rank}: ", logging.INFO if rank == 0 else logging.WARNING, told
    )
    ours = logging.getLogger("pipeline")
    ours.addHandler(handler)

    def send(step: int, total_steps: int, values: Mapping[str, float]) -> None:
        logging.getLogger("hip.worker").info("%s", line(step, total_steps, values))  # for Ray's own log files
        with suppress(Exception):
            mailbox.put.remote(("progress", step, total_steps, dict(values)))

    try:
        yield send
    finally:
        ours.removeHandler(handler)
