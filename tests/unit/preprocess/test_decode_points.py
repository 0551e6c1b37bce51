"""Meshes, clouds and voxel grids become a fixed number of points, the same every time."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
import pytest

from pipeline.preprocess.decode import decode_file
from pipeline.preprocess.limits import LimitsOptions, MediaError
from pipeline.preprocess.recipe import PointsRecipe, TokenRecipe

RAW = TokenRecipe(points=PointsRecipe(64, scale="none", token_order="raster"))
SQUARE = "4 2 0\n0 0 0\n2 0 0\n2 2 0\n0 2 0\n3 0 1 2\n3 0 2 3\n"


def clouds(path: Path, recipe: TokenRecipe = RAW, limits: LimitsOptions | None = None) -> list[np.ndarray]:
    return [example.arrays["points"] for example in decode_file(str(path), recipe, limits)]  # type: ignore[misc]


@pytest.mark.parametrize("header", ["OFF\n", "OFF", "OFF # a comment\n"])
def test_off_is_sampled_on_its_surface(tmp_path: Path, header: str) -> None:
    path = tmp_path / "a.off"
    path.write_text(header + SQUARE)
    (cloud,) = clouds(path)
    assert cloud.shape == (64, 3)
    assert (cloud[:, 2] == 0).all()
    assert cloud.min() >= 0
    assert cloud.max() <= 2
    assert abs(cloud[:, :2].mean() - 1) < 0.25
    np.testing.assert_array_equal(cloud, clouds(path)[0])


def test_polygons_count_by_area(tmp_path: Path) -> None:
    path = tmp_path / "a.off"
    path.write_text("OFF\n7 2 0\n0 0 0\n10 0 0\n10 10 0\n0 10 0\n0 0 5\n1 0 5\n0 1 5\n4 0 1 2 3\n3 4 5 6\n")
    (cloud,) = clouds(path, TokenRecipe(points=PointsRecipe(2000, "none", "raster")))
    assert 0 < (cloud[:, 2] == 5).mean() < 0.02


@pytest.mark.parametrize("kind", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_ply(tmp_path: Path, kind: str) -> None:
    header = (
        f"ply\nformat {kind} 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
        "property uchar red\nelement face 1\nproperty list uchar int vertex_indices\nend_header\n"
    )
    vertices = [(0.0, 0.0, 1.0, 7), (4.0, 0.0, 1.0, 7), (0.0, 4.0, 1.0, 7)]
    if kind == "ascii":
        body = ("".join(f"{x} {y} {z} {r}\n" for x, y, z, r in vertices) + "3 0 1 2\n").encode()
    else:
        order = "<" if "little" in kind else ">"
        types = [("x", order + "f4"), ("y", order + "f4"), ("z", order + "f4"), ("r", "u1")]
        body = np.array(vertices, types).tobytes() + b"\x03" + np.array([0, 1, 2], order + "i4").tobytes()
    path = tmp_path / "a.ply"
    path.write_bytes(header.encode() + body)
    (cloud,) = clouds(path)
    assert (cloud[:, 2] == 1).all()
    assert (cloud[:, 0] + cloud[:, 1] <= 4.0001).all()
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(MediaError, match="corrupt"):
        clouds(path)


def test_cloud_is_thinned_or_repeated(tmp_path: Path) -> None:
    for count in (1000, 40):
        given = np.random.default_rng(count).normal(size=(count, 5))
        np.save(tmp_path / "a.npy", given)
        (cloud,) = clouds(tmp_path / "a.npy")
        known = {tuple(row) for row in given[:, :3].astype(np.float32).tolist()}
        found = {tuple(row) for row in cloud.tolist()}
        assert found <= known
        assert len(found) == min(count, 64)


def test_not_finite_points_are_left_out(tmp_path: Path) -> None:
    given = np.ones((10, 3))
    given[3] = np.nan
    np.save(tmp_path / "a.npy", given)
    assert np.isfinite(clouds(tmp_path / "a.npy")[0]).all()


def test_many_voxel_grids_with_an_empty_one(tmp_path: Path) -> None:
    grids = np.zeros((3, 1, 8, 8, 8))
    grids[0, 0, 1, 2, 3] = grids[2, 0, 4, 5, 6] = 1
    buffer = io.BytesIO()
    np.save(buffer, grids)
    path = tmp_path / "grids.npy.gz"
    path.write_bytes(gzip.compress(buffer.getvalue()))
    notes: dict[str, object] = {}
    found = list(decode_file(str(path), RAW, notes=notes))
    assert [example.index for example in found] == [0, 2]
    assert notes["empty_objects"] == 1
    assert (found[1].arrays["points"] == (4, 5, 6)).all()  # type: ignore[union-attr]


def test_npz_and_unit_sphere(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", points=np.random.default_rng(0).normal(5, 3, (200, 3)))
    (cloud,) = clouds(tmp_path / "a.npz", TokenRecipe(points=PointsRecipe(128)))
    assert abs(np.linalg.norm(cloud, axis=1).max() - 1) < 1e-5
    assert np.abs(cloud.mean(0)).max() < 1e-5


def test_pickles_and_bombs_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(MediaError, match="pickled"):
        clouds(tmp_path / "objects.npy")
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)}
    with (tmp_path / "huge.npy").open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
    with pytest.raises(MediaError) as caught:
        clouds(tmp_path / "huge.npy")
    assert caught.value.reason == "too_large"
    (tmp_path / "many.off").write_text("OFF\n900000000000 1 0\n")
    with pytest.raises(MediaError) as caught:
        clouds(tmp_path / "many.off")
    assert caught.value.reason == "too_large"
    zeros = gzip.compress(b"\x93NUMPY" + b"\0" * 300_000_000)
    (tmp_path / "bomb.npy.gz").write_bytes(zeros)
    with pytest.raises(MediaError) as caught:
        clouds(tmp_path / "bomb.npy.gz", limits=LimitsOptions(memory_gib=1.0))
    assert caught.value.reason == "too_large"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.off", b"OFF\n3 1 0\n0 0 0\n"),
        ("b.off", b"OFF\n1 1 0\n0 0 0\n3 0 1 2\n"),
        ("c.off", b"OFF\nx y z\n"),
        ("d.ply", b"ply\nnothing"),
        ("e.npy", b"\x93NUMPY\x01\x00garbage"),
        ("f.npz", b"PK\x03\x04garbage"),
        ("g.npy", b"no numpy at all"),
        ("h.npy.gz", b"\x1f\x8bgarbage"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MediaError) as caught:
        clouds(tmp_path / name)
    assert caught.value.reason == "corrupt"


def test_no_points_at_all(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 4, 4)))
    with pytest.raises(MediaError) as caught:
        clouds(tmp_path / "a.npy")
    assert caught.value.reason == "too_short"
