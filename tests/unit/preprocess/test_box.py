"""A crash, a hang or a memory bomb in the decoder costs one file and nothing else."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from made_media import write_sound

from pipeline.preprocess.box import DecoderBox, decode_file_boxed
from pipeline.preprocess.decode import decode_file
from pipeline.preprocess.limits import LimitsOptions, MediaError
from pipeline.preprocess.recipe import AudioRecipe, TokenRecipe

RECIPE = TokenRecipe(clip_seconds=1.0, audio=AudioRecipe(8000))


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    samples = np.random.default_rng(0).integers(-9000, 9000, 24_000).astype(np.int16)
    return write_sound(tmp_path / "a.wav", samples)


def test_the_same_as_without_a_box(sound: Path) -> None:
    boxed_notes: dict[str, object] = {}
    notes: dict[str, object] = {}
    boxed = list(decode_file_boxed(str(sound), RECIPE, None, (0.5, 2.6), boxed_notes))
    plain = list(decode_file(str(sound), RECIPE, None, (0.5, 2.6), notes))
    assert boxed_notes == notes
    assert [e.start_seconds for e in boxed] == [e.start_seconds for e in plain] == [0.5, 1.5]
    for left, right in zip(boxed, plain, strict=True):
        np.testing.assert_array_equal(left.arrays["audio"], right.arrays["audio"])


def test_errors_come_through_and_the_child_lives_on(tmp_path: Path, sound: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"nothing good" * 10)
    with pytest.raises(MediaError) as caught:
        list(decode_file_boxed(str(tmp_path / "bad.mp4"), RECIPE))
    assert caught.value.reason == "not_media"
    assert len(list(decode_file_boxed(str(sound), RECIPE))) == 3


def ask(box: DecoderBox, path: Path, limits: LimitsOptions | None = None) -> int:
    return len(list(box.decode(str(path), RECIPE, limits or LimitsOptions(), None, {})))


def test_a_hang_ends_at_the_time_limit(tmp_path: Path, sound: Path) -> None:
    pipe = tmp_path / "pipe.wav"
    os.mkfifo(pipe)  # opening it waits for a writer that never comes
    box = DecoderBox()
    assert ask(box, sound) == 3
    first = box.process_id
    started = time.monotonic()
    with pytest.raises(MediaError) as caught:
        ask(box, pipe, LimitsOptions(seconds_per_file=0.5))
    assert caught.value.reason == "time_limit"
    assert time.monotonic() - started < 5
    assert ask(box, sound) == 3
    assert box.process_id != first
    box.close()


def test_a_crash_is_named_and_survived(tmp_path: Path, sound: Path) -> None:
    pipe = tmp_path / "pipe.wav"
    os.mkfifo(pipe)
    box = DecoderBox()
    assert ask(box, sound) == 3
    victim = box.process_id
    assert victim is not None
    threading.Timer(0.5, os.kill, (victim, signal.SIGSEGV)).start()
    with pytest.raises(MediaError) as caught:
        ask(box, pipe)
    assert caught.value.reason == "decoder_crash"
    assert "SIGSEGV" in caught.value.detail
    assert ask(box, sound) == 3
    box.close()


def test_memory_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "greedy_decoder.py"
    module.write_text("def decode(path, recipe, limits, segment, notes):\n    yield bytearray(2 * 2**30)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    box = DecoderBox("greedy_decoder:decode")
    with pytest.raises(MediaError) as caught:
        ask(box, tmp_path, LimitsOptions(memory_gib=1.0))
    assert caught.value.reason == "memory_limit"
    box.close()


def test_two_streams_at_once(sound: Path) -> None:
    pairs = zip(decode_file_boxed(str(sound), RECIPE), decode_file_boxed(str(sound), RECIPE), strict=True)
    for left, right in pairs:
        np.testing.assert_array_equal(left.arrays["audio"], right.arrays["audio"])


def test_leaving_early_ends_the_child(sound: Path) -> None:
    box = DecoderBox()
    stream = box.decode(str(sound), RECIPE, LimitsOptions(), None, {})
    next(stream)
    stream.close()
    assert box.process_id is None
    assert ask(box, sound) == 3
    box.close()


def test_the_child_does_not_outlive_its_parent(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    code = (
        "import os, sys, threading\n"
        "from pipeline.preprocess.box import DecoderBox\n"
        "from pipeline.preprocess.limits import LimitsOptions\n"
        "from pipeline.preprocess.recipe import *\n"
        "box = DecoderBox(); box._ready(4.0)\n"
        "print(box.process_id, flush=True)\n"
        f"path = {str(tmp_path / 'pipe.wav')!r}\n"
        "list(box.decode(path, TokenRecipe(audio=AudioRecipe(8000)), LimitsOptions(), None, {}))\n"
    )
    import subprocess

    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.3)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while _alive(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(child)


def _alive(process_id: int) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
