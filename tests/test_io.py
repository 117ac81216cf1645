"""Files are FAISS's own: stock FAISS, in a process without this package, reads and searches them."""

import os
import stat
import subprocess
import sys
import threading

import faiss
import naive
import numpy as np
import pytest

import faiss_dpq

STOCK_SEARCH = """
import sys, faiss, numpy as np
index = faiss.read_index(sys.argv[1])
D, I = index.search(np.load(sys.argv[2]), 10)
assert type(index) is faiss.IndexResidualQuantizer, type(index)
assert "faiss_dpq" not in sys.modules
np.savez(sys.argv[3], D=D, I=I, R=index.reconstruct_n(0, 5))
"""


@pytest.mark.parametrize("metric", [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT])
@pytest.mark.parametrize("M, nbits", [(4, 8), (3, 5), (1, 6), (3, 10)])
@pytest.mark.parametrize("tables", ["cross tables", "no cross tables"])
def test_stock_faiss_searches_our_file(tmp_path, digits, metric, M, nbits, tables, monkeypatch):
    if tables == "no cross tables":
        monkeypatch.setattr("faiss_dpq.index.quantized.MAX_STOCK_TABLE_BYTES", -1)
    index = faiss_dpq.IndexDPQ(64, M, nbits, metric)
    index.train(digits) if nbits < 8 else index._set_quantizer(random_quantizer(M, 1 << nbits, digits))
    index.add(digits[:1500])
    faiss_dpq.write_index(index, str(tmp_path / "index.faiss"))
    np.save(tmp_path / "xq.npy", digits[1500:])
    arguments = [tmp_path / name for name in ("index.faiss", "xq.npy", "out.npz")]
    subprocess.run([sys.executable, "-c", STOCK_SEARCH, *arguments], check=True, cwd=tmp_path)
    stock = np.load(tmp_path / "out.npz")
    D, I = index.search(digits[1500:], 10)
    np.testing.assert_allclose(stock["D"], D, rtol=1e-4)
    np.testing.assert_allclose(stock["R"], index.reconstruct_n(0, 5))
    # Equal distances may come in another order, but every id has the distance that it was found with, in both.
    for labels in (I, stock["I"]):
        found = index.reconstruct_batch(labels.ravel()).reshape(*labels.shape, 64)
        xq = digits[1500:, None]
        exact = (xq * found).sum(2) if metric == faiss.METRIC_INNER_PRODUCT else ((xq - found) ** 2).sum(2)
        np.testing.assert_allclose(exact, D, rtol=1e-4)
        assert all(len(set(row)) == 10 for row in labels)


def random_quantizer(M, K, x):
    codebooks = 3 * naive.random_codebooks(np.random.default_rng(0), M, K, x.shape[1])
    codebooks[0] += x.mean(0)
    return faiss_dpq.ProgressiveQuantizer(codebooks)


@pytest.fixture
def index():
    rng = np.random.default_rng(0)
    index = faiss_dpq.IndexDPQ.from_codebooks(naive.random_codebooks(rng, 3, 32, 10))
    index.add(rng.standard_normal((200, 10)).astype(np.float32))
    index.beam_size = 7
    return index


def through_callbacks(index):
    """Written and read by faiss.PyCallbackIOWriter and PyCallbackIOReader, a few bytes at a time."""
    written = []
    faiss_dpq.write_index(index, faiss.PyCallbackIOWriter(written.append, 100))
    data, at = b"".join(written), 0

    def read(n):
        nonlocal at
        at += n
        return data[at - n : at]

    return faiss_dpq.read_index(faiss.PyCallbackIOReader(read, 100))


def mapped(index, path, flag):
    faiss_dpq.write_index(index, path)
    return faiss_dpq.read_index(path, flag)


@pytest.mark.parametrize(
    "round_trip",
    [
        lambda index, path: through_callbacks(index),
        lambda index, path: mapped(index, path, faiss.IO_FLAG_MMAP),
        lambda index, path: mapped(index, path, faiss.IO_FLAG_READ_ONLY),
        lambda index, path: mapped(index, path, faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE),
        lambda index, path: [faiss_dpq.write_index(index, path), faiss_dpq.read_index(path)][1],
        lambda index, path: [faiss.write_index(index, str(path)), faiss_dpq.read_index(str(path))][1],
        lambda index, path: faiss_dpq.deserialize_index(faiss_dpq.serialize_index(index)),
        lambda index, path: faiss_dpq.clone_index(index),
        lambda index, path: faiss_dpq.downcast_index(faiss.clone_index(index)),
    ],
    ids=["callbacks", "mmap", "read only", "no tables", "ours", "stock write", "bytes", "clone", "downcast"],
)
def test_round_trips_give_back_our_class(index, tmp_path, round_trip):
    twin = round_trip(index, tmp_path / "index.faiss")
    assert type(twin) is faiss_dpq.IndexDPQ
    xq = np.random.default_rng(1).standard_normal((5, 10)).astype(np.float32)
    np.testing.assert_array_equal(twin.search(xq, 6), index.search(xq, 6))
    np.testing.assert_array_equal(twin.sa_encode(xq), index.sa_encode(xq))
    assert (twin.beam_size, twin.metric_type) == (7, index.metric_type)
    twin.add(xq)
    assert (twin.ntotal, index.ntotal) == (205, 200)


@pytest.mark.parametrize("M, beam_size", [(1, 32), (12, 32), (16, 24), (64, 8)])
def test_the_default_beam_is_in_the_file(tmp_path, M, beam_size):
    assert faiss_dpq.IndexDPQ(3, M, 2).beam_size == beam_size
    faiss_dpq.write_index(faiss_dpq.IndexDPQ.from_codebooks(np.zeros((M, 4, 3))), tmp_path / "index.faiss")
    assert faiss.read_index(str(tmp_path / "index.faiss")).rq.max_beam_size == beam_size
    assert faiss_dpq.read_index(tmp_path / "index.faiss").beam_size == beam_size


def test_a_stock_index_keeps_its_beam():
    assert faiss_dpq.downcast_index(faiss.IndexResidualQuantizer(10, 3, 4)).beam_size == 5


def test_clone_keeps_the_search_parameters(index):
    index.levels = 2
    assert faiss_dpq.clone_index(index).levels == 2


@pytest.mark.parametrize("kind", ["ST_decompress", "ST_norm_from_LUT", "ST_norm_float", "ST_norm_qint8"])
def test_a_stock_residual_quantizer_becomes_ours(digits, kind):
    stock = faiss.IndexResidualQuantizer(64, 3, 5, faiss.METRIC_L2, getattr(faiss.AdditiveQuantizer, kind))
    stock.train(digits)
    stock.add(digits[:1000])
    ours = faiss_dpq.downcast_index(stock)
    assert type(ours) is faiss_dpq.IndexDPQ
    D, I = ours.search(digits[1000:1100], 5)
    # Against the reconstructions: norms that stock FAISS stores as bytes make its own distances approximate.
    x = stock.reconstruct_n(0, 1000).astype(np.float64)
    exact = ((digits[1000:1100, None] - x) ** 2).sum(2)
    np.testing.assert_allclose(D, np.sort(exact, axis=1)[:, :5], rtol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(exact, I, 1), D, rtol=1e-4)
    # One C++ object: what ours adds, stock FAISS finds.
    ours.add(digits[1000:1003])
    assert stock.ntotal == 1003
    np.testing.assert_allclose(stock.reconstruct(1002), ours.sa_decode(ours.sa_encode(digits[1002:1003]))[0], rtol=1e-5)
    assert 1002 in stock.search(digits[1002:1003], 3)[1]


def test_the_shared_object_outlives_the_stock_one(digits):
    ours = faiss_dpq.downcast_index(faiss.clone_index(faiss_dpq.IndexDPQ.from_codebooks(np.ones((2, 4, 64)))))
    ours.add(digits[:3])
    assert ours.ntotal == 3


def test_other_indexes_stay_what_they_are(digits):
    flat = faiss.IndexFlatL2(64)
    assert faiss_dpq.downcast_index(flat) is flat
    assert type(faiss_dpq.deserialize_index(faiss.serialize_index(flat))) is faiss.IndexFlatL2
    bits = faiss.UInt64Vector()
    faiss.copy_array_to_vector(np.array([4, 6], np.uint64), bits)
    uneven = faiss.IndexResidualQuantizer(64, bits)
    assert faiss_dpq.downcast_index(uneven) is uneven


def test_writing_is_all_or_nothing(index, tmp_path):
    path = tmp_path / "index.faiss"
    path.write_bytes(b"precious")
    with pytest.raises((RuntimeError, TypeError)):
        faiss_dpq.write_index(object(), path)
    assert path.read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["index.faiss"]
    faiss_dpq.write_index(index, path)
    assert os.listdir(tmp_path) == ["index.faiss"]
    with pytest.raises((RuntimeError, OSError)):
        faiss_dpq.write_index(index, tmp_path / "missing" / "index.faiss")


def test_a_written_file_has_ordinary_permissions(index, tmp_path):
    faiss_dpq.write_index(index, tmp_path / "ours")
    faiss.write_index(index, str(tmp_path / "stock"))
    modes = {stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("ours", "stock")}
    assert len(modes) == 1


@pytest.mark.parametrize("keep", [0, 3, 50, -1])
def test_a_truncated_file_is_refused(index, tmp_path, keep):
    data = faiss_dpq.serialize_index(index).tobytes()
    (tmp_path / "index.faiss").write_bytes(data[:keep])
    with pytest.raises(RuntimeError):
        faiss_dpq.read_index(tmp_path / "index.faiss")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="could not open"):
        faiss_dpq.read_index(tmp_path / "no.faiss")


def test_a_mapped_index_searches_and_refuses_to_change(index, tmp_path):
    twin = mapped(index, tmp_path / "index.faiss", faiss.IO_FLAG_MMAP_IFC)
    xq = np.random.default_rng(1).standard_normal((5, 10)).astype(np.float32)
    np.testing.assert_array_equal(twin.search(xq, 6), index.search(xq, 6))
    np.testing.assert_array_equal(twin.reconstruct_n(0, 200), index.reconstruct_n(0, 200))
    # FAISS would abort the process.
    for change in (
        lambda: twin.add(xq),
        lambda: twin.add_sa_codes(index.sa_encode(xq)),
        lambda: twin.remove_ids(np.array([1])),
        lambda: twin.reset(),
        lambda: twin.merge_from(faiss_dpq.clone_index(index)),
        lambda: index.merge_from(twin),
    ):
        with pytest.raises(RuntimeError, match="mapped from a file"):
            change()
    assert twin.ntotal == index.ntotal == 200
    copy = faiss_dpq.deserialize_index(faiss_dpq.serialize_index(twin))
    copy.add(xq)
    assert copy.ntotal == 205


def test_any_flipped_bit_of_a_written_file_is_noticed(index, tmp_path):
    path = tmp_path / "index.faiss"
    faiss_dpq.write_index(index, path)
    data = bytearray(path.read_bytes())
    stock = faiss.serialize_index(index).tobytes()
    assert data.startswith(stock)
    for at in np.random.default_rng(0).integers(0, len(data), 300):
        data[at] ^= 1 << at % 8
        path.write_bytes(data)
        with pytest.raises(RuntimeError, match="corrupt"):
            faiss_dpq.read_index(path)
        data[at] ^= 1 << at % 8
    # Without the checksum, it is the file that FAISS writes.
    path.write_bytes(stock)
    assert faiss.serialize_index(faiss_dpq.read_index(path)).tobytes() == stock


def test_files_of_other_indexes_are_read(digits, tmp_path):
    for description in (
        "Flat",
        "PQ8x4",
        "IVF4,Flat",
        "HNSW8",
        "PCA8,SQ8",
        "IDMap,RQ2x4_Nrq2x4",
        "IDMap2,RQ2x4_Ncqint4",
    ):
        other = faiss.index_factory(64, description)
        other.train(digits[:500])
        other.add_with_ids(digits[:50], np.arange(50)) if "IDMap" in description else other.add(digits[:50])
        for write in (faiss.write_index, faiss_dpq.write_index):
            write(other, str(tmp_path / "other.faiss"))
            again = faiss_dpq.read_index(tmp_path / "other.faiss")
            assert faiss.serialize_index(again).tobytes() == faiss.serialize_index(other).tobytes()
            assert again.search(digits[:9], 3)[1].shape == (9, 3)


@pytest.mark.parametrize("content", [b"", b"x", b"\x89PNG\r\n\x1a\n" + bytes(100)])
def test_files_that_hold_no_index_are_refused(tmp_path, content):
    (tmp_path / "index.faiss").write_bytes(content)
    with pytest.raises(RuntimeError):
        faiss_dpq.read_index(tmp_path / "index.faiss")


def test_a_pipe_can_be_read(index, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=faiss.write_index, args=(index, str(tmp_path / "pipe")))
    writer.start()
    assert faiss_dpq.read_index(tmp_path / "pipe").ntotal == 200
    writer.join()


@pytest.mark.parametrize("as_bytes", [bytes, bytearray, memoryview, lambda data: np.repeat(data, 2)[::2]])
def test_bytes_of_any_kind_are_an_index(index, as_bytes):
    data = faiss_dpq.serialize_index(index)
    np.testing.assert_array_equal(faiss_dpq.serialize_index(faiss_dpq.deserialize_index(as_bytes(data))), data)


@pytest.mark.parametrize("data", [None, [1, 2], "IxRq", np.zeros(50, np.float32), np.zeros((5, 10), np.uint8)])
def test_what_is_no_bytes_is_a_type_error(data):
    with pytest.raises(TypeError, match=r"deserialize_index: data is a .* expected uint8"):
        faiss_dpq.deserialize_index(data)


def test_none_is_refused_where_swig_would_take_it_for_a_pointer(index):
    for call in (faiss_dpq.read_index, lambda path: faiss_dpq.write_index(index, path)):
        with pytest.raises(TypeError, match="f is None, expected a path"):
            call(None)
    with pytest.raises(TypeError, match="index is a NoneType"):
        faiss_dpq.clone_index(None)
