"""Embedder gives the embeddings of sentence-transformers, whichever of the two wrote the model directory."""

import copy
import csv
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from tiny import AWKWARD, edit, english_sentences, make_bert_dir
from transformers import AutoModel, AutoTokenizer

from shortstack.model import Embedder
from shortstack.model.files import InputError
from shortstack.model.pooling import Pooling
from shortstack.model.tokens import PackedTokens, Tokenized

SENTENCES = AWKWARD + english_sentences(60)


def load(path: Path) -> Embedder:
    return Embedder.load(path, device="cpu", precision="fp32")


def peer(path: Path) -> SentenceTransformer:
    """The same directory in sentence-transformers, in fp32 whatever dtype its config names."""
    return SentenceTransformer(str(path), device="cpu", model_kwargs={"dtype": torch.float32})


def assert_same(ours: np.ndarray | torch.Tensor, theirs: np.ndarray | torch.Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(theirs), atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def tiny(tiny_model_dir: Path) -> Embedder:
    return load(tiny_model_dir)


@pytest.fixture(scope="module")
def tiny_cls(tiny_cls_dir: Path) -> Embedder:
    return load(tiny_cls_dir)


# -- the same embeddings as sentence-transformers --------------------------------------------------------------------


def test_minilm_equals_sentence_transformers(minilm_dir: Path) -> None:
    ours, theirs = load(minilm_dir), peer(minilm_dir)
    assert_same(ours.encode(SENTENCES), theirs.encode(SENTENCES))
    assert ours.settings.normalize and ours.settings.pooling is Pooling.MEAN and ours.settings.max_length == 256


def test_minilm_equals_sentence_transformers_on_the_sts_benchmark(minilm_dir: Path, shared_data: Path) -> None:
    with open(shared_data / "stsb" / "sts-dev.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    sentences = [sentence for row in rows[::5] for sentence in row[5:7]]
    assert len(sentences) == 600
    assert_same(load(minilm_dir).encode(sentences), peer(minilm_dir).encode(sentences))


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_cls_teacher_equals_sentence_transformers(tiny_cls_dir: Path, tiny_cls: Embedder, batch_size: int) -> None:
    ours = tiny_cls.encode(SENTENCES, batch_size=batch_size)
    assert_same(ours, peer(tiny_cls_dir).encode(SENTENCES))
    assert np.linalg.norm(ours, axis=1).min() > 1.5  # not normalised


@pytest.mark.parametrize(
    "settings",
    [
        {"pooling": "mean", "normalize": False},
        {"pooling": "cls", "normalize": True},
        {"pooling": None},  # plain transformers: no modules.json
        {"max_length": 8},
        {"max_length": 3},
        {"dense": (16, "torch.nn.modules.activation.Tanh")},
        {"dense": (40, "torch.nn.modules.linear.Identity"), "pooling": "cls"},
        {"dense": (16, "torch.nn.modules.activation.GELU"), "normalize": False},
        {"dense": (16, "torch.nn.modules.activation.ReLU"), "normalize": False},
        {"hidden_act": "relu", "max_position_embeddings": 64},
        {"max_length": 700},  # beyond the positions that the model has
    ],
    ids=str,
)
def test_other_layouts_equal_sentence_transformers(tmp_path: Path, settings: dict) -> None:
    directory = make_bert_dir(tmp_path, layers=2, **settings)
    theirs = peer(directory)
    theirs.max_seq_length = min(theirs.max_seq_length, theirs[0].config.max_position_embeddings)
    assert_same(load(directory).encode(SENTENCES), theirs.encode(SENTENCES))


@pytest.mark.parametrize("changes", [{"truncation_side": "left"}, {"do_lower_case": False}], ids=str)
def test_tokenizer_settings_are_followed(tmp_path: Path, changes: dict) -> None:
    directory = make_bert_dir(tmp_path, layers=2, max_length=12)
    edit(directory / "tokenizer_config.json", **changes)
    assert_same(load(directory).encode(SENTENCES), peer(directory).encode(SENTENCES))


def test_lower_casing_is_the_peers(tmp_path: Path) -> None:
    """do_lower_case of sentence_bert_config.json where the tokenizer would keep case: [MASK] stays a special word."""
    directory = make_bert_dir(tmp_path, layers=2)
    tokenizer = (directory / "tokenizer.json").read_text(encoding="utf-8")
    assert '"lowercase": true' in tokenizer
    (directory / "tokenizer.json").write_text(tokenizer.replace('"lowercase": true', '"lowercase": false'))
    edit(directory / "tokenizer_config.json", do_lower_case=False)
    upper = ["THE DOG [MASK] THE CAT", "Straße ΣΊΣΥΦΟΣ İ"]
    as_it_is = load(directory).encode(upper)
    assert_same(as_it_is, peer(directory).encode(upper))
    edit(directory / "sentence_bert_config.json", do_lower_case=True)
    lowered = load(directory).encode(SENTENCES + upper)
    assert_same(lowered, peer(directory).encode(SENTENCES + upper))
    assert not np.allclose(lowered[-2:], as_it_is, atol=1e-3)
    load(directory).save(tmp_path / "saved")
    assert_same(load(tmp_path / "saved").encode(upper), lowered[-2:])
    assert_same(peer(tmp_path / "saved").encode(upper), lowered[-2:])


def test_transformer_in_a_folder_of_its_own(tmp_path: Path) -> None:
    """The oldest layout: config, weights and tokenizer in 0_Transformer."""
    directory = make_bert_dir(tmp_path / "model", layers=2, max_length=10)
    inner = directory / "0_Transformer"
    inner.mkdir()
    for name in ("config", "tokenizer", "tokenizer_config", "sentence_bert_config"):
        (directory / f"{name}.json").rename(inner / f"{name}.json")
    for name in ("model.safetensors", "vocab.txt"):
        (directory / name).rename(inner / name)
    rows = (directory / "modules.json").read_text(encoding="utf-8").replace('"path": ""', '"path": "0_Transformer"')
    (directory / "modules.json").write_text(rows, encoding="utf-8")
    assert_same(load(directory).encode(SENTENCES), peer(directory).encode(SENTENCES))


# -- students, both ways ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def student(tiny: Embedder) -> Embedder:
    return tiny.keep_layers([0, 2, 5])


@pytest.fixture(scope="module")
def student_dir(student: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("student") / "model"
    student.save(directory)
    return directory


def test_student_saved_by_us_loads_in_sentence_transformers(student: Embedder, student_dir: Path) -> None:
    wanted = student.encode(SENTENCES)
    theirs = peer(student_dir)
    assert_same(theirs.encode(SENTENCES), wanted)
    assert theirs.max_seq_length == 64
    assert len(theirs[0].model.encoder.layer) == 3
    assert_same(load(student_dir).encode(SENTENCES), wanted)


def test_student_saved_by_us_loads_in_transformers(student: Embedder, student_dir: Path) -> None:
    tokenizer, bert = AutoTokenizer.from_pretrained(student_dir), AutoModel.from_pretrained(student_dir).eval()
    inputs = tokenizer(SENTENCES, padding=True, truncation=True, return_tensors="pt")
    assert inputs["input_ids"].shape[1] == 64
    with torch.no_grad():
        hidden = bert(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    pooled = F.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=-1)
    assert_same(student.encode(SENTENCES), pooled)
    pooler = student.bert.pooler
    assert pooler is not None and torch.equal(bert.pooler.dense.weight, pooler.dense.weight)


@pytest.mark.parametrize("dense", [None, (16, "torch.nn.modules.activation.Tanh")], ids=["plain", "dense"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_saved_by_sentence_transformers_loads_in_ours(tmp_path: Path, pooling: str, dense: tuple | None) -> None:
    prompts = {"query": "the question is "}
    theirs = peer(make_bert_dir(tmp_path / "a", layers=2, pooling=pooling, dense=dense, max_length=11, prompts=prompts))
    theirs.save(str(tmp_path / "b"))
    config = (tmp_path / "b" / "1_Pooling" / "config.json").read_text(encoding="utf-8")
    assert f'"pooling_mode": "{pooling}"' in config and "pooling_mode_cls_token" not in config  # their newer layout
    assert "max_seq_length" not in (tmp_path / "b" / "sentence_bert_config.json").read_text(encoding="utf-8")
    ours = load(tmp_path / "b")
    assert ours.settings.max_length == 11
    assert_same(ours.encode(SENTENCES), theirs.encode(SENTENCES))
    assert_same(ours.encode(SENTENCES, prompt_name="query"), theirs.encode(SENTENCES, prompt_name="query"))


@pytest.mark.parametrize("activation", ["activation.Tanh", "linear.Identity", "activation.GELU", "activation.ReLU"])
def test_dense_student_goes_both_ways(tmp_path: Path, activation: str) -> None:
    teacher = load(make_bert_dir(tmp_path / "teacher", layers=3, dense=(20, f"torch.nn.modules.{activation}")))
    student = teacher.keep_layers([0, 2])
    assert student.dimensions == 20
    student.save(tmp_path / "student")
    wanted = student.encode(SENTENCES)
    assert_same(peer(tmp_path / "student").encode(SENTENCES), wanted)
    assert_same(load(tmp_path / "student").encode(SENTENCES), wanted)
    assert student.dense is not None and teacher.dense is not None
    assert student.dense.weight.data_ptr() != teacher.dense.weight.data_ptr()


def test_every_setting_survives_saving(tiny_cls: Embedder, tmp_path: Path) -> None:
    student = tiny_cls.keep_layers([0, 3, 7])
    student.settings.default_prompt_name = "query"
    student.settings.similarity_fn_name = "dot"
    student.set_max_length(20)
    student.save(tmp_path / "model", "# A card\n")
    again = load(tmp_path / "model")
    assert (tmp_path / "model" / "README.md").read_text(encoding="utf-8") == "# A card\n"
    for name, value in vars(student.settings).items():
        assert name == "origin" or getattr(again.settings, name) == value, name
    theirs = peer(tmp_path / "model")
    assert theirs.default_prompt_name == "query" and theirs.similarity_fn_name == "dot"
    assert theirs.prompts["query"] == tiny_cls.settings.prompts["query"]
    assert_same(again.encode(SENTENCES), theirs.encode(SENTENCES))


def test_keeping_every_layer_embeds_like_the_teacher(tiny: Embedder, tiny_cls: Embedder) -> None:
    for teacher in (tiny, tiny_cls):
        every = range(len(teacher.bert.encoder.layer))
        assert_same(teacher.keep_layers(every).encode(SENTENCES), teacher.encode(SENTENCES))


def test_student_and_teacher_share_nothing_that_changes(tiny_cls: Embedder) -> None:
    student = tiny_cls.keep_layers([0, 1])
    student.settings.prompts["other"] = "x"
    student.set_max_length(5)
    assert "other" not in tiny_cls.settings.prompts
    assert tiny_cls.settings.max_length == 64
    assert max(map(len, tiny_cls.tokenize(SENTENCES))) == 64
    addresses = {parameter.data_ptr() for parameter in tiny_cls.parameters()}
    assert addresses.isdisjoint(parameter.data_ptr() for parameter in student.parameters())


# -- prompts ---------------------------------------------------------------------------------------------------------


def test_prompts_equal_sentence_transformers(tiny_cls_dir: Path, tiny_cls: Embedder) -> None:
    theirs, plain = peer(tiny_cls_dir), tiny_cls.encode(SENTENCES)
    for arguments in (
        {"prompt_name": "query"},
        {"prompt_name": "passage"},
        {"prompt": "a text of its own: "},
        {"prompt": ""},
    ):
        ours = tiny_cls.encode(SENTENCES, **arguments)
        assert_same(ours, theirs.encode(SENTENCES, **arguments))
        assert np.allclose(ours, plain, atol=1e-3) == (arguments in ({"prompt_name": "passage"}, {"prompt": ""}))
    both = tiny_cls.encode(SENTENCES, prompt_name="query", prompt="a text of its own: ")
    assert_same(both, theirs.encode(SENTENCES, prompt="a text of its own: "))


def test_default_prompt_equals_sentence_transformers(tmp_path: Path) -> None:
    directory = make_bert_dir(tmp_path, layers=2, prompts={"query": "find ", "plain": ""}, default_prompt="query")
    ours, theirs = load(directory), peer(directory)
    assert_same(ours.encode(SENTENCES), theirs.encode(SENTENCES))
    assert_same(ours.encode(SENTENCES), ours.encode(["find " + sentence for sentence in SENTENCES], prompt=""))
    assert_same(ours.encode(SENTENCES, prompt_name="plain"), theirs.encode(SENTENCES, prompt_name="plain"))


def test_unknown_prompt_is_named(tiny: Embedder, tiny_cls: Embedder) -> None:
    with pytest.raises(InputError, match=r"'qury' is not among this model's prompts \('query', 'passage'\)"):
        tiny_cls.encode("x", prompt_name="qury")
    with pytest.raises(InputError, match=r"\(none\)"):
        tiny.encode("x", prompt_name="query")


@pytest.mark.parametrize("verb", ["encode_query", "encode_document"])
def test_queries_and_documents_equal_sentence_transformers(tmp_path: Path, tiny_cls_dir: Path, verb: str) -> None:
    """With both prompts, with other prompts only, and where another is asked for."""
    other = make_bert_dir(tmp_path, layers=2, prompts={"else": "find "}, default_prompt="else")
    for directory in (tiny_cls_dir, other):
        ours, theirs = getattr(load(directory), verb), getattr(peer(directory), verb)
        assert_same(ours(SENTENCES), theirs(SENTENCES))
        assert_same(ours(SENTENCES, prompt="x: "), theirs(SENTENCES, prompt="x: "))


# -- what encode takes and gives -------------------------------------------------------------------------------------


def test_shapes_and_types(tiny: Embedder) -> None:
    many = tiny.encode(["a", "the dog"])
    assert isinstance(many, np.ndarray) and many.shape == (2, 32) and many.dtype == np.float32
    one = tiny.encode("the dog")
    assert isinstance(one, np.ndarray) and one.shape == (32,)
    assert_same(one, many[1])
    assert tiny.encode("").shape == (32,)
    none = tiny.encode([])
    assert isinstance(none, np.ndarray) and none.shape == (0, 32) and none.dtype == np.float32
    tensor = tiny.encode(["a", "the dog"], convert_to_tensor=True)
    assert isinstance(tensor, torch.Tensor) and not tensor.is_inference()
    assert_same(tensor, many)
    parts = tiny.encode(["a", "the dog"], convert_to_numpy=False)
    assert isinstance(parts, list)
    assert_same(torch.stack(parts), many)
    for kind in (tuple, np.array, iter):
        assert_same(tiny.encode(kind(["a", "the dog"])), many)


@pytest.mark.parametrize("truncate_dim", [1, 10, 32, 99])
@pytest.mark.parametrize("normalize_embeddings", [False, True])
def test_truncated_and_normalised(
    tiny_cls_dir: Path, tiny_cls: Embedder, truncate_dim: int, normalize_embeddings: bool
) -> None:
    arguments = {"truncate_dim": truncate_dim, "normalize_embeddings": normalize_embeddings}
    ours = tiny_cls.encode(SENTENCES, **arguments)
    assert ours.shape == (len(SENTENCES), min(truncate_dim, 48))
    assert_same(ours, peer(tiny_cls_dir).encode(SENTENCES, **arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sentences": ["a", 3]}, "a string or a list of strings"),
        ({"sentences": [None]}, "a string or a list of strings"),
        ({"sentences": ["good", "half \ud83d of a pair"]}, r"half \\ud83d of a pair' holds half a surrogate pair"),
        ({"sentences": None}, "a string or a list of strings, got NoneType"),
        ({"sentences": 5}, "a string or a list of strings, got int"),
        ({"sentences": "a", "batch_size": 0}, "batch_size: 0 must be a whole number of at least 1"),
        ({"sentences": "a", "batch_size": 1.5}, "batch_size: 1.5 must be a whole number of at least 1"),
        ({"sentences": "a", "truncate_dim": -3}, "truncate_dim: -3 must be a whole number of at least 1"),
    ],
)
def test_wrong_arguments_get_one_clear_line(tiny: Embedder, arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        tiny.encode(**arguments)
    assert "\n" not in str(caught.value)


def test_progress_is_on_stderr_and_counts_sentences(tiny: Embedder, capfd: pytest.CaptureFixture[str]) -> None:
    tiny.encode(SENTENCES, show_progress_bar=True)
    out, err = capfd.readouterr()
    assert out == "" and f"{len(SENTENCES)}/{len(SENTENCES)}" in err
    assert "\r" not in err and len(err.splitlines()) <= 2  # this is no terminal: whole lines
    tiny.encode(SENTENCES)
    assert capfd.readouterr() == ("", "")


# -- batches ---------------------------------------------------------------------------------------------------------


@given(
    texts=st.lists(st.sampled_from(SENTENCES), max_size=24),
    batch_size=st.integers(1, 30),
    chunk=st.integers(1, 30),
    budget=st.integers(1, 300),
)
def test_a_sentence_embeds_the_same_in_any_company(
    tiny: Embedder, alone: dict[str, np.ndarray], texts: list[str], batch_size: int, chunk: int, budget: int
) -> None:
    """Whatever stands beside it, wherever it stands, however the batches are cut; and the order is kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shortstack.model.encoding.CHUNK", chunk)
        patch.setattr(tiny, "tokens_per_batch", budget)
        embeddings = tiny.encode(texts, batch_size=batch_size)
    wanted = np.stack([alone[text] for text in texts]) if texts else np.empty((0, 32), dtype=np.float32)
    assert_same(embeddings, wanted)


@pytest.fixture(scope="module")
def alone(tiny: Embedder) -> dict[str, np.ndarray]:
    return {text: tiny.encode(text) for text in SENTENCES}


def test_the_longest_sentences_are_computed_first(tiny: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what does not fit in memory fails at once."""
    real, longest = tiny.forward, []
    monkeypatch.setattr(tiny, "forward", lambda tokens: longest.append(tokens.longest) or real(tokens))
    tiny.embed(tiny.tokenize(SENTENCES), batch_size=5)
    assert longest[0] == 64 and longest == sorted(longest, reverse=True)


def test_tokens_end_in_sep_and_stop_at_max_length(tiny: Embedder) -> None:
    tokens = tiny.tokenize(["", "the dog", "the dog sees the cat " * 99])
    assert [len(each) for each in tokens] == [2, 4, 64]
    assert {int(each[0]) for each in tokens} == {tiny.tokenizer.cls_token_id}
    assert {int(each[-1]) for each in tokens} == {tiny.tokenizer.sep_token_id}
    assert tokens[0].dtype == np.int32


# -- precision, device, similarity -----------------------------------------------------------------------------------


def test_bf16_is_close(minilm_dir: Path) -> None:
    exact = load(minilm_dir)
    wanted = exact.encode(SENTENCES)
    found = exact.use_precision("bf16").encode(SENTENCES)
    assert found.dtype == np.float32
    assert (found * wanted).sum(axis=1).min() > 0.999
    assert not np.array_equal(found, wanted)
    assert_same(exact.use_precision("fp32").encode(SENTENCES), wanted)  # the weights themselves stayed exact


def test_weights_that_are_laid_out_again_keep_the_precision(tiny_model_dir: Path) -> None:
    embedder = Embedder.load(tiny_model_dir, device="cpu", precision="bf16")
    wanted, engine = embedder.encode(SENTENCES), embedder.engine
    embedder.load_state_dict(embedder.state_dict())
    np.testing.assert_array_equal(embedder.encode(SENTENCES), wanted)
    assert embedder.engine is not engine


def test_encoding_follows_weights_that_were_loaded_or_trained(tiny_model_dir: Path, tmp_path: Path) -> None:
    embedder = load(tiny_model_dir)
    other = load(make_bert_dir(tmp_path, seed=5))
    embedder.load_state_dict(other.state_dict())
    assert_same(embedder.encode(SENTENCES), other.encode(SENTENCES))
    embedder.train()
    optimizer = torch.optim.SGD(embedder.parameters(), lr=0.5)
    batch = PackedTokens.pack(Tokenized.of(sorted(embedder.tokenize(SENTENCES[:8]), key=len)))
    embedder(batch).square()[:, 0].sum().backward()
    optimizer.step()
    trained = embedder.eval().encode(SENTENCES)
    assert not np.allclose(trained, other.encode(SENTENCES), atol=1e-3)
    embedder.save(tmp_path / "trained")
    assert_same(peer(tmp_path / "trained").encode(SENTENCES), trained)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "fp8"}, "'fp8' is not one of auto, fp32"),
        ({"precision": "fp16"}, "needs a GPU"),
        ({"device": "tpu!"}, "device: 'tpu!' can't be used"),
        ({"pooling": "max"}, "pooling: 'max' is not one of cls, mean"),
        ({"max_length": 2}, "max_length: 2 must be from 3 to 512"),
        ({"max_length": 513}, "max_length: 513 must be from 3 to 512"),
    ],
)
def test_wrong_load_arguments_get_one_clear_line(tiny_model_dir: Path, arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Embedder.load(tiny_model_dir, **({"device": "cpu"} | arguments))


def test_pooling_and_max_length_can_be_overridden(tiny_model_dir: Path, tiny: Embedder) -> None:
    embedder = Embedder.load(tiny_model_dir, "cpu", "fp32", pooling="cls", max_length=6)
    theirs = peer(tiny_model_dir)
    theirs.max_seq_length, theirs[1].pooling_mode = 6, "cls"
    assert_same(embedder.encode(SENTENCES), theirs.encode(SENTENCES))
    assert tiny.settings.pooling is Pooling.MEAN


def test_similarity(tiny_cls_dir: Path, tiny_cls: Embedder) -> None:
    a, b = tiny_cls.encode(SENTENCES[:5]), tiny_cls.encode(SENTENCES[20:27])
    theirs = peer(tiny_cls_dir)
    assert_same(tiny_cls.similarity(a, b), theirs.similarity(a, b))
    assert tiny_cls.similarity(a, b).shape == (5, 7)
    assert_same(tiny_cls.similarity(a[0], torch.from_numpy(b)), theirs.similarity(a[0], b))
    assert_same(Embedder.similarity_pairwise(a, b[:5]), theirs.similarity_pairwise(a, b[:5]))
    assert_same(Embedder.similarity(a, a).diagonal(), torch.ones(5))
    assert (Embedder.similarity(np.zeros((1, 48)), b) == 0).all()


# -- other processes -------------------------------------------------------------------------------------------------


def test_an_embedder_can_be_pickled_and_copied(tiny_cls: Embedder) -> None:
    wanted = tiny_cls.encode(SENTENCES)
    for again in (pickle.loads(pickle.dumps(tiny_cls)), copy.deepcopy(tiny_cls)):
        np.testing.assert_array_equal(again.encode(SENTENCES), wanted)
        assert again.precision == tiny_cls.precision and again.settings == tiny_cls.settings


def test_a_spawned_process_may_be_given_an_embedder(tiny_model_dir: Path) -> None:
    embedder = Embedder.load(tiny_model_dir, device="cpu", precision="bf16")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        found = process.submit(embedder.encode, SENTENCES[:20]).result()
    np.testing.assert_array_equal(found, embedder.encode(SENTENCES[:20]))


def test_forked_processes_of_datasets_may_be_given_an_embedder(tiny_model_dir: Path, tmp_path: Path) -> None:
    script = f"""
        import datasets, numpy as np
        from shortstack.model import Embedder
        embedder = Embedder.load({str(tiny_model_dir)!r}, device="cpu", precision="fp32")
        texts = [f"sentence {{i}} " + "and more " * (i % 40) for i in range(400)]
        wanted = embedder.encode(texts)  # starts OpenMP's threads, which no fork has
        rows = datasets.Dataset.from_dict({{"text": texts}}).map(
            lambda batch: {{"embedding": embedder.encode(batch["text"])}}, batched=True, batch_size=50, num_proc=2
        )
        np.testing.assert_allclose(np.array(rows["embedding"], dtype=np.float32), wanted, atol=1e-6)
    """
    environment = os.environ | {"OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path)}
    with open(tmp_path / "printed", "w+") as printed:
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script)],
            env=environment, stdout=printed, stderr=printed, start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the workers too
            status = process.wait()
    assert status == 0, (tmp_path / "printed").read_text()


def test_tensors_are_given_where_no_array_is_wanted(tiny_model_dir: Path) -> None:
    embedder = load(tiny_model_dir)
    one, many = (embedder.encode(texts, convert_to_numpy=False) for texts in ("a dog", ["a dog", "a cat"]))
    assert isinstance(one, torch.Tensor) and one.shape == (32,)
    assert isinstance(many, list) and torch.allclose(torch.as_tensor(many[0]), one, atol=1e-6)
