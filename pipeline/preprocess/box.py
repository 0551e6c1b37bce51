"""A decoder in a box: files are decoded in a child process, so that a crash, a hang or a memory bomb costs one file."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from pipeline.preprocess.align import Segment
from pipeline.preprocess.container import claimed_seconds, open_container
from pipeline.preprocess.decode import DecodedExample, decode_file
from pipeline.preprocess.limits import LimitsOptions, MediaError
from pipeline.preprocess.recipe import TokenRecipe

_START_SECONDS = 120.0
_PARENT_CHECK_SECONDS = 1.0
_DECODER = f"{decode_file.__module__}:decode_file"


def decode_file_boxed(
    path: str,
    recipe: TokenRecipe,
    limits: LimitsOptions | None = None,
    segment: Segment | None = None,
    notes: dict[str, Any] | None = None,
) -> Iterator[DecodedExample]:
    """As :func:`decode_file`, in this process's decoding child, within the time and memory limits.

    Raises:
        MediaError: as ``decode_file``, and time_limit, memory_limit or decoder_crash.
    """
    yield from _box().decode(path, recipe, limits or LimitsOptions(), segment, {} if notes is None else notes)


def probe_seconds_boxed(path: str, limits: LimitsOptions) -> float:
    """Seconds that an audio or video file claims to last, read in the box; 0 when it says nothing.

    Raises:
        MediaError: the file cannot be opened.
    """
    return _box().probe(path, limits)


def _box() -> DecoderBox:
    box = _BOXES.get(os.getpid())
    if box is None:
        box = _BOXES[os.getpid()] = DecoderBox()
        atexit.register(box.close)
    return box


class DecoderBox:
    """One child process that decodes file after file; started again after it had to be killed.

    ``decoder`` names a function with the signature of :func:`decode_file` as ``module:function``.
    """

    def __init__(self, decoder: str = _DECODER) -> None:
        self._decoder = decoder
        self._process: subprocess.Popen[bytes] | None = None
        self._link: Connection | None = None
        self._memory_gib = 0.0
        self._lock = threading.Lock()

    @property
    def process_id(self) -> int | None:
        """The child's process id, None when there is none."""
        return self._process.pid if self._process else None

    def decode(
        self,
        path: str,
        recipe: TokenRecipe,
        limits: LimitsOptions,
        segment: Segment | None,
        notes: dict[str, Any],
    ) -> Iterator[DecodedExample]:
        """Yield the file's examples as the child makes them. The time limit counts only the waiting for the child."""
        request = {"path": path, "recipe": recipe.to_dict(), "limits": asdict(limits), "segment": segment}
        yield from self._ask(request, limits, notes)

    def probe(self, path: str, limits: LimitsOptions) -> float:
        """As :func:`probe_seconds_boxed`, in this box."""
        notes: dict[str, Any] = {}
        for _ in self._ask({"path": path, "limits": asdict(limits)}, limits, notes):
            pass
        return float(notes["claimed_seconds"])

    def _ask(self, request: dict[str, Any], limits: LimitsOptions, notes: dict[str, Any]) -> Iterator[DecodedExample]:
        if not self._lock.acquire(blocking=False):  # a second stream while the first is still being read
            with contextlib.closing(DecoderBox(self._decoder)) as spare:
                yield from spare._ask(request, limits, notes)
            return
        try:
            yield from self._ask_child(request, limits, notes)
        finally:
            self._lock.release()

    def _ask_child(
        self, request: dict[str, Any], limits: LimitsOptions, notes: dict[str, Any]
    ) -> Iterator[DecodedExample]:
        link = self._ready(limits.memory_gib)
        finished = False
        try:
            link.send_bytes(json.dumps(request).encode())
            for head, example in self._answers(link, limits.seconds_per_file):
                if example is not None:
                    yield example
                    continue
                finished = True
                notes.update(head["notes"])
                if "reason" in head:
                    raise MediaError(head["reason"], head["detail"])
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise self._crashed() from error
        finally:
            if not finished:
                self.close()

    def close(self) -> None:
        """End the child; the next file starts a new one."""
        if self._link is not None:
            self._link.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._link = None

    def _answers(
        self, link: Connection, seconds_allowed: float
    ) -> Iterator[tuple[dict[str, Any], DecodedExample | None]]:
        remaining = seconds_allowed
        while True:
            waiting_since = time.monotonic()
            if not link.poll(remaining):
                raise MediaError("time_limit", f"still decoding after {seconds_allowed:g} s")
            head = json.loads(link.recv_bytes())
            remaining = max(0.0, remaining - (time.monotonic() - waiting_since))
            if "arrays" not in head:
                yield head, None
                return
            yield head, _receive_example(link, head)

    def _crashed(self) -> MediaError:
        assert self._process is not None
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return MediaError("decoder_crash", "the decoding process closed its pipe")
        if code == -signal.SIGKILL:
            return MediaError("decoder_crash", "the decoding process was killed (signal 9), perhaps for lack of memory")
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return MediaError("decoder_crash", f"the decoding process ended with {name}")

    def _ready(self, memory_gib: float) -> Connection:
        if self._process is not None and (self._process.poll() is not None or self._memory_gib != memory_gib):
            self.close()
        if self._link is None:
            self._start(memory_gib)
        assert self._link is not None
        return self._link

    def _start(self, memory_gib: float) -> None:
        ours, theirs = socket.socketpair()
        arguments = f"{theirs.fileno()}, {self._decoder!r}, {memory_gib!r}"
        command = f"from {__name__} import serve; serve({arguments})"  # a served model carries this module renamed
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(path or "." for path in sys.path)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", command],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches the parent, which then ends the child
            )
        self._link = Connection(ours.detach())
        self._memory_gib = memory_gib
        if not self._link.poll(_START_SECONDS) or self._link.recv_bytes() != b"ready":
            self.close()
            raise RuntimeError(f"the decoding process did not start within {_START_SECONDS:g} s")


_BOXES: dict[int, DecoderBox] = {}
"""The box of this process, by process id, so that a forked child never shares its parent's."""


def serve(descriptor: int, decoder: str, memory_gib: float) -> None:
    """Body of the child: decode what is asked for until the pipe closes."""
    _end_with_parent()
    module, _, function = decoder.partition(":")
    decode = getattr(importlib.import_module(module), function)
    _load_decoders()
    limit = int(memory_gib * 2**30) + _address_space_bytes()
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    link = Connection(descriptor)
    link.send_bytes(b"ready")
    while True:
        try:
            request = json.loads(link.recv_bytes())
        except (EOFError, ConnectionResetError):  # reset: the caller left before it read every example
            return
        _answer(link, decode, request)


def _answer(link: Connection, decode: Any, request: dict[str, Any]) -> None:
    notes: dict[str, Any] = {}
    final: dict[str, Any] = {"notes": notes}
    try:
        limits = LimitsOptions(**request["limits"])
        if "recipe" in request:
            recipe = TokenRecipe.from_dict(request["recipe"])
            segment = tuple(request["segment"]) if request["segment"] else None
            for example in decode(request["path"], recipe, limits, segment, notes):
                _send_example(link, example)
        else:
            with open_container(request["path"], limits) as container:
                notes["claimed_seconds"] = claimed_seconds(container)
    except MediaError as error:
        final |= {"reason": error.reason, "detail": error.detail}
    except MemoryError:
        final |= {"reason": "memory_limit", "detail": "out of memory while decoding"}
    except Exception as error:  # an unforeseen fault of one file must not cost the others
        final |= {"reason": "corrupt", "detail": f"{type(error).__name__}: {error}"}
    link.send_bytes(json.dumps(final).encode())


def _send_example(link: Connection, example: DecodedExample) -> None:
    arrays = {name: np.ascontiguousarray(array) for name, array in example.arrays.items() if array is not None}
    head = {
        "start_seconds": example.start_seconds,
        "index": example.index,
        "missing": [name for name, array in example.arrays.items() if array is None],
        "arrays": [(name, array.dtype.str, array.shape) for name, array in arrays.items()],
    }
    link.send_bytes(json.dumps(head).encode())
    for array in arrays.values():
        link.send_bytes(_bytes_of(array))


def _receive_example(link: Connection, head: dict[str, Any]) -> DecodedExample:
    """Plain bytes, never pickles: the child may have been taken over by the file that it decodes."""
    arrays: dict[str, np.ndarray | None] = dict.fromkeys(head["missing"])
    for name, kind, shape in head["arrays"]:
        array = np.empty(shape, dtype=np.dtype(kind))
        link.recv_bytes_into(_bytes_of(array))
        arrays[name] = array
    return DecodedExample(arrays, float(head["start_seconds"]), int(head["index"]))


def _bytes_of(array: np.ndarray) -> memoryview:
    return memoryview(array).cast("B")  # type: ignore[arg-type]


def _load_decoders() -> None:
    """Import before the memory limit counts, so that the limit is about the media."""
    import av
    import cv2
    from PIL import Image

    av.logging.set_level(av.logging.PANIC)
    cv2.setNumThreads(1)
    Image.init()


def _address_space_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as stream:  # noqa: PTH123
        return int(stream.read().split()[0]) * resource.getpagesize()


def _end_with_parent() -> None:
    """A child that hangs in a decoder does not notice that its pipe is closed; this thread does."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


__all__ = ["DecoderBox", "decode_file", "decode_file_boxed", "serve"]
