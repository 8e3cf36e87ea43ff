"""One query at a time, as a search service gets them: how long a caller waits for an embedding, tokenising included."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shortstack import serve
from shortstack.benchmark.peers import installed, load_sentence_transformer, wrote
from shortstack.distillation.evaluation.latency import latencies
from shortstack.distillation.export import OPENVINO_PACKAGES, PACKAGES, export
from shortstack.model import Embedder
from shortstack.model.files import InputError

TOKENS = (8, 16, 64)  # of a query


def queries_of(embedder: Embedder, sentences: Sequence[str], count: int) -> dict[int, list[str]]:
    """`count` queries for every one of TOKENS that the model reads: the exact number of their tokens, [CLS] and [SEP]
    included.

    They are cut from the words of `sentences`; if those are too few, queries are repeated.
    """
    words = " ".join(sentences).split()
    found: dict[int, list[str]] = {tokens: [] for tokens in TOKENS if tokens <= embedder.settings.max_length}
    for tokens, queries in found.items():
        for start in range(len(words)):
            pieces = [" ".join(words[start : start + n]) for n in range(1, tokens - 1)]
            fitting = np.flatnonzero(embedder.tokenize(pieces).lengths == tokens)
            queries += [pieces[fitting[0]]] if len(fitting) else []
            if len(queries) == count:
                break
        if not queries:
            raise InputError(f"--latency: the text is too short for a query of {tokens} tokens; give more --sentences")
    return {tokens: [queries[index % len(queries)] for index in range(count)] for tokens, queries in found.items()}


class Asked(NamedTuple):
    """Something that embeds one query."""

    system: str
    precision: str
    layers: int
    encode: Callable[[str], Any]


def of_embedder(name: str, model: Embedder) -> Asked:
    return Asked(name, model.precision, model.bert.config.num_hidden_layers, partial(model.encode, prompt=""))


def of_other_tools(name: str, model: Embedder, directory: Path) -> list[Asked]:
    """sentence-transformers in fp32, and the exported files by `shortstack.serve`, if they are installed.

    The files go to `directory`, which must be empty; `name` says what the model is, teacher or student.
    """
    layers, found = model.bert.config.num_hidden_layers, []
    model.save(directory)
    if installed("sentence-transformers", "sentence_transformers"):
        loaded = load_sentence_transformer(str(directory), "cpu", "fp32", model.settings.max_length)
        found.append(Asked(f"{name}, sentence-transformers", "fp32", layers, partial(loaded.encode, prompt="")))
    if installed("serve", *PACKAGES) and wrote("serve", export, str(directory)):
        engines = ["onnxruntime", *(["openvino"] if installed("serve by OpenVINO", *OPENVINO_PACKAGES) else [])]
        for engine, precision in ((engine, precision) for engine in engines for precision in ("fp32", "int8")):
            reader = serve.Embedder(directory, precision, engine)
            found.append(Asked(f"{name}, serve, {engine}", precision, layers, partial(reader.encode, prompt="")))
    return found


def one_query(asked: Sequence[Asked], queries: Mapping[int, Sequence[str]]) -> list[dict[str, Any]]:
    """The latency of each with the queries of each length: rows of bench.json."""
    rows = []
    for system, precision, layers, encode in asked:
        times = {str(tokens): latencies(encode, texts) for tokens, texts in queries.items()}
        rows.append({"system": system, "precision": precision, "layers": layers, "latency_ms": times})
    return rows
