"""Model directories: each layout of the field loads, each damage is told in one line, and saving is all or nothing."""

import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import in_child
from safetensors.torch import load_file, save_file
from tiny import VOCABULARY, edit, load, make_bert_dir, write

from shortstack.distillation.command_line import run_command
from shortstack.model.files import InputError

TEXTS = ["", "The dog sees the cat.", "naïve 猫 😀", "the old man reads a long letter " * 20]


def refused(path: Path | str, *parts: str) -> None:
    """Loading ends with one line that names the place and holds these parts."""
    with pytest.raises(InputError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(path), *parts):
        assert part in message, message


@pytest.fixture(scope="module")
def wanted(tiny_model_dir: Path) -> np.ndarray:
    """The tiny teacher's embeddings of TEXTS."""
    embeddings = load(tiny_model_dir).encode(TEXTS)
    assert isinstance(embeddings, np.ndarray)
    return embeddings


def assert_loads(path: Path | str, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(load(path).encode(TEXTS), wanted, atol=1e-5)


# -- weights in every form that the field has ------------------------------------------------------------------------


def change_weights(directory: Path, change: Callable[[str, torch.Tensor], tuple[str, torch.Tensor] | None]) -> None:
    """Write each tensor as what `change` makes of its name and itself; None leaves it out."""
    tensors = load_file(directory / "model.safetensors")
    changed = dict(filter(None, (change(name, tensor.clone()) for name, tensor in tensors.items())))
    save_file(changed, directory / "model.safetensors", metadata={"format": "pt"})


def shard(directory: Path) -> dict[str, str]:
    """Spread the weights over two files, as models of some gigabytes come; returns which tensor is in which."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    files = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in tensors if files[name] == file}, directory / file)
    write(directory / "model.safetensors.index.json", {"metadata": {}, "weight_map": files})
    return files


def to_bin(directory: Path, **options: Any) -> Path:
    """Weights as a pickle, as older models have them; column by column, as tensors of other libraries may lie."""
    weights = {name: tensor.t().contiguous().t() for name, tensor in load_file(directory / "model.safetensors").items()}
    torch.save(weights, directory / "pytorch_model.bin", **options)
    (directory / "model.safetensors").unlink()
    return directory / "pytorch_model.bin"


FORMS: dict[str, Callable[[Path], object]] = {
    "a prefix, as BertForMaskedLM has": lambda path: change_weights(path, lambda name, t: (f"bert.{name}", t)),
    "tensors that no encoder needs": lambda path: save_file(
        load_file(path / "model.safetensors") | {"cls.bias": torch.ones(9), "embeddings.position_ids": torch.ones(9)},
        path / "model.safetensors",
    ),
    "layer norms with gamma and beta": lambda path: change_weights(
        path, lambda name, t: (name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"), t)
    ),
    "no pooler": lambda path: change_weights(path, lambda name, t: None if "pooler" in name else (name, t)),
    "fp64": lambda path: change_weights(path, lambda name, t: (name, t.double())),
    "shards": shard,
    "a pickle": to_bin,
    "a pickle of old": lambda path: to_bin(path, _use_new_zipfile_serialization=False),
    "vocab.txt alone": lambda path: (path / "tokenizer.json").unlink(),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_a_model_loads(model_copy: Path, wanted: np.ndarray, form: str) -> None:
    FORMS[form](model_copy)
    assert_loads(model_copy, wanted)
    assert (load(model_copy).bert.pooler is None) == (form == "no pooler")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loads_as_fp32(model_copy: Path, wanted: np.ndarray, dtype: torch.dtype) -> None:
    change_weights(model_copy, lambda name, tensor: (name, tensor.to(dtype)))
    edit(model_copy / "config.json", dtype=str(dtype).removeprefix("torch."))
    embedder = load(model_copy)
    assert {parameter.dtype for parameter in embedder.parameters()} == {torch.float32}
    np.testing.assert_allclose(embedder.encode(TEXTS), wanted, atol=0.05)


@pytest.mark.parametrize("value", [[], {}, {"weight_map": 3}, {"weight_map": {"a": 3}}, {"weight_map": {"a": ["b"]}}])
def test_damaged_index_of_shards(model_copy: Path, value: Any) -> None:
    shard(model_copy)
    write(model_copy / "model.safetensors.index.json", value)
    refused(model_copy, "model.safetensors.index.json")


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


# -- files that are missing, cut off or nonsense ---------------------------------------------------------------------


def test_missing_files_are_named(model_copy: Path) -> None:
    files = shard(model_copy)
    (model_copy / "tokenizer.json").rename(model_copy / "other.json")
    (model_copy / "vocab.txt").unlink()
    refused(model_copy, "no tokenizer there (tokenizer.json or vocab.txt)")
    (model_copy / "other.json").rename(model_copy / "tokenizer.json")
    (model_copy / files["embeddings.word_embeddings.weight"]).unlink()
    refused(model_copy, files["embeddings.word_embeddings.weight"], "no such file")
    (model_copy / "model.safetensors.index.json").unlink()
    refused(model_copy, "no weights there (model.safetensors or pytorch_model.bin)")
    (model_copy / "config.json").unlink()
    refused(model_copy, "config.json: no such file")


CUTS = {
    "model.safetensors": ([0, 4, 100, 0.5, 0.999], "truncated or not a safetensors file"),
    "pytorch_model.bin": ([0, 1, 100, 0.5, 0.99], "pytorch_model.bin: damaged"),
    "vocab.txt": (
        [40, 0.5, 0.8],
        f"words, the model {len(VOCABULARY)}; is a file cut off?",
    ),  # else most would be [UNK]
}


@pytest.mark.parametrize(("name", "keep"), [(name, keep) for name, (keeps, _) in CUTS.items() for keep in keeps])
def test_a_file_that_is_cut_off_is_named(model_copy: Path, name: str, keep: float) -> None:
    if name == "pytorch_model.bin":
        to_bin(model_copy)
    if name == "vocab.txt":
        (model_copy / "tokenizer.json").unlink()
    whole = (model_copy / name).read_bytes()
    (model_copy / name).write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    refused(model_copy, CUTS[name][1])


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        *(("config.json", text, "JSON") for text in ("", "{", "[1, 2]", '"bert"', "null", "\0")),
        *(("tokenizer.json", text, "the tokenizer can't be read") for text in ("", "{", "{}", "[]", "\0\1\2")),
        ("tokenizer.json", '{"model": {"type": "Nonsense"}}', "the tokenizer can't be read"),
    ],
)
def test_a_file_of_nonsense_is_named(model_copy: Path, name: str, content: str, part: str) -> None:
    (model_copy / name).write_text(content)
    refused(model_copy, part)


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
def test_a_file_that_may_not_be_read(tiny_model_dir: Path, tmp_path: Path, name: str) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        model = Path(shutil.copytree(tiny_model_dir, Path(place, "model")))
        Path(place).chmod(0o755)  # but for the one file, anyone may read it all
        (model / name).chmod(0)

        def read() -> None:
            os.seteuid(65534)
            run_command(lambda: load(model) and None)

        status, line = in_child(read, tmp_path / "errors")
    assert status == 2 and line.startswith("error: ") and str(model) in line and line.count("\n") == 1


# -- damaged weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0.2, 0.5, 0.9999])
def test_a_flipped_bit_in_what_we_saved(model_copy: Path, tmp_path: Path, place: float) -> None:
    load(model_copy).save(tmp_path / "saved")
    path = tmp_path / "saved" / "model.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[int(place * len(damaged))] ^= 1
    path.write_bytes(bytes(damaged))
    refused(tmp_path / "saved", "model.safetensors: checksum does not match, the file is damaged")


def test_every_changed_file_of_a_saved_model_is_noticed(tiny_model_dir: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    load(tiny_model_dir).save(saved)
    for path in sorted(saved.rglob("*")):
        if path.is_dir() or path.name == "README.md":
            continue
        content = path.read_bytes()
        path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
        refused(saved, str(path.name))
        path.unlink()
        if path.name == "checksums.json":
            load(saved)  # the advice for who changed a file, and as other tools write directories
        else:
            refused(saved, f"{path}: no such file", f"if you changed it yourself, delete {saved / 'checksums.json'}")
        path.write_bytes(content)
    (saved / "README.md").write_text("mine")
    (saved / "notes.txt").write_text("mine")
    load(saved)


def test_two_students_files_do_not_mix(tmp_path: Path) -> None:
    for seed in (0, 1):
        load(make_bert_dir(tmp_path / f"teacher{seed}", layers=1, seed=seed)).save(tmp_path / str(seed))
    shutil.copy(tmp_path / "0" / "model.safetensors", tmp_path / "1" / "model.safetensors")
    refused(tmp_path / "1", "model.safetensors: checksum does not match")


BIAS = "encoder.layer.1.output.dense.bias"
DAMAGES: dict[str, tuple[Callable[[str, torch.Tensor], tuple[str, torch.Tensor] | None], str]] = {
    "missing": (lambda name, t: None if name == BIAS else (name, t), f"1 tensors are missing, {BIAS} first"),
    "of something else": (lambda name, t: (f"other.{name}", t), "the weights hold fewer"),
    "another shape": (
        lambda name, t: (name, t[:-1].clone() if name == BIAS else t),
        f"{BIAS} has shape (31,), config.json asks for (32,)",
    ),
    "quantised": (
        lambda name, t: (name, t.to(torch.int8) if t.ndim == 2 else t),
        "is torch.int8; quantised weights are not supported",
    ),
    "not a number": (
        lambda name, t: (name, t * torch.nan if name == BIAS else t),
        f"{BIAS} holds numbers that are not finite (NaN or infinity)",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_weights_that_do_not_fit(model_copy: Path, damage: str) -> None:
    change, message = DAMAGES[damage]
    change_weights(model_copy, change)
    refused(model_copy, message)


# -- tokenizer -------------------------------------------------------------------------------------------------------


def forget_unknown(value: dict[str, Any]) -> None:
    del value["model"]["vocab"]["[UNK]"]
    value["added_tokens"] = [token for token in value["added_tokens"] if token["content"] != "[UNK]"]
    value["model"]["unk_token"] = "[NOTHING]"


TOKENIZERS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "more words than the model": (
        lambda value: value["model"]["vocab"].update(newword=len(VOCABULARY)),
        f"numbers words up to {len(VOCABULARY)}, the model has {len(VOCABULARY)}",
    ),
    "a word of a large number": (
        lambda value: value["model"]["vocab"].update(dog=10**6),
        "numbers words up to 1000000",
    ),
    "no word for the unknown": (forget_unknown, "the tokenizer"),
    "no [CLS] and [SEP]": (lambda value: value.update(post_processor=None), "puts no [CLS] and [SEP] around a text"),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_tokenizers_that_can_not_be_the_models(model_copy: Path, case: str) -> None:
    change, message = TOKENIZERS[case]
    value = json.loads((model_copy / "tokenizer.json").read_text(encoding="utf-8"))
    change(value)
    write(model_copy / "tokenizer.json", value)
    (model_copy / "vocab.txt").unlink()
    edit(model_copy / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    refused(model_copy, message)


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


# -- settings --------------------------------------------------------------------------------------------------------


def modules(*kinds: str) -> list[dict]:
    return [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]


WRONG: dict[str, list[tuple[Any, str]]] = {  # by file: fields that are set, or for modules.json what it holds
    "config.json": [
        *(({"model_type": kind}, f"the architecture is '{kind}'") for kind in ("modernbert", "nomic_bert", "t5")),
        ({"model_type": "llama"}, "only bert, roberta, xlm-roberta, mpnet, distilbert are supported"),
        ({"is_decoder": True}, "no decoders"),
        ({"position_embedding_type": "relative_key"}, "absolute positions"),
        ({"hidden_size": "big"}, "not a config of bert"),
        ({"hidden_size": 0}, "hidden_size must be a whole number of at least 1, got 0"),
        ({"num_hidden_layers": -1}, "num_hidden_layers must be"),
        ({"type_vocab_size": 0}, "type_vocab_size must be"),
        ({"num_attention_heads": 5}, "no bert can be built from it"),
        ({"pad_token_id": 99999}, "no bert can be built from it"),
        ({"hidden_act": "swishy"}, "unknown hidden_act 'swishy'"),
        ({"hidden_act": ["gelu"]}, "not a config of bert"),
        ({"layer_norm_eps": -1e-12}, "layer_norm_eps must be a number of at least 0, got -1e-12"),
        # what does not fit the weights: told without asking for the memory that it would need
        ({"num_hidden_layers": 7}, "config.json asks for 7 layers, the weights hold fewer"),
        ({"num_hidden_layers": 10**9}, "the weights hold fewer"),
        ({"hidden_size": 64}, f"shape ({len(VOCABULARY)}, 32), config.json asks for ({len(VOCABULARY)}, 64)"),
        ({"hidden_size": 4 * 10**9}, "no bert can be built from it"),
        ({"vocab_size": 10**12}, "embeddings.word_embeddings.weight has shape"),
        ({"intermediate_size": 100}, "encoder.layer.0.intermediate.dense.weight has shape"),
        ({"max_position_embeddings": 10**11}, "embeddings.position_embeddings.weight has shape"),
    ],
    "modules.json": [
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
    "1_Pooling/config.json": [
        *(
            (
                {"pooling_mode_mean_tokens": False, f"pooling_mode_{mode}": True},
                f"{mode} is not supported (cls and mean",
            )
            for mode in ("max_tokens", "mean_sqrt_len_tokens", "lasttoken")
        ),
        ({"pooling_mode": ["cls", "mean"]}, "not supported"),
        ({"pooling_mode": "lasttoken"}, "not supported"),
        ({"pooling_mode": {"a": 1}}, "not supported"),
        ({"pooling_mode_cls_token": True}, "not supported"),  # beside mean
        ({"include_prompt": False}, "not supported"),
    ],
    "2_Dense/config.json": [
        ({"activation_function": "torch.nn.modules.activation.Mish"}, "activation Mish is not supported"),
        ({"activation_function": "os.system"}, "activation system is not supported"),
        ({"in_features": 31}, "in_features must be 32"),
        ({"out_features": 10**12}, "linear.weight has shape (16, 32), config.json asks for (1000000000000, 32)"),
        ({"out_features": "many"}, "out_features a number"),
        ({"module_input_name": "token_embeddings"}, "module_input_name and use_residual are not supported"),
        ({"use_residual": True}, "module_input_name and use_residual are not supported"),
    ],
    "sentence_bert_config.json": [
        ({"max_seq_length": value}, f"at least 3, got {value!r}") for value in (0, 2, -1, 1.5, "64", [64], True)
    ],
    "config_sentence_transformers.json": [
        ({"prompts": ["a"]}, "prompts must be texts by name"),
        ({"prompts": {"query": 3}}, "prompts must be texts by name"),
        ({"default_prompt_name": "query"}, "default_prompt_name 'query' is not among the prompts"),
        ({"default_prompt_name": ["query"]}, "default_prompt_name"),
        ({"similarity_fn_name": {"a": 1}}, "similarity_fn_name must be a name"),
        ({"truncate_dim": 0}, "truncate_dim must be a whole number of at least 1, got 0"),
        ({"truncate_dim": "16"}, "truncate_dim must be a whole number of at least 1, got '16'"),
    ],
}


@pytest.mark.parametrize(
    ("file", "value", "part"), [(file, *case) for file, cases in WRONG.items() for case in cases], ids=str
)
def test_settings_that_are_not_supported(model_copy: Path, tmp_path: Path, file: str, value: Any, part: str) -> None:
    directory = model_copy
    if file.startswith("2_Dense"):
        directory = make_bert_dir(tmp_path / "dense", layers=1, dense=(16, "torch.nn.modules.activation.Tanh"))
    if file == "modules.json":
        write(directory / file, value)
    else:
        edit(directory / file, **value)
    refused(directory, part)


def test_fewer_layers_than_the_weights_have(model_copy: Path) -> None:
    edit(model_copy / "config.json", num_hidden_layers=4)  # as transformers does: the first four
    assert len(load(model_copy).bert.encoder.layer) == 4


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


def test_dense_module_without_weights(tmp_path: Path) -> None:
    directory = make_bert_dir(tmp_path, layers=1, dense=(16, "torch.nn.modules.activation.Tanh"))
    save_file({"linear.weight": torch.ones(16, 32)}, directory / "2_Dense" / "model.safetensors")
    refused(directory, "2_Dense: 1 tensors are missing, linear.bias first")
    edit(directory / "2_Dense" / "config.json", bias=False)
    assert load(directory).dense.bias is None  # type: ignore[union-attr]
    (directory / "2_Dense" / "model.safetensors").unlink()
    refused(directory, "2_Dense: no weights there")


def test_maximum_length_from_the_tokenizer(model_copy: Path) -> None:
    (model_copy / "sentence_bert_config.json").unlink()
    edit(model_copy / "tokenizer_config.json", model_max_length=40)
    assert load(model_copy).settings.max_length == 40
    edit(model_copy / "tokenizer_config.json", model_max_length=10**30)
    assert load(model_copy).settings.max_length == 512
    edit(model_copy / "tokenizer_config.json", model_max_length=1)
    refused(model_copy, "model_max_length in tokenizer_config.json")


def test_embeddings_are_cut_where_the_model_says_so(model_copy: Path, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    edit(model_copy / "config_sentence_transformers.json", truncate_dim=7)
    student = load(model_copy)
    assert student.dimensions == 7
    student.save(tmp_path / "again")
    for directory in (model_copy, tmp_path / "again"):
        theirs = sentence_transformers.SentenceTransformer(str(directory), device="cpu").encode(TEXTS)
        assert theirs.shape[1] == 7
        np.testing.assert_allclose(load(directory).encode(TEXTS), theirs, atol=1e-5)


def test_prompts_may_be_empty(model_copy: Path) -> None:
    text = '{"prompts": {"query": null, "passage": "p: "}, "similarity_fn_name": null}'
    (model_copy / "config_sentence_transformers.json").write_text(text)
    settings = load(model_copy).settings
    assert settings.prompts == {"query": "", "passage": "p: "} and settings.similarity_fn_name == "cosine"
    (model_copy / "config_sentence_transformers.json").unlink()
    assert load(model_copy).settings.prompts == {}
