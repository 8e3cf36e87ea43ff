"""A smaller vocabulary: the same tokens where no cut piece was, known pieces elsewhere, and runs that train with it."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import hooks
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from processes import RunDirectory, same_weights, train, write_recipe
from sentence_transformers import SentenceTransformer
from tiny import AWKWARD, edit, english_sentences, load, make_bert_dir, write
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, PreTrainedTokenizerFast

from shortstack.distillation.data.corpus import Draw, build_corpus
from shortstack.distillation.data.labels import EVALUATION, label_corpus, sentences_of
from shortstack.distillation.ranks import Ranks
from shortstack.distillation.recipe import Recipe, parse_vocabulary
from shortstack.distillation.student.vocabulary import (
    Pieces,
    check_vocabulary,
    cut_vocabulary,
    keep_pieces,
    retokenizer,
)
from shortstack.model import DistilledBert, Embedder
from shortstack.model.directory import Settings
from shortstack.model.files import InputError

TEXT = english_sentences(300)
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def wordpiece() -> tuple[Tokenizer, trainers.Trainer]:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    return tokenizer, trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIAL)


def byte_level_bpe() -> tuple[Tokenizer, trainers.Trainer]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return tokenizer, trainers.BpeTrainer(vocab_size=700, special_tokens=SPECIAL, initial_alphabet=alphabet)


def unigram() -> tuple[Tokenizer, trainers.Trainer]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return tokenizer, trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>")


KINDS: list[Callable[[], tuple[Tokenizer, trainers.Trainer]]] = [wordpiece, byte_level_bpe, unigram]


@pytest.fixture(scope="module", params=KINDS)
def teacher(request: pytest.FixtureRequest) -> Embedder:
    """A random encoder with a tokenizer of one kind, trained on TEXT."""
    tokenizer, trainer = request.param()
    tokenizer.train_from_iterator(TEXT, trainer)
    ends = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    names = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="<mask>", **names)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    bert = DistilledBert(BertConfig(vocab_size=tokenizer.get_vocab_size(), pad_token_id=1, **shape))
    return Embedder(bert, fast, Settings(max_length=128)).eval()


def count(embedder: Embedder, text: list[str]) -> np.ndarray:
    return np.bincount(np.concatenate(embedder.tokenize(text)), minlength=embedder.bert.config.vocab_size)


words = st.sampled_from(sorted({word for sentence in TEXT for word in sentence.split()}))
texts = st.lists(words | st.text(max_size=12) | st.sampled_from(AWKWARD[:12]), max_size=12).map(" ".join)


@given(used=st.lists(st.sampled_from(TEXT), min_size=1, max_size=20), wanted=st.floats(0.01, 1), text=texts)
def test_tokens_stay_unless_one_was_cut(teacher: Embedder, used: list[str], wanted: float, text: str) -> None:
    kept = Pieces(teacher).choose(count(teacher, used), wanted)
    student = keep_pieces(teacher.keep_layers([0, 1]), kept)
    assert student.bert.config.vocab_size == len(student.tokenizer.get_vocab()) == len(kept)
    for sentence in [*used, text] if wanted == 1 else [text]:
        old, new = teacher.tokenize([sentence])[0], student.tokenize([sentence])[0]
        if np.isin(old, kept).all():
            assert kept[new].tolist() == old.tolist()
            np.testing.assert_array_equal(student.encode(sentence), teacher.encode(sentence))
        else:
            assert sentence not in used or wanted < 1
            unknown = teacher.tokenizer.unk_token_id
            assert student.tokenizer.unk_token_id not in new or unknown in old
            if unknown not in old and max(len(old), len(new)) < teacher.settings.max_length:
                spelled = [each.tokenizer.decode(ids) for each, ids in ((teacher, old), (student, new))]
                assert spelled[0].replace(" ", "") == spelled[1].replace(" ", "")


def test_as_many_as_asked_for_the_most_used_first(teacher: Embedder) -> None:
    counts = count(teacher, TEXT)
    pieces = Pieces(teacher)
    wanted = len(pieces.required) + 40
    kept = pieces.choose(counts, wanted)
    assert wanted - 3 <= len(kept) <= wanted  # a merge may need more than what is left
    free = [number for number in kept if number not in pieces.required]
    left = np.setdiff1d(np.arange(len(counts)), kept)
    if not pieces.merges:
        assert counts[free].min() >= counts[left].max()
    for share in (0.5, 0.9, 1.0):
        kept = pieces.choose(counts, share)
        assert share <= counts[kept].sum() / counts.sum()
    assert set(np.flatnonzero(counts)) <= set(kept)
    with pytest.raises(InputError, match="at least"):
        check_vocabulary(teacher, len(pieces.required) - 1)
    with pytest.raises(InputError, match="below that"):
        check_vocabulary(teacher, len(counts))


def test_other_tools_load_what_is_saved(teacher: Embedder, tmp_path: Path) -> None:
    student, cut = cut_vocabulary(teacher.keep_layers([1]), count(teacher, TEXT), "95%")
    assert cut["pieces"] == student.bert.config.vocab_size < cut["of"] and cut["share_of_tokens"] >= 0.95
    assert cut["megabytes_saved"] == pytest.approx((cut["of"] - cut["pieces"]) * 32 * 4 / 1e6)
    student.save(tmp_path / "model")
    path = str(tmp_path / "model")
    for other in (SentenceTransformer(path, device="cpu"), Embedder.load(path, "cpu", "fp32")):
        assert len(other.tokenizer.get_vocab()) == cut["pieces"]
        np.testing.assert_allclose(other.encode(AWKWARD[3:9]), student.encode(AWKWARD[3:9]), atol=1e-5)


@pytest.mark.parametrize("text", ["", "0", "-3", "12.5", "0%", "101%", "many"])
def test_neither_a_number_nor_a_share(text: str) -> None:
    with pytest.raises(InputError, match="share of the text"):
        parse_vocabulary(text)


# -- training --------------------------------------------------------------------------------------------------------


def test_the_student_trains_on_its_own_tokens(teacher: Embedder, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n".join(TEXT))
    corpus = build_corpus(tmp_path / "corpus", [str(tmp_path / "text.txt")], Draw(None, 100, 0))
    labels = label_corpus(teacher, corpus, Recipe(output=str(tmp_path)), Ranks(0, 1, torch.device("cpu")))
    assert labels.pieces.tolist() == count(teacher, corpus.training(0, 200).sentences).tolist()
    student, cut = cut_vocabulary(teacher.keep_layers([0]), labels.pieces, "80%")
    assert cut["share_of_tokens"] < 1
    labels = dataclasses.replace(labels, retokenize=retokenizer(teacher, student, corpus, Recipe.shard_size))
    for name in (0, EVALUATION):
        own = student.tokenize(sentences_of(name, corpus, teacher, Recipe.shard_size))
        assert [tokens.tolist() for tokens in labels.read([name]).tokens] == [tokens.tolist() for tokens in own]


def test_a_run_with_fewer_pieces(tiny_model_dir: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_model_dir, sentences=440)
    runs = [RunDirectory(tmp_path / "runs" / name) for name in ("cut", "again", "further")]
    flags = (recipe, "--vocabulary", "85%")
    assert train(*flags, "--name", "cut").status == 0
    data = runs[0].json("data.json")["vocabulary"]
    assert data["pieces"] == len(runs[0].weights["embeddings.word_embeddings.weight"]) < data["of"]
    assert runs[0].logged("negative_mse")[20] > runs[0].logged("negative_mse")[0]
    assert runs[0].json("evaluation.json")["sanity"]["warnings"] == []

    killed = functools.partial(hooks.kill_while_writing, "last", 0.5, earlier=1)
    assert train(*flags, "--name", "again", before=killed).status == -9
    assert train(*flags, "--name", "again", "--resume").status == 0
    assert same_weights(runs[0], runs[1])

    further = train(recipe, "--start-from", runs[0].path / "model", "--layers", "all", "--name", "further")
    assert further.status == 0, further.err
    assert runs[2].logged("negative_mse")[0] == pytest.approx(runs[0].logged("negative_mse")[20], rel=1e-4)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--vocabulary", "5"], "5 pieces can't be kept of this teacher's"),
        (["--vocabulary", "99999"], "99,999 pieces can't be kept"),
        (["--vocabulary", "some"], "'some' is not allowed"),
        (["--vocabulary", "90%", "--start-from", "x"], "must be empty beside start_from"),
    ],
)
def test_what_can_not_be_cut_is_refused(tiny_model_dir: Path, tmp_path: Path, flags: list[str], line: str) -> None:
    outcome = train(write_recipe(tmp_path, tiny_model_dir), *flags)
    assert outcome.status == 2 and line in outcome.error
    assert not (tmp_path / "runs" / "tiny" / "recipe.toml").exists()


def test_a_kind_of_tokenizer_that_can_not_be_cut_is_named(tmp_path: Path) -> None:
    directory = make_bert_dir(tmp_path / "teacher", layers=1)
    words = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    words["model"] = {"type": "WordLevel", "vocab": words["model"]["vocab"], "unk_token": "[UNK]"}
    write(directory / "tokenizer.json", words)
    edit(directory / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    (directory / "vocab.txt").unlink()
    with pytest.raises(InputError, match="a tokenizer of kind WordLevel can't be cut .*WordPiece, BPE, Unigram can"):
        check_vocabulary(load(directory), "90%")
