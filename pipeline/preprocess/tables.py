"""Sources that a file names: lists, tables with path / start / end / labels, AudioSet's and Kinetics' CSV layouts."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from pipeline.errors import UserError, nearest
from pipeline.parquet import parquet_table
from pipeline.preprocess.align import Segment
from pipeline.preprocess.listing import SPLIT_FOLDERS, Source, list_media, stat_source
from pipeline.storage import absolute, is_local, join, name_of, parent_of, read_bytes, redact

Row = dict[str, Any]
_TO_THE_END_SECONDS = 1e9
_KINETICS_COLUMNS = {"youtube_id", "time_start", "time_end"}


def read_table_sources(location: str, kind: str, media_root: str | None) -> list[Source]:
    """The sources that the list or table at ``location`` names; a named file that is not there has ``bytes=-1``.

    Raises:
        UserError: not a list or table, or a column is missing or not a number.
    """
    root = absolute(media_root or parent_of(location))
    content = read_bytes(location)
    kind = _recognise(location, content) if kind == "auto" else kind
    media = {item.name: item for item in list_media(root)}
    stems = {PurePosixPath(name).stem: item for name, item in media.items()}
    if kind == "list":
        return [_found(line, root, media) for line in _text(content, location).splitlines() if line.strip()]
    if kind == "audioset":
        return [_trimmed(row, stems, root) for row in _audioset_rows(_text(content, location))]
    rows = _table_rows(location, content)
    if kind == "kinetics":
        return [_trimmed(_kinetics_row(row), stems, root) for row in rows]
    return [_table_source(row, root, media, location) for row in rows]


def _recognise(location: str, content: bytes) -> str:
    suffix = PurePosixPath(name_of(location)).suffix.lower()
    if suffix == ".parquet":
        return "table"
    if suffix in (".txt", ".lst", ".list"):
        return "list"
    if suffix != ".csv":
        raise UserError(
            f"source={redact(location)} is neither media, a folder, a list (.txt) nor a table (.csv, .parquet)"
        )
    start = content[:4096].decode(errors="replace")
    if start.startswith("#") and "YTID" in start:
        return "audioset"
    header = {name.strip() for name in start.splitlines()[0].split(",")} if start else set()
    return "kinetics" if header >= _KINETICS_COLUMNS else "table"


def _table_rows(location: str, content: bytes) -> list[Row]:
    if location.lower().endswith(".parquet"):
        try:
            rows: list[Row] = parquet_table(content).to_pylist()
        except pa.ArrowInvalid as error:
            raise UserError(f"source={redact(location)} is not a Parquet file: {error}") from error
        return rows
    try:
        return list(csv.DictReader(io.StringIO(_text(content, location)), skipinitialspace=True))
    except csv.Error as error:
        raise UserError(f"source={redact(location)} is not a CSV table: {error}") from error


def _text(content: bytes, location: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"source={redact(location)} is not UTF-8 text ({error}); save it as UTF-8") from error


def _table_source(row: Row, root: str, media: dict[str, Source], location: str) -> Source:
    if not row.get("path"):
        columns = ", ".join(map(str, row))
        raise UserError(f"table {redact(location)} needs a column 'path' with a value in every row; it has: {columns}")
    where = f"table {redact(location)}, row of {row['path']!r}"
    item = _found(str(row["path"]), root, media)
    segment, split = _segment(row.get("start"), row.get("end"), where), _split(row, where)
    return replace(item, labels=_labels(row.get("labels", row.get("label"))), segment=segment, split=split)


def _segment(start: Any, end: Any, where: str) -> Segment | None:
    if start in (None, "") and end in (None, ""):
        return None
    try:
        segment = (float(start or 0.0), float(end) if end not in (None, "") else _TO_THE_END_SECONDS)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: start={start!r}, end={end!r} are not seconds") from error
    if not 0 <= segment[0] < segment[1] <= _TO_THE_END_SECONDS:
        raise UserError(f"{where}: a segment from {start} to {end} s holds nothing; leave end empty for the file's end")
    return segment


def _labels(value: Any) -> tuple[str, ...]:
    """A list, a JSON list, or names separated by ``;`` or ``|``."""
    if value in (None, ""):
        return ()
    if isinstance(value, (list, tuple)):
        return tuple(str(item) for item in value)
    text = str(value).strip()
    if text.startswith("["):
        try:
            return tuple(str(item) for item in json.loads(text))
        except json.JSONDecodeError as error:
            raise UserError(f"labels {text!r} are not a JSON list: {error}; or write them as: dog;cat") from error
    return tuple(part.strip() for part in text.replace("|", ";").split(";") if part.strip())


def _split(row: Row, where: str) -> str | None:
    """What a row says of its split; guessing at an unknown word could train on what was to be held out."""
    said = str(row.get("split") or "").strip().lower()
    if said and said not in SPLIT_FOLDERS:
        raise UserError(
            f"{where}: split={row['split']!r} is not known; {nearest(said, SPLIT_FOLDERS)}. Leave it empty to have "
            "validation_fraction decide"
        )
    return SPLIT_FOLDERS.get(said)


def _found(path: str, root: str, media: dict[str, Source]) -> Source:
    """The file that a table calls ``path``: relative to the root, absolute, or a URI."""
    path = path.strip()
    name = str(PurePosixPath(path))
    if name in media:
        return media[name]
    if not is_local(path) or PurePosixPath(path).is_absolute():
        return stat_source(path, path)
    return Source(name, join(root, name))


def _audioset_rows(text: str) -> Iterator[Row]:
    """``YTID, start_seconds, end_seconds, "label,label"`` after lines of comment."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    for fields in csv.reader(lines, skipinitialspace=True, quotechar='"'):
        if len(fields) < 4:
            raise UserError(f"AudioSet row {fields!r} needs YTID, start_seconds, end_seconds, positive_labels")
        name, start, end = fields[:3]
        labels = tuple(part.strip() for part in fields[3].split(",") if part.strip())
        yield {**_video_segment(name, start, end, f"AudioSet row {fields!r}"), "labels": labels, "split": None}


def _kinetics_row(row: Row) -> Row:
    label, where = row.get("label"), f"Kinetics row {row!r}"
    return {
        **_video_segment(row.get("youtube_id"), row.get("time_start"), row.get("time_end"), where),
        "labels": (str(label),) if label else (),
        "split": _split(row, where),
    }


def _video_segment(name: Any, start: Any, end: Any, where: str) -> Row:
    """A video's id and a segment of which both ends are known."""
    if name in (None, ""):
        raise UserError(f"{where} names no video")
    if start in (None, "") or end in (None, ""):
        raise UserError(f"{where} needs the seconds at which its segment starts and ends")
    return {"id": str(name), "segment": _segment(start, end, where)}


def _trimmed(row: Row, stems: dict[str, Source], root: str) -> Source:
    """The downloaded file of a YouTube id: cut to the segment already (by its name), or the whole video."""
    start, end = row["segment"]
    cut_names = (
        f"{row['id']}_{int(start):06d}_{int(end):06d}",
        f"{row['id']}_{int(start)}_{int(end)}",
        f"{row['id']}_{start:.3f}_{end:.3f}",
        f"{row['id']}_{int(start * 1000)}_{int(end * 1000)}",
        f"{row['id']}_{int(start * 1000)}",
    )
    for name in (*cut_names, *(f"Y{name}" for name in cut_names)):
        if name in stems:
            return replace(stems[name], labels=row["labels"], split=row["split"])
    whole = stems.get(row["id"]) or stems.get(f"Y{row['id']}") or Source(row["id"], join(root, row["id"]))
    return replace(whole, labels=row["labels"], segment=row["segment"], split=row["split"])
