"""Point clouds: meshes, clouds and voxel grids as a fixed number of points, a pure function of the file's bytes."""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipeline.preprocess.limits import LimitsOptions, MediaError
from pipeline.preprocess.mesh import Mesh, read_off, read_ply
from pipeline.preprocess.recipe import PointsRecipe

Cloud = NDArray[np.float64]


def read_clouds(
    path: str, recipe: PointsRecipe, limits: LimitsOptions, notes: dict[str, Any]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield ``(index, points [num_points, 3])`` for each object of an OFF, PLY, NPY or NPZ file (also ``.gz``).

    Meshes are sampled uniformly over their surface; the occupied cells of a voxel grid are points; ``[M, …]`` arrays
    hold M objects; objects without a point are skipped and counted in the notes. Too many points are thinned, too few
    repeated.

    Raises:
        MediaError: corrupt, too_large or memory_limit.
    """
    try:
        content = _read(path, int(limits.memory_gib * 2**30 / 4))
        random = np.random.Generator(np.random.PCG64(xxhash.xxh3_64_intdigest(content)))
        for index, shape in enumerate(_objects(content, limits.max_pixels)):
            mesh = shape if isinstance(shape, Mesh) else Mesh(_finite(shape), np.zeros((0, 3), np.int64))
            if not len(mesh.vertices):
                notes["empty_objects"] = notes.get("empty_objects", 0) + 1
                continue
            yield index, _scaled(_sample(mesh, recipe.num_points, random), recipe.scale)
    except OverflowError as error:
        raise MediaError("too_large", str(error)) from error
    except MemoryError as error:
        raise MediaError("memory_limit", "out of memory while reading points") from error
    except (
        ValueError,
        KeyError,
        IndexError,
        EOFError,
        StopIteration,
        zlib.error,
        zipfile.BadZipFile,
        OSError,
    ) as error:
        raise MediaError("corrupt", str(error) or type(error).__name__) from error


def _read(path: str, max_bytes: int) -> bytes:
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rb") as stream:
        content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OverflowError(f"more than {max_bytes:,} bytes")
    return bytes(content)


def _objects(content: bytes, max_cells: int) -> Iterator[Mesh | Cloud]:
    if content.startswith(b"OFF"):
        yield read_off(content, max_cells)
    elif content.startswith(b"ply"):
        yield read_ply(content, max_cells)
    elif content.startswith(b"PK"):
        yield _read_npz(content, max_cells)
    elif content.startswith(b"\x93NUMPY"):
        yield from _split_array(_read_npy(io.BytesIO(content), max_cells))
    else:
        raise ValueError("neither OFF, PLY, NPY nor NPZ")


def _read_npz(content: bytes, max_cells: int) -> Mesh:
    """The array called ``points`` (or the first one), with the triangles of ``mesh`` or ``faces`` if there are any."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = {name.removesuffix(".npy"): name for name in archive.namelist()}
        if sum(info.file_size for info in archive.infolist()) > 64 * max_cells:
            raise OverflowError(f"unpacks to more than {64 * max_cells:,} bytes")

        def array(key: str) -> NDArray[Any]:
            with archive.open(names[key]) as stream:
                return _read_npy(io.BytesIO(stream.read()), max_cells)

        vertices = _coordinates(array("points" if "points" in names else next(iter(names))))
        faces = next((array(key) for key in ("mesh", "faces") if key in names), None)
    triangles = _columns(faces).astype(np.int64) if faces is not None else np.zeros((0, 3), np.int64)
    if triangles.ndim != 2 or triangles.shape[1] != 3 or (triangles.size and triangles.max() >= len(vertices)):
        raise ValueError(f"faces of shape {triangles.shape} do not fit {len(vertices)} vertices")
    return Mesh(vertices, triangles)


def _read_npy(stream: io.BytesIO, max_cells: int) -> NDArray[Any]:
    version = np.lib.format.read_magic(stream)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = reader(stream)
    if np.prod([int(size) for size in shape], dtype=object) > max_cells:
        raise OverflowError(f"an array of shape {shape} has more than {max_cells:,} cells")
    if kind.hasobject:
        raise ValueError("holds pickled objects, which are never loaded")
    stream.seek(0)
    array: NDArray[Any] = np.load(stream, allow_pickle=False)
    return array


def _split_array(array: NDArray[Any]) -> Iterator[Cloud]:
    """One cloud ``[N, 3+]``, many ``[M, N, 3]``, one voxel grid ``[D, H, W]``, or many ``[M, (1,) D, H, W]``."""
    if array.dtype.names or array.ndim == 2:
        yield _coordinates(array)
    elif array.ndim == 3 and array.shape[-1] == 3:
        yield from (item.astype(np.float64) for item in array)
    elif array.ndim == 3:
        yield np.argwhere(array > 0).astype(np.float64)
    elif array.ndim in (4, 5):
        grids = array.reshape(-1, *array.shape[-3:])
        yield from (np.argwhere(grid > 0).astype(np.float64) for grid in grids)
    else:
        raise ValueError(f"an array of shape {array.shape} is neither points nor a voxel grid")


def _columns(array: NDArray[Any]) -> NDArray[Any]:
    return np.stack([array[name] for name in array.dtype.names], axis=-1) if array.dtype.names else array


def _coordinates(array: NDArray[Any]) -> Cloud:
    names = array.dtype.names
    table = np.stack([array[axis] for axis in "xyz"], axis=-1) if names else array
    if table.ndim != 2 or table.shape[1] < 3 or not np.issubdtype(table.dtype, np.number):
        raise ValueError(f"an array of shape {table.shape} and type {table.dtype} is no point cloud")
    return table[:, :3].astype(np.float64)


def _finite(cloud: Cloud) -> Cloud:
    return cloud[np.isfinite(cloud).all(axis=1)]


def _sample(mesh: Mesh, num_points: int, random: np.random.Generator) -> Cloud:
    if len(mesh.triangles):
        corners = mesh.vertices[mesh.triangles]
        areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
        if np.isfinite(areas).all() and areas.sum() > 0:
            return _on_surface(corners, areas, num_points, random)
    count = len(mesh.vertices)
    if count >= num_points:
        return mesh.vertices[np.sort(random.permutation(count)[:num_points])]
    repeated = random.permutation(num_points - count) % count
    return mesh.vertices[np.concatenate([np.arange(count), np.sort(repeated)])]


def _on_surface(corners: Cloud, areas: Cloud, num_points: int, random: np.random.Generator) -> Cloud:
    cumulative = np.cumsum(areas) / areas.sum()
    chosen = corners[np.searchsorted(cumulative, random.random(num_points)).clip(max=len(corners) - 1)]
    first, second = np.sqrt(random.random(num_points))[:, None], random.random(num_points)[:, None]
    return (1 - first) * chosen[:, 0] + first * (1 - second) * chosen[:, 1] + first * second * chosen[:, 2]


def _scaled(cloud: Cloud, scale: str) -> NDArray[np.float32]:
    if scale == "unit_sphere":
        cloud = cloud - cloud.mean(axis=0)
        radius = np.linalg.norm(cloud, axis=1).max()
        cloud = cloud / radius if radius > 0 else cloud
    return cloud.astype(np.float32)
