"""Hugging Face datasets makes an index from a string; inside `install()` it may say DPQ."""

import tempfile
from pathlib import Path

from datasets import Dataset
from words import TEXTS, encode

import faiss_dpq

texts = Dataset.from_dict({"text": TEXTS, "embedding": encode(TEXTS)})
query = encode(["a dog forgets the moon"])[0]

with faiss_dpq.install(), tempfile.TemporaryDirectory() as folder:
    texts.add_faiss_index("embedding", string_factory="IVF8,DPQ8x6", train_size=len(texts))
    texts.get_index("embedding").faiss_index.nprobe = 4
    scores, found = texts.get_nearest_examples("embedding", query, k=3)
    for score, text in zip(scores, found["text"], strict=True):
        print(f"{score:.3f}  {text}")
    assert found["text"][0] == "a dog forgets the moon"

    file = Path(folder) / "texts.faiss"  # a file of FAISS
    texts.save_faiss_index("embedding", file)
    texts.load_faiss_index("again", file)
    assert type(texts.get_index("again").faiss_index) is faiss_dpq.IndexIVFDPQ
