"""Files and copies of an IndexIVFDPQ, and lists that are not in memory."""

import copy
import pickle
import subprocess
import sys

import faiss
import numpy as np
import pytest
from faiss.contrib import ivf_tools, ondisk
from ivf_model import filled
from naive import METRICS, normal

import faiss_dpq


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("M", "nbits"), [(1, 8), (4, 8), (3, 5)])
def test_stock_faiss_reads_the_file_and_finds_the_same(metric, M, nbits, tmp_path):
    rng = np.random.default_rng(M)
    index, _ = filled(rng, 2000, 10, 6, M, nbits, metric)
    assert index.code_size == -(-M * nbits // 8)
    index.nprobe = 3
    path = tmp_path / "x.faiss"
    faiss_dpq.write_index(index, path)
    xq = normal(rng, 30, 10)
    stock = faiss.read_index(str(path))
    assert type(stock) is faiss.IndexIVFResidualQuantizer and stock.nprobe == 3
    D, I = index.search(xq, 10)
    np.testing.assert_allclose(D, stock.search(xq, 10)[0], rtol=1e-4, atol=1e-4)
    _, _, R = stock.search_and_reconstruct(xq, 10)
    sums = ((xq[:, None] - R) ** 2).sum(2) if metric == faiss.METRIC_L2 else (xq[:, None] * R).sum(2)
    np.testing.assert_allclose(D, sums, rtol=1e-4, atol=1e-4)
    ours = faiss_dpq.read_index(path)
    assert isinstance(ours, faiss_dpq.IndexIVFDPQ)
    np.testing.assert_array_equal(ours.search(xq, 10)[1], I)


def test_a_process_without_the_package_reads_the_file(tmp_path):
    rng = np.random.default_rng(15)
    index, _ = filled(rng, 500, 6, 4, 3, 8)
    faiss_dpq.write_index(index, tmp_path / "x.faiss")
    np.save(tmp_path / "q.npy", normal(rng, 5, 6))
    code = (
        "import sys, faiss, numpy as np\n"
        "index = faiss.read_index('x.faiss')\n"
        "index.nprobe = 4\n"
        "np.save('d.npy', index.search(np.load('q.npy'), 7)[0])\n"
        "assert 'faiss_dpq' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    index.nprobe = 4
    D, _ = index.search(np.load(tmp_path / "q.npy"), 7)
    np.testing.assert_allclose(D, np.load(tmp_path / "d.npy"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["pickle", "deepcopy", "clone"])
def test_copies(how, trained_ivf, digits):
    copies = {
        "pickle": lambda index: pickle.loads(pickle.dumps(index)),
        "deepcopy": copy.deepcopy,
        "clone": faiss_dpq.clone_index,
    }
    original = faiss_dpq.clone_index(trained_ivf)
    original._train_stats, original.levels, original.nprobe = trained_ivf.train_stats, 3, 4
    twin = copies[how](original)
    assert isinstance(twin, faiss_dpq.IndexIVFDPQ)
    assert (twin.levels, twin.nprobe, twin.train_stats) == (3, 4, trained_ivf.train_stats)
    expected = original.search(digits[:20], 5)
    for found, wanted in zip(twin.search(digits[:20], 5), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    twin.add(digits[1000:])
    assert (original.ntotal, twin.ntotal) == (1000, len(digits))
    np.testing.assert_array_equal(original.search(digits[:20], 5)[1], expected[1])


def same_results(a, b, xq, k=10):
    for one, other in zip(a.search(xq, k), b.search(xq, k), strict=True):
        np.testing.assert_array_equal(one, other)


def test_on_disk_lists(tmp_path, trained_ivf, digits):
    memory = faiss_dpq.clone_index(trained_ivf)
    index = faiss_dpq.clone_index(trained_ivf)
    lists = faiss.OnDiskInvertedLists(index.nlist, index.code_size, str(tmp_path / "lists.ivfdata"))
    lists.merge_from_1(index.invlists)
    index.replace_invlists(lists)
    index.nprobe = memory.nprobe = 5
    same_results(index, memory, digits[:50])
    # Nothing is added: FAISS 1.15.1 garbles on-disk lists that grow after merge_from_1, its own classes' too.
    for each in (index, memory):
        assert each.remove_ids(np.arange(0, 1000, 7)) == 143
    same_results(index, memory, digits[:50])
    faiss_dpq.write_index(index, tmp_path / "index.faiss")
    read = faiss_dpq.read_index(tmp_path / "index.faiss", faiss.IO_FLAG_READ_ONLY)
    assert isinstance(read, faiss_dpq.IndexIVFDPQ)
    same_results(read, memory, digits[:50])


def test_memory_mapped_reading(tmp_path, trained_ivf, digits):
    index = faiss_dpq.clone_index(trained_ivf)
    faiss_dpq.write_index(index, tmp_path / "index.faiss")
    index.nprobe = 5
    for flag in (faiss.IO_FLAG_MMAP, faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY):
        read = faiss_dpq.read_index(tmp_path / "index.faiss", flag)
        read.nprobe = 5
        same_results(read, index, digits[:50])


def test_merge_on_disk(tmp_path, trained_ivf, digits):
    empty = faiss_dpq.clone_index(trained_ivf)
    empty.reset()
    shards = []
    for number, part in enumerate(np.array_split(digits, 3)):
        shard = faiss_dpq.clone_index(empty)
        shard.add_with_ids(part, np.arange(len(part)) + 600 * number)
        shards.append(str(tmp_path / f"shard{number}.faiss"))
        faiss_dpq.write_index(shard, shards[-1])
    whole = faiss_dpq.clone_index(empty)
    ondisk.merge_ondisk(whole, shards, str(tmp_path / "merged.ivfdata"))
    memory = faiss_dpq.clone_index(empty)
    for number, part in enumerate(np.array_split(digits, 3)):
        memory.add_with_ids(part, np.arange(len(part)) + 600 * number)
    whole.nprobe = memory.nprobe = 6
    assert whole.ntotal == len(digits)
    same_results(whole, memory, digits[:50])


def test_stacked_lists(trained_ivf, digits):
    # Each get_codes of these makes a copy, which has to be released.
    a, b = faiss_dpq.clone_index(trained_ivf), faiss_dpq.clone_index(trained_ivf)
    b.reset()
    b.add_with_ids(digits[1000:], np.arange(1000, len(digits)))
    pointers = faiss.InvertedListsPtrVector()
    for index in (a, b):
        pointers.push_back(index.invlists)
    stack = faiss.HStackInvertedLists(2, pointers.data())
    whole = faiss_dpq.clone_index(trained_ivf)
    whole.replace_invlists(stack, False)
    whole.ntotal = len(digits)
    memory = faiss_dpq.clone_index(trained_ivf)
    memory.add(digits[1000:])
    whole.nprobe = memory.nprobe = 5
    same_results(whole, memory, digits[:50])


def test_ivf_tools(trained_ivf, digits):
    index = faiss_dpq.clone_index(trained_ivf)
    index.nprobe = 3
    xq = np.ascontiguousarray(digits[:20])
    Dq, Iq = index.quantizer.search(xq, 3)
    _, I = ivf_tools.search_preassigned(index, xq, 5, Iq, Dq)
    np.testing.assert_array_equal(I, index.search(xq, 5)[1])
    before = index.ntotal
    ivf_tools.add_preassigned(index, xq, index.quantizer.assign(xq, 1)[:, 0])
    assert index.ntotal == before + 20
    ids = index.search(xq, 30, params=faiss.SearchParametersIVF(nprobe=16))[1]
    assert all(before + q in ids[q] for q in range(20))
