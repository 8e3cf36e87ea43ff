"""Model directories, read and written: config, weights, tokenizer, pooling and prompts in the field's layout."""

import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import nn
from transformers import AutoTokenizer, BertConfig, PreTrainedTokenizerFast

from model.bert import DistilledBert
from model.files import InputError, atomic_directory, load_tensors, read_json, save_tensors, write_json, write_text
from model.pooling import Pooling

if TYPE_CHECKING:
    from model.embedder import Embedder, Settings

HUB_FILES = ["*.json", "*.txt", "*/config.json", "*/model.safetensors", "*/pytorch_model.bin"]  # never ONNX and the like
DENSE_ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU")


def best_device() -> torch.device:
    """A GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def local_directory(name: str) -> Path:
    """The directory of a model: `name` itself, or a download of the Hub repository of that name.

    Raises:
        InputError: it is neither.
    """
    if Path(name).is_dir():
        return Path(name)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"{name}: no such model directory")
    try:
        config_only = Path(snapshot_download(name, allow_patterns=HUB_FILES + ["model*.safetensors"]))
        if not list(config_only.glob("model*.safetensors")):
            return Path(snapshot_download(name, allow_patterns=HUB_FILES + ["pytorch_model.bin"]))
        return config_only
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{name}: no such directory, and the Hub gave no model of that name ({reason})") from None


# -- reading ---------------------------------------------------------------------------------------------------------


def load_embedder(embedder_class: type["Embedder"], settings_class: type["Settings"], name: str) -> "Embedder":
    """Read a model directory or Hub name; see `Embedder.load`."""
    directory = local_directory(name)
    config = read_config(directory)
    weights = read_weights(directory)
    bert = DistilledBert(config, add_pooling_layer="pooler.dense.weight" in weights)
    fill(bert, weights, directory)
    tokenizer = read_tokenizer(directory)
    if len(tokenizer) > config.vocab_size:
        raise InputError(f"{directory}: the tokenizer knows {len(tokenizer)} words, the model {config.vocab_size}")
    modules = read_modules(directory)
    settings = settings_class(origin=name)
    read_pooling(directory, modules, settings)
    read_lengths_and_prompts(directory, settings, config, tokenizer)
    dense, activation = read_dense(directory, modules)
    return embedder_class(bert, tokenizer, settings, dense, activation)


def read_config(directory: Path) -> BertConfig:
    """config.json, if it is one of an encoder that DistilledBert computes.

    Raises:
        InputError: missing, damaged, or another architecture.
    """
    path = directory / "config.json"
    values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: not a model config")
    kind = values.get("model_type", "unknown")
    if kind != "bert":
        raise InputError(f"{path}: the architecture is {kind!r}; only BERT encoders (model_type 'bert') are supported")
    if values.get("is_decoder") or values.get("position_embedding_type", "absolute") != "absolute":
        raise InputError(f"{path}: only BERT encoders with absolute positions are supported, no decoders")
    try:
        config = BertConfig.from_dict(values | {"dtype": "float32"})
    except Exception as error:  # transformers validates with its own and huggingface_hub's exceptions
        raise InputError(f"{path}: not a BERT config ({str(error).splitlines()[0]})") from None
    sizes = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.vocab_size)
    if not all(isinstance(size, int) and size > 0 for size in sizes) or sizes[0] % sizes[2]:
        raise InputError(f"{path}: hidden_size, num_hidden_layers, num_attention_heads or vocab_size makes no sense")
    if config.hidden_act not in transformers.activations.ACT2FN:
        raise InputError(f"{path}: unknown hidden_act {config.hidden_act!r}")
    return config


def read_weights(directory: Path) -> dict[str, torch.Tensor]:
    """The encoder's tensors in fp32 by BertModel's names, from safetensors (one file or several) or a .bin file.

    Raises:
        InputError: no weights, or a damaged file.
    """
    single, index, pickled = (
        directory / name for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    )
    if single.exists():
        tensors, _ = load_tensors(single)
    elif index.exists():
        tensors = {}
        for name in sorted(set(read_json(index).get("weight_map", {}).values())):
            tensors |= load_tensors(inside(directory, name))[0]
    elif pickled.exists():
        try:
            tensors = torch.load(pickled, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
            raise InputError(f"{pickled}: damaged, or holds more than weights ({str(error).splitlines()[0]})") from None
        if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
            raise InputError(f"{pickled}: not a dictionary of weights")
    else:
        raise InputError(f"{directory}: no weights there (model.safetensors or pytorch_model.bin)")
    named = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight")
        named[name.replace("LayerNorm.beta", "LayerNorm.bias")] = tensor
    return named


def fill(bert: DistilledBert, weights: dict[str, torch.Tensor], directory: Path) -> None:
    """Copy weights into the network, which must find each of its tensors, in its shape.

    Raises:
        InputError: a tensor is missing or has another shape.
    """
    wanted = bert.state_dict()
    missing = [name for name in wanted if name not in weights]
    if missing:
        raise InputError(f"{directory}: {len(missing)} tensors are missing, {missing[0]} first; does config.json fit?")
    for name, tensor in wanted.items():
        if weights[name].shape != tensor.shape:
            shapes = f"{tuple(weights[name].shape)}, where config.json asks for {tuple(tensor.shape)}"
            raise InputError(f"{directory}: {name} has shape {shapes}")
    bert.load_state_dict({name: weights[name].float() for name in wanted})


def read_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """The model's tokenizer, in its Rust form.

    Raises:
        InputError: missing or damaged.
    """
    if not (directory / "tokenizer.json").exists() and not (directory / "vocab.txt").exists():
        raise InputError(f"{directory}: no tokenizer there (tokenizer.json or vocab.txt)")
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, use_fast=True, trust_remote_code=False)
    except Exception as error:  # the Rust library raises plain Exception for a damaged file
        raise InputError(f"{directory}: the tokenizer can't be read ({str(error).splitlines()[0]})") from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError(f"{directory}: the tokenizer {type(tokenizer).__name__} has no fast form")
    return tokenizer


def read_modules(directory: Path) -> dict[str, str]:
    """modules.json as {kind: folder}, such as {"Pooling": "1_Pooling"}; empty where there is none.

    Raises:
        InputError: modules beside Transformer, Pooling, Dense and Normalize, which would change the embeddings.
    """
    path = directory / "modules.json"
    if not path.exists():
        return {}
    try:
        modules = {module["type"].rpartition(".")[2]: module["path"] for module in read_json(path)}
        folders = [inside(directory, folder) for folder in modules.values()]
    except (TypeError, KeyError, AttributeError):
        raise InputError(f"{path}: not a list of modules with type and path") from None
    unknown = set(modules) - {"Transformer", "Pooling", "Dense", "Normalize"}
    if unknown:
        raise InputError(f"{path}: module {sorted(unknown)[0]} is not supported (Pooling, Dense and Normalize are)")
    if len(folders) != len(read_json(path)):
        raise InputError(f"{path}: a kind of module occurs twice, which is not supported")
    return modules


def read_pooling(directory: Path, modules: dict[str, str], settings: "Settings") -> None:
    """Set pooling and normalisation from modules.json and the pooling module's config.

    Raises:
        InputError: a pooling other than cls or mean.
    """
    settings.normalize = "Normalize" in modules
    if "Pooling" not in modules:
        settings.notes.append(f"{settings.origin} names no pooling: taking mean, as sentence-transformers does")
        return
    path = inside(directory, modules["Pooling"]) / "config.json"
    values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: not a pooling config")
    old_names = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
    modes = [mode for key, mode in old_names.items() if values.get(key)]
    modes += [key for key, on in values.items() if key.startswith("pooling_mode_") and on and key not in old_names]
    mode = values.get("pooling_mode") or modes
    mode = mode[0] if isinstance(mode, list) and len(mode) == 1 else mode
    if not isinstance(mode, str) or mode not in list(Pooling):
        raise InputError(f"{path}: pooling {mode or 'of no kind'} is not supported (cls and mean are)")
    if values.get("include_prompt") is False:
        raise InputError(f"{path}: include_prompt = false is not supported")
    settings.pooling = Pooling(mode)


def read_lengths_and_prompts(
    directory: Path, settings: "Settings", config: BertConfig, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Set maximum length, lower-casing, prompts and similarity from the sentence-transformers config files."""
    lengths, other = {}, {}
    if (directory / "sentence_bert_config.json").exists():
        lengths = read_json(directory / "sentence_bert_config.json")
    if (directory / "config_sentence_transformers.json").exists():
        other = read_json(directory / "config_sentence_transformers.json")
    if not isinstance(lengths, dict) or not isinstance(other, dict):
        raise InputError(f"{directory}: sentence_bert_config.json or config_sentence_transformers.json is no object")
    limits = [lengths.get("max_seq_length") or tokenizer.model_max_length, config.max_position_embeddings]
    prompts = other.get("prompts") or {}
    if not all(isinstance(limit, int) and limit >= 3 for limit in limits):
        raise InputError(f"{directory}: max_seq_length must be a whole number of at least 3, got {limits[0]!r}")
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise InputError(f"{directory}/config_sentence_transformers.json: prompts must be texts by name")
    settings.max_length = min(limits)
    settings.lowercase = bool(lengths.get("do_lower_case"))
    settings.prompts = prompts
    settings.default_prompt_name = other.get("default_prompt_name")
    settings.similarity_fn_name = other.get("similarity_fn_name") or "cosine"
    if settings.default_prompt_name is not None and settings.default_prompt_name not in prompts:
        raise InputError(f"{directory}: default_prompt_name {settings.default_prompt_name!r} is not among the prompts")


def read_dense(directory: Path, modules: dict[str, str]) -> tuple[nn.Linear | None, str]:
    """The dense module after pooling and its activation's name in torch.nn, if the model has one.

    Raises:
        InputError: damaged, or an activation we do not know.
    """
    if "Dense" not in modules:
        return None, "Identity"
    folder = inside(directory, modules["Dense"])
    values = read_json(folder / "config.json")
    activation = str(values.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if activation not in DENSE_ACTIVATIONS:
        raise InputError(f"{folder}/config.json: activation {activation} is not supported")
    tensors = read_weights(folder)
    try:
        dense = nn.Linear(values["in_features"], values["out_features"], bias=values.get("bias", True))
        dense.load_state_dict({name.removeprefix("linear."): tensor for name, tensor in tensors.items()})
    except (KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{folder}: config and weights do not fit ({str(error).splitlines()[0]})") from None
    return dense, activation


def inside(directory: Path, name: str) -> Path:
    """`directory / name`, which must not lead out of `directory`.

    Raises:
        InputError: it does.
    """
    path = directory / name
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise InputError(f"{directory}: a file name leads out of the model directory: {name}")
    return path


# -- writing ---------------------------------------------------------------------------------------------------------


def save_embedder(embedder: "Embedder", path: Path, model_card: str | None) -> None:
    """Write a model directory, whole or not at all; see `Embedder.save`."""
    settings, bert = embedder.settings, embedder.bert
    with atomic_directory(path) as directory:
        config: dict[str, Any] = json.loads(bert.config.to_json_string(use_diff=False))
        write_json(directory / "config.json", config | {"architectures": ["BertModel"], "dtype": "float32"})
        save_tensors(directory / "model.safetensors", bert.state_dict())
        embedder.tokenizer.model_max_length = settings.max_length
        embedder.tokenizer.save_pretrained(directory)
        modules = ["Transformer", "Pooling"]
        modules += ["Dense"] if embedder.dense is not None else []
        modules += ["Normalize"] if settings.normalize else []
        write_json(
            directory / "modules.json",
            [
                {
                    "idx": number,
                    "name": str(number),
                    "path": f"{number}_{kind}" if number else "",
                    "type": f"sentence_transformers.models.{kind}",
                }
                for number, kind in enumerate(modules)
            ],
        )
        write_json(directory / "sentence_bert_config.json", sentence_bert_config(settings))
        write_json(directory / "1_Pooling" / "config.json", pooling_config(settings, bert.config.hidden_size))
        if embedder.dense is not None:
            save_dense(embedder, directory / "2_Dense")
        if settings.normalize:
            write_json(directory / f"{modules.index('Normalize')}_Normalize" / "config.json", {})
        write_json(
            directory / "config_sentence_transformers.json",
            {
                "__version__": {"transformers": transformers.__version__, "pytorch": torch.__version__},
                "prompts": settings.prompts,
                "default_prompt_name": settings.default_prompt_name,
                "similarity_fn_name": settings.similarity_fn_name,
            },
        )
        write_text(directory / "README.md", model_card or f"# A BERT sentence embedder from {settings.origin}\n")


def sentence_bert_config(settings: "Settings") -> dict[str, Any]:
    return {"max_seq_length": settings.max_length, "do_lower_case": settings.lowercase}


def pooling_config(settings: "Settings", hidden_size: int) -> dict[str, Any]:
    return {
        "word_embedding_dimension": hidden_size,
        "pooling_mode_cls_token": settings.pooling is Pooling.CLS,
        "pooling_mode_mean_tokens": settings.pooling is Pooling.MEAN,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
        "include_prompt": True,
    }


def save_dense(embedder: "Embedder", folder: Path) -> None:
    dense, activation = embedder.dense, embedder.dense_activation
    assert dense is not None
    module = "linear" if activation == "Identity" else "activation"
    config = {
        "in_features": dense.in_features,
        "out_features": dense.out_features,
        "bias": dense.bias is not None,
        "activation_function": f"torch.nn.modules.{module}.{activation}",
    }
    write_json(folder / "config.json", config)
    save_tensors(folder / "model.safetensors", {f"linear.{name}": t for name, t in dense.state_dict().items()})
