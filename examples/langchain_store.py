"""LangChain's vector store FAISS, on codes of 8 bytes a text instead of 256 bytes of floats."""

from langchain_community.docstore.in_memory import InMemoryDocstore
from langchain_community.vectorstores import FAISS
from langchain_core.embeddings import Embeddings
from words import TEXTS, D, encode

import faiss_dpq


class Words(Embeddings):
    def embed_documents(self, texts):
        return encode(texts).tolist()

    def embed_query(self, text):
        return encode([text])[0].tolist()


index = faiss_dpq.IndexDPQ(D, 8, 8)
index.train(encode(TEXTS), effort="fast")

store = FAISS(Words(), index, InMemoryDocstore(), {})
store.add_texts(TEXTS)
for document, distance in store.similarity_search_with_score("the old ship waits for rain", k=3):
    print(f"{distance:.3f}  {document.page_content}")

assert store.similarity_search("the old ship waits for rain", k=1)[0].page_content == "the old ship waits for rain"
assert index.ntotal == len(TEXTS) and index.sa_code_size() == 8
