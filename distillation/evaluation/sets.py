"""The data of an evaluation: STS pairs, retrieval sets, and the text that a run held out."""

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shortstack.distillation.data.sentences import Texts
from shortstack.distillation.data.sources import parse_number, parse_source, read_lines, read_rows, read_source
from shortstack.model.embedder import ROLES
from shortstack.model.files import InputError, read_json

STS_COLUMNS = [("sentence1", "text1"), ("sentence2", "text2"), ("score", "similarity_score", "label")]


# -- similarity ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StsPairs:
    """Pairs of sentences and how similar people find them: `scores` (n,), float64, in whatever unit the set has."""

    name: str
    sentences1: list[str]
    sentences2: list[str]
    scores: np.ndarray


def read_sts(name: str, source: str) -> StsPairs:
    """Read similarity judgements: the STS Benchmark's own files, or CSV, TSV, JSON lines, Parquet or a Hub dataset.

    The columns are sentence1 (or text1), sentence2 (text2) and score (similarity_score, label), or the three that the
    source names. A Hub dataset's default split is test.

    Raises:
        InputError: a missing column or a score that is not a finite number, by file and line; fewer than two pairs;
            scores that are all the same, for which no correlation exists.
    """
    parsed = parse_source(source, default_split="test")
    if parsed.columns and len(parsed.columns) != 3:
        raise InputError(f"{source}: name three columns, sentence1,sentence2,score, or none")
    choices = [(column,) for column in parsed.columns] or STS_COLUMNS
    columns: tuple[list[Any], ...] = ([], [], [])
    for where, number, row in read_source(parsed):
        for column, names in zip(columns, choices, strict=True):
            present = [name for name in names if name in row]
            if not present:
                listed = ", ".join(itertools.islice(row, 20))
                raise InputError(f"{where}:{number}: no column {' or '.join(names)}; there are: {listed}")
            column.append(row[present[0]])
        sentence1, sentence2, score = columns[0][-1], columns[1][-1], parse_number(columns[2][-1])
        if not isinstance(sentence1, str) or not isinstance(sentence2, str):
            raise InputError(f"{where}:{number}: a sentence is {sentence1!r:.80} or {sentence2!r:.80}, not text")
        if score is None:
            raise InputError(f"{where}:{number}: score {columns[2][-1]!r:.80} is not a finite number")
        columns[2][-1] = score
    scores = np.array(columns[2], dtype=np.float64)
    if len(scores) < 2:
        raise InputError(f"{source}: {len(scores)} pairs; a correlation needs two or more")
    if np.ptp(scores) == 0:
        raise InputError(f"{source}: every score is {scores[0]:g}, so no correlation exists")
    return StsPairs(name, [text.strip() for text in columns[0]], [text.strip() for text in columns[1]], scores)


# -- relevance -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RetrievalSet:
    """Queries, documents, and for each query the grades, above 0, of the documents that answer it (one or more)."""

    name: str
    queries: list[str]
    documents: list[str]
    grades: list[dict[int, float]]  # by index in `documents`


def read_retrieval(name: str, source: str) -> RetrievalSet:
    """Read a retrieval set.

    `source` is one of
    - a directory with queries, documents (or corpus) and relevance (or qrels): .txt or .jsonl, and .tsv
    - the three files, as QUERIES,DOCUMENTS,RELEVANCE
    - parallel:FILE1,FILE2,...: line i of every text file is about the same thing. The first file's lines are the
      queries, the lines of all others are the documents, and line i answers line i.

    JSON lines have text (title too, and _id, as in BEIR: Thakur et al. 2021, arXiv:2104.08663); in a text file a line's
    id is its number from 0. A relevance line is query id, document id and, if any, a grade: 0 means not relevant, and
    a missing grade is 1. Queries without a relevant document are left out.

    Raises:
        InputError: by file and line: a file missing or corrupt, an id twice or unknown, an empty query.
    """
    if source.startswith("parallel:"):
        return read_parallel(name, source)
    paths = source.split(",") if not os.path.isdir(source) else [
        find_file(source, ["queries"], [".jsonl", ".txt"]),
        find_file(source, ["documents", "corpus"], [".jsonl", ".txt"]),
        find_file(source, ["relevance", "qrels", "qrels/test"], [".tsv"]),
    ]  # fmt: skip
    if len(paths) != 3:
        raise InputError(f"{source}: neither a directory nor QUERIES,DOCUMENTS,RELEVANCE nor parallel:FILE1,FILE2")
    queries, documents = read_texts(Path(paths[0])), read_texts(Path(paths[1]))
    for index, text in enumerate(queries.values()):
        if not text:
            raise InputError(f"{paths[0]}: query {index + 1} is empty")
    query_index = {identity: index for index, identity in enumerate(queries)}
    document_index = {identity: index for index, identity in enumerate(documents)}
    grades: list[dict[int, float]] = [{} for _ in queries]
    for query, document, grade in read_relevance(Path(paths[2]), query_index, document_index):
        grades[query][document] = grade
    texts = list(queries.values())
    kept = [index for index in range(len(texts)) if grades[index]]
    if not kept:
        raise InputError(f"{paths[2]}: no query has a relevant document")
    return RetrievalSet(
        name, [texts[index] for index in kept], list(documents.values()), [grades[index] for index in kept]
    )


def read_parallel(name: str, source: str) -> RetrievalSet:
    """Read parallel:FILE1,FILE2,...; see `read_retrieval`."""
    paths = [Path(path) for path in source.removeprefix("parallel:").split(",")]
    if len(paths) < 2:
        raise InputError(f"{source}: parallel: takes two or more files with commas between them")
    columns = [list(read_texts(path).values()) for path in paths]
    for path, column in zip(paths, columns, strict=True):
        if len(column) != len(columns[0]):
            raise InputError(f"{path}: {len(column)} lines, but {paths[0]} has {len(columns[0])}")
        if "" in column:
            raise InputError(f"{path}:{column.index('') + 1}: an empty line")
    if not columns[0]:
        raise InputError(f"{paths[0]}: no lines in it")
    count = len(columns[0])
    grades = [{index + count * file: 1.0 for file in range(len(paths) - 1)} for index in range(count)]
    return RetrievalSet(name, columns[0], list(itertools.chain(*columns[1:])), grades)


def find_file(directory: str, names: list[str], suffixes: list[str]) -> str:
    """The first of the files `names` with one of `suffixes`, gzip or not, in a directory."""
    for name, suffix, gz in itertools.product(names, suffixes, ["", ".gz"]):
        if os.path.isfile(f"{directory}/{name}{suffix}{gz}"):
            return f"{directory}/{name}{suffix}{gz}"
    raise InputError(f"{directory}: no {' or '.join(names)} with the ending {' or '.join(suffixes)}")


def read_texts(path: Path) -> dict[str, str]:
    """Texts by id: `_id` or `id` where the file has them, else the line's number from 0."""
    texts: dict[str, str] = {}
    for number, row in read_rows(path):
        title, text = row.get("title") or "", row.get("text")
        if not isinstance(title, str) or not isinstance(text, str):
            raise InputError(f"{path}:{number}: no text in it")
        identity = str(row.get("_id", row.get("id", number - 1)))
        if identity in texts:
            raise InputError(f"{path}:{number}: the id {identity:.80} is there twice")
        texts[identity] = f"{title.strip()} {text.strip()}".strip()
    return texts


def read_relevance(
    path: Path, query_index: dict[str, int], document_index: dict[str, int]
) -> Iterator[tuple[int, int, float]]:  # fmt: skip
    """(query, document, grade) of what a relevance file calls relevant, by index; a header is skipped."""
    try:
        for number, line in read_lines(path):
            fields = [field.strip() for field in line.split("\t")]
            if not line.strip() or (number == 1 and re.match(r"query[-_ ]?(id|index)?$", fields[0], re.IGNORECASE)):
                continue
            grade = parse_number(fields[2]) if len(fields) == 3 else 1.0
            if len(fields) not in (2, 3) or grade is None:
                raise InputError(f"{path}:{number}: not a query, a document and, if any, a grade, with tabs between")
            if fields[0] not in query_index:
                raise InputError(f"{path}:{number}: no query {fields[0]:.80}")
            if fields[1] not in document_index:
                raise InputError(f"{path}:{number}: no document {fields[1]:.80}")
            if grade > 0:
                yield query_index[fields[0]], document_index[fields[1]], grade
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None


# -- text that a run held out ----------------------------------------------------------------------------------------


def read_held_out(run: Path | None) -> Texts:
    """The sentences that a run held out from training; empty if there is no run or no such file.

    Raises:
        InputError: held_out.json is not as a run writes it.
    """
    if run is None or not (run / "held_out.json").exists():
        return Texts([], [])
    value = read_json(run / "held_out.json")
    sentences, roles = (value.get("sentences"), value.get("roles")) if isinstance(value, dict) else (None, None)
    if isinstance(sentences, list) and isinstance(roles, list) and len(sentences) == len(roles):  # noqa: SIM102
        if all(isinstance(text, str) for text in sentences) and all(role in ROLES for role in roles):
            return Texts(sentences, roles)
    raise InputError(f"{run / 'held_out.json'}: not as train.py writes it; give --sentences instead")
