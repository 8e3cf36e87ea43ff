"""Search on a user's own documents: the retrieval set made of what a run does not train on, and its verdict."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from shortstack.distillation.data.corpus import Corpus
from shortstack.distillation.data.own import Own, has_headings
from shortstack.distillation.data.passages import Cutter, split_sentences
from shortstack.distillation.data.sentences import files_of, sentences_of
from shortstack.distillation.data.sources import marked_source
from shortstack.distillation.evaluation.headings import heading_queries, paragraphs_below
from shortstack.distillation.evaluation.sets import RetrievalSet
from shortstack.distillation.evaluation.table import share
from shortstack.model.files import make_directory, write_text

NAME = "own-documents"  # of the set, and of its directory in the run's
MOST_QUERIES = 1000
MOST_DOCUMENTS = 10_000  # the user's other passages are added up to this number
LEAST_QUERIES = 5  # of fewer, nothing can be said


def own_documents(corpus: Corpus, cutter: Cutter, seed: int) -> tuple[RetrievalSet | None, str]:
    """The set to judge search on the user's documents by, made of what is held out, and in words what it is.

    Queries are the headings of the documents that are held out, each asking for the paragraphs below it. Where there
    are too few, they are the first sentences of the texts that are held out, each asking for the rest of its text.
    Documents are passages of all the user's files, trained on or not, as in the index that the student is to serve.

    Returns:
        None for the set where the text is not made for it, such as single sentences.
    """
    own = corpus.own
    assert own is not None
    held_out = corpus.evaluation().sentences
    others = list(itertools.islice(other_passages(own, cutter, set(held_out)), MOST_DOCUMENTS))
    data = heading_queries(NAME, own.held_out, cutter, others)
    kind = f"headings of {len(own.held_out)} documents that are not trained on"
    if len(data.queries) < LEAST_QUERIES:
        data = first_sentences(held_out, others)
        kind = "first sentences of texts that are not trained on"
    if len(data.queries) < LEAST_QUERIES:
        return None, (
            "search on your documents is not judged: "
            f"there are fewer than {LEAST_QUERIES} headings or texts of several sentences"
        )
    drawn = sorted(np.random.default_rng(seed).permutation(len(data.queries))[:MOST_QUERIES].tolist())
    queries, grades = [data.queries[index] for index in drawn], [data.grades[index] for index in drawn]
    data = RetrievalSet(NAME, queries, data.documents, grades)
    return data, f"search on your documents is judged by {len(queries):,} {kind}, over {len(data.documents):,} passages"


def other_passages(own: Own, cutter: Cutter, left_out: set[str]) -> Iterator[str]:
    """The user's passages that are trained on: the paragraphs of documents, and the texts of all else."""
    held_out = set(own.held_out)
    for source in own.sources:
        marks, parsed = marked_source(source)  # once for all files: it walks through the whole directory
        for file in files_of(parsed):
            if file in held_out:
                continue
            if file is not None and has_headings(file, marks):
                texts: Iterator[str] = (passage for _, passage in paragraphs_below(file, cutter))
            else:
                texts = sentences_of(file, marks, parsed, cutter)
            yield from (text for text in texts if text not in left_out)


def first_sentences(texts: list[str], others: list[str]) -> RetrievalSet:
    """The first sentences of texts as queries that the rest of the same text answers."""
    answers: dict[str, set[str]] = {}
    for text in texts:
        first, *rest = split_sentences(text)
        if rest:
            answers.setdefault(first, set()).add(" ".join(rest))
    documents: dict[str, int] = {}
    grades = []
    for rests in answers.values():
        grades.append({documents.setdefault(rest, len(documents)): 1.0 for rest in sorted(rests)})
    for text in others if answers else ():
        documents.setdefault(text, len(documents))
    return RetrievalSet(NAME, list(answers), list(documents), grades)


def write_retrieval(data: RetrievalSet, directory: Path) -> None:
    """Write a set as `read_retrieval` reads it, so that it can be judged by again."""
    make_directory(directory)
    for name, texts in (("queries", data.queries), ("documents", data.documents)):
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        write_text(directory / f"{name}.jsonl", "".join(lines))
    rows = (
        f"{query}\t{document}\t{grade:g}\n"
        for query, wanted in enumerate(data.grades)
        for document, grade in wanted.items()
    )
    write_text(directory / "relevance.tsv", "".join(rows))


def verdict(figures: dict[str, Any]) -> str:
    """Search on the user's documents in a line: before, after, interval, what is found; "" where it was not judged."""
    systems = figures.get("retrieval", {}).get(NAME, {})
    before, after = systems.get("before"), systems.get("student", {})
    if None in (after.get("kept"), after.get("found@10")):
        return ""
    ends = [f"{100 * end:.1f}" for end in after.get("kept_interval") or [] if end is not None]
    interval = f" [{', '.join(ends)}]" if len(ends) == 2 else ""
    earlier = [f"{share(before[key])} -> " if before else "" for key in ("kept", "found@10")]
    return (
        f"search on your documents: {earlier[0]}{share(after['kept'])}{interval} of the "
        f"teacher's nDCG@10; of its first ten documents {earlier[1]}{share(after['found@10'])} are found"
    )
