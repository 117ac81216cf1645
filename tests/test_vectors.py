"""Reading vectors: every kind of file, in blocks, and what is refused by its row."""

import faiss
import numpy as np
import pytest
from faiss.contrib.vecs_io import fvecs_write, ivecs_write

from faiss_dpq import vectors
from faiss_dpq.vectors import rows as rows_module

N, D = 300, 12


@pytest.fixture
def x():
    return np.random.default_rng(0).integers(0, 100, (N, D)).astype(np.float32)


def save(path, x, kind):
    """Files of every kind; their suffixes are in upper case, as some programs write them."""
    if kind == "npy":
        np.save(path.open("wb"), x)
    elif kind == "half":
        np.save(path.open("wb"), x.astype(np.float16))
    elif kind == "npz":
        np.savez(path.open("wb"), ids=np.arange(N), vectors=x)
    elif kind == "compressed":
        np.savez_compressed(path.open("wb"), x)
    elif kind == "fvecs":
        fvecs_write(path, x)
    elif kind == "ivecs":
        ivecs_write(path, x.astype(np.int32))
    else:
        path.write_bytes(b"".join(np.int32(D).tobytes() + row.astype(np.uint8).tobytes() for row in x))


SUFFIXES = {"half": ".NPY", "compressed": ".NPZ"}
KINDS = ["npy", "half", "npz", "compressed", "fvecs", "ivecs", "bvecs"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_vectors_some_at_a_time(kind, x, tmp_path, monkeypatch):
    path = tmp_path / f"x{SUFFIXES.get(kind, '.' + kind.upper())}"
    save(path, x, kind)
    for module in ("rows", "mapped", "npz"):
        monkeypatch.setattr(f"faiss_dpq.vectors.{module}.BLOCK", 70)
    (source,) = vectors.open_sources(path)
    assert (source.n, source.d) == (N, D)
    blocks = list(source.blocks(30, 250))
    assert max(map(len, blocks)) == 70
    assert all(block.dtype == np.float32 for block in blocks)
    np.testing.assert_array_equal(np.concatenate(blocks), x[30:250])
    some = np.array([0, 69, 70, 213, 299])
    np.testing.assert_array_equal(source.rows(some), x[some])
    assert source.rows(some[:0]).shape == (0, D)
    np.testing.assert_array_equal(vectors.read(path), x)
    np.testing.assert_array_equal(vectors.read(tmp_path), x)  # the folder


def test_rows_that_are_not_finite_are_all_named(x, tmp_path, monkeypatch):
    monkeypatch.setattr(rows_module, "BLOCK", 70)
    x[[5, 80, 290], 3] = np.nan, np.inf, -np.inf
    np.save(tmp_path / "x.npy", x)
    (source,) = vectors.open_sources(tmp_path / "x.npy")
    read = []
    with pytest.raises(ValueError, match=r"x\.npy: rows 5, 80, 290 hold NaN or infinity"):
        source.check(read.append)
    assert sum(read) == N
    x[100:150] = np.inf
    with pytest.raises(ValueError, match=r"rows 5, 80, 100, .*, 107 and 43 more hold NaN"):
        vectors.open_sources(x)[0].check(read.append)
    vectors.open_sources(x[6:80])[0].check(read.append)


def test_files_that_hold_no_vectors_say_so(x, tmp_path):
    for name in ("x.npy", "x.fvecs", "x.bvecs", "x.npz", "x.parquet"):
        (tmp_path / name).touch()
        with pytest.raises(ValueError, match=f"{name}: the file is empty, it has 0 bytes"):
            vectors.open_sources(tmp_path / name)
        (tmp_path / name).write_bytes(b"12345")
        with pytest.raises(ValueError, match=f"{name}: not a"):
            vectors.open_sources(tmp_path / name)
    fvecs_write(tmp_path / "x.fvecs", x)
    content = (tmp_path / "x.fvecs").read_bytes()
    (tmp_path / "x.fvecs").write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"its 15,599 bytes are no whole number of vectors of the d=12"):
        vectors.open_sources(tmp_path / "x.fvecs")
    np.savez(tmp_path / "x.npz", first=x, second=x, columns=np.asfortranarray(x))
    with pytest.raises(ValueError, match=r"Fortran order"):
        vectors.open_sources(tmp_path / "x.npz", "columns")
    np.savez(tmp_path / "x.npz", first=x, second=x + 1, third=x[0])
    with pytest.raises(ValueError, match=r"2 arrays have two dimensions, \['first', 'second'\]; column"):
        vectors.open_sources(tmp_path / "x.npz")
    with pytest.raises(ValueError, match=r"column is 'fourth', its arrays are \['first', 'second', 'third'\]"):
        vectors.open_sources(tmp_path / "x.npz", "fourth")
    np.testing.assert_array_equal(vectors.read(tmp_path / "x.npz", "second"), x + 1)


def test_true_neighbours_must_fit(x, tmp_path):
    nearest = faiss.knn(x[:20], x, 3)[1]
    ivecs_write(tmp_path / "gt.ivecs", nearest)
    np.testing.assert_array_equal(vectors.read_neighbours(tmp_path / "gt.ivecs", 20, N), nearest)
    with pytest.raises(
        ValueError, match=r"int32 of shape \(20, 3\), expected the numbers .* integers of shape \(21, k\)"
    ):
        vectors.read_neighbours(tmp_path / "gt.ivecs", 21, N)
    with pytest.raises(ValueError, match=r"expected 0 to 9: is it of other vectors"):
        vectors.read_neighbours(tmp_path / "gt.ivecs", 20, 10)
    fvecs_write(tmp_path / "x.fvecs", x[:20])
    with pytest.raises(ValueError, match="holds float32"):
        vectors.read_neighbours(tmp_path / "x.fvecs", 20, N)
