"""The packed forward computes what transformers' own forward does with the same weights, gradients included."""

from pathlib import Path

import pytest
import torch
from tiny import make_bert, positions_of
from transformers import AutoModel, BertModel

from shortstack.model.bert import DistilledBert
from shortstack.model.engine.encoder import lay_out
from shortstack.model.pooling import Pooling
from shortstack.model.tokens import PackedTokens, Tokenized

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
LENGTHS = [1, 2, 7, 7, 7, 12]


def distilled(theirs: BertModel) -> DistilledBert:
    bert = DistilledBert(theirs.config)
    bert.load_state_dict(theirs.state_dict())
    return bert.eval()


@pytest.fixture
def bert() -> DistilledBert:
    return distilled(make_bert(layers=3))


def packed(lengths: list[int], seed: int = 0) -> PackedTokens:
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(5, 200, (length,), generator=generator).numpy() for length in lengths]
    return PackedTokens.pack(Tokenized.of(ids))


def padded(tokens: PackedTokens) -> dict[str, torch.Tensor]:
    """The same batch as transformers takes it."""
    rows = tokens.input_ids.long().split(tokens.lengths.tolist())
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.arange(ids.shape[1]) < tokens.lengths[:, None]
    return {"input_ids": ids, "attention_mask": mask.long()}


def by_transformers(bert: DistilledBert, tokens: PackedTokens, **more: torch.Tensor) -> torch.Tensor:
    inputs = padded(tokens)
    return bert(**inputs, **more).last_hidden_state[inputs["attention_mask"].bool()]


# -- the same as transformers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [[1], [5], [3, 3, 3], LENGTHS], ids=str)
@torch.no_grad()
def test_equals_transformers(bert: DistilledBert, lengths: list[int]) -> None:
    tokens = packed(lengths)
    torch.testing.assert_close(bert.forward_packed(tokens), by_transformers(bert, tokens), **CLOSE)


@torch.no_grad()
def test_segments_equal_transformers(bert: DistilledBert) -> None:
    tokens = packed([6, 6])
    without = bert.forward_packed(tokens)
    tokens.token_type_ids = torch.tensor([0, 0, 0, 1, 1, 1] * 2)
    wanted = by_transformers(bert, tokens, token_type_ids=tokens.token_type_ids.view(2, 6))
    torch.testing.assert_close(bert.forward_packed(tokens), wanted, **CLOSE)
    assert not torch.allclose(without, wanted, atol=1e-3)  # segments matter


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu"])
@torch.no_grad()
def test_every_activation(activation: str) -> None:
    bert, tokens = distilled(make_bert(layers=2, hidden_act=activation)), packed(LENGTHS)
    torch.testing.assert_close(bert.forward_packed(tokens), by_transformers(bert, tokens), **CLOSE)


@torch.no_grad()
def test_config_sizes_are_followed() -> None:
    """An inner size other than 4 times the hidden one, one head, a large epsilon."""
    sizes = {"intermediate_size": 40, "layer_norm_eps": 0.1, "type_vocab_size": 3}
    bert, tokens = distilled(make_bert(layers=1, hidden=24, heads=1, **sizes)), packed(LENGTHS)
    torch.testing.assert_close(bert.forward_packed(tokens), by_transformers(bert, tokens), **CLOSE)


@pytest.mark.parametrize("pooling", [None, Pooling.CLS, Pooling.MEAN])
def test_gradients_equal_transformers(bert: DistilledBert, pooling: Pooling | None) -> None:
    """Also where the last layer computes the first tokens' rows only."""
    tokens = packed(LENGTHS)
    starts = tokens.lengths.cumsum(0) - tokens.lengths
    hidden = by_transformers(bert, tokens)
    means = torch.stack([rows.mean(dim=0) for rows in hidden.split(LENGTHS)])
    wanted = {None: hidden, Pooling.CLS: hidden[starts], Pooling.MEAN: means}[pooling]
    weight = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    gradients = []
    for outputs in (wanted, bert.forward_packed(tokens, pooling)):
        torch.testing.assert_close(outputs, wanted, **CLOSE)
        bert.zero_grad()
        (outputs * weight).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in bert.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) == 5 + 16 * 3
    for name, gradient in gradients[0].items():
        scale = max(float(gradient.abs().max()), 1)
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5 * scale, msg=name)


def test_files_and_names_are_transformers(bert: DistilledBert, tmp_path: Path) -> None:
    assert isinstance(bert, BertModel)
    bert.save_pretrained(tmp_path)
    again, theirs = DistilledBert.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)
    assert type(theirs) is BertModel and not again.training
    for other in (again.state_dict(), theirs.state_dict()):
        assert other.keys() == bert.state_dict().keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in bert.state_dict().items())
    with torch.no_grad():
        tokens = packed(LENGTHS)
        assert torch.equal(again.forward_packed(tokens), bert.forward_packed(tokens))


# -- the engine ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", [None, Pooling.CLS, Pooling.MEAN])
@pytest.mark.parametrize("activation", ["gelu", "silu"])  # one that oneDNN fuses, one that it does not
@torch.no_grad()
def test_the_engine_equals_the_network(pooling: Pooling | None, activation: str) -> None:
    bert, tokens = distilled(make_bert(layers=3, hidden_act=activation)), packed(LENGTHS)
    wanted = bert.forward_packed(tokens, pooling)
    torch.testing.assert_close(lay_out(bert, "fp32")(tokens, pooling), wanted, **CLOSE)
    half = lay_out(bert, "bf16")(tokens, pooling)
    assert half.dtype == (torch.bfloat16 if pooling is None else torch.float32)
    torch.testing.assert_close(half.float(), wanted, atol=0.15, rtol=0.1)


@torch.no_grad()
def test_the_engine_knows_when_a_weight_has_changed(bert: DistilledBert) -> None:
    engine = lay_out(bert, "fp32")
    assert not engine.is_outdated()
    bert.encoder.layer[2].output.dense.bias.add_(1)
    assert engine.is_outdated() and not lay_out(bert, "fp32").is_outdated()


@torch.no_grad()
def test_an_engine_of_some_layers_is_that_of_a_student(bert: DistilledBert) -> None:
    tokens = packed(LENGTHS)
    wanted = lay_out(bert.keep_layers([0, 2]), "fp32")(tokens)
    assert torch.equal(lay_out(bert, "fp32").with_layers([0, 2])(tokens), wanted)


# -- packed batches --------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_row_does_not_depend_on_its_neighbours(bert: DistilledBert) -> None:
    tokens = packed([4, 4, 6, 20])
    together = bert.forward_packed(tokens)
    lengths = torch.tensor([6])
    alone = PackedTokens(tokens.input_ids[8:14], positions_of(lengths), lengths)
    torch.testing.assert_close(bert.forward_packed(alone), together[8:14], **CLOSE)


@torch.no_grad()
def test_word_vectors_take_the_place_of_the_table(bert: DistilledBert) -> None:
    tokens = packed([3, 5])
    wanted = bert.forward_packed(tokens)
    tokens.word_vectors = bert.embeddings.word_embeddings(tokens.input_ids)
    tokens.input_ids = torch.zeros_like(tokens.input_ids)
    torch.testing.assert_close(bert.forward_packed(tokens), wanted, **CLOSE)


def test_packing() -> None:
    tokens = packed([2, 2, 3])
    assert tokens.positions.tolist() == [0, 1, 0, 1, 0, 1, 2]
    assert tokens.groups == [(0, 2, 2), (4, 1, 3)]
    assert tokens.cu_seqlens.tolist() == [0, 2, 4, 7]
    assert tokens.of_first_tokens.input_ids.tolist() == tokens.input_ids[[0, 2, 4]].tolist()
    assert tokens.of_first_tokens.groups == [(0, 3, 1)]
    with pytest.raises(AssertionError, match="ascending order of length"):
        packed([3, 2])


# -- chosen layers ---------------------------------------------------------------------------------------------------


def test_kept_layers_are_copies_of_their_source(bert: DistilledBert) -> None:
    student = bert.keep_layers([0, 2])
    assert student.config.num_hidden_layers == len(student.encoder.layer) == 2
    assert bert.config.num_hidden_layers == len(bert.encoder.layer) == 3
    source = {name: tensor.clone() for name, tensor in bert.state_dict().items()}
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, source[name.replace("encoder.layer.1.", "encoder.layer.2.")]), name
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, source[name]) for name, tensor in bert.state_dict().items())


@torch.no_grad()
def test_keeping_every_layer_changes_nothing(bert: DistilledBert) -> None:
    tokens = packed([2, 9, 9])
    assert torch.equal(bert.keep_layers([0, 1, 2]).forward_packed(tokens), bert.forward_packed(tokens))


# -- training --------------------------------------------------------------------------------------------------------


def test_dropout_acts_in_training_only(bert: DistilledBert) -> None:
    tokens = packed([4, 4, 8])
    bert.dropout = 0.3
    still = bert.forward_packed(tokens)
    assert torch.equal(still, bert.forward_packed(tokens))
    bert.train()
    torch.manual_seed(0)
    first, second = bert.forward_packed(tokens), bert.forward_packed(tokens)
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, still)
    torch.manual_seed(0)
    assert torch.equal(bert.forward_packed(tokens), first)  # drawn from torch's generator, so a seed fixes it
    bert.dropout = 0.0
    assert torch.equal(bert.forward_packed(tokens), bert.eval().forward_packed(tokens))


def test_training_under_autocast_gives_fp32_gradients(bert: DistilledBert) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = bert.train().forward_packed(packed([3, 5, 5]))
    hidden.float().square().mean().backward()
    assert bert.encoder.layer[0].attention.self.query.weight.grad.dtype == torch.float32
