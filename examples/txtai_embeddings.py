"""txtai gives its configuration's string to FAISS; after `install()` it may say DPQ.

txtai takes FAISS's functions when it is imported, so `install()` comes before that.
"""

import tempfile

import faiss_dpq

faiss_dpq.install()

from txtai import Embeddings  # noqa: E402
from words import TEXTS, encode  # noqa: E402

embeddings = Embeddings(method="external", backend="faiss", faiss={"components": "IDMap,DPQ8x6", "sample": 1.0})
embeddings.index(list(encode(TEXTS)))
query = encode(["one sailor repairs two clocks"])[0]
found = embeddings.search(query, 3)
for number, score in found:
    print(f"{score:.3f}  {TEXTS[number]}")

assert TEXTS[found[0][0]] == "one sailor repairs two clocks"
assert type(embeddings.ann.backend) is faiss_dpq.IndexIDMap

with tempfile.TemporaryDirectory() as folder:
    embeddings.save(f"{folder}/index")
    again = Embeddings()
    again.load(f"{folder}/index")
    assert type(again.ann.backend) is faiss_dpq.IndexIDMap
    assert again.search(query, 3) == found
