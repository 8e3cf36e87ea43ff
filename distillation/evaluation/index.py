"""An existing index: are its vectors the teacher's, and what do the student's queries find in it?

    python evaluate.py MODEL --index vectors.npy --texts documents.txt --queries queries.txt

First a sample of the texts is embedded by the teacher and compared with the vectors. Then the teacher's queries and the
student's search the index, and found@10 says how many of the teacher's first ten the student finds. Without queries,
they are made of documents of the index: a title where there is one, else the first sentence. Such a query would find
its own document first, so that document is left out of both rankings.
"""

import dataclasses
import itertools
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from shortstack.distillation.data.sources import parse_source, read_source
from shortstack.distillation.data.vectors import UNIT, StoredRows, open_vectors, text_source
from shortstack.distillation.evaluation.bootstrap import bootstrap, interval, means
from shortstack.distillation.evaluation.latency import latencies
from shortstack.distillation.evaluation.retrieval import share_found
from shortstack.model import Embedder
from shortstack.model.files import InputError

SAMPLE = 64  # texts that the teacher embeds again
MADE = 300  # queries made of documents
FEWEST = 20  # held-out documents to make queries of; where there are fewer, any documents are taken
FIRST_WORDS = 12  # of a long document without a full stop, in place of its first sentence
SAME = 0.98  # centred cosine from which on a vector is the teacher's: half precision gives 0.9999, int8 about 0.99
NEAR = 0.4  # mean cosine from which on they may be the teacher's of nearly these texts
NUMBERS = 2**25  # of the index, or of similarities, in memory at a time: 134 MB
TIMED = 100  # queries
STAYS = 0.8  # found@10 from which on a search looks the same to most users


@dataclass(frozen=True)
class Index:
    """n vectors of texts.

    Attributes:
        vectors: (n, d) on disk.
        sample: a few of the texts, by row, spread evenly.
        documents: titles and texts to make queries of, by row: those held out from training, else spread evenly.
        held_out: whether `documents` were held out.
    """

    vectors: np.ndarray | StoredRows
    sample: dict[int, str]
    documents: dict[int, tuple[str, str]]
    held_out: bool

    @classmethod
    def read(cls, source: str, texts: str | None, held_out: Collection[str], directory: Path) -> "Index":
        """Open the vectors, and read all texts once.

        Args:
            source: of the vectors; see `open_vectors`.
            texts: source of the texts in the same order, a line or a row each; None where `source` has them.
            held_out: texts that the student was not trained on.
            directory: where there is room for a copy of a compressed file.

        Raises:
            InputError: a file that can't be read, not as many texts as vectors, or no text.
        """
        vectors = open_vectors(source, directory)
        if texts is None and Path(source).is_file():
            raise InputError(f"--index {source}: give its texts, in the same order, with --texts FILE")
        count, known = len(vectors), set(held_out)
        sampled, spread = (set(spread_evenly(count, number)) for number in (SAMPLE, MADE))
        sample: dict[int, str] = {}
        kept: dict[bool, dict[int, tuple[str, str]]] = {True: {}, False: {}}  # whether held out
        read = 0
        for row, (title, text) in enumerate(read_documents(texts or text_source(source))):
            read += 1
            if row in sampled and (title or text):
                sample[row] = f"{title} {text}".strip()
            if text and row in spread:
                kept[False][row] = title, text
            if text in known and len(kept[True]) < MADE:
                kept[True][row] = title, text
        if read != count:
            raise InputError(f"{texts or source}: has {read:,} texts, {source} has {count:,} vectors")
        if not sample:
            what = f"the {len(sampled)} rows looked at have no text"
            raise InputError(f"{texts or source}: {what}; give the texts that the vectors were made of")
        enough = len(kept[True]) >= FEWEST
        return cls(vectors, sample, kept[enough], enough)

    def rows(self, wanted: Collection[int]) -> torch.Tensor:
        """Some of the vectors, (b, d) float32."""
        return torch.from_numpy(np.concatenate([np.asarray(self.vectors[row : row + 1], np.float32) for row in wanted]))

    def nearest(self, queries_Qd: torch.Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The vectors of the highest cosine with each query, best first: rows and cosines, (Q, count) each.

        The index passes through memory once, in blocks.

        Raises:
            InputError: a vector that is zero or not finite.
        """
        queries_Qd = F.normalize(queries_Qd, dim=-1).cpu()
        block = max(count, NUMBERS // max(self.vectors.shape[1], len(queries_Qd)))
        cosines = torch.empty(len(queries_Qd), 0)
        rows = torch.empty(len(queries_Qd), 0, dtype=torch.long)
        for start in range(0, len(self.vectors), block):
            part = torch.from_numpy(np.array(self.vectors[start : start + block], np.float32))
            norms = part.norm(dim=1, keepdim=True)
            if not (norms.isfinite() & (norms > 0)).all():
                row = start + int((~(norms.isfinite() & (norms > 0))).flatten().nonzero()[0])
                raise InputError(f"--index: the vector of row {row} (from 0) is zero or not finite; leave it out")
            cosines = torch.cat([cosines, queries_Qd @ (part / norms).T], dim=1)
            rows = torch.cat([rows, torch.arange(start, start + len(part)).expand(len(queries_Qd), -1)], dim=1)
            cosines, best = cosines.topk(min(count, cosines.shape[1]))
            rows = rows.gather(1, best)
        return rows.numpy(), cosines.numpy()


def spread_evenly(count: int, wanted: int) -> list[int]:
    """So many of the numbers below `count`, or all, at equal distances."""
    return sorted({int(number) for number in np.linspace(0, count - 1, min(wanted, count))})


def read_documents(source: str) -> Iterator[tuple[str, str]]:
    """Title, or "", and text of each row; blank lines count, since a vector may belong to them.

    Raises:
        InputError: a file that can't be read, or a row without a text.
    """
    parsed = parse_source(source, default_split="train")
    column = (parsed.columns or ["text"])[0]
    for where, number, row in read_source(dataclasses.replace(parsed, optional=("title",))):
        title, text = "" if column == "title" else row.get("title") or "", row.get(column)
        if not isinstance(title, str) or not isinstance(text, str):
            raise InputError(f"{where}:{number}: no text in column {column!r}; name another, as in {where}:body")
        yield title.strip(), text.strip()


# -- are these the teacher's vectors? --------------------------------------------------------------------------------


def check_index(index: Index, teacher: Embedder) -> dict[str, Any]:
    """Compare vectors of the index with the teacher's of the same texts.

    Returns:
        same: whether they are the teacher's; near: whether at least nearly, so that a search tells something.
        verdict: a line that says so, or what they are instead.
        prompt: the text before each document under which the teacher comes nearest.
        cosine, lowest_cosine: mean and minimum over the sample, under that prompt; see `centred_cosines`.
        sample: number of texts compared.
        lengths: smallest and largest length of a vector in the sample.
    """
    dimensions = index.vectors.shape[1]
    if dimensions != teacher.dimensions:
        what = f"not the teacher's: vectors of {dimensions} dimensions, the teacher has {teacher.dimensions}"
        return {"same": False, "near": False, "verdict": f"{what}; name the model that made the index with --teacher"}
    vectors, texts = index.rows(index.sample), list(index.sample.values())
    prompts = dict.fromkeys([teacher.role_prompt("document"), "", *teacher.settings.prompts.values()])
    embedded = {prompt: torch.as_tensor(teacher.encode(texts, prompt=prompt)) for prompt in prompts}
    cosines = {prompt: centred_cosines(own, vectors, vectors) for prompt, own in embedded.items()}
    best = max(prompts, key=lambda prompt: float(cosines[prompt].mean().round(decimals=4)))  # the first of equal ones
    norms = vectors.norm(dim=1)
    figures: dict[str, Any] = {
        "prompt": best,
        "cosine": float(cosines[best].mean()),
        "lowest_cosine": float(cosines[best].min()),
        "sample": len(texts),
        "lengths": [float(norms.min()), float(norms.max())],
    }
    others = int((cosines[best] < SAME).sum())
    if others <= len(texts) // 10:
        verdict = f"the teacher's vectors, under {named(best, teacher)}: cosine {figures['cosine']:.4f}"
        if others:
            verdict += f"; {others} of {len(texts)} are not: were those texts changed since?"
        if best != teacher.role_prompt("document"):
            verdict += f"; its own for documents would be {named(teacher.role_prompt('document'), teacher)}"
        return figures | {"same": True, "near": True, "verdict": f"{verdict}; {lengths_of(norms, embedded[best])}"}
    shuffled = next(filter(None, (what_order(index, own, vectors) for own in embedded.values())), "")
    figures |= {"same": False, "near": not shuffled and figures["cosine"] > NEAR}
    what = "near the teacher's, but not the same: another prompt, or texts that were cut in another way"
    what = shuffled or (what if figures["near"] else "not the teacher's: another model made them")
    return figures | {
        "verdict": f"{what}; mean centred cosine {figures['cosine']:.3f} with the teacher's of {len(texts)} texts"
    }


def named(prompt: str, teacher: Embedder) -> str:
    """A prompt in words."""
    name = next((name for name, text in teacher.settings.prompts.items() if text == prompt), "")
    return f"the prompt {name!r} ({prompt!r})" if prompt else "no prompt"


def lengths_of(norms: torch.Tensor, embedded: torch.Tensor) -> str:
    """How the vectors were normalised, in words."""
    if bool(((norms - 1).abs() < UNIT).all()):
        return "of length 1: cosine and dot product give the same order"
    if bool(((norms / embedded.norm(dim=1) - 1).abs() < UNIT).all()):
        return "not normalised, as the teacher gives them: search by cosine"
    return f"of lengths from {norms.min():.3g} to {norms.max():.3g}: search by cosine"


def centred_cosines(one: torch.Tensor, other: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """Cosine of each row of one (n, d) with the same row of the other, less the mean direction of a sample.

    Many models' vectors of any two texts have cosines of 0.7 and more, since all have a direction in common.
    """
    mean = F.normalize(sample, dim=1).mean(dim=0)
    return F.cosine_similarity(F.normalize(one, dim=1) - mean, F.normalize(other, dim=1) - mean)


def what_order(index: Index, embedded: torch.Tensor, vectors: torch.Tensor) -> str:
    """Whether the vectors are the teacher's, but in another order than the texts, in words; "" where not."""
    rows = index.nearest(embedded, 1)[0][:, 0]
    cosines = centred_cosines(embedded, index.rows(rows.tolist()), vectors).tolist()
    elsewhere = [
        (text, row)
        for text, row, cosine in zip(index.sample, rows.tolist(), cosines, strict=True)
        if cosine >= SAME and row != text
    ]
    if len(elsewhere) <= len(embedded) // 2:
        return ""
    text, row = elsewhere[0]
    return f"texts and vectors are in different orders: the vector of text {text} is in row {row} (from 0)"


# -- what the student finds ------------------------------------------------------------------------------------------


def first_sentence(text: str) -> str:
    """Up to the first full stop; without one the first twelve words, or all of a short text."""
    sentence = re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0]
    words = sentence.split()
    return sentence if len(words) <= 2 * FIRST_WORDS else " ".join(words[:FIRST_WORDS])


def search_index(
    index: Index, student: Embedder, teacher: Embedder | None, queries: Sequence[str] = ()
) -> dict[str, Any]:
    """What the student's queries find of what the teacher's find.

    Args:
        index: the vectors.
        student, teacher: of the index's dimensions. Without a teacher, whole documents are the queries, and their own
            vectors are the teacher's.
        queries: the user's; none for queries made of documents.

    Returns:
        found@10 and its interval, the number of queries and what they are, and the milliseconds that each model takes
        for a query.

    Raises:
        InputError: other dimensions than the index's, or no text to make queries of.
    """
    dimensions = index.vectors.shape[1]
    if student.dimensions != dimensions:
        raise InputError(f"--index: has vectors of {dimensions} dimensions, the student {student.dimensions}")
    own = None
    asked, kind = list(queries), "your queries"
    if not asked:
        if not index.documents:
            raise InputError("--index: no document with a text to make queries of; give --queries")
        own = np.array(list(index.documents))
        asked = [text if teacher is None else title or first_sentence(text) for title, text in index.documents.values()]
        kind = "whole documents" if teacher is None else "titles and first sentences of documents"
        kind += " held out from training" if index.held_out else " of the index"
    elif teacher is None:
        raise InputError("--queries: needs the teacher to compare with; give --teacher, or leave --queries out")
    made = {"student": torch.as_tensor(student.encode_query(asked))}
    made["teacher"] = (
        index.rows(list(index.documents)) if teacher is None else torch.as_tensor(teacher.encode_query(asked))
    )
    rankings = {who: index.nearest(vectors, 11)[0] for who, vectors in made.items()}
    rankings = {who: without(ranking, own) for who, ranking in rankings.items()}
    shares = share_found(rankings["student"], rankings["teacher"])
    timed = list(itertools.islice(itertools.cycle(asked), TIMED))
    return {
        "found@10": float(shares.mean()),
        "interval": interval(bootstrap(means, [shares])[0]),
        "queries": len(asked),
        "kind": kind,
        "own_document_left_out": own is not None,
        "milliseconds": {
            who: latencies(model.encode_query, timed)["p50"]
            for who, model in (("student", student), ("teacher", teacher))
            if model is not None
        },
    }


def without(rankings_Qk: np.ndarray, own: np.ndarray | None) -> np.ndarray:
    """Rankings of eleven without each query's own document, or of the first ten where there is none: (Q, 10)."""
    if own is None:
        return rankings_Qk[:, :10]
    order = np.argsort(rankings_Qk == own[:, None], axis=1, kind="stable")  # its own last, all others as they were
    return np.take_along_axis(rankings_Qk, order, axis=1)[:, : max(1, min(10, rankings_Qk.shape[1] - 1))]


def index_lines(check: dict[str, Any] | None, search: dict[str, Any]) -> str:
    """Both as text; the last line is the verdict."""
    low, high = search["interval"]
    took = search["milliseconds"]
    lines = [] if check is None else [f"vectors: {check['verdict']}"]
    left_out = ", each one's own document left out" if search["own_document_left_out"] else ""
    lines.append(f"queries: {search['queries']} {search['kind']}{left_out}")
    lines.append(f"found@10: {search['found@10']:.1%} [{low:.1%}, {high:.1%}] of the teacher's first ten documents")
    before = f"{took['teacher']:.2f} ms before (teacher), " if "teacher" in took else ""
    lines.append(f"one query: {before}{took['student']:.2f} ms after (student), p50 on this machine")
    return "\n".join([*lines, verdict_of(check, search["found@10"])])


def verdict_of(check: dict[str, Any] | None, share: float) -> str:
    """One line: whether the index can stay."""
    if check is not None and not check["same"]:
        return f"verdict: make sure of the vectors first; as they are, the student finds {share:.0%}"
    if share >= STAYS:
        return f"verdict: your index stays; the student's queries find {share:.0%} of what the teacher's find in it"
    return f"verdict: not yet; the student finds {share:.0%}: train on texts of this index too, or keep more layers"
