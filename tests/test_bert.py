"""DistilledBert computes what transformers' BertModel computes, with and without padding, gradients included."""

from collections.abc import Callable

import pytest
import torch
from tiny import make_bert, positions_of
from transformers import BertModel

from shortstack.model.attention import attention
from shortstack.model.bert import DistilledBert, Layer, Linear, encode
from shortstack.model.products import LayOut, cast_product, prepare, repacked_product
from shortstack.model.tokens import PackedTokens

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
PADDINGS = ["none", "right", "left", "gaps", "mixed"]


def ours_of(theirs: BertModel) -> DistilledBert:
    ours = DistilledBert(theirs.config, add_pooling_layer=theirs.pooler is not None)
    ours.load_state_dict(theirs.state_dict())
    return ours.eval()


@pytest.fixture(scope="module")
def theirs() -> BertModel:
    return make_bert(layers=3)


@pytest.fixture(scope="module")
def ours(theirs: BertModel) -> DistilledBert:
    return ours_of(theirs)


def batch(padding: str, B: int = 6, T: int = 12, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random token and segment numbers, and a mask: no padding, right, left, tokens left out, or some of each."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 200, (B, T), generator=generator)
    segments = torch.randint(0, 2, (B, T), generator=generator)
    lengths = torch.randint(1, T + 1, (B, 1), generator=generator)
    lengths[0] = T  # one row with nothing masked
    right = torch.arange(T) < lengths
    masks = {"none": torch.ones(B, T, dtype=torch.bool), "right": right, "left": right.flip(1)}
    masks["gaps"] = torch.rand(B, T, generator=generator) < 0.6
    masks["gaps"][:, 3] = True  # every row keeps a token
    masks["mixed"] = torch.cat([masks["right"][:2], masks["left"][2:4], masks["gaps"][4:]])
    return {"input_ids": ids, "token_type_ids": segments, "attention_mask": masks[padding].long()}


@pytest.mark.parametrize("padding", PADDINGS)
@torch.no_grad()
def test_equals_transformers(ours: DistilledBert, theirs: BertModel, padding: str) -> None:
    inputs = batch(padding)
    found, wanted = ours(**inputs), theirs(**inputs)
    kept = inputs["attention_mask"].bool()
    torch.testing.assert_close(found.last_hidden_state[kept], wanted.last_hidden_state[kept], **CLOSE)
    assert (found.last_hidden_state[~kept] == 0).all()
    first = kept[:, 0]  # the pooler reads the first place, whose value is no one's where it is padding
    torch.testing.assert_close(found.pooler_output[first], wanted.pooler_output[first], **CLOSE)


@torch.no_grad()
def test_mask_and_segments_may_be_left_out(ours: DistilledBert, theirs: BertModel) -> None:
    ids = batch("none")["input_ids"]
    torch.testing.assert_close(ours(ids).last_hidden_state, theirs(ids).last_hidden_state, **CLOSE)
    segments = batch("none")["token_type_ids"]
    wanted = theirs(ids, token_type_ids=segments).last_hidden_state
    torch.testing.assert_close(ours(ids, token_type_ids=segments).last_hidden_state, wanted, **CLOSE)
    assert not torch.allclose(ours(ids).last_hidden_state, wanted, atol=1e-3)  # segments matter


@torch.no_grad()
def test_rows_with_everything_masked_are_zero(ours: DistilledBert) -> None:
    inputs = batch("right")
    wanted = ours(**inputs).last_hidden_state
    inputs["attention_mask"][2] = 0
    found = ours(**inputs).last_hidden_state
    assert (found[2] == 0).all()
    torch.testing.assert_close(found[[0, 1, 3, 4, 5]], wanted[[0, 1, 3, 4, 5]], **CLOSE)
    inputs["attention_mask"][:] = 0
    assert (ours(**inputs).last_hidden_state == 0).all()


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu"])
@torch.no_grad()
def test_every_activation(activation: str) -> None:
    theirs = make_bert(layers=2, hidden_act=activation)
    inputs = batch("right")
    kept = inputs["attention_mask"].bool()
    found, wanted = (bert(**inputs).last_hidden_state[kept] for bert in (ours_of(theirs), theirs))
    torch.testing.assert_close(found, wanted, **CLOSE)


@torch.no_grad()
def test_config_sizes_are_followed() -> None:
    """An inner size other than 4 times the hidden one, one head, a large epsilon, no pooler."""
    theirs = make_bert(layers=1, hidden=24, heads=1, intermediate_size=40, layer_norm_eps=0.1, type_vocab_size=3)
    theirs.pooler = None
    inputs = batch("left")
    kept = inputs["attention_mask"].bool()
    ours = ours_of(theirs)
    found, wanted = ours(**inputs), theirs(**inputs)
    torch.testing.assert_close(found.last_hidden_state[kept], wanted.last_hidden_state[kept], **CLOSE)
    assert found.pooler_output is None


@pytest.mark.parametrize("padding", PADDINGS)
def test_gradients_equal_transformers(theirs: BertModel, padding: str) -> None:
    ours = ours_of(theirs)
    inputs = batch(padding)
    kept = inputs["attention_mask"].bool()
    weight = torch.randn(int(kept.sum()), theirs.config.hidden_size, generator=torch.Generator().manual_seed(1))
    for bert in (ours, theirs):
        bert.zero_grad()
        (bert(**inputs).last_hidden_state[kept] * weight).sum().backward()
    wanted = dict(theirs.named_parameters())
    compared = 0
    for name, parameter in ours.named_parameters():
        if name.startswith("pooler"):
            assert not parameter.requires_grad
            continue
        scale = float(wanted[name].grad.abs().max())
        torch.testing.assert_close(parameter.grad, wanted[name].grad, rtol=1e-4, atol=1e-5 * max(scale, 1), msg=name)
        compared += 1
    assert compared == 5 + 16 * len(ours.encoder.layer)


def packed(lengths: list[int], seed: int = 0) -> PackedTokens:
    generator = torch.Generator().manual_seed(seed)
    return PackedTokens.pack([torch.randint(5, 200, (length,), generator=generator).numpy() for length in lengths])


@pytest.mark.parametrize("lengths", [[1], [5], [3, 3, 3], [1, 2, 2, 7, 7, 7, 30], [1, 1]])
@torch.no_grad()
def test_first_token_only_equals_the_full_computation(ours: DistilledBert, lengths: list[int]) -> None:
    tokens = packed(lengths)
    whole = ours.encode_packed(tokens)
    first = ours.encode_packed(tokens, first_token_only=True)
    assert first.shape == (len(lengths), 32)
    starts = [sum(lengths[:number]) for number in range(len(lengths))]
    torch.testing.assert_close(first, whole[starts], **CLOSE)


def test_first_token_only_gives_the_same_gradients(theirs: BertModel) -> None:
    ours, tokens = ours_of(theirs), packed([2, 5, 5, 9])
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    gradients = []
    for first_token_only in (True, False):
        ours.zero_grad()
        rows = ours.encode_packed(tokens, first_token_only)
        ((rows if first_token_only else rows[[0, 2, 7, 12]]) * weight).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in ours.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-4, msg=name)


@torch.no_grad()
def test_a_row_does_not_depend_on_its_neighbours(ours: DistilledBert) -> None:
    tokens = packed([4, 4, 6, 20])
    together = ours.encode_packed(tokens)
    lengths = torch.tensor([6])
    alone = PackedTokens(tokens.input_ids[8:14], positions_of(lengths), lengths)
    torch.testing.assert_close(ours.encode_packed(alone), together[8:14], **CLOSE)


@torch.no_grad()
def test_word_vectors_take_the_place_of_the_table(ours: DistilledBert) -> None:
    tokens = packed([3, 5])
    wanted = ours.encode_packed(tokens)
    tokens.word_vectors = ours.embeddings.word_embeddings(tokens.input_ids)
    tokens.input_ids = torch.zeros_like(tokens.input_ids)
    torch.testing.assert_close(ours.encode_packed(tokens), wanted, **CLOSE)


# -- chosen layers ---------------------------------------------------------------------------------------------------


def test_kept_layers_equal_their_source(theirs: BertModel) -> None:
    teacher = ours_of(theirs)
    student = teacher.keep_layers([0, 2])
    assert student.config.num_hidden_layers == len(student.encoder.layer) == 2
    assert teacher.config.num_hidden_layers == len(teacher.encoder.layer) == 3
    source = teacher.state_dict()
    for name, tensor in student.state_dict().items():
        name = name.replace("encoder.layer.1.", "encoder.layer.2.")
        assert torch.equal(tensor, source[name]), name


def test_kept_layers_are_independent_copies(theirs: BertModel) -> None:
    teacher = ours_of(theirs)
    student = teacher.keep_layers([0, 1, 2])
    addresses = {parameter.data_ptr() for parameter in teacher.parameters()}
    assert addresses.isdisjoint(parameter.data_ptr() for parameter in student.parameters())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    pairs = zip(teacher.parameters(), theirs.parameters(), strict=True)
    assert all(torch.equal(found, wanted) for found, wanted in pairs)


@torch.no_grad()
def test_keeping_every_layer_changes_nothing(ours: DistilledBert) -> None:
    tokens = packed([2, 9, 9])
    assert torch.equal(ours.keep_layers([0, 1, 2]).eval().encode_packed(tokens), ours.encode_packed(tokens))


# -- training --------------------------------------------------------------------------------------------------------


def test_dropout_acts_in_training_only(theirs: BertModel) -> None:
    bert, tokens = ours_of(theirs), packed([4, 4, 8])
    bert.dropout = 0.3
    still = bert.encode_packed(tokens)
    assert torch.equal(still, bert.encode_packed(tokens))
    bert.train()
    torch.manual_seed(0)
    first, second = bert.encode_packed(tokens), bert.encode_packed(tokens)
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, still)
    torch.manual_seed(0)
    assert torch.equal(bert.encode_packed(tokens), first)  # drawn from torch's generator, so a seed fixes it
    bert.dropout = 0.0
    assert torch.equal(bert.encode_packed(tokens), bert.eval().encode_packed(tokens))


def test_dropout_keeps_the_mean() -> None:
    """Averaged over many draws, attention is what it is without dropout: the weights that stay are scaled up."""
    qkv = torch.randn(6, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    tokens = packed([6])
    torch.manual_seed(0)
    mean = torch.stack([attention(qkv, tokens, tokens, 0.2) for _ in range(2000)]).mean(dim=0)
    torch.testing.assert_close(mean, attention(qkv, tokens, tokens, 0.0), atol=0.06, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("make", [cast_product, repacked_product])  # which of them is taken depends on the CPU
@pytest.mark.parametrize("activation", ["gelu", "silu"])  # one that oneDNN fuses, one that it does not
def test_laid_out_weights_compute_the_same(make: Callable[[torch.dtype], LayOut], activation: str) -> None:
    network, tokens = ours_of(make_bert(layers=3, hidden_act=activation)).network(), packed([2, 5, 5, 9])
    lay_out = make(torch.float32)
    layers = [
        Layer(*(lay_out(part) if isinstance(part, Linear) else part for part in layer)) for layer in network.layers
    ]
    torch.testing.assert_close(encode(network._replace(layers=layers), tokens), encode(network, tokens), **CLOSE)


@torch.no_grad()
def test_bf16_weights_compute_nearly_the_same(ours: DistilledBert) -> None:
    tokens = packed([2, 5, 5, 9])
    half = encode(prepare(ours.network(), "bf16", torch.device("cpu")), tokens)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), ours.encode_packed(tokens), atol=0.15, rtol=0.1)


def test_training_under_autocast_gives_fp32_gradients(theirs: BertModel) -> None:
    bert = ours_of(theirs).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = bert.encode_packed(packed([3, 5, 5]))
    hidden.float().square().mean().backward()
    assert bert.encoder.layer[0].attention.self.query.weight.grad.dtype == torch.float32


def test_packing() -> None:
    tokens = packed([2, 2, 3])
    assert tokens.positions.tolist() == [0, 1, 0, 1, 0, 1, 2]
    assert tokens.groups == [(0, 2, 2), (4, 1, 3)]
    assert tokens.cu_seqlens.tolist() == [0, 2, 4, 7]
    assert tokens.of_first_tokens.input_ids.tolist() == tokens.input_ids[[0, 2, 4]].tolist()
    assert tokens.of_first_tokens.groups == [(0, 3, 1)]
