"""OFF and PLY files as vertices and triangles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vertices = NDArray[np.float64]
Triangles = NDArray[np.int64]

_PLY_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip


@dataclass(frozen=True)
class Mesh:
    """Vertices ``[V, 3]`` and triangles ``[T, 3]`` (indices; no rows for a bare cloud)."""

    vertices: Vertices
    triangles: Triangles


def read_off(content: bytes, max_cells: int) -> Mesh:
    """An OFF file, also with the header glued to the counts as ModelNet40 has it.

    Raises:
        ValueError: not such a file, or it ends early.
    """
    text = content.decode("ascii", errors="strict")
    lines = [line.split("#")[0] for line in text.splitlines()]
    words = " ".join(lines).split()
    if not words or not words[0].upper().startswith("OFF"):
        raise ValueError("does not start with OFF")
    head = words[0][3:]
    words = ([head] if head else []) + words[1:]
    num_vertices, num_faces = int(words[0]), int(words[1])
    _check_count(num_vertices + num_faces, max_cells)
    start = 3 + 3 * num_vertices
    if len(words) < start:
        raise ValueError(f"ends after {(len(words) - 3) // 3} of {num_vertices} vertices")
    vertices = np.array(words[3:start], dtype=np.float64).reshape(-1, 3)
    faces, position = [], start
    for _ in range(num_faces):
        size = int(words[position])
        faces.append([int(word) for word in words[position + 1 : position + 1 + size]])
        if len(faces[-1]) != size:
            raise ValueError("ends inside its faces")
        position += 1 + size
    return _mesh(vertices, faces)


@dataclass(frozen=True)
class _PlyElement:
    name: str
    count: int
    properties: list[tuple[str, str, str | None]]
    """(name, value type, count type of a list or None)."""


def read_ply(content: bytes, max_cells: int) -> Mesh:
    """A PLY file, ascii or binary.

    Raises:
        ValueError: not such a file, or it ends early.
    """
    marker = content.find(b"end_header")
    if not content.startswith(b"ply") or marker < 0:
        raise ValueError("has no PLY header")
    body = content[content.index(b"\n", marker) + 1 :]
    file_format, elements = _ply_header(content[:marker].decode("ascii"))
    for element in elements:
        _check_count(element.count, max_cells)
    if file_format == "ascii":
        return _ply_mesh(elements, _AsciiBody(body).rows)
    return _ply_mesh(elements, _BinaryBody(body, "<" if file_format == "binary_little_endian" else ">").rows)


def _ply_header(header: str) -> tuple[str, list[_PlyElement]]:
    file_format, elements = "", []
    for words in (line.split() for line in header.splitlines()):
        if words[:1] == ["format"]:
            file_format = words[1]
        elif words[:1] == ["element"]:
            elements.append(_PlyElement(words[1], int(words[2]), []))
        elif words[:2] == ["property", "list"]:
            elements[-1].properties.append((words[4], _PLY_TYPES[words[3]], _PLY_TYPES[words[2]]))
        elif words[:1] == ["property"]:
            elements[-1].properties.append((words[2], _PLY_TYPES[words[1]], None))
    if file_format not in ("ascii", "binary_little_endian", "binary_big_endian"):
        raise ValueError(f"unknown PLY format {file_format!r}")
    return file_format, elements


Row = dict[str, float | list[int]]


def _ply_mesh(elements: list[_PlyElement], rows: Callable[[_PlyElement], list[Row]]) -> Mesh:
    vertices: list[list[float]] = []
    faces: list[list[int]] = []
    for element in elements:
        for row in rows(element):
            if element.name == "vertex":
                vertices.append([float(row[axis]) for axis in "xyz"])  # type: ignore[arg-type]
            elif element.name == "face":
                faces.append(next(value for value in row.values() if isinstance(value, list)))
    return _mesh(np.array(vertices, dtype=np.float64).reshape(-1, 3), faces)


class _AsciiBody:
    def __init__(self, body: bytes) -> None:
        self._words = body.decode("ascii").split()
        self._position = 0

    def rows(self, element: _PlyElement) -> list[Row]:
        return [self._row(element) for _ in range(element.count)]

    def _row(self, element: _PlyElement) -> Row:
        row: Row = {}
        for name, _, count_type in element.properties:
            if count_type is None:
                row[name] = float(self._take(1)[0])
            else:
                row[name] = [int(word) for word in self._take(int(self._take(1)[0]))]
        return row

    def _take(self, count: int) -> list[str]:
        words = self._words[self._position : self._position + count]
        if len(words) != count:
            raise ValueError("PLY ends early")
        self._position += count
        return words


class _BinaryBody:
    def __init__(self, body: bytes, endian: str) -> None:
        self._body, self._endian, self._position = body, endian, 0

    def rows(self, element: _PlyElement) -> list[Row]:
        if all(count_type is None for _, _, count_type in element.properties):
            kind = np.dtype([(name, self._endian + value) for name, value, _ in element.properties])
            table = self._take(kind, element.count)
            return [dict(zip(table.dtype.names or (), row, strict=True)) for row in table.tolist()]
        return [self._row(element) for _ in range(element.count)]

    def _row(self, element: _PlyElement) -> Row:
        row: Row = {}
        for name, value, count_type in element.properties:
            if count_type is None:
                row[name] = float(self._take(np.dtype(self._endian + value), 1)[0])
            else:
                size = int(self._take(np.dtype(self._endian + count_type), 1)[0])
                row[name] = self._take(np.dtype(self._endian + value), size).astype(np.int64).tolist()
        return row

    def _take(self, kind: np.dtype[np.void] | np.dtype[np.generic], count: int) -> NDArray[np.generic]:
        size = kind.itemsize * count
        piece = self._body[self._position : self._position + size]
        if len(piece) != size:
            raise ValueError("PLY ends early")
        self._position += size
        return np.frombuffer(piece, dtype=kind)


def _check_count(count: int, max_cells: int) -> None:
    if not 0 <= count <= max_cells:
        raise OverflowError(f"claims {count:,} vertices or faces, limit {max_cells:,}")


def _mesh(vertices: Vertices, faces: list[list[int]]) -> Mesh:
    """Polygons become fans of triangles."""
    fans = [(face[0], face[i], face[i + 1]) for face in faces for i in range(1, len(face) - 1)]
    triangles = np.array(fans, dtype=np.int64).reshape(-1, 3)
    if triangles.size and not (triangles.min() >= 0 and triangles.max() < len(vertices)):
        raise ValueError("a face names a vertex that does not exist")
    return Mesh(vertices, triangles)
