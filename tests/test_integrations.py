"""Programs that use FAISS through other packages, with IndexDPQ put where IndexPQ was (extra [integrations])."""

import hashlib

import faiss
import numpy as np
import pytest

import faiss_dpq

D = 48
SUBJECTS = ["the cat", "a dog", "my neighbour", "the old ship", "a red kite", "the judge", "our train", "every teacher"]
VERBS = ["sleeps on", "looks at", "walks around", "forgets", "paints", "waits for", "remembers", "sells"]
OBJECTS = ["the river", "a green door", "seven apples", "the moon", "an empty house", "the harbour", "a long letter"]
TEXTS = [f"{s} {v} {o}" for s in SUBJECTS for v in VERBS for o in OBJECTS]


def encode(texts):
    """Embeddings in place of a language model's: normalized sums of a random vector for every word."""
    words = {word for text in texts for word in text.split()}
    vectors = {}
    for word in words:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "little")
        vectors[word] = np.random.default_rng(seed).standard_normal(D)
    x = np.array([sum(vectors[word] for word in text.split()) for text in texts], np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def trained(metric=faiss.METRIC_L2):
    index = faiss_dpq.IndexDPQ(D, 6, 6, metric)
    index.train(encode(TEXTS), effort="fast")
    return index


@pytest.fixture
def langchain_store():
    pytest.importorskip("langchain_community")
    from langchain_community.docstore.in_memory import InMemoryDocstore
    from langchain_community.vectorstores import FAISS
    from langchain_core.embeddings import Embeddings

    class Words(Embeddings):
        def embed_documents(self, texts):
            return encode(texts).tolist()

        def embed_query(self, text):
            return encode([text])[0].tolist()

    store = FAISS(Words(), trained(), InMemoryDocstore(), {})
    store.add_texts(TEXTS, [{"number": i} for i in range(len(TEXTS))], ids=[f"text {i}" for i in range(len(TEXTS))])
    return store


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_langchain_vector_store(langchain_store):
    store = langchain_store
    assert type(store.index) is faiss_dpq.IndexDPQ and store.index.ntotal == len(TEXTS)
    for number in (0, 100, 300):
        (document, distance), *_ = store.similarity_search_with_score(TEXTS[number], k=4)
        assert (document.page_content, document.metadata) == (TEXTS[number], {"number": number})
        assert 0 <= distance < 0.2
    assert len(store.max_marginal_relevance_search("the cat paints the moon", k=3)) == 3
    found = store.similarity_search("a dog forgets the moon", k=5, filter=lambda metadata: metadata["number"] % 2 == 1)
    assert len(found) == 5 and all(document.metadata["number"] % 2 == 1 for document in found)
    assert len(store.as_retriever(search_kwargs={"k": 2}).invoke("our train sells seven apples")) == 2
    # Deletion renumbers the vectors, in the index and in the store.
    assert store.delete(["text 0", "text 7"])
    assert store.index.ntotal == len(TEXTS) - 2
    assert store.similarity_search(TEXTS[0], k=1)[0].page_content != TEXTS[0]
    assert store.similarity_search(TEXTS[300], k=1)[0].page_content == TEXTS[300]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_langchain_saves_loads_and_merges(langchain_store, tmp_path):
    store = langchain_store
    store.save_local(str(tmp_path))
    loaded = type(store).load_local(str(tmp_path), store.embeddings, allow_dangerous_deserialization=True)
    assert type(loaded.index) is faiss.IndexResidualQuantizer  # LangChain reads with stock FAISS
    loaded.index = faiss_dpq.downcast_index(loaded.index)
    assert type(loaded.index) is faiss_dpq.IndexDPQ
    expected = store.similarity_search_with_score("a red kite looks at the moon", k=5)
    assert loaded.similarity_search_with_score("a red kite looks at the moon", k=5) == expected
    codebooks = store.index.codebooks
    other = type(store)(store.embeddings, faiss_dpq.IndexDPQ.from_codebooks(codebooks), type(store.docstore)(), {})
    other.add_texts(["the judge paints a green harbour"])
    loaded.merge_from(other)
    assert loaded.index.ntotal == len(TEXTS) + 1
    found = loaded.similarity_search("the judge paints a green harbour", k=1)
    assert found[0].page_content == "the judge paints a green harbour"


@pytest.mark.parametrize("metric", [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT])
def test_datasets_custom_index(tmp_path, metric):
    datasets = pytest.importorskip("datasets")
    texts = datasets.Dataset.from_dict({"text": TEXTS})
    texts = texts.map(lambda rows: {"embedding": encode(rows["text"])}, batched=True, batch_size=len(TEXTS))
    index = faiss_dpq.IndexDPQ(D, 6, 6, metric)
    texts.add_faiss_index("embedding", custom_index=index, train_size=len(TEXTS))
    assert index.is_trained and index.ntotal == len(TEXTS)
    queries = encode([TEXTS[5], TEXTS[200]])
    scores, examples = texts.get_nearest_examples("embedding", queries[0], k=5)
    assert examples["text"][0] == TEXTS[5] and len(scores) == 5
    _, batch = texts.get_nearest_examples_batch("embedding", queries, k=3)
    assert [rows["text"][0] for rows in batch] == [TEXTS[5], TEXTS[200]]
    np.testing.assert_array_equal(
        texts.search_batch("embedding", queries, k=3).total_indices, index.search(queries, 3)[1]
    )
    texts.save_faiss_index("embedding", tmp_path / "texts.faiss")
    texts.drop_index("embedding")
    texts.load_faiss_index("embedding", tmp_path / "texts.faiss")
    loaded = texts.get_index("embedding")
    loaded.faiss_index = faiss_dpq.downcast_index(loaded.faiss_index)
    assert type(loaded.faiss_index) is faiss_dpq.IndexDPQ
    scores_again, examples_again = texts.get_nearest_examples("embedding", queries[0], k=5)
    assert examples_again["text"] == examples["text"]
    np.testing.assert_allclose(scores_again, scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factory", ["DPQ6x6", "IVF4,DPQ6x6", "PCA32,DPQ6x6"])
def test_datasets_string_factory(tmp_path, factory):
    """A program that gives FAISS strings and files by itself, with nothing of ours in its hands."""
    datasets = pytest.importorskip("datasets")
    texts = datasets.Dataset.from_dict({"text": TEXTS})
    texts = texts.map(lambda rows: {"embedding": encode(rows["text"])}, batched=True, batch_size=len(TEXTS))
    queries = encode([TEXTS[5], TEXTS[200]])
    with faiss_dpq.install():
        texts.add_faiss_index("embedding", string_factory=factory, train_size=len(TEXTS))
        index = texts.get_index("embedding").faiss_index
        assert type(index).__module__.startswith("faiss_dpq") and index.ntotal == len(TEXTS)
        _, batch = texts.get_nearest_examples_batch("embedding", queries, k=3)
        assert [rows["text"][0] for rows in batch] == [TEXTS[5], TEXTS[200]]
        texts.save_faiss_index("embedding", tmp_path / "texts.faiss")
        texts.drop_index("embedding")
        texts.load_faiss_index("embedding", tmp_path / "texts.faiss")
        assert type(texts.get_index("embedding").faiss_index) is type(index)
        _, examples = texts.get_nearest_examples("embedding", queries[1], k=3)
        assert examples["text"][0] == TEXTS[200]
    with pytest.raises(RuntimeError):
        texts.add_faiss_index("embedding", "again", string_factory=factory)


def test_semantic_search_as_with_sentence_transformers(tmp_path):
    """The program of sentence-transformers' examples: encode, train, add, search, look the sentences up."""
    corpus_embeddings = encode(TEXTS)
    index = faiss_dpq.IndexDPQ(corpus_embeddings.shape[1], 6, 6, faiss.METRIC_INNER_PRODUCT)
    index.train(corpus_embeddings)
    index.add(corpus_embeddings)
    question_embedding = encode(["the old ship waits for the harbour"])
    distances, corpus_ids = index.search(question_embedding, 10)
    hits = [{"corpus_id": int(i), "score": float(score)} for i, score in zip(corpus_ids[0], distances[0], strict=True)]
    hits = sorted(hits, key=lambda hit: hit["score"], reverse=True)
    assert TEXTS[hits[0]["corpus_id"]] == "the old ship waits for the harbour"
    assert hits[0]["score"] == pytest.approx(1, abs=0.1)
    exact = np.argsort(-question_embedding @ corpus_embeddings.T)[0, :10]
    assert len({hit["corpus_id"] for hit in hits} & set(exact.tolist())) >= 5


def test_files_of_embeddings_as_with_autofaiss(tmp_path):
    """What autofaiss does: embeddings from .npy files by parts, an index chosen by its bytes, tuned, written, read."""
    for part, rows in enumerate(np.array_split(encode(TEXTS), 3)):
        np.save(tmp_path / f"part{part}.npy", rows.astype(np.float16))
    parts = [np.load(path, mmap_mode="r") for path in sorted(tmp_path.glob("*.npy"))]
    index = faiss_dpq.IndexDPQ(parts[0].shape[1], 6, 6)
    index.train(np.concatenate(parts))
    for rows in parts:
        index.add(rows)
    smallest = min(range(1, 7), key=lambda levels: abs(index.truncate(levels).code_size * index.ntotal - 1500))
    budgeted = index.truncate(smallest)
    assert budgeted.code_size * budgeted.ntotal <= 1500
    faiss_dpq.write_index(budgeted, tmp_path / "knn.index")
    again = faiss_dpq.read_index(tmp_path / "knn.index", faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    np.testing.assert_array_equal(again.search(parts[1][:5], 3), budgeted.search(parts[1][:5], 3))
    rows = slice(len(parts[0]), len(parts[0]) + len(parts[1]))
    assert (index.search(parts[1], 1)[1][:, 0] == np.arange(len(TEXTS))[rows]).mean() > 0.9
