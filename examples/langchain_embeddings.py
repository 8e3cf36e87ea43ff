"""A student as LangChain embeddings, for its vector stores and retrievers. Needs: pip install langchain-core

python examples/langchain_embeddings.py runs/minilm-3/model "Who won the match?"
"""

import sys

from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore

from shortstack.model import Embedder


class ShortstackEmbeddings(Embeddings):
    """LangChain's interface to an Embedder; the model's own prompts, if any, go before queries and documents."""

    def __init__(self, model: str, precision: str = "auto", device: str | None = None) -> None:
        self.embedder = Embedder.load(model, device, precision)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """An embedding for each text."""
        return self.embedder.encode_document(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        """The embedding of a question to the documents."""
        return self.embedder.encode_query(text).tolist()


def main() -> None:
    model, question = sys.argv[1:]
    store = InMemoryVectorStore(ShortstackEmbeddings(model))
    store.add_texts(["The home team scored twice.", "It will rain in the north.", "Shares fell for a third day."])
    for document, similarity in store.similarity_search_with_score(question, k=3):
        print(f"{similarity:.3f} {document.page_content}")


if __name__ == "__main__":
    main()
