"""Model directories: each layout of the field loads, each damage is told in one line, and saving is all or nothing."""

import json
import multiprocessing
import os
import pickle
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import SPECIAL, VOCABULARY, edit, make_bert_dir, write

from distillation.command_line import run_command
from model import Embedder
from model.files import InputError

TEXTS = ["", "The dog sees the cat.", "naïve 猫 😀", "the old man reads a long letter " * 20]


def load(path: Path) -> Embedder:
    return Embedder.load(path, device="cpu", precision="fp32")


def refused(path: Path | str, *parts: str) -> None:
    """Loading ends with one line that names the place and holds these parts."""
    with pytest.raises(InputError) as caught:
        Embedder.load(path, device="cpu", precision="fp32")
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(path), *parts):
        assert part in message, message


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def wanted(tiny_model_dir: Path) -> np.ndarray:
    """The tiny teacher's embeddings of TEXTS."""
    embeddings = load(tiny_model_dir).encode(TEXTS)
    assert isinstance(embeddings, np.ndarray)
    return embeddings


def assert_loads(path: Path | str, wanted: np.ndarray) -> None:
    embeddings = Embedder.load(path, device="cpu", precision="fp32").encode(TEXTS)
    np.testing.assert_allclose(embeddings, wanted, atol=1e-5)


# -- weights in every form that the field has ------------------------------------------------------------------------


def change_weights(directory: Path, change: Callable[[str, torch.Tensor], tuple[str, torch.Tensor]]) -> None:
    tensors = load_file(directory / "model.safetensors")
    changed = dict(change(name, tensor.clone()) for name, tensor in tensors.items())
    save_file(changed, directory / "model.safetensors", metadata={"format": "pt"})


def test_names_with_a_prefix(model_copy: Path, wanted: np.ndarray) -> None:
    """As BertForMaskedLM and the like name them, beside the tensors of their heads."""
    change_weights(model_copy, lambda name, tensor: (f"bert.{name}", tensor))
    tensors = load_file(model_copy / "model.safetensors")
    tensors |= {"cls.predictions.bias": torch.zeros(len(VOCABULARY)), "bert.embeddings.position_ids": torch.arange(512)}
    save_file(tensors, model_copy / "model.safetensors")
    assert_loads(model_copy, wanted)


def test_old_names_of_layer_norms(model_copy: Path, wanted: np.ndarray) -> None:
    def old(name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"), tensor

    change_weights(model_copy, old)
    assert_loads(model_copy, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_load_as_fp32(model_copy: Path, wanted: np.ndarray, dtype: torch.dtype) -> None:
    change_weights(model_copy, lambda name, tensor: (name, tensor.to(dtype)))
    edit(model_copy / "config.json", dtype=str(dtype).removeprefix("torch."))
    embedder = load(model_copy)
    assert {parameter.dtype for parameter in embedder.parameters()} == {torch.float32}
    np.testing.assert_allclose(embedder.encode(TEXTS), wanted, atol=0.05 if dtype.itemsize == 2 else 1e-5)


def test_weights_without_a_pooler(model_copy: Path, wanted: np.ndarray) -> None:
    tensors = load_file(model_copy / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if "pooler" not in n}, model_copy / "model.safetensors")
    assert_loads(model_copy, wanted)
    assert load(model_copy).bert.pooler is None


def shard(directory: Path) -> dict[str, str]:
    """Spread the weights over two files, as models of some gigabytes come; returns which tensor is in which."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    files = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in tensors if files[name] == file}, directory / file)
    write(directory / "model.safetensors.index.json", {"metadata": {}, "weight_map": files})
    return files


def test_sharded_weights(model_copy: Path, wanted: np.ndarray) -> None:
    files = shard(model_copy)
    assert_loads(model_copy, wanted)
    (model_copy / files["embeddings.word_embeddings.weight"]).unlink()
    refused(model_copy, files["embeddings.word_embeddings.weight"], "no such file")


@pytest.mark.parametrize("value", [[], {}, {"weight_map": 3}, {"weight_map": {"a": 3}}, {"weight_map": {"a": ["b"]}}])
def test_damaged_index_of_shards(model_copy: Path, value: Any) -> None:
    shard(model_copy)
    write(model_copy / "model.safetensors.index.json", value)
    refused(model_copy, "model.safetensors.index.json")


def to_bin(directory: Path, **options: Any) -> Path:
    """Weights as a pickle, as older models have them."""
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin", **options)
    (directory / "model.safetensors").unlink()
    return directory / "pytorch_model.bin"


@pytest.mark.parametrize("zipped", [True, False])
def test_bin_weights(model_copy: Path, wanted: np.ndarray, zipped: bool) -> None:
    to_bin(model_copy, _use_new_zipfile_serialization=zipped)
    assert_loads(model_copy, wanted)


class Payload:
    """What a hostile pickle holds: unpickled, it would call os.mkdir."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.marker),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle"])
def test_a_hostile_pickle_is_not_run(model_copy: Path, tmp_path: Path, form: str) -> None:
    path, marker = to_bin(model_copy), tmp_path / "payload-ran"
    if form == "bare pickle":
        path.write_bytes(pickle.dumps(Payload(marker)))
    else:
        torch.save({"a": Payload(marker)}, path, _use_new_zipfile_serialization=form == "zip")
    refused(model_copy, "pytorch_model.bin: damaged, or holds more than weights")
    assert not marker.exists()
    if form == "bare pickle":
        pickle.loads(path.read_bytes())  # the payload itself is able to do harm
        assert marker.exists()


@pytest.mark.parametrize("value", [[], {"a": 3}, {"state_dict": {}}, torch.ones(2)], ids=repr)
def test_bin_that_holds_no_weights(model_copy: Path, value: Any) -> None:
    torch.save(value, to_bin(model_copy))
    refused(model_copy, "pytorch_model.bin: not a dictionary of weights")


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_truncated_bin(model_copy: Path, keep: float) -> None:
    path = to_bin(model_copy)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    refused(model_copy, "pytorch_model.bin: damaged")


def test_tokenizer_from_vocab_txt_alone(model_copy: Path, wanted: np.ndarray) -> None:
    (model_copy / "tokenizer.json").unlink()
    assert_loads(model_copy, wanted)


def test_links_are_followed(tiny_model_dir: Path, tmp_path: Path, wanted: np.ndarray) -> None:
    """As in the Hub's cache, whose snapshots are links to files elsewhere."""
    for file in tiny_model_dir.rglob("*"):
        if file.is_file():
            link = tmp_path / "links" / file.relative_to(tiny_model_dir)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
    assert_loads(tmp_path / "links", wanted)
    (tmp_path / "whole").symlink_to(tmp_path / "links")
    assert_loads(tmp_path / "whole", wanted)


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache, with the Hub out of reach."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_hub_name_is_found_in_the_cache(hub_cache: Path, tiny_model_dir: Path, wanted: np.ndarray) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = hub_cache / "models--owner--tiny"
    shutil.copytree(tiny_model_dir, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    assert_loads("owner/tiny", wanted)
    assert load("owner/tiny").settings.origin == "owner/tiny"  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["owner/missing", "missing", "-bad-/..name", "a b", "x" * 200])
def test_a_hub_name_that_is_not_there(hub_cache: Path, name: str) -> None:
    refused(name, "no such directory, and the Hub gave no model of that name")


@pytest.mark.parametrize("name", ["./missing", "../missing", "/missing", "runs/minilm-3/model", "~/missing"])
def test_a_missing_directory(hub_cache: Path, name: str) -> None:
    refused(name, "no such model directory")


def test_a_file_is_no_model_directory(model_copy: Path) -> None:
    refused(model_copy / "config.json", "no such model directory")


# -- config.json -----------------------------------------------------------------------------------------------------


def test_missing_config(model_copy: Path) -> None:
    (model_copy / "config.json").unlink()
    refused(model_copy, "config.json: no such file")


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '"bert"', "null", "\0"])
def test_config_that_is_no_json_object(model_copy: Path, content: str) -> None:
    (model_copy / "config.json").write_text(content)
    refused(model_copy, "config.json: ", "JSON")


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "mpnet", "modernbert", "distilbert", "t5", "llama"])
def test_other_architectures_are_named(model_copy: Path, kind: str) -> None:
    edit(model_copy / "config.json", model_type=kind)
    refused(model_copy, "config.json", f"the architecture is '{kind}'", "only BERT encoders (model_type 'bert')")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"is_decoder": True}, "no decoders"),
        ({"position_embedding_type": "relative_key"}, "absolute positions"),
        ({"hidden_size": "big"}, "not a BERT config"),
        ({"hidden_size": 0}, "hidden_size must be a whole number of at least 1, got 0"),
        ({"num_hidden_layers": -1}, "num_hidden_layers must be"),
        ({"type_vocab_size": 0}, "type_vocab_size must be"),
        ({"num_attention_heads": 5}, "no BERT can be built from it"),
        ({"pad_token_id": 99999}, "no BERT can be built from it"),
        ({"hidden_act": "swishy"}, "unknown hidden_act 'swishy'"),
        ({"hidden_act": ["gelu"]}, "not a BERT config"),
    ],
    ids=str,
)
def test_config_values_that_make_no_sense(model_copy: Path, changes: dict, part: str) -> None:
    edit(model_copy / "config.json", **changes)
    refused(model_copy, "config.json", part)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"num_hidden_layers": 7}, "config.json asks for 7 layers, the weights hold fewer"),
        ({"num_hidden_layers": 10**9}, "the weights hold fewer"),
        ({"hidden_size": 64}, "shape (351, 32), config.json asks for (351, 64)"),
        ({"hidden_size": 4 * 10**9}, "no BERT can be built from it"),
        ({"vocab_size": 10**12}, "embeddings.word_embeddings.weight has shape"),
        ({"intermediate_size": 100}, "encoder.layer.0.intermediate.dense.weight has shape"),
        ({"max_position_embeddings": 10**11}, "embeddings.position_embeddings.weight has shape"),
    ],
    ids=str,
)
def test_config_that_does_not_fit_the_weights(model_copy: Path, changes: dict, part: str) -> None:
    """Without asking for the memory that such a config would need."""
    edit(model_copy / "config.json", **changes)
    refused(model_copy, part.replace("351", str(len(VOCABULARY))))


def test_fewer_layers_than_the_weights_have(model_copy: Path) -> None:
    edit(model_copy / "config.json", num_hidden_layers=4)  # as transformers does: the first four
    assert len(load(model_copy).bert.encoder.layer) == 4


# -- damaged weights -------------------------------------------------------------------------------------------------


def test_missing_weights(model_copy: Path) -> None:
    (model_copy / "model.safetensors").unlink()
    refused(model_copy, "no weights there (model.safetensors or pytorch_model.bin)")


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
def test_truncated_safetensors(model_copy: Path, keep: float) -> None:
    path = model_copy / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    refused(model_copy, "model.safetensors: truncated or not a safetensors file", "fetch or write it again")


@pytest.mark.parametrize("place", [0.2, 0.5, 0.9999])
def test_a_flipped_bit_in_what_we_saved(model_copy: Path, tmp_path: Path, place: float) -> None:
    load(model_copy).save(tmp_path / "saved")
    path = tmp_path / "saved" / "model.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[int(place * len(damaged))] ^= 1
    path.write_bytes(bytes(damaged))
    refused(tmp_path / "saved", "model.safetensors: checksum does not match, the file is damaged")


@pytest.mark.parametrize("name", ["embeddings.LayerNorm.bias", "encoder.layer.3.output.dense.weight"])
def test_a_missing_tensor(model_copy: Path, name: str) -> None:
    tensors = load_file(model_copy / "model.safetensors")
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, model_copy / "model.safetensors")
    refused(model_copy, f"1 tensors are missing, {name} first")


def test_weights_of_something_else(model_copy: Path) -> None:
    save_file({"a": torch.ones(2)}, model_copy / "model.safetensors")
    refused(model_copy, "the weights hold fewer")


def test_a_tensor_of_another_shape(model_copy: Path) -> None:
    change_weights(model_copy, lambda n, t: (n, t[:-1].clone()) if n == "encoder.layer.1.output.dense.bias" else (n, t))
    refused(model_copy, "encoder.layer.1.output.dense.bias has shape (31,), config.json asks for (32,)")


def test_quantised_weights(model_copy: Path) -> None:
    change_weights(model_copy, lambda name, tensor: (name, tensor.to(torch.int8) if tensor.ndim == 2 else tensor))
    refused(model_copy, "is torch.int8; quantised weights are not supported")


# -- tokenizer -------------------------------------------------------------------------------------------------------


def test_missing_tokenizer(model_copy: Path) -> None:
    (model_copy / "tokenizer.json").unlink()
    (model_copy / "vocab.txt").unlink()
    refused(model_copy, "no tokenizer there (tokenizer.json or vocab.txt)")


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"model": {"type": "Nonsense"}}', "\0\1\2"])
def test_damaged_tokenizer(model_copy: Path, content: str) -> None:
    (model_copy / "tokenizer.json").write_text(content)
    refused(model_copy, "the tokenizer can't be read")


def test_tokenizer_with_more_words_than_the_model(model_copy: Path) -> None:
    value = json.loads((model_copy / "tokenizer.json").read_text(encoding="utf-8"))
    value["model"]["vocab"]["newword"] = len(VOCABULARY)
    write(model_copy / "tokenizer.json", value)
    refused(model_copy, f"numbers words up to {len(VOCABULARY)}, the model has {len(VOCABULARY)}")


def test_tokenizer_that_numbers_words_beyond_the_model(model_copy: Path) -> None:
    """As many words as the model, but one with a large number."""
    value = json.loads((model_copy / "tokenizer.json").read_text(encoding="utf-8"))
    value["model"]["vocab"]["dog"] = 10**6
    write(model_copy / "tokenizer.json", value)
    refused(model_copy, "numbers words up to 1000000")


@pytest.mark.parametrize("keep", [40, 0.5, 0.8])
def test_a_vocabulary_that_is_cut_off(model_copy: Path, keep: float) -> None:
    """Otherwise most words would silently become [UNK]."""
    (model_copy / "tokenizer.json").unlink()
    whole = (model_copy / "vocab.txt").read_bytes()
    (model_copy / "vocab.txt").write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    refused(model_copy, f"words, the model {len(VOCABULARY)}, is a file cut?")


def test_tokenizer_without_a_word_for_the_unknown(model_copy: Path) -> None:
    value = json.loads((model_copy / "tokenizer.json").read_text(encoding="utf-8"))
    del value["model"]["vocab"]["[UNK]"]
    value["added_tokens"] = [token for token in value["added_tokens"] if token["content"] != "[UNK]"]
    value["model"]["unk_token"] = "[NOTHING]"
    write(model_copy / "tokenizer.json", value)
    (model_copy / "vocab.txt").unlink()
    refused(model_copy, "the tokenizer")


def test_tokenizer_that_adds_no_special_words(model_copy: Path) -> None:
    value = json.loads((model_copy / "tokenizer.json").read_text(encoding="utf-8"))
    write(model_copy / "tokenizer.json", value | {"post_processor": None})
    edit(model_copy / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    refused(model_copy, "puts no [CLS] and [SEP] around a text")


def test_code_from_a_model_directory_is_not_run(model_copy: Path, tmp_path: Path) -> None:
    marker = tmp_path / "code-ran"
    (model_copy / "own.py").write_text(f"import os\nos.mkdir({str(marker)!r})\nclass Own: pass\n")
    edit(model_copy / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", "own.Own"]})
    edit(model_copy / "config.json", auto_map={"AutoModel": "own.Own", "AutoConfig": "own.Own"})
    try:
        load(model_copy)
    except InputError as error:
        assert "tokenizer" in str(error)
    assert not marker.exists()


# -- modules, pooling, dense -----------------------------------------------------------------------------------------


def modules(*kinds: str) -> list[dict]:
    return [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ({}, "modules ;"),
        ([], "modules ;"),
        ("text", "not a list of modules with type and path"),
        ([1], "not a list of modules"),
        ([{"type": "Transformer"}], "not a list of modules"),
        ([{"type": "Transformer", "path": 3}], "not a list of modules"),
        ([{"type": 3, "path": ""}], "not a list of modules"),
        (modules("Pooling"), "supported: Transformer Pooling Dense Normalize"),
        (modules("Transformer", "Pooling", "LSTM"), "modules Transformer Pooling LSTM; supported"),
        (modules("StaticEmbedding"), "modules StaticEmbedding"),
        (modules("Transformer", "Pooling", "Pooling"), "once and in this order"),
        (modules("Transformer", "Pooling", "Dense", "Dense"), "once and in this order"),
        (modules("Transformer", "Pooling", "Normalize", "Dense"), "once and in this order"),
    ],
    ids=str,
)
def test_modules_that_are_not_supported(model_copy: Path, value: Any, part: str) -> None:
    write(model_copy / "modules.json", value)
    refused(model_copy, "modules.json", part)


@pytest.mark.parametrize("path", ["../outside", "1_Pooling/../../outside", "{outside}"])
def test_module_paths_can_not_leave_the_directory(model_copy: Path, path: str) -> None:
    outside = model_copy.parent / "outside"
    shutil.copytree(model_copy / "1_Pooling", outside)
    rows = modules("Transformer", "Pooling")
    rows[1]["path"] = path.format(outside=outside)
    write(model_copy / "modules.json", rows)
    refused(model_copy, "leads out of the model directory")


def test_shards_can_not_leave_the_directory(model_copy: Path) -> None:
    files = shard(model_copy)
    for file in set(files.values()):
        (model_copy / file).rename(model_copy.parent / file)
    moved = {name: f"../{file}" for name, file in files.items()}
    write(model_copy / "model.safetensors.index.json", {"weight_map": moved})
    refused(model_copy, "leads out of the model directory")


@pytest.mark.parametrize("mode", ["max", "mean_sqrt_len", "weightedmean", "lasttoken"])
def test_other_poolings_are_named(tmp_path: Path, mode: str) -> None:
    refused(make_bert_dir(tmp_path, layers=1, pooling=mode), "1_Pooling/config.json", mode, "(cls and mean are)")


@pytest.mark.parametrize(
    "value",
    [
        {"pooling_mode": ["cls", "mean"]},
        {"pooling_mode": "lasttoken"},
        {"pooling_mode": {"a": 1}},
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
        {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
        {"pooling_mode": "mean", "include_prompt": False},
    ],
    ids=str,
)
def test_poolings_that_are_not_supported(model_copy: Path, value: dict) -> None:
    write(model_copy / "1_Pooling" / "config.json", value)
    refused(model_copy, "1_Pooling/config.json", "not supported")


@pytest.mark.parametrize(
    ("value", "pooling"),
    [
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["cls"]}, "cls"),
        ({"pooling_mode": "mean", "pooling_mode_cls_token": True}, "mean"),
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False}, "mean"),
        ({"embedding_dimension": 32}, "mean"),
    ],
    ids=str,
)
def test_each_spelling_of_pooling(model_copy: Path, value: dict, pooling: str) -> None:
    write(model_copy / "1_Pooling" / "config.json", value)
    assert str(load(model_copy).settings.pooling) == pooling


def test_the_default_that_was_taken_is_told(tmp_path: Path, tiny_model_dir: Path) -> None:
    embedder = load(make_bert_dir(tmp_path, layers=1, pooling=None))
    assert str(embedder.settings.pooling) == "mean" and not embedder.settings.normalize
    assert embedder.settings.notes == [f"{tmp_path} names no pooling: taking mean, as sentence-transformers does"]
    assert load(tiny_model_dir).settings.notes == []


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"activation_function": "torch.nn.modules.activation.Mish"}, "activation Mish is not supported"),
        ({"activation_function": "os.system"}, "activation system is not supported"),
        ({"in_features": 31}, "in_features must be 32"),
        ({"out_features": 10**12}, "linear.weight has shape (16, 32), config.json asks for (1000000000000, 32)"),
        ({"out_features": "many"}, "out_features a number"),
        ({"module_input_name": "token_embeddings"}, "module_input_name and use_residual are not supported"),
        ({"use_residual": True}, "module_input_name and use_residual are not supported"),
    ],
    ids=str,
)
def test_dense_modules_that_are_not_supported(tmp_path: Path, changes: dict, part: str) -> None:
    directory = make_bert_dir(tmp_path, layers=1, dense=(16, "torch.nn.modules.activation.Tanh"))
    edit(directory / "2_Dense" / "config.json", **changes)
    refused(directory, "2_Dense", part)


def test_dense_module_without_weights(tmp_path: Path) -> None:
    directory = make_bert_dir(tmp_path, layers=1, dense=(16, "torch.nn.modules.activation.Tanh"))
    save_file({"linear.weight": torch.ones(16, 32)}, directory / "2_Dense" / "model.safetensors")
    refused(directory, "2_Dense: 1 tensors are missing, linear.bias first")
    edit(directory / "2_Dense" / "config.json", bias=False)
    assert load(directory).dense.bias is None  # type: ignore[union-attr]
    (directory / "2_Dense" / "model.safetensors").unlink()
    refused(directory, "2_Dense: no weights there")


# -- lengths and prompts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, 2, -1, 1.5, "64", [64], True])
def test_maximum_lengths_that_make_no_sense(model_copy: Path, value: Any) -> None:
    edit(model_copy / "sentence_bert_config.json", max_seq_length=value)
    refused(model_copy, "max_seq_length", "at least 3", repr(value))


def test_maximum_length_from_the_tokenizer(model_copy: Path) -> None:
    (model_copy / "sentence_bert_config.json").unlink()
    edit(model_copy / "tokenizer_config.json", model_max_length=40)
    assert load(model_copy).settings.max_length == 40
    edit(model_copy / "tokenizer_config.json", model_max_length=10**30)
    assert load(model_copy).settings.max_length == 512
    edit(model_copy / "tokenizer_config.json", model_max_length=1)
    refused(model_copy, "model_max_length in tokenizer_config.json")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"prompts": ["a"]}, "prompts must be texts by name"),
        ({"prompts": {"query": 3}}, "prompts must be texts by name"),
        ({"default_prompt_name": "query"}, "default_prompt_name 'query' is not among the prompts"),
        ({"default_prompt_name": ["query"]}, "default_prompt_name"),
        ({"similarity_fn_name": {"a": 1}}, "similarity_fn_name must be a name"),
        ({"truncate_dim": 16}, "truncate_dim in its sentence-transformers config is not supported"),
    ],
    ids=str,
)
def test_prompts_that_make_no_sense(model_copy: Path, changes: dict, part: str) -> None:
    edit(model_copy / "config_sentence_transformers.json", **changes)
    refused(model_copy, part)


def test_prompts_may_be_empty(model_copy: Path) -> None:
    text = '{"prompts": {"query": null, "passage": "p: "}, "similarity_fn_name": null}'
    (model_copy / "config_sentence_transformers.json").write_text(text)
    settings = load(model_copy).settings
    assert settings.prompts == {"query": "", "passage": "p: "} and settings.similarity_fn_name == "cosine"
    (model_copy / "config_sentence_transformers.json").unlink()
    assert load(model_copy).settings.prompts == {}


@pytest.mark.parametrize(
    "name", ["config.json", "modules.json", "model.safetensors", "1_Pooling/config.json", "tokenizer.json"]
)
def test_a_directory_in_place_of_a_file(model_copy: Path, name: str) -> None:
    (model_copy / name).unlink()
    (model_copy / name).mkdir()
    (model_copy / "vocab.txt").unlink()
    refused(model_copy)


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "modules.json"])
def test_a_file_that_may_not_be_read(model_copy: Path, tmp_path: Path, name: str) -> None:
    for place in [*tmp_path.parents, tmp_path, *model_copy.rglob("*")]:
        if place.is_relative_to("/tmp") and place != Path("/tmp"):
            place.chmod(place.stat().st_mode | 0o055)
    (model_copy / name).chmod(0)

    def read() -> None:
        os.seteuid(65534)
        run_command(lambda: load(model_copy) and None)

    status, line = in_child(read, tmp_path / "errors")
    assert status == 2 and line.startswith("error: ") and str(model_copy) in line and line.count("\n") == 1


# -- saving ----------------------------------------------------------------------------------------------------------


def in_child(action: Callable[[], None], errors: Path) -> tuple[int, str]:
    """Run an action in a forked process of its own; returns its exit status and what it wrote to stderr."""

    def main() -> None:
        sys.stderr = errors.open("w", encoding="utf-8")
        action()

    process = multiprocessing.get_context("fork").Process(target=main)
    process.start()
    process.join(60)
    assert process.exitcode is not None, "the child hangs"
    return process.exitcode, errors.read_text(encoding="utf-8")


def test_a_model_is_replaced_by_another(tiny_model_dir: Path, tmp_path: Path, wanted: np.ndarray) -> None:
    place = tmp_path / "model"
    make_bert_dir(place, layers=2, seed=7)
    (place / "onnx").mkdir()
    (place / "onnx" / "model.onnx").write_text("of the old model")
    load(tiny_model_dir).save(place)
    assert_loads(place, wanted)
    assert not (place / "onnx").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_is_saved_over_its_own_source(model_copy: Path, wanted: np.ndarray) -> None:
    embedder = load(model_copy)
    student = embedder.keep_layers([0, 3])
    student.save(model_copy)
    np.testing.assert_allclose(embedder.encode(TEXTS), wanted, atol=1e-6)  # nothing of it lived in the old files
    np.testing.assert_allclose(load(model_copy).encode(TEXTS), student.encode(TEXTS), atol=1e-6)


def test_what_is_no_model_is_not_replaced(tiny_model_dir: Path, tmp_path: Path) -> None:
    embedder = load(tiny_model_dir)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    (tmp_path / "file").write_text("x")
    before = contents(tmp_path)
    for name in ("letters", "file"):
        with pytest.raises(InputError, match=f"{tmp_path / name}: is there and no model, so it is not replaced"):
            embedder.save(tmp_path / name)
    assert contents(tmp_path) == before
    (tmp_path / "empty").mkdir()
    embedder.save(tmp_path / "empty")
    assert load(tmp_path / "empty")


@pytest.mark.parametrize("limit", [200, 500, 1000, 5000, 20_000, 100_000, 250_000])
def test_a_full_disk_while_saving_keeps_the_old_model(model_copy: Path, tmp_path: Path, limit: int) -> None:
    """No file can grow beyond `limit`: each in turn is the one at which the disk is full."""
    student, before = load(model_copy).keep_layers(range(6)), contents(model_copy)
    largest = max(len(content) for content in before.values())
    assert largest > limit

    def save() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        run_command(lambda: student.save(model_copy))

    status, line = in_child(save, tmp_path / "errors")
    assert status == 1, line
    assert line.startswith(f"error: {model_copy}: no space left to write") and line.count("\n") == 1
    assert contents(model_copy) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "errors"]


@pytest.mark.parametrize("call", ["fsync", "rename", "replace"])
def test_an_error_of_the_system_while_saving_keeps_the_old_model(
    model_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    embedder, before = load(model_copy), contents(model_copy)

    def fail(*arguments: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="Input/output error") as caught:
        embedder.save(model_copy)
    monkeypatch.undo()
    assert caught.value.filename == str(model_copy)
    assert contents(model_copy) == before
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_a_read_only_place_is_named(model_copy: Path, tmp_path: Path) -> None:
    embedder, before = load(model_copy), contents(model_copy)

    def save() -> None:
        os.seteuid(65534)
        run_command(lambda: embedder.save(model_copy.parent / "other"))

    status, line = in_child(save, tmp_path / "errors")
    assert status == 1 and line.startswith(f"error: {model_copy.parent}") and "not writable" in line
    assert contents(model_copy) == before


# -- anything at all -------------------------------------------------------------------------------------------------

STRINGS = ["../x", "/etc/passwd", "a\0b", "x" * 300, "bert", "mean", "", "\ud800", "[PAD]", "WordPiece", "1_Pooling"]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 600)
    | st.integers()
    | st.sampled_from([2**31, 2**63, 2**64, 10**30, -(2**63)])
    | st.floats()
    | st.sampled_from(STRINGS + SPECIAL)
    | st.text(max_size=8)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Small models in each layout: the usual one with a dense module, pickled with vocab.txt, and in shards."""
    place = tmp_path_factory.mktemp("bases")
    small: dict[str, Any] = {"layers": 1, "hidden": 4, "heads": 1, "max_position_embeddings": 16, "max_length": 12}
    dense = make_bert_dir(place / "dense", dense=(3, "torch.nn.modules.activation.Tanh"), prompts={"q": "q "}, **small)
    pickled = make_bert_dir(place / "pickled", pooling="cls", **small)
    to_bin(pickled)
    (pickled / "tokenizer.json").unlink()
    sharded = make_bert_dir(place / "sharded", normalize=False, **small)
    shard(sharded)
    return [dense, pickled, sharded]


def places_in(value: Any, path: tuple = ()) -> list[tuple]:
    """Every place in a JSON value, as the keys that lead to it; of long lists and objects the first few."""
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items)[:12]:
        found += places_in(inner, (*path, key))
    return found


def put(value: Any, path: tuple, new: Any, delete: bool) -> Any:
    """The JSON value with `new` at a place, or without what is there."""
    if not path:
        return new
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    if delete:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return value


def damage(data: st.DataObject, path: Path) -> None:
    """Do something to one file: remove, cut, overwrite or change a part of it."""
    content = path.read_bytes()
    ways = ["remove", "cut", "replace", "bytes", *(["json"] * 8 if path.suffix == ".json" else [])]
    way = data.draw(st.sampled_from(ways), label=path.name)
    if way == "remove":
        path.unlink()
    elif way == "cut":
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    elif way == "replace":
        path.write_bytes(data.draw(st.binary(max_size=30) | VALUES.map(lambda v: json.dumps(v).encode())))
    elif way == "bytes":
        start = data.draw(st.integers(0, len(content)))
        stop = start + data.draw(st.integers(0, 9))
        path.write_bytes(content[:start] + data.draw(st.binary(max_size=9)) + content[stop:])
    else:
        value = json.loads(content)
        place = data.draw(st.sampled_from(places_in(value)))
        path.write_text(json.dumps(put(value, place, data.draw(VALUES), delete=data.draw(st.booleans()))))


@given(data=st.data())
def test_any_damage_loads_or_is_told_in_one_line(
    bases: list[Path], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever happens to a model directory: it loads and encodes, or the answer is an InputError of one line."""
    base = data.draw(st.sampled_from(bases), label="base")
    directory = tmp_path_factory.getbasetemp() / "damaged"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(base, directory)
    files = sorted(str(path.relative_to(base)) for path in base.rglob("*") if path.is_file())
    for name in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=2, unique=True), label="files"):
        damage(data, directory / name)
    try:
        embedder = load(directory)
    except InputError as error:
        assert "\n" not in str(error) and str(directory) in str(error)
        event("refused: " + str(error).partition(": ")[2][:24])
        return
    event("loaded")
    embeddings = embedder.encode(["", "the dog sees 猫"])
    assert embeddings.shape == (2, embedder.dimensions)
