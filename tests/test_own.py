"""A run on a user's own documents is judged by them alone: by documents and texts that it was not trained on."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import RunDirectory, train, write_recipe
from tiny import english_sentences, load, make_bert_dir, write_documents

from shortstack import evaluate
from shortstack.distillation.data import sources
from shortstack.distillation.data.corpus import Draw, build_corpus
from shortstack.distillation.data.own import Own
from shortstack.distillation.data.passages import ESTIMATE
from shortstack.distillation.evaluation import own as module
from shortstack.distillation.evaluation.embeddings import embed_set
from shortstack.distillation.evaluation.own import own_documents, verdict, write_retrieval
from shortstack.distillation.evaluation.retrieval import evaluate_retrieval
from shortstack.distillation.evaluation.sets import read_retrieval
from shortstack.distillation.report import __main__ as report
from shortstack.model.files import InputError


def write_general(path: Path) -> str:
    path.write_text("\n".join(f"general {text}" for text in english_sentences(200, seed=8)), encoding="utf-8")
    return str(path)


def test_documents_are_held_out_whole_and_asked_for_by_their_headings(tmp_path: Path) -> None:
    files = write_documents(tmp_path / "docs")
    source, general = str(tmp_path / "docs"), write_general(tmp_path / "general.txt")
    own = Own.of([source], seed=1)
    assert len(own.held_out) == 3 and set(own.held_out) < set(files)
    repeated = own.held_out[0].read_text().splitlines()[2]  # also in a document that is trained on
    other = next(file for file in files if file not in own.held_out)
    other.write_text(other.read_text() + f"\n{repeated}\n")

    corpus = build_corpus(tmp_path / "corpus", [source, general], Draw(None, 10, 1), own=own)
    trained, held_out = corpus.training(0, len(corpus)).sentences, corpus.evaluation().sentences
    unseen = "\n".join(file.read_text() for file in own.held_out)
    assert len(held_out) == 10 and all(text in unseen for text in held_out)
    assert not [text for text in trained if text in unseen] and len(trained) == 200 + 9 * 6
    assert corpus.counts == {source: 9 * 6, general: 200}

    object.__setattr__(corpus, "own", own)
    data, what = own_documents(corpus, ESTIMATE, seed=1)
    assert data is not None and "9 headings of 3 documents that are not trained on, over 72 passages" in what
    assert all(query.startswith("Heading ") and query in unseen for query in data.queries)
    assert all(data.documents[number] in unseen for grades in data.grades for number in grades)
    assert set(data.documents) > {text for text in trained if not text.startswith("general")}
    write_retrieval(data, tmp_path / "set")
    assert read_retrieval(data.name, str(tmp_path / "set")) == data


@pytest.mark.parametrize("reading", ["passages@", ""])
def test_without_headings_the_first_sentence_asks_for_the_rest(tmp_path: Path, reading: str) -> None:
    texts = english_sentences(300, seed=3)
    path, general = tmp_path / "own.txt", write_general(tmp_path / "general.txt")
    lines = [f"{first[:-1]}. {second}" for first, second in zip(texts[::2], texts[1::2], strict=True)]
    path.write_text("\n\n".join(lines), encoding="utf-8")
    source = f"{reading}{path}"
    own = Own.of([source], seed=1)
    assert own.held_out == ()
    corpus = build_corpus(tmp_path / "corpus", [source, general], Draw(None, 1000, 1), own=own)
    held_out = corpus.evaluation().sentences
    assert len(held_out) == 15 and set(held_out) < set(lines)  # a tenth, however many were asked for
    assert len(corpus) == 200 + 135 and not set(held_out) & set(corpus.training(0, len(corpus)).sentences)
    object.__setattr__(corpus, "own", own)
    data, what = own_documents(corpus, ESTIMATE, seed=1)
    assert data is not None and what.startswith("search on your documents is judged by 15 first sentences")
    for query, grades in zip(data.queries, data.grades, strict=True):
        assert [f"{query} {data.documents[number]}" in held_out for number in grades] == [True]
    assert len(data.documents) == 150 and not set(data.documents) & set(held_out)


def test_too_few_headings_are_no_queries(tmp_path: Path) -> None:
    """30 documents of one heading each: three are held out, with many texts."""
    files = write_documents(tmp_path / "docs")
    texts = english_sentences(12 * len(files), seed=4)
    for number, file in enumerate(files):
        own_texts = texts[12 * number : 12 * number + 12]
        lines = [f"{first[:-1]}. {second}" for first, second in zip(own_texts[::2], own_texts[1::2], strict=True)]
        file.write_text("# One heading\n\n" + "\n\n".join(lines), encoding="utf-8")
    source = str(tmp_path / "docs")
    own = Own.of([source], seed=1)
    corpus = build_corpus(
        tmp_path / "corpus", [source, write_general(tmp_path / "general.txt")], Draw(None, 18, 1), own=own
    )
    object.__setattr__(corpus, "own", own)
    data, what = own_documents(corpus, ESTIMATE, seed=1)
    assert data is not None and what.startswith("search on your documents is judged by 18 first sentences of texts")


def test_single_sentences_give_no_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, general = tmp_path / "own.txt", write_general(tmp_path / "general.txt")
    path.write_text("\n".join(english_sentences(100)), encoding="utf-8")
    own = Own.of([str(path)], seed=1)
    corpus = build_corpus(tmp_path / "corpus", [str(path), general], Draw(None, 10, 1), own=own)
    object.__setattr__(corpus, "own", own)
    data, what = own_documents(corpus, ESTIMATE, seed=1)
    assert data is None and "is not judged: there are fewer than 5 headings" in what
    path.write_text("Only one.\n")
    with pytest.raises(InputError, match=r"own\.txt: too little text"):
        build_corpus(tmp_path / "one", [str(path), general], Draw(None, 10, 1), own=own)


def test_a_directory_is_walked_through_once_for_all_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_documents(tmp_path / "docs", 4)
    for number, text in enumerate(english_sentences(20, seed=9)):
        (tmp_path / "docs" / f"{number}.txt").write_text(text)
    walks, real = [], sources.documents_in
    monkeypatch.setattr(sources, "documents_in", lambda directory: walks.append(directory) or real(directory))
    own = Own.of([str(tmp_path / "docs")], seed=1)
    assert len(own.held_out) == 1 and len(walks) == 1
    walks.clear()
    passages = list(module.other_passages(own, ESTIMATE, {english_sentences(20, seed=9)[0]}))
    assert len(passages) == 19 + 3 * 6 and len(walks) == 1
    walks.clear()
    assert [len(part.files or ()) for part in own.parts([])] == [1, 3 + 20] and len(walks) == 1


def test_the_last_line() -> None:
    after = {"kept": 0.994, "kept_interval": [0.977, 1.009], "found@10": 0.83}
    systems = {"student": after, "before": {"kept": 0.924, "found@10": 0.59}}
    assert verdict({"retrieval": {module.NAME: systems}}) == (
        "search on your documents: 92.4% -> 99.4% [97.7, 100.9] of the teacher's nDCG@10; "
        "of its first ten documents 59.0% -> 83.0% are found"
    )
    assert "documents: 99.4% [97.7, 100.9] of" in verdict({"retrieval": {module.NAME: {"student": after}}})
    assert verdict({"retrieval": {"others": systems}}) == verdict({}) == ""


def test_a_run_ends_with_the_verdict_and_the_report_leads_with_it(
    tmp_path: Path, tiny_model_dir: Path, call: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    write_documents(tmp_path / "docs")
    start = make_bert_dir(tmp_path / "start", layers=3, seed=5)
    recipe = write_recipe(
        tmp_path, tiny_model_dir, layers="all", start_from=str(start), epochs=3,
        general=[write_general(tmp_path / "general.txt")],
    )  # fmt: skip
    ended = train(recipe, "--sentences", tmp_path / "docs")
    assert ended.status == 0, ended.err
    line = ended.out.strip().splitlines()[-1]
    assert line.startswith("search on your documents: ") and " -> " in line
    run = RunDirectory(tmp_path / "runs" / "tiny")
    systems = run.json("evaluation.json")["retrieval"]["own-documents"]
    assert set(systems) == {"student", "teacher", "asymmetric", "before"}
    data = read_retrieval("own-documents", str(run.path / "own-documents"))
    found = evaluate_retrieval(data, *(embed_set(load(path), data) for path in (start, tiny_model_dir)))["student"]
    assert systems["before"] == pytest.approx({key: found[key] for key in ("ndcg@10", "found@10", "kept")})
    docs = "\n".join(path.read_text() for path in (tmp_path / "docs").iterdir())
    assert all(text in docs for text in run.json("held_out.json")["sentences"])

    call(evaluate.main, run.path / "model", "--precision", "fp32")
    assert capsys.readouterr().out.strip().splitlines()[-1] == line
    call(report.main, run.path)
    card = (run.path / "model" / "README.md").read_text()
    headline = capsys.readouterr().out.strip().splitlines()[-1]
    assert headline.startswith("search on your documents: ") and line.split(";")[0].split("[")[0] in headline
    assert json.dumps(headline)[1:-1] in (run.path / "report.html").read_text().replace("\\u003e", ">")
    assert "search on your documents: " in card
