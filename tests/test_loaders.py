"""The tools of docs/loaders.md that are quick to install or to stand in for: each reads a student's directory."""

import json
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from tiny import english_sentences, make_bert_dir
from tokenizers import Tokenizer

from shortstack.distillation.router import write_router
from shortstack.model import Embedder

SENTENCES = english_sentences(6)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student's directory, with a stale length in its teacher's tokenizer_config.json."""
    directory = tmp_path_factory.mktemp("loaders")
    teacher = make_bert_dir(directory / "teacher", layers=2)
    path = teacher / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_length": 5}))
    Embedder.load(teacher, "cpu", "fp32").keep_layers([0]).save(directory / "student")
    return directory / "student"


@pytest.fixture(scope="module")
def wanted(student: Path) -> np.ndarray:
    return np.asarray(Embedder.load(student, "cpu", "fp32").encode(SENTENCES))


def test_transformers_with_pooling_by_hand(student: Path, wanted: np.ndarray) -> None:
    from transformers import AutoModel, AutoTokenizer

    inputs = AutoTokenizer.from_pretrained(student)(SENTENCES, padding=True, return_tensors="pt")
    hidden = AutoModel.from_pretrained(student)(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    pooled = ((hidden * mask).sum(1) / mask.sum(1)).detach().numpy()
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    np.testing.assert_allclose(pooled, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-5)


def test_fastembed_reads_as_many_tokens_as_we_do(student: Path) -> None:
    """fastembed truncates at the smaller of two numbers in tokenizer_config.json, and takes tokenizer.json as it is."""
    values = json.loads((student / "tokenizer_config.json").read_text())
    limit = min(values[key] for key in ("max_length", "model_max_length") if key in values)
    tokenizer = Tokenizer.from_file(str(student / "tokenizer.json"))
    tokenizer.enable_truncation(limit)
    text = "the dog sees the cat " * 100
    embedder = Embedder.load(student, "cpu", "fp32")
    assert tokenizer.encode(text).ids == embedder.tokenize([text])[0].tolist()
    assert len(tokenizer.encode(text).ids) == embedder.settings.max_length > 5


def test_langchains_embeddings_take_the_routers_query_side_by_its_task(student: Path, tmp_path: Path) -> None:
    """What HuggingFaceEmbeddings calls: encode with query_encode_kwargs. Without a task a router takes documents'."""
    one, two = Embedder.load(student, "cpu", "fp32"), Embedder.load(student.parent / "teacher", "cpu", "fp32")
    write_router(one, two, tmp_path / "router")
    router = SentenceTransformer(str(tmp_path / "router"), device="cpu")
    np.testing.assert_allclose(router.encode(SENTENCES, task="query"), one.encode(SENTENCES), atol=1e-5)
    np.testing.assert_allclose(router.encode(SENTENCES), two.encode(SENTENCES), atol=1e-5)
