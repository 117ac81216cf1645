"""index_factory: DPQ codes wherever FAISS's strings have a code, and all of FAISS's strings as FAISS makes them."""

import gc
import re

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import faiss_dpq
from faiss_dpq.index.wrappers.wrapper import Wrapper

D = 32
METRICS = [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT]

#: What faiss.index_factory accepts for 32 dimensions, of every kind that its parser tells apart.
FAISS_STRINGS = """
Flat | PQ4 | PQ8x4 | PQ4x8np | PQ16x4fs | PQ16x4fs_64 | SQ8 | SQ4 | SQ6 | SQfp16 | SQbf16 | SQ8_direct | LSH | LSH16rt
RQ3x4 | RQ2x4_1x6 | RQ4x4_Nqint8 | RQ4x4_Nfloat | RQ4x4fs_32_Nrq2x4 | LSQ4x4 | LSQ4x4_Nnone | PRQ2x2x4 | PLSQ2x2x4
RCQ2x4 | LSCQ2x4 | ZnLattice4x10_6 | HNSW | HNSW16 | HNSW32,Flat | HNSW16_PQ4np | HNSW16,SQ8 | NSG16 | NSG16,Flat
IVF16,Flat | IVF1k,Flat | IVF16,FlatDedup | IVF16,PQ4 | IVF16,PQ4x4np | IVF16,PQ4+4 | IVF16,PQ16x4fs
IVF16,PQ16x4fsr_64 | IVF16,SQ8 | IVF16,RQ2x4 | IVF16,LSQ2x4_Nqint8 | IVF16,PRQ2x2x4 | IVF16,RQ4x4fs_32_Nrq2x4
IVF16,ITQ16,SH1.2 | IVF16,PCAR16,SH2c | IVF16_HNSW8,Flat | IVF16_NSG8,PQ4 | IMI2x3,PQ4 | IVF16(RCQ2x2),PQ4
IVF16(PQ4x4),Flat | IVF16(PCA16,PQ4x4),PQ4 | Residual16,PQ4 | Residual2x3,PQ4 | MinMax,SQ8 | MinMaxFP16,SQ8
PCA16,Flat | PCAR16,PQ4 | PCAW16,Flat | PCAWR16,Flat | RR16,PQ4 | RR,Flat | ITQ16,LSH | ITQ,LSH | OPQ4,PQ4
OPQ4_16,PQ4 | Pad40,Flat | L2norm,Flat | L2Norm,Flat | PCA16,L2norm,IVF16,PQ4 | OPQ4_16,IVF16_HNSW8,PQ4x4fsr
IDMap,Flat | IDMap2,PQ4 | Flat,IDMap | PQ4,IDMap2 | PCA16,IDMap2,PQ4 | IDMap2,PCA16,PQ4 | PQ4,RFlat | PQ4,Refine(SQ8)
PCA16,PQ4,RFlat | IVF16,PQ4,Refine(PQ8x8) | IDMap2,PCA16,PQ4,Refine(SQfp16) | PQ4,RFlat,IDMap
PQ4x4,Refine(PCA16,PQ4) | IVF16(IVF4,Flat),Flat
"""
FAISS_STRINGS = [text.strip() for line in FAISS_STRINGS.strip().splitlines() for text in line.split("|")]


def types_of(index):
    """The class of an index, of its transforms, and of the indexes within, by what FAISS sees."""
    index = faiss.downcast_index(index)
    found = [type(index).__name__, index.d, index.metric_type, index.is_trained]
    if hasattr(index, "chain"):
        found += [type(faiss.downcast_VectorTransform(index.chain.at(i))).__name__ for i in range(index.chain.size())]
    for name in ("index", "base_index", "refine_index", "quantizer"):
        if hasattr(index, name):
            found.append(types_of(getattr(index, name)))
    return found


def attributes_of(index):
    """Its numbers and flags."""
    return {
        name: getattr(index, name)
        for name in dir(type(index))
        if isinstance(getattr(type(index), name), property) and isinstance(getattr(index, name), int | float | str)
    }


@pytest.mark.parametrize("description", FAISS_STRINGS)
def test_strings_of_faiss_give_what_faiss_gives(description):
    ours, stock = faiss_dpq.index_factory(D, description), faiss.index_factory(D, description)
    assert type(ours) is type(stock)
    assert types_of(ours) == types_of(stock)
    assert attributes_of(ours) == attributes_of(stock)


def test_all_arguments_reach_faiss():
    index = faiss_dpq.index_factory(D, "IVF16,Flat", faiss.METRIC_L1, False)
    assert (index.metric_type, index.invlists) == (faiss.METRIC_L1, None)
    assert faiss_dpq.index_factory(D, "Flat", metric=faiss.METRIC_INNER_PRODUCT).metric_type == 0
    for bad in (b"Flat", 3):
        with pytest.raises(TypeError):
            faiss_dpq.index_factory(D, bad)


@pytest.mark.parametrize("description", ["Foo", "", "PQ4,", "IVF16", "PQ7", "PQ4,Refine(SQ8", "PCA16"])
def test_what_faiss_refuses_is_refused_in_its_words(description):
    with pytest.raises(RuntimeError) as stock:
        faiss.index_factory(D, description)
    with pytest.raises(RuntimeError) as ours:
        faiss_dpq.index_factory(D, description)
    assert str(ours.value) == str(stock.value)


# ---- DPQ codes ---------------------------------------------------------------------------------------------------


def dpq(M, nbits, d=D, code="IndexDPQ"):
    return (code, d, M, nbits)


def structure_of(index):
    """The classes of an index of this package and of those within, with what a description says of them."""
    name = type(index).__name__
    if isinstance(index, faiss_dpq.IndexDPQ):
        return dpq(index.rq.M, int(index.rq.nbits.at(0)), index.d)
    if isinstance(index, faiss_dpq.IndexIVFDPQ):
        quantizer = type(index._coarse_quantizer).__name__
        return ("IndexIVFDPQ", index.d, index.nlist, index.rq.M, int(index.rq.nbits.at(0)), quantizer)
    if isinstance(index, faiss_dpq.IndexPreTransform):
        chain = [type(faiss.downcast_VectorTransform(index.chain.at(i))).__name__ for i in range(index.chain.size())]
        return (name, *chain, structure_of(index.index))
    if isinstance(index, Wrapper):
        return (name, *map(structure_of, index._inner_indexes()))
    return name


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "description, structure",
    [
        ("DPQ4x8", dpq(4, 8)),
        ("DPQ4", dpq(4, 8)),
        ("DPQ7x10", dpq(7, 10)),
        ("IVF16,DPQ8x6", ("IndexIVFDPQ", D, 16, 8, 6, "IndexFlat")),
        ("IVF1k,DPQ4", ("IndexIVFDPQ", D, 1024, 4, 8, "IndexFlat")),
        ("IVF64_HNSW8,DPQ4x8", ("IndexIVFDPQ", D, 64, 4, 8, "IndexHNSWFlat")),
        ("IVF16(RCQ2x2),DPQ4x8", ("IndexIVFDPQ", D, 16, 4, 8, "ResidualCoarseQuantizer")),
        ("IVF16(DPQ2x2),DPQ4x8", ("IndexIVFDPQ", D, 16, 4, 8, "IndexDPQ")),
        ("PCA16,DPQ8x4", ("IndexPreTransform", "PCAMatrix", dpq(8, 4, 16))),
        ("OPQ4_16,DPQ4x8", ("IndexPreTransform", "OPQMatrix", dpq(4, 8, 16))),
        ("L2norm,DPQ4x8", ("IndexPreTransform", "NormalizationTransform", dpq(4, 8))),
        ("RR16,DPQ4x8", ("IndexPreTransform", "RandomRotationMatrix", dpq(4, 8, 16))),
        (
            "PCA24,L2norm,RR8,DPQ4x8",
            ("IndexPreTransform", "PCAMatrix", "NormalizationTransform", "RandomRotationMatrix", dpq(4, 8, 8)),
        ),
        (
            "PCA16,IVF16,DPQ4x8",
            ("IndexPreTransform", "PCAMatrix", ("IndexIVFDPQ", 16, 16, 4, 8, "IndexFlat")),
        ),
        ("IDMap2,DPQ4x8", ("IndexIDMap2", dpq(4, 8))),
        ("IDMap,DPQ4x8", ("IndexIDMap", dpq(4, 8))),
        ("DPQ4x8,IDMap2", ("IndexIDMap2", dpq(4, 8))),
        ("DPQ4x8,IDMap", ("IndexIDMap", dpq(4, 8))),
        ("PCA16,IDMap2,DPQ4x8", ("IndexPreTransform", "PCAMatrix", ("IndexIDMap2", dpq(4, 8, 16)))),
        ("IDMap2,PCA16,DPQ4x8", ("IndexIDMap2", ("IndexPreTransform", "PCAMatrix", dpq(4, 8, 16)))),
        ("DPQ4x8,RFlat", ("IndexRefineFlat", dpq(4, 8), "IndexFlat")),
        ("DPQ4x8,Refine(SQ8)", ("IndexRefine", dpq(4, 8), "IndexScalarQuantizer")),
        ("DPQ4x8,Refine(DPQ8x8)", ("IndexRefine", dpq(4, 8), dpq(8, 8))),
        ("PQ4x4,Refine(DPQ8x8)", ("IndexRefine", "IndexPQ", dpq(8, 8))),
        (
            "DPQ4x4,Refine(DPQ8x4,Refine(Flat))",
            ("IndexRefine", dpq(4, 4), ("IndexRefine", dpq(8, 4), "IndexFlat")),
        ),
        (
            "IDMap2,OPQ4_16,IVF16,DPQ4x8,Refine(PCA24,DPQ8x8)",
            (
                "IndexIDMap2",
                (
                    "IndexRefine",
                    ("IndexPreTransform", "OPQMatrix", ("IndexIVFDPQ", 16, 16, 4, 8, "IndexFlat")),
                    ("IndexPreTransform", "PCAMatrix", dpq(8, 8, 24)),
                ),
            ),
        ),
    ],
)
def test_strings_with_dpq_codes(description, structure, metric):
    index = faiss_dpq.index_factory(D, description, metric)
    gc.collect()
    assert structure_of(index) == structure
    assert (index.d, index.metric_type, index.ntotal) == (D, metric, 0)
    if "Refine(DPQ8x4,Refine" not in description:  # FAISS cannot parse that
        as_rq = re.sub(r"DPQ(\d+)(x\d+)?", lambda code: f"RQ{code[1]}{code[2] or 'x8'}", description)
        assert types_of(index) == types_of(faiss.index_factory(D, as_rq, metric))


@pytest.mark.parametrize("description", ["IVF16,DPQ4x8", "IVF16_HNSW8,DPQ4x8", "IVF16(RCQ2x2),DPQ4x8", "IMI2x2,DPQ4x8"])
def test_coarse_quantizers_are_trained_as_faiss_trains_them(description):
    metrics = [faiss.METRIC_L2] if description.startswith("IMI") else METRICS
    for metric in metrics:
        ours = faiss_dpq.index_factory(D, description, metric)
        stock = faiss.index_factory(D, description.replace("DPQ4x8", "Flat"), metric)
        for name in ("nlist", "quantizer_trains_alone"):
            assert getattr(ours, name) == getattr(stock, name)
        assert ours.cp.spherical == stock.cp.spherical


@pytest.mark.parametrize(
    "description",
    [
        "DPQ4x4",
        "PCA16,L2norm,DPQ4x4",
        "OPQ4_16,DPQ4x4",
        "IDMap2,PCA16,DPQ4x4,Refine(SQ8)",
        "DPQ4x4,RFlat",
        "IVF8,DPQ4x4",
        "IDMap,IVF8_HNSW8,DPQ4x4",
        "IVF40(DPQ2x3),DPQ4x4",
        "PQ4x4,Refine(DPQ8x4)",
    ],
)
def test_what_comes_out_works(description, digits):
    x = np.ascontiguousarray(digits[:600, ::2])
    index = faiss_dpq.index_factory(32, description)
    gc.collect()
    index.train(x)
    assert index.is_trained
    if "IDMap" in description:
        index.add_with_ids(x, np.arange(len(x)))
    else:
        index.add(x)
    found = index.search(x[:100], 10)[1]
    assert (found == np.arange(100)[:, None]).any(axis=1).mean() > 0.7
    again = faiss_dpq.deserialize_index(faiss_dpq.serialize_index(index))
    assert type(again) is type(index)
    np.testing.assert_array_equal(again.search(x[:100], 10)[1], found)


@pytest.mark.parametrize(
    "description, named",
    [
        ("DPQ", "'DPQ'"),
        ("DPQ4x", "'DPQ4x'"),
        ("DPQx8", "'DPQx8'"),
        ("DPQ4x8x8", "'DPQ4x8x8'"),
        ("DPQ-4x8", "'DPQ-4x8'"),
        ("DPQ4x8fs", "'DPQ4x8fs'"),
        (" DPQ4x8", "' DPQ4x8'"),
        ("dpq,DPQ4x8", "'dpq'"),
        ("DPQ0x8", "M is 0"),
        ("DPQ2000x8", "M is 2000"),
        ("DPQ4x0", "nbits is 0"),
        ("DPQ4x13", "nbits is 13"),
        ("Foo,DPQ4x8", "'Foo'"),
        ("DPQ4x8,Foo", "'Foo'"),
        ("DPQ4x8,", "''"),
        (",DPQ4x8", "''"),
        ("DPQ4x8,IDMap3", "'IDMap3'"),
        ("PCA16", None),
        ("PCA16,Foo,DPQ4x8", "'Foo'"),
        ("IVF16,IVF16,DPQ4x8", "'IVF16'"),
        ("DPQ4x8,DPQ4x8", "'DPQ4x8'"),
        ("HNSW32,DPQ4x8", "'HNSW32'"),
        ("DPQ4x8,Refine(Foo)", "Foo"),
        ("DPQ4x8,Refine()", "'Refine()'"),
        ("DPQ4x8,Refine(SQ8", "parentheses"),
        ("DPQ4x8)", "parentheses"),
        (")DPQ4x8(", "parentheses"),
        ("IVF16(DPQ2x2,DPQ4x8", "parentheses"),
        ("IVF16(DPQ99x99),DPQ4x8", "nbits is 99"),
        ("IVF0,DPQ4x8", "nlist is 0"),
        ("IVF99999999999999999999,DPQ4x8", "'IVF99999999999999999999'"),
        ("RFlat,DPQ4x8", "'RFlat'"),
    ],
)
def test_malformed_strings_are_refused_by_name(description, named):
    with pytest.raises(RuntimeError) as error:
        faiss_dpq.index_factory(D, description)
    if named:
        assert named in str(error.value) and repr(description) in str(error.value)


@pytest.mark.parametrize("description", ["DPQ3x4np", "PCA8,DPQ3x4np", "IVF8,DPQ3x4np", "IDMap2,DPQ3np"])
def test_a_code_without_polysemous_training_is_the_same_code(description):
    """FAISS's PQ has such a training, which "np" leaves out; there is none here."""
    index = faiss_dpq.index_factory(D, description)
    assert repr(index) == repr(faiss_dpq.index_factory(D, description.replace("np", "")))


@pytest.mark.parametrize(("description", "nlist"), [("Residual16,DPQ4x4", 16), ("Residual2x3,DPQ4x4", 64)])
def test_residual_strings_search_all_lists(description, nlist):
    x = np.random.default_rng(0).standard_normal((1500, D)).astype(np.float32)
    index = faiss_dpq.index_factory(D, description)
    assert type(index) is faiss_dpq.IndexIVFDPQ and index.nprobe == index.nlist == nlist
    index.train(x, effort="fast")
    index.add(x)
    stock = faiss.index_factory(D, description.replace("DPQ", "PQ"))
    assert index.sa_code_size() == stock.sa_code_size()
    decoded = index.sa_decode(index.sa_encode(x))
    assert ((x - decoded) ** 2).sum() < 0.9 * (x**2).sum()
    assert set(index.search(x[:2], len(x))[1][0]) == set(range(len(x)))


@pytest.mark.parametrize("scale", ["MinMax", "MinMaxFP16"])
def test_codes_of_scaled_rows(scale):
    rng = np.random.default_rng(0)
    x = (rng.random((1500, D)) * rng.uniform(1, 100, (1500, 1)) - 7).astype(np.float32)
    x[3] = 5
    index = faiss_dpq.index_factory(D, f"{scale},DPQ6x6")
    index.train(x, effort="fast")
    codes = index.sa_encode(x)
    assert codes.shape == (1500, index.sa_code_size()) and index.index.is_trained
    stock = faiss.deserialize_index(faiss.serialize_index(index))
    decoded = index.sa_decode(codes)
    np.testing.assert_allclose(stock.sa_decode(codes), decoded, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(decoded[3], 5, atol=1e-2)
    widths = np.ptp(x, axis=1, keepdims=True)
    scaled = np.divide(decoded - x, widths, where=widths > 0, out=np.zeros_like(x))
    inner = index.index.residual_quantizer
    rows = np.divide(x - x.min(1, keepdims=True), widths, where=widths > 0, out=np.zeros_like(x))
    expected = ((rows - inner.decode(inner.encode(rows))) ** 2).mean()
    np.testing.assert_allclose((scaled**2).mean(), expected, rtol=0.05)
    again = faiss_dpq.deserialize_index(faiss_dpq.serialize_index(index))
    assert type(again) is type(index) and type(again.index) is faiss_dpq.IndexDPQ
    np.testing.assert_array_equal(again.sa_encode(x), codes)
    with pytest.raises(RuntimeError, match="cannot be searched"):
        index.search(x[:2], 3)


@pytest.mark.parametrize("leaf", ["Flat", "SQ8", "PQ4x4"])
def test_lists_of_faiss_with_a_dpq_coarse_quantizer(leaf):
    x = np.random.default_rng(0).standard_normal((1500, D)).astype(np.float32)
    index = faiss_dpq.index_factory(D, f"IVF32(DPQ2x4),{leaf}")
    assert type(index) is type(faiss.index_factory(D, f"IVF32,{leaf}"))
    assert type(faiss_dpq.downcast_index(index.quantizer)) is faiss_dpq.IndexDPQ
    assert isinstance(faiss_dpq.index_factory(D, "IVF32(DPQ25),Flat"), faiss.IndexIVFFlat)
    index.train(x)
    index.add(x)
    index.nprobe = 32
    assert index.quantizer.ntotal == 32
    assert (index.search(x[:50], 5)[1] == np.arange(50)[:, None]).any(axis=1).mean() > 0.8


def test_lists_are_made_by_others_where_the_index_shall_own_none():
    index = faiss_dpq.index_factory(D, "PCA8,IVF16,DPQ4x8", faiss.METRIC_L2, False)
    assert faiss_dpq.downcast_index(faiss.extract_index_ivf(index)).invlists is None


def test_other_arguments_that_do_not_fit():
    with pytest.raises(RuntimeError, match="metric is 2"):
        faiss_dpq.index_factory(D, "DPQ4x8", faiss.METRIC_L1)
    with pytest.raises(RuntimeError, match="d is 0"):
        faiss_dpq.index_factory(0, "DPQ4x8")
    with pytest.raises(RuntimeError, match="IMI2x2"):
        faiss_dpq.index_factory(D, "IMI2x2,DPQ4x8", faiss.METRIC_INNER_PRODUCT)


codes = st.tuples(st.integers(1, 8), st.integers(1, 5)).map(lambda code: f"@{code[0]}x{code[1]}")
transforms = st.sampled_from(["PCA16", "RR24", "L2norm", "OPQ4_16", "RR", "Pad40"])
id_maps = st.sampled_from(["IDMap2", "IDMap"])


def composed(inner):
    return st.one_of(
        st.tuples(transforms, inner).map(",".join),
        st.tuples(id_maps, inner).map(",".join),
        st.tuples(inner, id_maps).map(",".join),
        inner.map(lambda text: f"{text},RFlat"),
        st.tuples(inner, st.sampled_from(["SQ8", "PQ4", "PCA16,@2x3"])).map(lambda p: f"{p[0]},Refine({p[1]})"),
    )


@settings(max_examples=150)
@given(st.recursive(codes | codes.map(lambda code: f"IVF8,{code}"), composed, max_leaves=4))
def test_compositions_are_those_of_faiss(template):
    """With "DPQ" for a code, FAISS's own composition with "RQ" comes out, or an error where there is none."""
    try:
        stock = faiss.index_factory(D, template.replace("@", "RQ"))
    except RuntimeError:
        with pytest.raises(RuntimeError):
            faiss_dpq.index_factory(D, template.replace("@", "DPQ"))
    else:
        assert types_of(faiss_dpq.index_factory(D, template.replace("@", "DPQ"))) == types_of(stock)


@settings(max_examples=200)
@given(description=st.text(alphabet="DPQ0123456789x,()IVFRMaplt2Sn_ \x00é", max_size=25).map(lambda text: f"DPQ{text}"))
def test_nonsense_never_gets_through_as_anything_but_a_runtime_error(description):
    try:
        index = faiss_dpq.index_factory(D, description)
    except RuntimeError as error:
        assert repr(description) in str(error)
    else:
        assert index.d == D
