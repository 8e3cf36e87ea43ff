"""Evaluation: the figures of scipy and sentence-transformers, honest intervals, a command that knows its run."""

import dataclasses
import itertools
import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from sentence_transformers.sentence_transformer.evaluation import (
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
    MSEEvaluator,
)
from tiny import english_sentences, load, make_bert_dir, peer, put

from shortstack import evaluate as command_module
from shortstack.distillation.data.labels import LabelledSentences
from shortstack.distillation.data.sentences import Texts
from shortstack.distillation.evaluation import retrieval, sts
from shortstack.distillation.evaluation.bootstrap import RESAMPLES, bootstrap, interval, spearmans
from shortstack.distillation.evaluation.embeddings import SetEmbeddings, embed_set, teacher_embeddings
from shortstack.distillation.evaluation.judge import Judge
from shortstack.distillation.evaluation.neighbours import distance_to_teacher, found_neighbours
from shortstack.distillation.evaluation.results import finite
from shortstack.distillation.evaluation.retrieval import MEASURES, evaluate_retrieval, missed_documents, quick_figures
from shortstack.distillation.evaluation.sets import RetrievalSet, StsPairs
from shortstack.distillation.evaluation.sts import correlations, sts_similarities
from shortstack.distillation.evaluation.table import table
from shortstack.distillation.recipe import Recipe, read_recipe, recipe_text
from shortstack.model import Embedder
from shortstack.model.files import read_json

SENTENCES = english_sentences(80)


def make_pairs(name: str = "sts-dev", count: int = 60, seed: int = 0) -> StsPairs:
    """Distinct pairs of SENTENCES, many of which are in several, with scores that know nothing of any model."""
    generator = np.random.default_rng(seed)
    pairs = generator.choice(list(itertools.combinations(SENTENCES, 2)), size=count, replace=False)
    return StsPairs(name, pairs[:, 0].tolist(), pairs[:, 1].tolist(), generator.integers(0, 6, count) / 1.0)


def pair_of_models(path: Path) -> tuple[Embedder, Embedder]:
    teacher = load(path)
    return teacher.keep_layers([0, 5]).use_precision("fp32"), teacher


def without_roles(sentences: list[str]) -> Texts:
    return Texts(sentences, [""] * len(sentences))


KINDS: dict[str, dict[str, Any]] = {
    "mean, normalised": {},
    "cls, raw": {"layers": 8, "hidden": 48, "heads": 6, "pooling": "cls", "normalize": False, "dtype": "float16"},
    "prompts": {
        "layers": 2, "normalize": False, "default_prompt": "sts",
        "prompts": {"query": "who sees: ", "document": "the answer is ", "sts": "again "},
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of each kind, always with the same weights: a rank could turn on the last digit of a similarity."""
    torch.manual_seed(0)
    return make_bert_dir(tmp_path_factory.mktemp("models") / "model", **KINDS[request.param])


# -- STS -------------------------------------------------------------------------------------------------------------


def test_correlations_are_scipys_and_sentence_transformers(path: Path) -> None:
    pairs = make_pairs()
    similarities = sts_similarities(load(path), pairs)
    found = correlations(similarities, pairs.scores)
    assert found["spearman_cosine"] == stats.spearmanr(similarities, pairs.scores)[0]
    assert found["pearson_cosine"] == stats.pearsonr(similarities, pairs.scores)[0]
    theirs = EmbeddingSimilarityEvaluator(
        pairs.sentences1, pairs.sentences2, pairs.scores.tolist(), main_similarity="cosine"
    )(peer(path))
    assert found["pearson_cosine"] == pytest.approx(theirs["pearson_cosine"], abs=1e-5)
    assert found["spearman_cosine"] == pytest.approx(theirs["spearman_cosine"], abs=2e-3)  # two neighbours may swap


def test_similarities_are_each_pairs_own(tiny_cls_dir: Path) -> None:
    embedder, pairs = load(tiny_cls_dir), make_pairs()
    pairs.sentences1[3] = pairs.sentences2[3] = "the same\0"
    expected = np.diag(embedder.similarity(embedder.encode(pairs.sentences1), embedder.encode(pairs.sentences2)))
    np.testing.assert_allclose(sts_similarities(embedder, pairs), expected, atol=1e-6)


def test_a_text_in_many_pairs_is_embedded_once(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = load(tiny_model_dir)
    seen: list[str] = []
    real = embedder.tokenize
    monkeypatch.setattr(embedder, "tokenize", lambda texts, prompt="": seen.extend(texts) or real(texts, prompt))
    sts_similarities(embedder, StsPairs("a", ["x", "x", "y"], ["y", "z", "x"], np.arange(3.0)))
    assert sorted(seen) == ["x", "y", "z"]


def related(count: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 11, size=count) / 2
    return scores + noise * generator.normal(size=count), scores


def test_bootstrap_is_the_spearman_of_resampled_pairs() -> None:
    similarities, scores = related(30, noise=2)
    found = bootstrap(spearmans, [similarities, -similarities, scores], seed=3)
    assert found.shape == (2, RESAMPLES)
    generator = np.random.default_rng(3)
    for number in range(20):
        sample = generator.integers(30, size=30)
        expected = stats.spearmanr(similarities[sample], scores[sample]).statistic
        np.testing.assert_allclose(found[:, number], [expected, -expected], atol=1e-12)
    np.testing.assert_array_equal(found, bootstrap(spearmans, [similarities, -similarities, scores], seed=3))
    assert (found != bootstrap(spearmans, [similarities, -similarities, scores], seed=4)).any()


def test_an_interval_is_the_middle_95_percent() -> None:
    assert interval(np.random.default_rng(0).permutation(1001).astype(float)) == [25, 975]


@pytest.mark.filterwarnings("error")
def test_a_set_of_two_pairs_has_an_interval_too() -> None:
    found = bootstrap(spearmans, [np.array([0.1, 0.2]), np.array([1.0, 2.0])])
    assert interval(found[0]) == pytest.approx([1, 1])  # half of the resamples hold one pair twice and are left out


# -- distance to the teacher -----------------------------------------------------------------------------------------


def test_distance_by_hand() -> None:
    teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    found = distance_to_teacher(teacher / 2, teacher)
    assert found["negative_mse"] == pytest.approx(-100 * 0.125)
    assert found["relative_error"] == pytest.approx(0.25)
    assert found["mean_cosine"] == pytest.approx(1) and found["p5_cosine"] == pytest.approx(1)
    mean = distance_to_teacher(teacher.mean(dim=0).expand(4, 2), teacher)
    assert mean["relative_error"] == pytest.approx(1)
    cosines = torch.linspace(-1, 1, 101)
    around = torch.stack([cosines, (1 - cosines.square()).sqrt()], dim=1)
    found = distance_to_teacher(around, torch.tensor([1.0, 0.0]).expand(101, 2))
    assert found["mean_cosine"] == pytest.approx(0, abs=1e-6) and found["p5_cosine"] == pytest.approx(-0.9)


def test_agreement_is_of_the_order_of_similarities() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(30, 8, generator=generator)
    assert distance_to_teacher(teacher @ torch.linalg.qr(torch.randn(8, 8, generator=generator))[0], teacher)[
        "agreement"
    ] == pytest.approx(1, abs=1e-3)  # a turned space is far from the teacher's, and ranks alike
    other = torch.randn(30, 8, generator=generator)
    assert abs(distance_to_teacher(other, teacher)["agreement"]) < 0.2
    by_hand = [F.cosine_similarity(rows[:, None], rows[None], dim=2).numpy() for rows in (other, teacher)]
    above = [[matrix[i, j] for i in range(30) for j in range(i + 1, 30)] for matrix in by_hand]
    found = distance_to_teacher(other, teacher)["agreement"]
    assert found == pytest.approx(stats.spearmanr(*above).statistic, abs=1e-6)
    assert math.isnan(distance_to_teacher(teacher[:2], teacher[:2])["agreement"])


def test_negative_mse_is_sentence_transformers(path: Path, tmp_path: Path) -> None:
    teacher = load(path)
    student = teacher.keep_layers([0, 1])
    student.save(tmp_path / "student")
    figures, _ = Judge(held_out=without_roles(SENTENCES)).fully(load(tmp_path / "student"), teacher)
    theirs = MSEEvaluator(SENTENCES, SENTENCES, teacher_model=peer(path), write_csv=False)(peer(tmp_path / "student"))
    assert figures["student"]["negative_mse"] == pytest.approx(theirs["negative_mse"], rel=1e-4)


# -- retrieval -------------------------------------------------------------------------------------------------------


def at_angles(*degrees: float) -> torch.Tensor:
    angles = torch.deg2rad(torch.tensor(degrees))
    return 3 * torch.stack([angles.cos(), angles.sin()], dim=1)


def judged(
    queries: torch.Tensor, documents: torch.Tensor, relevant: Sequence[set[int] | dict[int, float]]
) -> dict[str, float]:
    """Figures of embeddings, with a grade of 1 where only sets of documents are given."""
    grades = [wanted if isinstance(wanted, dict) else dict.fromkeys(wanted, 1.0) for wanted in relevant]
    return quick_figures(SetEmbeddings(queries, documents), grades)


def test_retrieval_by_hand() -> None:
    documents = at_angles(*range(0, 150, 10))  # from the query at 0 degrees: document 0, then 1, 2, ...
    found = judged(at_angles(0), documents, [{2, 4, 12}])
    assert found["mrr@10"] == pytest.approx(1 / 3)
    gains, ideal = 1 / np.log2([4, 6]), 1 / np.log2([2, 3, 4])
    assert found["ndcg@10"] == pytest.approx(gains.sum() / ideal.sum())
    assert found["recall@1"] == 0 and found["recall@10"] == pytest.approx(2 / 3)
    both = judged(at_angles(0, 140), documents, [{2, 4, 12}, {14}])
    assert both["mrr@10"] == pytest.approx((1 / 3 + 1) / 2) and both["recall@1"] == pytest.approx(0.5)
    assert judged(at_angles(0), documents, [{11}])["mrr@10"] == 0


def test_fewer_documents_than_ten() -> None:
    found = judged(at_angles(0), at_angles(0, 10), [{0, 1}])
    assert found == {"mrr@10": 1, "ndcg@10": 1, "recall@1": 0.5, "recall@10": 1}


def make_retrieval(queries: int = 20) -> RetrievalSet:
    grades = [dict.fromkeys([number, (7 * number) % 50, 49 - number], 1.0) for number in range(queries)]
    return RetrievalSet("captions", SENTENCES[-queries:], SENTENCES[:50], grades)


def measures(figures: dict[str, Any]) -> dict[str, float]:
    return {key: figures[key] for key in MEASURES}


def test_retrieval_is_sentence_transformers(path: Path) -> None:
    data = make_retrieval()
    found = evaluate_retrieval(data, embed_set(load(path), data))["student"]
    theirs = InformationRetrievalEvaluator(
        queries={str(number): text for number, text in enumerate(data.queries)},
        corpus={str(number): text for number, text in enumerate(data.documents)},
        relevant_docs={str(number): {str(place) for place in wanted} for number, wanted in enumerate(data.grades)},
        write_csv=False,
    )(peer(path))
    for key in MEASURES:
        assert found[key] == pytest.approx(theirs[f"cosine_{key}"], abs=1e-9), key


def test_documents_take_a_passage_prompt_and_no_default_one(tiny_cls_dir: Path) -> None:
    embedder, data = load(tiny_cls_dir), make_retrieval()
    for prompts, query, document in (
        ({"query": "q ", "passage": "p ", "corpus": "c "}, "q ", "p "),
        ({"corpus": "c ", "sts": "again "}, "", "c "),
        ({"sts": "again "}, "", ""),
    ):
        embedder.settings.prompts = prompts
        vectors = (embedder.encode(data.queries, prompt=query), embedder.encode(data.documents, prompt=document))
        expected = judged(*map(torch.as_tensor, vectors), data.grades)
        assert measures(evaluate_retrieval(data, embed_set(embedder, data))["student"]) == expected


def test_asymmetric_is_the_students_queries_in_the_teachers_documents(tiny_model_dir: Path) -> None:
    student, teacher = pair_of_models(tiny_model_dir)
    data = make_retrieval()
    found = evaluate_retrieval(data, embed_set(student, data), embed_set(teacher, data))
    queries, documents = torch.as_tensor(student.encode(data.queries)), torch.as_tensor(teacher.encode(data.documents))
    assert measures(found["asymmetric"]) == judged(queries, documents, data.grades)
    assert measures(found["teacher"]) == measures(evaluate_retrieval(data, embed_set(teacher, data))["student"])
    assert len({values["ndcg@10"] for values in found.values()}) == 3
    for who in ("student", "asymmetric"):
        kept, whole = found[who]["ndcg@10"], found["teacher"]["ndcg@10"]
        assert found[who]["kept"] == kept / whole
        low, high = found[who]["difference"]["interval"]
        assert low < found[who]["difference"]["ndcg@10"] == kept - whole < high
        assert found[who]["interval"][0] < kept < found[who]["interval"][1]


def test_a_lost_search_is_clear_and_the_same_search_within_the_noise(tiny_model_dir: Path) -> None:
    teacher = load(tiny_model_dir)
    data = make_retrieval()
    same, _ = Judge(retrieval=[data]).fully(teacher, teacher)
    assert same["retrieval"]["captions"]["student"]["difference"]["clear"] is False
    assert "100.0% of the teacher's nDCG@10 kept, within the noise" in table(same)
    data = RetrievalSet("captions", data.queries, data.documents, [{row: 1.0} for row in range(len(data.queries))])
    units, count = torch.eye(60), len(data.queries)
    perfect = SetEmbeddings(units[:count], units[:50])
    useless = SetEmbeddings(units[-count:], units[-50:])
    lost = evaluate_retrieval(data, useless, perfect)
    assert lost["teacher"]["ndcg@10"] == 1 and lost["student"]["difference"]["clear"] is True


def test_what_the_student_missed_is_shown_with_what_it_found_instead() -> None:
    data = make_retrieval(2)
    units = torch.eye(50)
    teacher = SetEmbeddings(units[:10].sum(dim=0).repeat(2, 1), units)  # wants documents 0 to 9 for both
    ours = torch.stack([units[:10].sum(dim=0), units[5:15].sum(dim=0)])
    first, second = missed_documents(data, SetEmbeddings(ours, units), teacher)
    assert (first["query"], first["found"]) == (data.queries[1], 0.5)
    assert sorted(first["teacher"]) == sorted(data.documents[:5])
    assert sorted(first["student"]) == sorted(data.documents[10:15])
    assert second == {"query": data.queries[0], "found": 1.0, "teacher": [], "student": []}


# -- neighbours ------------------------------------------------------------------------------------------------------


def test_neighbours_by_hand() -> None:
    """On a circle the nearest of a point are those beside it; the student has two points swapped."""
    teacher = at_angles(*range(0, 26 * 13, 13))
    found = found_neighbours(teacher, 7 * teacher)
    assert found["student"].tolist() == [1.0] * 26 and found["asymmetric"].tolist() == [1.0] * 26
    student = teacher.clone()
    student[[0, 13]] = teacher[[13, 0]]
    found = found_neighbours(student, teacher)
    # Each other point has one of the two that were swapped among its ten; these two see the far side.
    assert found["student"][0] == found["student"][13] == found["asymmetric"][0] == 0.0
    assert found["student"][1] == pytest.approx(0.9) and found["asymmetric"][1] == 1.0


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """To neighbours, and to queries among documents; four sentences have three neighbours each."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(40, 8, generator=generator), torch.randn(40, 8, generator=generator)
    relevant = [{number, (number + 5) % 40} for number in range(40)]
    neighbours, found = found_neighbours(student, teacher), judged(student, teacher, relevant)
    assert 0.1 < neighbours["student"].mean() < 0.5
    monkeypatch.setattr(retrieval, "SIMILARITIES", 100)
    assert judged(student, teacher, relevant) == pytest.approx(found)
    for who, shares in found_neighbours(student, teacher).items():
        assert shares.tolist() == neighbours[who].tolist()
    assert found_neighbours(student[:4], teacher[:4])["student"].tolist() == [1.0] * 4


def test_the_sentences_with_the_fewest_neighbours_found_are_shown(tiny_model_dir: Path) -> None:
    student, teacher = pair_of_models(tiny_model_dir)
    figures, _ = Judge(held_out=without_roles(SENTENCES)).fully(student, teacher)
    shares = found_neighbours(*(torch.as_tensor(model.encode(SENTENCES)) for model in (student, teacher)))
    overlap = figures["overlap"]
    assert overlap["student"]["overlap@10"] == pytest.approx(shares["student"].mean())
    assert overlap["student"]["interval"][0] < overlap["student"]["overlap@10"] < overlap["student"]["interval"][1]
    assert [row["found"] for row in overlap["worst"]] == pytest.approx(sorted(shares["student"])[:5])
    first = overlap["worst"][0]
    similarities = teacher.similarity(teacher.encode(first["sentence"]), teacher.encode(SENTENCES))[0]
    assert first["nearest by the teacher"] == SENTENCES[int(similarities.topk(2).indices[1])]


# -- prompts ---------------------------------------------------------------------------------------------------------


def test_labels_log_and_evaluation_agree_about_prompts(tmp_path: Path) -> None:
    """A teacher with prompts of its own: what training watches is what the evaluation says, in every role."""
    torch.manual_seed(0)  # with some weights, prompts hardly change the mean error
    teacher = load(make_bert_dir(tmp_path / "model", **KINDS["prompts"]))
    student = teacher.keep_layers([1]).use_precision("fp32")
    roles = ["query", "document", "", "query"] * 20
    tokens = teacher.tokenize(teacher.with_prompts(SENTENCES, roles))
    held_out = LabelledSentences(tokens, teacher.embed(tokens))
    for role, prompt_name in (("query", "query"), ("document", "document"), ("", None)):
        rows = [row for row, each in enumerate(roles) if each == role]
        expected = teacher.encode([SENTENCES[row] for row in rows], prompt_name)
        np.testing.assert_allclose(held_out.labels[rows], expected, atol=1e-6)
    sets = [make_pairs(), make_pairs("other", seed=1)]
    judge = Judge(sets, [make_retrieval()], Texts(SENTENCES, roles)).hear(teacher)
    quick = judge.quickly(student, held_out)
    whole, _ = judge.fully(student, teacher)
    without, _ = Judge(held_out=without_roles(SENTENCES)).fully(student, teacher)
    for pairs in sets:
        for key, value in quick[pairs.name].items():
            assert value == pytest.approx(whole["student"][pairs.name][key], abs=1e-6)
    assert quick["negative_mse"] == pytest.approx(whole["student"]["negative_mse"], rel=1e-5)
    assert quick["relative_error"] == pytest.approx(whole["sanity"]["relative_error"], rel=1e-4)
    assert quick["negative_mse"] != pytest.approx(without["student"]["negative_mse"], rel=1e-3)
    assert quick["overlap@10"] == pytest.approx(whole["overlap"]["student"]["overlap@10"])
    searched = whole["retrieval"]["captions"]["student"]
    assert quick["captions"] == pytest.approx(measures(searched) | {"found@10": searched["found@10"]})
    assert quick["mean_found@10"] == quick["captions"]["found@10"]


def test_models_of_other_dimensions_have_no_common_space(tiny_model_dir: Path, tiny_cls_dir: Path) -> None:
    student, teacher = load(tiny_model_dir), load(tiny_cls_dir)
    figures, _ = Judge([make_pairs()], [make_retrieval()], without_roles(SENTENCES)).fully(student, teacher)
    assert set(figures["retrieval"]["captions"]) == {"student", "teacher"}
    assert "negative_mse" not in figures["student"] and "sanity" not in figures
    assert figures["retention"]["sts-dev"]
    table(figures)


# -- everything about a model ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def everything(tiny_model_dir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    student, teacher = pair_of_models(tiny_model_dir)
    sets = [make_pairs(), make_pairs("b", 40, 1)]
    return Judge(sets, [make_retrieval()], without_roles(SENTENCES)).fully(student, teacher)


def test_figures_have_the_promised_keys(everything: tuple[dict[str, Any], dict[str, Any]]) -> None:
    figures, pairs = everything
    names = "student teacher retention difference models mean sanity overlap retrieval missed"
    assert set(figures) == set(names.split())
    assert set(figures["student"]) == {"sts-dev", "b", "negative_mse"} and set(figures["teacher"]) == {"sts-dev", "b"}
    for name in ("sts-dev", "b"):
        student, teacher = (figures[who][name] for who in ("student", "teacher"))
        assert set(student) == {"pearson_cosine", "spearman_cosine", "spearman_interval", "pairs"}
        kept, whole = student["spearman_cosine"], teacher["spearman_cosine"]
        assert figures["retention"][name] == kept / whole
        difference = figures["difference"][name]
        assert difference["spearman"] == kept - whole
        low, high = difference["interval"]
        assert low < kept - whole < high and difference["clear"] == (low > 0 or high < 0)
        assert student["spearman_interval"][0] < kept < student["spearman_interval"][1]
    for who in ("student", "teacher"):
        spearmans = [figures[who][name]["spearman_cosine"] for name in ("sts-dev", "b")]
        assert figures["mean"][who]["spearman_cosine"] == pytest.approx(np.mean(spearmans))
    assert figures["models"]["student"]["layers"] == 2 and figures["models"]["teacher"]["layers"] == 6
    assert figures["models"]["student"]["parameters"] < figures["models"]["teacher"]["parameters"]
    assert set(pairs["b"]) == {"sentences1", "sentences2", "human", "student", "teacher"}
    assert {len(column) for column in pairs["b"].values()} == {40}
    json.dumps([figures, pairs], allow_nan=False)


def test_a_student_that_is_the_teacher_loses_nothing(tiny_model_dir: Path) -> None:
    teacher = load(tiny_model_dir)
    figures, _ = Judge([make_pairs()], [make_retrieval()], without_roles(SENTENCES)).fully(teacher, teacher)
    assert figures["retention"]["sts-dev"] == 1 and figures["difference"]["sts-dev"]["clear"] is False
    assert figures["student"]["negative_mse"] == 0 and figures["sanity"]["p5_cosine"] == pytest.approx(1)
    searched = figures["retrieval"]["captions"]
    assert measures(searched["asymmetric"]) == measures(searched["teacher"]) and searched["asymmetric"]["kept"] == 1
    assert figures["overlap"]["student"] == {"overlap@10": 1.0, "interval": [1.0, 1.0]}


def test_a_clear_difference_is_called_clear(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, scores = related(300, noise=1)
    bad = np.random.default_rng(9).normal(size=300)
    models = {2: bad, 6: good}
    monkeypatch.setattr(sts, "sts_similarities", lambda embedder, pairs: models[embedder.bert.config.num_hidden_layers])
    pairs = StsPairs("a", ["x"] * 300, ["y"] * 300, scores)
    figures, _ = Judge([pairs]).fully(*pair_of_models(tiny_model_dir))
    assert figures["difference"]["a"]["clear"] is True and figures["difference"]["a"]["interval"][1] < 0
    assert ", clear" in table(figures)


def test_a_teacher_without_any_correlation_has_no_share_to_keep(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sts, "sts_similarities", lambda *_: np.array([0.1, 0.2, 0.2, 0.1]))
    pairs = StsPairs("a", ["x"] * 4, ["y"] * 4, np.array([1.0, 1.0, 2.0, 2.0]))
    figures, _ = Judge([pairs]).fully(*pair_of_models(tiny_model_dir))
    assert np.isnan(figures["retention"]["a"]) and "       –   +0.0000" in table(figures)


def test_the_table_is_even(everything: tuple[dict[str, Any], dict[str, Any]]) -> None:
    figures, _ = everything
    lines = table(figures).splitlines()
    assert lines[0].split() == ["STS", "set", "pairs", "student", "Spearman", "teacher", "kept", "difference"]
    end = lines[0].index("teacher") + len("teacher")
    for line, name in zip(lines[1:3], ("sts-dev", "b"), strict=True):
        assert line.startswith(name) and line[:end].endswith(f"{figures['teacher'][name]['spearman_cosine']:.4f}")
    assert lines[3].startswith("mean") and lines[3].endswith(f"{figures['mean']['teacher']['spearman_cosine']:.4f}")
    assert len(lines[3]) == end
    assert any(line.split() == ["captions", "found@10", *MEASURES] for line in lines)
    assert sum(line.startswith("  asymmetric ") for line in lines) == 1
    assert lines[-4].startswith("negative MSE -") and lines[-3].startswith("cosine to the teacher: mean ")
    assert lines[-1].startswith("overlap@10: of the teacher's ten nearest neighbours the student finds ")
    agreement = f"{figures['sanity']['agreement']:.4f}"
    assert lines[-2] == f"agreement with the teacher on which sentences are similar: {agreement}"


# -- the command -----------------------------------------------------------------------------------------------------


def write_sts(path: Path, seed: int = 0) -> Path:
    pairs = make_pairs(seed=seed)
    rows = zip(pairs.sentences1, pairs.sentences2, pairs.scores, strict=True)
    path.write_text("sentence1\tsentence2\tscore\n" + "".join(f"{a}\t{b}\t{score}\n" for a, b, score in rows))
    return path


@pytest.fixture
def run(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A run directory as training leaves it: a recipe, held-out sentences and a student."""
    directory = tmp_path / "runs" / "small"
    load(tiny_model_dir).keep_layers([0, 5]).save(directory / "model")
    sts = {"dev": str(write_sts(tmp_path / "dev.tsv"))}
    recipe = Recipe(
        name="small", teacher=str(tiny_model_dir), sentences=["a.txt"], sts=sts, max_length=40, pooling="cls"
    )
    (directory / "recipe.toml").write_text(recipe_text(recipe))
    (directory / "held_out.json").write_text(json.dumps(without_roles(SENTENCES[:30])._asdict()))
    return directory


Call = Callable[..., None]


def command(call: Call, *arguments: str | Path) -> None:
    call(command_module.main, *arguments, "--precision", "fp32")


def test_a_runs_own_teacher_sets_and_sentences(
    run: Path, tiny_model_dir: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    command(call, run / "model")
    figures = read_json(run / "evaluation.json")
    teacher = Embedder.load(tiny_model_dir, "cpu", "fp32", pooling="cls", max_length=40)  # as the recipe says
    judge = Judge([make_pairs("dev")], held_out=without_roles(SENTENCES[:30]))
    expected, pairs = judge.fully(load(run / "model"), teacher)
    assert figures["teacher"] == expected["teacher"] and figures["student"] == expected["student"]
    assert read_json(run / "evaluation_pairs.json") == pairs
    printed = capsys.readouterr().out
    assert table(expected) in printed and f"wrote {run / 'evaluation.json'}" in printed


def test_a_run_without_sets_is_judged_by_its_held_out_text(
    run: Path, tiny_model_dir: Path, tiny_cls_dir: Path, call: Call, refusal: Callable[..., str]
) -> None:
    recipe = Recipe(name="small", teacher=str(tiny_model_dir), sentences=["a.txt"])
    (run / "recipe.toml").write_text(recipe_text(recipe))
    command(call, run / "model")
    assert set(read_json(run / "evaluation.json")["student"]) == {"negative_mse"}
    assert "nothing to evaluate on" in refusal(command_module.main, run / "model", "--teacher", "none")
    assert "there is no distance" in refusal(command_module.main, run / "model", "--teacher", tiny_cls_dir)
    assert "negative_mse" in read_json(run / "evaluation.json")["student"]


def test_flags_win_over_the_run(run: Path, tmp_path: Path, call: Call) -> None:
    (tmp_path / "text.txt").write_text("\n".join(SENTENCES[40:]))
    captions = [put(tmp_path / f"captions.{n}.txt", "\n".join(SENTENCES[20 * n : 20 * n + 20])) for n in range(2)]
    command(
        call, run / "model", "--teacher", run / "model", "--sts", f"a={write_sts(tmp_path / 'a.tsv', 1)}",
        f"b={write_sts(tmp_path / 'b.tsv', 2)}", "--retrieval", f"captions=parallel:{captions[0]},{captions[1]}",
        "--sentences", tmp_path / "text.txt", "--output", tmp_path / "out",
    )  # fmt: skip
    figures = read_json(tmp_path / "out" / "evaluation.json")
    assert set(figures["retention"]) == {"a", "b"} and set(figures["retention"].values()) == {1}
    assert figures["student"]["negative_mse"] == 0
    assert set(figures["retrieval"]["captions"]) == {"student", "teacher", "asymmetric"}
    assert not (run / "evaluation.json").exists()


def test_a_flag_replaces_the_runs_sets_of_its_own_kind_only(run: Path, tmp_path: Path, call: Call) -> None:
    text = put(tmp_path / "text.txt", "\n".join(SENTENCES[:20]))
    recipe = dataclasses.replace(read_recipe(run / "recipe.toml"), retrieval={"same": f"parallel:{text},{text}"})
    (run / "recipe.toml").write_text(recipe_text(recipe))
    kinds = {"--sts": f"a={write_sts(tmp_path / 'a.tsv', 1)}", "--retrieval": f"other=parallel:{text},{text}"}
    wanted = {"--sts": ({"a"}, {"same"}), "--retrieval": ({"dev"}, {"other"})}
    for number, (flag, source) in enumerate(kinds.items()):
        command(call, run / "model", flag, source, "--output", tmp_path / str(number))
        figures = read_json(tmp_path / str(number) / "evaluation.json")
        assert (set(figures["retention"]), set(figures["retrieval"])) == wanted[flag]


def test_without_a_teacher(
    run: Path, call: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command(call, run / "model", "--teacher", "none")
    figures = read_json(run / "evaluation.json")
    assert "teacher" not in figures and figures["retention"] == {} and set(figures["student"]) == {"dev"}
    first = capsys.readouterr().out.splitlines()[0]
    assert first.split() == ["STS", "set", "pairs", "student", "Spearman"]

    alone = shutil.copytree(run / "model", tmp_path / "elsewhere" / "model")  # no run there: no teacher, no sets
    monkeypatch.chdir(tmp_path)
    command(call, alone, "--sts", f"a={tmp_path / 'dev.tsv'}", f"b={tmp_path / 'dev.tsv'}")
    figures = read_json(tmp_path / "evaluation.json")
    assert "teacher" not in figures and figures["student"]["a"] == figures["student"]["b"]
    assert "nan" not in capsys.readouterr().out


def test_only_the_distance_or_only_retrieval(
    run: Path, tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(SENTENCES))
    alone = shutil.copytree(run / "model", tmp_path / "elsewhere" / "model")
    command(call, alone, "--teacher", run / "model", "--sentences", text, "--output", tmp_path)
    assert set(read_json(tmp_path / "evaluation.json")["student"]) == {"negative_mse"}
    command(call, alone, "--retrieval", f"same=parallel:{text},{text}", "--output", tmp_path)
    assert read_json(tmp_path / "evaluation.json")["retrieval"]["same"]["student"]["recall@1"] == 1
    assert "STS set" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{model}"], "nothing to evaluate on: give --sts NAME=SOURCE"),
        (["{model}", "--sts", "dev.tsv"], "--sts: 'dev.tsv' is not of the form NAME=SOURCE"),
        (["{model}", "--sts", "negative_mse=a.tsv"], "--sts: the name 'negative_mse' is taken"),
        (["{model}", "--sts", "bad={bad}"], "bad.csv:3: score 'high' is not a finite number"),
        (["{model}", "--retrieval", "x"], "--retrieval: 'x' is not of the form NAME=SOURCE"),
        (["{model}", "--retrieval", "x=missing"], "missing: neither a directory nor"),
        (["{model}", "--sentences", "a.txt"], "--sentences: the negative MSE to a teacher needs one"),
        (["{model}", "--sentences", "{sts}", "--teacher", "{other}"], "there is no distance between them"),
        (["./missing", "--sts", "a={sts}"], "./missing: no such model directory"),
        (["{model}", "--sts", "a={sts}", "--teacher", "./missing"], "./missing: no such model directory"),
        (["{model}", "--sts", "a={sts}", "--precision", "fp8"], "precision: 'fp8' is not one of"),
        (["{model}", "--sts", "a={sts}", "--device", "cuda:77"], "device: 'cuda:77' can't be used"),
        ([], "the following arguments are required: MODEL; see --help"),
    ],
)
def test_a_wrong_argument_is_one_line_and_status_2(
    tiny_model_dir: Path, tiny_cls_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    refusal: Callable[..., str], arguments: list[str], words: str,
) -> None:  # fmt: skip
    bad = put(tmp_path / "bad.csv", "sentence1,sentence2,score\na,b,1\nc,d,high\n")
    places = {"model": tiny_model_dir, "other": tiny_cls_dir, "sts": write_sts(tmp_path / "sts.tsv"), "bad": bad}
    monkeypatch.chdir(tmp_path)
    assert words in refusal(command_module.main, *(argument.format(**places) for argument in arguments))
    assert not (tmp_path / "evaluation.json").exists()


# -- what evaluation.json keeps --------------------------------------------------------------------------------------


def test_grades_are_the_gains_of_ndcg() -> None:
    found = judged(at_angles(0), at_angles(*range(0, 150, 10)), [{2: 1.0, 4: 3.0}])
    best = 3 / np.log2(2) + 1 / np.log2(3)
    assert found["ndcg@10"] == pytest.approx((1 / np.log2(4) + 3 / np.log2(6)) / best)


def test_found_at_ten_is_the_share_of_the_teachers_first_ten() -> None:
    data = RetrievalSet("a", ["q"], [str(number) for number in range(15)], [{0: 1.0}])
    teacher = SetEmbeddings(at_angles(0), at_angles(*range(0, 150, 10)))
    student = SetEmbeddings(at_angles(0), at_angles(*range(140, -10, -10)))  # finds documents 5 to 14, not 0 to 9
    found = evaluate_retrieval(data, student, teacher)
    assert found["student"]["found@10"] == 0.5 and found["student"]["found@10_interval"] == [0.5, 0.5]
    assert found["asymmetric"]["found@10"] == 1 and "found@10" not in found["teacher"]


def test_an_evaluation_joins_what_is_there(run: Path, tmp_path: Path, call: Call) -> None:
    command(call, run / "model")
    figures = read_json(run / "evaluation.json")
    figures["best_step"] = 7
    (run / "evaluation.json").write_text(json.dumps(figures))
    command(call, run / "model", "--sts", f"a={write_sts(tmp_path / 'a.tsv', 1)}")
    joined = read_json(run / "evaluation.json")
    assert joined["best_step"] == 7 and set(joined["retention"]) == {"dev", "a"}
    assert joined["student"]["dev"] == figures["student"]["dev"]
    assert set(read_json(run / "evaluation_pairs.json")) == {"dev", "a"}


def test_a_damaged_evaluation_is_one_line(run: Path, refusal: Callable[..., str]) -> None:
    (run / "evaluation.json").write_text('{"student": []}')
    assert "evaluation.json: not as evaluate.py writes it" in refusal(command_module.main, run / "model")


def test_numbers_that_json_does_not_have_become_null() -> None:
    assert finite({"a": [math.nan, 1.0, math.inf]}) == {"a": [None, 1.0, None]}


def test_the_teachers_embeddings_are_kept(tiny_model_dir: Path, tmp_path: Path) -> None:
    teacher, data = load(tiny_model_dir), make_retrieval()
    first = teacher_embeddings(teacher, data, tmp_path)
    (file,) = tmp_path.glob("retrieval-*.safetensors")
    written = file.stat().st_mtime_ns
    again = teacher_embeddings(teacher, data, tmp_path)
    assert torch.equal(first.documents, again.documents) and file.stat().st_mtime_ns == written
    file.write_bytes(file.read_bytes()[:-8])
    assert torch.equal(teacher_embeddings(teacher, data, tmp_path).queries, first.queries)


def test_embeddings_that_cannot_be_kept_are_given_all_the_same(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()  # no directory can be made there, also not by root, whom no permission stops
    teacher, data = load(tiny_model_dir), make_retrieval()
    for _ in range(2):
        found = teacher_embeddings(teacher, data, tmp_path / "file" / "labels")
        assert torch.equal(found.queries, embed_set(teacher, data).queries)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{tmp_path}/file/labels: can't keep the teacher's embeddings (Not a directory)")


def test_figures_that_were_not_numbers_are_dashes(everything: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """NaN is null in the file, and None when an evaluation of other sets reads it again."""

    def gone(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: gone(part) for key, part in value.items()}
        return [gone(part) for part in value] if isinstance(value, list) else None if type(value) is float else value

    lines = table(gone(everything[0])).splitlines()
    assert any("–" in line for line in lines) and not any("None" in line or "nan" in line for line in lines)
