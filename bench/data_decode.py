"""The paper's AudioSet preset (2.56 s, 8 frames of 224x224, 48 kHz) from H.264 + AAC: examples per CPU-second.

    python -m bench.data_decode --media clip.mp4

Timed in turns: decoding alone (PyAV, one thread, every frame and sample), ffmpeg's command line doing the same work as
the preset, our decoder in this process and in its box, whole shard tasks in a plain process pool, and the same tasks
through Ray Data. CPU seconds are of all processes that take part; Ray's are counted with its own daemons, once it is
up. Without ``--media`` a clip of 454x256 at 25 frames a second is made.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.harness import HIGHER, LOWER, NEITHER, Report, Row, arguments_parser, ratio_row

if TYPE_CHECKING:
    from pipeline.preprocess.recipe import TokenRecipe
    from pipeline.preprocess.task import ShardTask

CASE = "AudioSet preset"


def make_clip(path: Path, seconds: float) -> Path:
    """A panned smooth texture with noise, 454x256, and two tones: about as hard to decode as a talking head."""
    import av

    random = np.random.default_rng(0)
    texture = np.kron(random.integers(0, 255, (24, 40, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"preset": "veryfast", "crf": "23"})
        video.width, video.height, video.pix_fmt = 454, 256, "yuv420p"
        audio = container.add_stream("aac", rate=44_100, layout="stereo")
        for index in range(round(25 * seconds)):
            shift = index % 128
            picture = texture[shift : shift + 256, shift : shift + 454] // 2 + random.integers(0, 12, (256, 454, 3))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture, np.uint8), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(video.encode(frame))
        time_line = np.arange(round(44_100 * seconds)) / 44_100
        sound = np.stack([np.sin(2765 * time_line), np.sin(4147 * time_line)]).astype(np.float32) * 0.3
        for start in range(0, sound.shape[1], 1024):
            block = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[:, start : start + 1024]), "fltp", "stereo")
            block.sample_rate, block.pts, block.time_base = 44_100, start, Fraction(1, 44_100)
            container.mux(audio.encode(block))
        for stream in (video, audio):
            container.mux(stream.encode(None))
    return path


def cpu_seconds_of_all() -> float:
    """User and system time of this process, its living descendants, and those that they have buried."""
    import psutil

    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            total += sum(process.cpu_times()[:4])
    return total


def decode_alone(media: Path) -> None:
    """Every frame and sample, not converted."""
    import av

    for kind in ("video", "audio"):
        with av.open(str(media)) as container:
            streams = getattr(container.streams, kind)
            for stream in streams[:1]:
                stream.codec_context.thread_count = 1
                for _ in container.decode(stream):
                    pass


def ffmpeg_command_line(media: Path) -> None:
    """The preset's frames, size and sound, written nowhere."""
    picture = "fps=3.125,scale=224:224:force_original_aspect_ratio=increase,crop=224:224"
    command = ["ffmpeg", "-v", "error", "-threads", "1", "-filter_threads", "1", "-i", str(media)]
    command += ["-map", "0:v:0", "-vf", picture, "-pix_fmt", "rgb24", "-f", "rawvideo", "-y", os.devnull]
    command += ["-map", "0:a:0", "-ac", "1", "-ar", "48000", "-f", "s16le", "-y", os.devnull]
    subprocess.run(command, check=True)


def decode_ours(media: Path, recipe: TokenRecipe, boxed: bool) -> int:
    """The examples of the file."""
    from pipeline.preprocess.box import decode_file_boxed
    from pipeline.preprocess.decode import decode_file

    return sum(1 for _ in (decode_file_boxed if boxed else decode_file)(str(media), recipe))


def shard_tasks(media: Path, recipe: TokenRecipe, folder: Path, count: int, files: int) -> list[ShardTask]:
    """``count`` tasks of ``files`` files; all are the same file, each with a name of its own."""
    from pipeline.preprocess.identify import identify
    from pipeline.preprocess.limits import LimitsOptions
    from pipeline.preprocess.listing import stat_source
    from pipeline.preprocess.plan import Plan, extend_plan
    from pipeline.preprocess.task import ShardTask

    source, limits = stat_source(str(media), media.name), LimitsOptions()
    planned = extend_plan(Plan(recipe, 0.0), [(source, identify(source, limits))], 512e6).sources[0]
    return [
        ShardTask(
            f"train-{number:05d}",
            str(folder),
            recipe,
            limits,
            512e6,
            (),
            tuple(replace(planned, name=f"{number}_{file}") for file in range(files)),
        )
        for number in range(count)
    ]


def timed(action: Callable[[], Any]) -> tuple[float, float]:
    """CPU seconds of all processes, and wall seconds."""
    cpu, wall = cpu_seconds_of_all(), time.perf_counter()
    action()
    return cpu_seconds_of_all() - cpu, time.perf_counter() - wall


def one_file(media: Path, recipe: TokenRecipe, repeats: int, passes: int) -> Iterator[Row]:
    """Rates of the ways to decode a single file."""
    examples = decode_ours(media, recipe, boxed=False)
    ways: dict[str, Callable[[], Any]] = {"ceiling: decode alone (PyAV)": partial(decode_alone, media)}
    if shutil.which("ffmpeg"):
        ways["ffmpeg command line, same work"] = partial(ffmpeg_command_line, media)
    ways["our decoder"] = partial(decode_ours, media, recipe, boxed=False)
    ways["our decoder, boxed"] = partial(decode_ours, media, recipe, boxed=True)
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            cpu, _ = timed(lambda way=way: [way() for _ in range(passes)])  # type: ignore[misc]
            if turn:  # the first round warms up
                spent[name].append(cpu)
    for name, seconds in spent.items():
        yield Row(CASE, name, "examples/CPU-s", tuple(passes * examples / value for value in seconds), HIGHER)


def whole_stage(media: Path, recipe: TokenRecipe, workers: int, repeats: int, count: int, files: int) -> Iterator[Row]:
    """Shard tasks in a process pool and through Ray Data, in turns; both are up and warm before they are timed."""
    from pipeline.preprocess.graph import run_tasks
    from pipeline.preprocess.task import run_task
    from pipeline.ray_session import RayOptions, ray_session

    found: dict[str, list[tuple[float, float]]] = {"pool": [], "ray": []}
    with tempfile.TemporaryDirectory() as name:
        tasks = shard_tasks(media, recipe, Path(name), count, files)
        examples = count * files * decode_ours(media, recipe, boxed=False)
        with (
            ray_session(RayOptions(num_cpus=workers)),
            multiprocessing.get_context("spawn").Pool(workers) as pool,
        ):
            ways: dict[str, Callable[[], Any]] = {
                "pool": lambda: list(pool.imap_unordered(run_task, tasks)),
                "ray": lambda: list(run_tasks(tasks, workers)),
            }
            for turn in range(repeats + 1):
                for way, action in ways.items():
                    spent = timed(action)
                    if turn:
                        found[way].append(spent)
    for way, title in (("pool", "decode + write, process pool"), ("ray", "decode + write, Ray Data")):
        yield Row(CASE, title, "examples/CPU-s", tuple(examples / cpu for cpu, _ in found[way]), HIGHER)
        yield Row(CASE, f"{title}, wall", "s", tuple(wall for _, wall in found[way]), LOWER)
    for position, what in enumerate(("CPU", "wall")):
        of, to = ([spent[position] for spent in found[way]] for way in ("ray", "pool"))
        yield ratio_row(CASE, f"Ray over pool, {what}", of, to)
    yield Row(CASE, "examples of a turn", "", (float(examples),), NEITHER)


def main() -> None:
    """Run everything and write the result."""
    parser = arguments_parser(__doc__, repeats=3)
    parser.add_argument("--media", default=None, help="an audio-video file; default: one of 10.24 s is made")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tasks", type=int, default=6)
    parser.add_argument("--files", type=int, default=12, help="files of a task")
    arguments = parser.parse_args()
    from pipeline.preprocess.recipe import AudioRecipe, TokenRecipe, VideoRecipe

    recipe = TokenRecipe(clip_seconds=2.56, video=VideoRecipe(8, 224, 224), audio=AudioRecipe(48_000))
    count, files, passes = (2, 1, 1) if arguments.quick else (arguments.tasks, arguments.files, 3)
    report = Report("data_decode", ("av", "opencv-python-headless", "ray"))
    with tempfile.TemporaryDirectory() as folder:
        seconds = 2.6 if arguments.quick else 10.24
        media = Path(arguments.media) if arguments.media else make_clip(Path(folder) / "made.mp4", seconds)
        report.note(f"media: {media.name}, {media.stat().st_size / 1e3:.0f} kB")
        report.add(*one_file(media, recipe, arguments.repeats, passes))
        report.add(*whole_stage(media, recipe, arguments.workers, arguments.repeats, count, files))
    report.finish(arguments.output)


if __name__ == "__main__":
    main()
