"""What shards are built from, and what is refused: each with an error that says what is wrong, and nothing lost."""

import contextlib
import json
import os

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import faiss_dpq
from faiss_dpq import shards

N, D = 1797, 64


@pytest.fixture(scope="module")
def trained(digits):
    index = faiss_dpq.IndexDPQ(D, 3, 4)
    index.train(digits, effort="fast")
    return index


@pytest.fixture(scope="module")
def here(trained, digits, tmp_path_factory):
    """The checksums of shards built from an array."""
    return checksums(shards.build_shards(trained, digits, tmp_path_factory.mktemp("here"), 2, rows_per_part=400))


@pytest.fixture
def built(trained, digits, tmp_path):
    """A folder of shards, of a file of vectors."""
    np.save(tmp_path / "digits.npy", digits)
    shards.build_shards(trained, tmp_path / "digits.npy", tmp_path / "out", 2, rows_per_part=400)
    return tmp_path / "out"


def checksums(manifest):
    return [shard["sha256"] for shard in manifest["shards"]]


def save_vecs(path, x, dtype):
    rows = [np.concatenate([np.array([D], np.int32).view(np.uint8), row.astype(dtype).view(np.uint8)]) for row in x]
    path.write_bytes(np.concatenate(rows).tobytes())


def save_parquet(path, x, kind, **more):
    values = pa.array(np.ascontiguousarray(x).ravel())
    if kind == "fixed":
        lists = pa.FixedSizeListArray.from_arrays(values, D)
    else:
        lists = pa.ListArray.from_arrays(np.arange(0, len(values) + 1, D, dtype=np.int32), values)
    pq.write_table(
        pa.table({"name": [str(i) for i in range(len(x))], "vector": lists, **more}), path, row_group_size=300
    )


# ---- sources ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["npy", "fortran", "fvecs", "bvecs", "fixed", "list", "folder", "glob", "mixed"])
def test_all_kinds_of_sources_give_the_same_shards(tmp_path, digits, trained, here, form):
    data = tmp_path / "data"
    data.mkdir()
    first, second = digits[:700], digits[700:]
    if form == "fvecs":
        save_vecs(data / "x.fvecs", digits, np.float32)
    elif form == "bvecs":
        save_vecs(data / "x.bvecs", digits, np.uint8)  # of whole numbers up to 16
    elif form in ("fixed", "list"):
        save_parquet(data / "x.parquet", digits, form)
    elif form == "fortran":
        np.save(data / "x.npy", np.asfortranarray(digits))
    else:
        np.save(data / "a.npy", digits if form == "npy" else first)
        if form in ("folder", "glob"):
            np.save(data / "b.npy", second)
            (data / "README").write_text("no vectors")
    given = {"folder": data, "glob": str(data / "*.npy"), "mixed": [data / "a.npy", second]}.get(form, [data])
    with pytest.warns(UserWarning, match="uint8 is converted") if form == "bvecs" else contextlib.nullcontext():
        manifest = shards.build_shards(trained, given, tmp_path / "out", 2, rows_per_part=400)
    assert checksums(manifest) == here


def test_parts_are_rows_of_one_source_and_nothing_is_read_whole(tmp_path, digits):
    np.save(tmp_path / "a.npy", digits[:1000])
    save_parquet(tmp_path / "b.parquet", digits[1000:], "fixed")
    plan = shards.plan_parts(tmp_path, 350)
    assert [(part.start, part.stop, part.first) for part in plan] == [
        *((0, 350, 0), (350, 700, 350), (700, 1000, 700)),
        *((0, 350, 1000), (350, 700, 1350), (700, 797, 1700)),
    ]
    assert (len(plan), plan.n, plan.d, plan[4].source.name) == (6, N, D, str(tmp_path / "b.parquet"))
    for part in plan:
        blocks = list(part.source.blocks(part.start, part.stop))
        np.testing.assert_array_equal(np.concatenate(blocks), digits[part.first : part.first + len(part)])
    array = shards.plan_parts(digits, 100)[3]
    assert array.source.x.shape == (100, D)  # all that is pickled with the part


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_numbers_are_converted_and_it_is_said(tmp_path, digits, trained, here, dtype, capsys):
    np.save(tmp_path / "x.npy", digits.astype(dtype))
    with pytest.warns(UserWarning, match=rf"x\.npy: {np.dtype(dtype)} is converted to float32"):
        manifest = shards.build_shards(trained, tmp_path / "x.npy", tmp_path / "out", 2, rows_per_part=400)
    assert checksums(manifest) == here
    assert manifest["sources"][0]["dtype"] == np.dtype(dtype)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("form", ["npy", "parquet"])
def test_a_row_that_is_not_finite_is_refused_by_its_number(tmp_path, digits, trained, value, form):
    bad = digits.astype(np.float64)
    bad[1500, 3] = value
    np.save(tmp_path / "a.npy", digits[:100])
    path = tmp_path / f"b.{form}"
    if form == "npy":
        np.save(path, bad)
    else:
        save_parquet(path, bad, "list")
    given = [tmp_path / "a.npy", path]
    kind = "NaN" if np.isnan(value) else "infinity"
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=rf"b\.{form}: row 1500 holds {kind}"):
        shards.build_shards(trained, given, tmp_path / "out", 2, rows_per_part=400)
    with pytest.raises(ValueError, match=rf"b\.{form}: row 1500 holds {kind}"):
        shards.sample_sources(given, 10**6)


def test_what_is_not_of_vectors_is_refused(tmp_path, digits, trained):
    np.save(tmp_path / "flat.npy", digits[0])
    np.save(tmp_path / "text.npy", np.array([["a"]]))
    np.save(tmp_path / "narrow.npy", digits[:, :9])
    np.save(tmp_path / "none.npy", digits[:0])
    (tmp_path / "cut.npy").write_bytes((tmp_path / "narrow.npy").read_bytes()[:500])
    (tmp_path / "x.txt").write_text("1 2 3")
    (tmp_path / "bad.parquet").write_text("1 2 3")
    (tmp_path / "empty").mkdir()
    for given, message in [
        ("flat.npy", r"flat\.npy: holds float32 of shape \(64,\), expected numbers of shape"),
        ("text.npy", r"text\.npy: holds <U1"),
        ("cut.npy", r"cut\.npy: not a file of vectors"),
        ("none.npy", r"the sources hold no rows: .*none\.npy"),
        ("x.txt", r"x\.txt: expected a file of vectors, \.npy, \.fvecs"),
        ("bad.parquet", r"bad\.parquet: not a parquet file"),
        ("empty", "empty: the folder holds no file of vectors"),
    ]:
        with pytest.raises(ValueError, match=message):
            shards.plan_parts(tmp_path / given, 10)
    for missing in ("absent.npy", "absent*.npy"):
        with pytest.raises(FileNotFoundError, match="absent"):
            shards.plan_parts(str(tmp_path / missing), 10)
    with pytest.raises(ValueError, match="there are none"):
        shards.plan_parts([], 10)
    with pytest.raises(TypeError, match="a dict"):
        shards.plan_parts({}, 10)
    with pytest.raises(ValueError, match=r"narrow\.npy: vectors of 9 dimensions, those of array 0 have 64"):
        shards.plan_parts([digits, tmp_path / "narrow.npy"], 10)
    with pytest.raises(ValueError, match=r"narrow\.npy holds vectors of 9 dimensions, the index has d=64"):
        shards.build_shards(trained, tmp_path / "narrow.npy", tmp_path / "out", 1)
    with pytest.raises(ValueError, match="rows_per_part is 0"):
        shards.plan_parts(digits, 0)
    for n_shards in (0, N + 1):
        with pytest.raises(ValueError, match=f"n_shards is {n_shards}, expected 1 to {N}"):
            shards.build_shards(trained, digits, tmp_path / "out", n_shards)
    for ids, message in [(np.arange(3), r"shape \(3,\)"), (np.ones(N), "float64"), (np.arange(N) - 1, "hold -1")]:
        with pytest.raises(ValueError, match=message):
            shards.build_shards(trained, digits, tmp_path / "out", 2, ids=ids)
    assert not (tmp_path / "out").exists()


def test_columns_of_parquet(tmp_path, digits, trained, here):
    other = pa.array([[1.0, 2.0]] * N)
    save_parquet(tmp_path / "x.parquet", digits, "list", other=other)
    with pytest.raises(ValueError, match=r"2 columns hold lists of numbers, \['vector', 'other'\]; column"):
        shards.plan_parts(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="column is 'name', those with lists"):
        shards.plan_parts(tmp_path / "x.parquet", column="name")
    given = tmp_path / "x.parquet"
    manifest = shards.build_shards(trained, given, tmp_path / "out", 2, rows_per_part=400, column="vector")
    assert checksums(manifest) == here
    for row, message in [([1.0], "holds 1 numbers"), (None, "holds no vector"), ([None] * D, "holds a null")]:
        lists = [list(map(float, x)) for x in digits[:500]]
        lists[450] = row
        pq.write_table(pa.table({"vector": lists}), tmp_path / "odd.parquet")
        with pytest.warns(UserWarning):
            part = shards.plan_parts(tmp_path / "odd.parquet", 500)[0]
        with pytest.raises(ValueError, match=f"row 450 {message}, expected 64"):
            list(part.source.blocks(0, 500))


def test_ids_may_be_in_a_file(tmp_path, digits, trained):
    ids = np.arange(N)[::-1] * 5
    np.save(tmp_path / "ids.npy", ids)
    first = shards.build_shards(trained, digits, tmp_path / "a", 2, ids=tmp_path / "ids.npy")
    assert checksums(first) == checksums(shards.build_shards(trained, digits, tmp_path / "b", 2, ids=ids))
    assert first["shards"][0]["ids"] == [int(ids[: N // 2].min()), int(ids.max())]


def test_what_cannot_be_the_codec_is_refused(tmp_path, digits, trained):
    filled = faiss_dpq.clone_index(trained)
    filled.add(digits)
    pq4 = faiss.IndexPQ(D, 4, 4)
    for index, error, message in [
        (faiss_dpq.IndexDPQ(D, 3, 4), ValueError, "not trained"),
        (filled, ValueError, "holds 1797 vectors, expected none"),
        (pq4, TypeError, "an IndexPQ .*expected an IndexDPQ or IndexIVFDPQ"),
        (faiss_dpq.IndexIDMap(faiss_dpq.clone_index(trained)), TypeError, "an IndexIDMap "),
    ]:
        with pytest.raises(error, match=message):
            shards.build_shards(index, digits, tmp_path / "out", 2)
    assert not (tmp_path / "out").exists()


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_without_a_manifest(tmp_path, built):
    with pytest.raises(FileNotFoundError, match=r"there is no manifest\.json: not a folder of shards"):
        shards.read_shards(tmp_path)
    (built / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="a build that is not finished"):
        shards.read_shards(built)


def change_manifest(folder, **changes):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))
    return manifest


def test_a_manifest_that_is_newer_damaged_or_not_complete(built):
    manifest = change_manifest(built, format=2, faiss_dpq="9.0.0")
    with pytest.raises(RuntimeError, match=r"format 2, of faiss_dpq 9\.0\.0; this one reads up to 1"):
        shards.read_shards(built)
    for changes, message in [
        ({"shards": manifest["shards"][1:]}, "has rows 898 to 1797, expected them from 0 on"),
        ({"shards": manifest["shards"][:1]}, "the shards end at row 898, expected 1797"),
        ({"shards": None}, "damaged: TypeError"),
        ({"ntotal": 1796}, "end at row 1797, expected 1796"),
        ({"d": 63}, "not the shard of the manifest"),
    ]:
        change_manifest(built, **{**manifest, **changes})
        with pytest.raises(RuntimeError, match=message):
            shards.read_shards(built)
    (built / "manifest.json").write_text("{")
    with pytest.raises(RuntimeError, match=r"manifest\.json: damaged"):
        shards.read_shards(built)


def test_a_shard_that_is_missing_or_damaged_is_made_anew_from_the_parts(built, trained, digits, tmp_path, here):
    shard = built / "shards" / "shard-00001.faiss"
    data = bytearray(shard.read_bytes())
    shard.unlink()
    with pytest.raises(RuntimeError, match=r"shard-00001\.faiss: missing"):
        shards.read_shards(built)
    shard.write_bytes(data[:-5])
    with pytest.raises(RuntimeError, match=r"shard-00001\.faiss: damaged: \d+ bytes, expected"):
        shards.read_shards(built)
    manifest = shards.build_shards(trained, tmp_path / "digits.npy", built, 2, rows_per_part=400)
    assert checksums(manifest) == here
    assert checksums(shards.verify(built)) == here
    data[100] ^= 8
    shard.write_bytes(data)
    with pytest.raises(RuntimeError, match=r"shard-00001\.faiss: damaged: its checksum"):
        shards.verify(built)
    with pytest.raises(RuntimeError, match="corrupt"):
        shards.read_shards(built)


def test_verify_looks_at_the_codec_and_the_parts_too(built):
    shards.verify(built)
    for name in ("trained.faiss", os.path.relpath(next(built.glob("parts/*/part-*.codes")), built)):
        data = (built / name).read_bytes()
        (built / name).write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
        with pytest.raises(RuntimeError, match="damaged: its checksum"):
            shards.verify(built)
        (built / name).write_bytes(data)


def test_another_build_in_the_folder_is_refused(built, trained, digits, tmp_path, monkeypatch):
    given = tmp_path / "digits.npy"
    before = {path: path.read_bytes() for path in built.rglob("*") if path.is_file()}
    other = faiss_dpq.clone_index(trained)
    other.beam_size = 3
    np.save(tmp_path / "more.npy", digits)
    for call, message in [
        (lambda: shards.build_shards(other, given, built, 2, rows_per_part=400), "another build: its codec is"),
        (
            lambda: shards.build_shards(trained, given, built, 2, rows_per_part=401),
            "its rows_per_part is 400, now it is 401",
        ),
        (lambda: shards.build_shards(trained, given, built, 3, rows_per_part=400), "of 2 shards; this one has 3"),
        (lambda: shards.build_shards(trained, tmp_path / "more.npy", built, 2, rows_per_part=400), "its sources are"),
        (lambda: shards.build_shards(trained, given, built, 2, rows_per_part=400, ids=np.arange(N)), "its ids is None"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()
    with monkeypatch.context() as patch:
        patch.setattr(faiss_dpq, "__version__", "0.0.7")
        with pytest.raises(RuntimeError, match=r"its faiss_dpq is 0\.1\.0, now it is 0\.0\.7"):
            shards.build_shards(trained, given, built, 2, rows_per_part=400)
    assert {path: path.read_bytes() for path in built.rglob("*") if path.is_file()} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(RuntimeError, match=r"holds other files, such as thesis\.tex"):
        shards.build_shards(trained, given, tmp_path / "mine", 2)
    with pytest.raises(RuntimeError, match="a file, expected a folder"):
        shards.build_shards(trained, given, given, 2)


def test_a_build_that_is_done_is_not_done_again_unless_asked(built, trained, tmp_path, here, monkeypatch):
    given = tmp_path / "digits.npy"
    times = {path: path.stat().st_mtime_ns for path in built.rglob("*") if path.is_file()}
    shards.build_shards(trained, given, built, 2, rows_per_part=400)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    manifest = shards.build_shards(trained, given, built, 2, rows_per_part=400, resume=False)
    assert checksums(manifest) == here
    assert not [path for path in times if "part-" in path.name and path.exists() and path.suffix == ".codes"]


def test_sources_that_changed_are_refused(tmp_path, trained, digits):
    given = tmp_path / "digits.npy"
    np.save(given, digits)
    plan = shards.plan_parts(given, 400)
    folder = shards.open_build(trained, plan, tmp_path / "out")
    shards.encode_part(folder, plan[0])
    changed = digits.copy()
    changed[0, 0] += 1
    np.save(given, changed)
    with pytest.raises(RuntimeError, match=r"digits\.npy: has changed since the build began: .*mtime_ns was"):
        shards.encode_part(folder, plan[1])
    with pytest.raises(RuntimeError, match=r"another build: .*digits\.npy has changed since the build began"):
        shards.build_shards(trained, given, tmp_path / "out", 2, rows_per_part=400)
    os.utime(given, ns=(0, plan[0].description["mtime_ns"]))
    with pytest.raises(RuntimeError, match="sample was"):  # the time alone does not tell
        shards.encode_part(folder, plan[1])
    array = shards.build_shards(trained, digits, tmp_path / "array", 2)
    with pytest.raises(RuntimeError, match="array has changed since the build began: sample"):
        shards.build_shards(trained, changed, tmp_path / "array", 2)
    assert array["ntotal"] == N


def test_parts_by_a_map_of_ones_own_become_shards(tmp_path, trained, digits, here):
    """What docs/scaling.md says for Dask and Spark."""
    plan = shards.plan_parts(digits, 400)
    folder = shards.open_build(trained, plan, tmp_path)
    assert len([shards.encode_part(folder, part) for part in reversed(list(plan))]) == 5
    for shard in shards.plan_shards(plan, 2):
        shards.assemble_shard(folder, shard)
    manifest = shards.write_manifest(folder, plan, shards.plan_shards(plan, 2))
    assert checksums(manifest) == here
    with pytest.raises(RuntimeError, match="rows 0 to 599 are not assembled"):
        shards.write_manifest(folder, plan, shards.plan_shards(plan, 3))
