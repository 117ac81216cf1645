"""What does not fit together in a file is refused, wherever it is, by an error that names file, part and values."""

import struct

import faiss
import numpy as np
import pytest

import faiss_dpq
from bench import fuzz
from faiss_dpq.index import trailer
from faiss_dpq.index.check import check
from faiss_dpq.index.walk import end_of_index

D, N = fuzz.D, fuzz.N
NAN = float("nan")


def leaf(index):
    """The index of codes, or of lists, within any wrappers."""
    while not hasattr(index, "rq"):
        index = faiss.downcast_index(getattr(index, "index", None) or index.base_index)
    return index


def graph(index):
    return index._coarse_quantizer.hnsw


def put(vector, place, value):
    """Change a vector of FAISS's in place."""
    faiss.rev_swig_ptr(vector.data(), vector.size())[place] = value


def set_bits(rq, bits):
    faiss.copy_array_to_vector(np.array(bits, np.uint64), rq.nbits)


#: What is changed in an index, and what the error says. All of these were accepted, or crashed.
DAMAGES = {
    "d of a refining wrapper": ("RefineFlat", lambda i: setattr(i, "d", 2), "d=2|are 2 and 12"),
    "d within a refining wrapper": ("RefineFlat", lambda i: setattr(i.refine_index, "d", 2), "d=4|values of 12"),
    "a refining index that is shorter": ("RefineFlat", lambda i: i.refine_index.reset(), "ntotal"),
    "ntotal of a map": ("IDMap2", lambda i: setattr(i, "ntotal", 11), "11"),
    "fewer ids than vectors": ("IDMap", lambda i: i.id_map.resize(3), "3 ids"),
    "NaN in the base's codebooks": ("RefineFlat", lambda i: put(leaf(i).rq.codebooks, 3, NAN), "rq.codebooks has NaN"),
    "NaN, nested": ("IDMap2 of RefineFlat of PCA", lambda i: put(leaf(i).rq.codebooks, 3, NAN), "rq.codebooks has NaN"),
    "NaN in a coarse IndexDPQ": ("IVF of DPQ", lambda i: put(i._coarse_quantizer.rq.codebooks, 3, NAN), "quantizer"),
    "infinite centres": (
        "IVF",
        lambda i: put(i._coarse_quantizer.codes, slice(0, 4), list(struct.pack("<f", float("inf")))),
        "centres of lists",
    ),
    "infinite centres in a graph": (
        "IVF of HNSW",
        lambda i: put(faiss.downcast_index(i._coarse_quantizer.storage).codes, slice(0, 4), [0, 0, 128, 127]),
        "quantizer.storage: .*centres of lists",
    ),
    # Of three vectors, the last one stands on the lowest level only.
    "a way of a graph to another level": ("IVF of HNSW", lambda i: put(graph(i).neighbors, 18, 2), "level 3 names"),
    "a graph's entry on a lower level": (
        "IVF of HNSW",
        lambda i: setattr(graph(i), "entry_point", 2),
        "max_level is 3",
    ),
    "NaN in a transform": ("PCA", lambda i: put(faiss.downcast_VectorTransform(i.chain.at(0)).A, 1, NAN), "NaN"),
    "NaN in a transform within": (
        "IDMap2 of centring",
        lambda i: put(faiss.downcast_VectorTransform(i.index.chain.at(0)).mean, 1, NAN),
        "in index: .*NaN",
    ),
    "an exponent of NaN": ("L2norm", lambda i: setattr(_transform(i), "norm", NAN), "norm=nan"),
    "a transform to elsewhere": ("PCA", lambda i: setattr(_transform(i), "d_in", 3), "d_in=3, expected 4"),
    "a map of dimensions": ("padding", lambda i: put(_transform(i).map, 1, 4), "numbers from -1 to 3"),
    "ids in lists that index a map": ("IDMap2 of IVF", lambda i: _move_id(leaf(i), 99), "id 99, expected 0 to 11"),
    "negative ids in lists": ("IDMap2 of IVF", lambda i: _move_id(leaf(i), -1), "id -1"),
    "ids in lists that index refining vectors": ("RefineFlat of PCA of IVF", lambda i: _move_id(leaf(i), 12), "id 12"),
    "an id twice": ("IDMap2 of IVF", lambda i: _move_id(leaf(i), None), "twice"),
    "more centres than lists": ("IVF", lambda i: i._coarse_quantizer.add(fuzz._vectors(1)), "it holds 4|3 lists|nlist"),
    "an array of places": ("IVF, array", lambda i: put(i.direct_map.array, 2, (5 << 32) | 1), "beyond the lists"),
    "an array of offsets": ("IVF, array", lambda i: put(i.direct_map.array, 2, 1 << 20), "beyond the lists"),
    "fewer vectors than in the lists": ("IVF", lambda i: setattr(i, "ntotal", 3), "ntotal is 3"),
    "a beam of 2**31 - 1": ("DPQ", lambda i: setattr(i.rq, "max_beam_size", 2**31 - 1), "max_beam_size is 2147483647"),
    "a beam of 0, nested": ("IDMap2 of IVF", lambda i: setattr(leaf(i).rq, "max_beam_size", 0), "max_beam_size is 0"),
    "a beam, of a coarse quantizer": (
        "IVF of DPQ",
        lambda i: setattr(i._coarse_quantizer.rq, "max_beam_size", 1 << 20),
        "quantizer: .*max_beam_size",
    ),
    "a shrinkage of 7": ("IDMap", lambda i: setattr(leaf(i).rq, "norm_max", 7.0), "norm_max"),
    "k_factor": ("RefineFlat", lambda i: setattr(i, "k_factor", 1e30), "k_factor"),
    "an unknown search type": ("DPQ", lambda i: setattr(i.rq, "search_type", 55), "search_type is 55"),
    "no tables": ("IVF", lambda i: setattr(i.rq, "train_type", 1 << 11), "skips the tables"),
}


def _transform(index):
    return faiss.downcast_VectorTransform(index.chain.at(0))


def _move_id(index, id):
    """Give the first vector of the first list with several another id; None for that of its neighbour."""
    lists = index.invlists
    number = next(number for number in range(index.nlist) if lists.list_size(number) > 1)
    ids = faiss.rev_swig_ptr(lists.get_ids(number), lists.list_size(number))
    ids[0] = ids[1] if id is None else id


@pytest.mark.parametrize("way", ["file", "bytes", "reader", "mapped"])
@pytest.mark.parametrize("name", DAMAGES)
def test_what_does_not_fit_together_is_refused(name, way, tmp_path):
    kind, damage, message = DAMAGES[name]
    index = fuzz.whole(kind)
    damage(index)
    data = faiss.serialize_index(index)
    path = str(tmp_path / "damaged.faiss")
    data.tofile(path)
    reads = {
        "file": lambda: faiss_dpq.read_index(path),
        "bytes": lambda: faiss_dpq.deserialize_index(data),
        "reader": lambda: fuzz.read(data.tobytes(), "reader", path),
        "mapped": lambda: faiss_dpq.read_index(path, faiss.IO_FLAG_MMAP_IFC),
    }
    with pytest.raises(RuntimeError) as caught:
        reads[way]()
    named = {"bytes": "the data", "reader": "the reader"}.get(way, "damaged.faiss")
    assert named in str(caught.value)
    if "Error in" not in str(caught.value):  # else FAISS has seen it first
        caught.match(message)


def test_codes_too_short_for_their_bits_are_refused_before_and_after_faiss_reads():
    """FAISS 1.12 accepts them."""
    index = fuzz.whole("IVF")
    data = bytearray(faiss.serialize_index(index).tobytes())
    at = data.find(struct.pack("<QQQQQ", index.code_size, D, 2, 2, 2))  # code_size, rq.d, rq.M, rq.nbits
    assert at > 0
    data[at + 32 : at + 40] = struct.pack("<Q", 20)
    with pytest.raises(RuntimeError, match=r"some file: corrupt.*rq.codebooks has 32 values, expected"):
        end_of_index(lambda at, n: bytes(data[at : at + n]), len(data), "some file")
    set_bits(index.rq, [2, 7])
    with pytest.raises(RuntimeError, match="some file: corrupt: IndexIVFDPQ: code_size is 1, expected 2"):
        check(index, "some file")


def test_a_list_of_billions_is_refused_before_faiss_allocates():
    index = fuzz.whole("IVF")
    data = bytearray(faiss.serialize_index(index).tobytes())
    at = data.rfind(b"full") + 12
    data[at : at + 8] = struct.pack("<Q", 1 << 37)
    with pytest.raises(RuntimeError, match=r"the lists would take .* bytes from byte .* on"):
        faiss_dpq.deserialize_index(np.frombuffer(data, np.uint8))


def test_a_beam_is_limited_wherever_it_is_set():
    index = fuzz.whole("DPQ")
    for beam_size in (0, 4097, 2**31 - 1):
        with pytest.raises(ValueError, match="expected 1 to 4096"):
            index.beam_size = beam_size
    index.rq.max_beam_size = 2**31 - 1
    with pytest.raises(ValueError, match="expected 1 to 4096"):
        index.add(fuzz._vectors())
    index.beam_size = 4096
    index.add(fuzz._vectors())
    assert index.ntotal == 2 * N


@pytest.mark.parametrize("flags", [0, faiss.IO_FLAG_MMAP, faiss.IO_FLAG_MMAP_IFC])
@pytest.mark.parametrize("name", fuzz.WHOLES)
def test_what_follows_the_index_must_be_the_trailer(name, flags, tmp_path):
    path = tmp_path / "index.faiss"
    index = fuzz.whole(name)
    faiss_dpq.write_index(index, path)
    whole = path.read_bytes()
    plain = len(faiss.serialize_index(index))
    flipped = bytearray(whole)
    flipped[plain // 2] ^= 1
    for damaged in (
        bytes(flipped) + bytes(4096),
        bytes(flipped)[:-23],
        whole + bytes(4096),
        whole + b"\n",
        whole + whole,
        whole + whole[plain:],
        whole[:plain] + bytes(4096),
        whole[:plain] + b"x",
        whole[:-1],
        whole[:-23],
        whole[:-45],
        whole[: plain + 1],
        whole[:plain] + whole[plain + 1 :],
        whole[:plain] + bytes(9) + whole[plain:],
    ):
        path.unlink()
        path.write_bytes(damaged)
        with pytest.raises(RuntimeError, match=r"index.faiss"):
            faiss_dpq.read_index(path, flags)
        if flags == 0:
            with pytest.raises(RuntimeError, match="the data"):
                faiss_dpq.deserialize_index(np.frombuffer(damaged, np.uint8))
    for good in (whole, whole[:plain]):
        path.write_bytes(good)
        assert faiss_dpq.read_index(path, flags).ntotal == N


def test_files_of_release_0_1_are_read_and_their_damage_is_seen(tmp_path):
    plain = faiss.serialize_index(fuzz.whole("IDMap2 of IVF")).tobytes()
    old = plain + b"\nfaiss_dpq crc32 %08x\n" % trailer.checksum(lambda at, n: plain[at : at + n], len(plain))
    path = tmp_path / "old.faiss"
    path.write_bytes(old)
    assert faiss_dpq.read_index(path).ntotal == faiss.read_index(str(path)).ntotal == N
    for at in (3, len(plain) // 2, len(plain) + 3, len(old) - 3):
        damaged = bytearray(old)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(RuntimeError, match=r"old.faiss.*corrupt"):
            faiss_dpq.read_index(path)


@pytest.mark.parametrize(
    "settings",
    [
        [],
        {},
        7,
        [{}],
        [[], []],
        [{}, [[{}, []]]],
        [{"levels": 99}, []],
        [{"levels": "two"}, []],
        [{"prefix_weight": -1}, []],
        [{"prefix_weight": NAN}, []],
        [{"prefix_weight": None}, []],
        [{"rq.cp.seed": 1e9}, []],
        [{"rq.cp.seed": 2**80}, []],
    ],
)
def test_settings_that_no_index_has_are_refused(settings):
    plain = faiss.serialize_index(fuzz.whole("DPQ")).tobytes()
    end = trailer.make(settings, trailer.checksum(lambda at, n: plain[at : at + n], len(plain)))
    with pytest.raises(RuntimeError, match=r"the data: corrupt: .*settings"):
        faiss_dpq.deserialize_index(np.frombuffer(plain + end, np.uint8))


def test_settings_of_later_releases_are_left_out():
    plain = faiss.serialize_index(fuzz.whole("DPQ")).tobytes()
    settings = [{"levels": 1, "this": 3, "of_the_future": [1, 2]}, []]
    end = trailer.make(settings, trailer.checksum(lambda at, n: plain[at : at + n], len(plain)))
    assert faiss_dpq.deserialize_index(np.frombuffer(plain + end, np.uint8)).levels == 1


def test_an_empty_file_is_called_empty(tmp_path):
    (tmp_path / "index.faiss").write_bytes(b"")
    with pytest.raises(RuntimeError, match=r"index\.faiss: empty"):
        faiss_dpq.read_index(tmp_path / "index.faiss")
    with pytest.raises(RuntimeError, match="the data: empty"):
        faiss_dpq.deserialize_index(np.empty(0, np.uint8))


def test_faiss_limits_are_as_before_after_reading():
    limits = faiss.get_deserialization_loop_limit, faiss.get_deserialization_vector_byte_limit
    before = [limit() for limit in limits]
    faiss_dpq.deserialize_index(faiss_dpq.serialize_index(fuzz.whole("DPQ")))
    with pytest.raises(RuntimeError):
        faiss_dpq.deserialize_index(np.zeros(50, np.uint8))
    assert [limit() for limit in limits] == before
