"""Reading model directories: config, weights, tokenizer, pooling and prompts in the field's layout.

`read_model` returns the parts of a model, and `Embedder.load` builds one from them; saving.py takes the same parts.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerFast
from transformers.initialization import no_init_weights

from shortstack.model.bert import ARCHITECTURES
from shortstack.model.engine.calibration import calibration_of
from shortstack.model.engine.int8 import Calibration
from shortstack.model.files import InputError, first_line, read_json
from shortstack.model.hub import commit_of, local_directory
from shortstack.model.manifest import check_manifest
from shortstack.model.network import PackedForward
from shortstack.model.panics import tokenizer_errors
from shortstack.model.pooling import Pooling
from shortstack.model.tensors import load_tensors
from shortstack.model.weights import check_size, check_weights, inside, read_weights

CALIBRATION_FILE = "int8_calibration.safetensors"  # other tools ignore it
MODULES = ("Transformer", "Pooling", "Dense", "Normalize")  # each at most once, in this order
HISTORY = "shortstack"  # this project's key in config_sentence_transformers.json
TENSORS_OF_A_LAYER = 16  # in every architecture
LONGEST_PROMPT = 2**14  # characters
LONGEST_WORD = 1000  # characters of a word that WordPiece may split, in time that grows with their square; 100 in BERT
# A tokenizer's bad regular expression fails on these.
TRIAL_TEXTS = ("", "\u0378 a", "a" * 200 + "!", " " * 200 + "x", "1" * 200 + "\n")
DENSE_ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU")


@dataclass
class Settings:
    """Everything around the encoder, as read from the model directory.

    Attributes:
        pooling: cls or mean.
        normalize: whether embeddings are divided by their L2 norm.
        max_length: tokens of a sentence that are read, [CLS] and [SEP] included; the rest is cut off.
        lowercase: whether the text is lower-cased before the tokenizer's own normalisation.
        prompts: texts to put before a sentence, by name, such as {"query": "Represent this sentence: "}.
        default_prompt_name: the prompt of `encode` where none is named.
        similarity_fn_name: the similarity that other tools should use by default; only kept for them.
        truncate_dim: leading dimensions that an embedding is cut to, as the last step; None for all.
        origin: the name or directory the model was loaded from.
        commit: of the Hub repository that the model was loaded from; None for a local directory.
        notes: defaults that were taken because the directory said nothing.
        history: how a student was made, under a key that other tools ignore: its teacher, `teacher_layers`...; see
            `Plan.history`. Empty for any other model.
    """

    pooling: Pooling = Pooling.MEAN
    normalize: bool = False
    max_length: int = 512
    lowercase: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity_fn_name: str = "cosine"
    truncate_dim: int | None = None
    origin: str = ""
    commit: str | None = None
    notes: list[str] = field(default_factory=list)
    history: dict[str, Any] = field(default_factory=dict)


class Parts(NamedTuple):
    """What a model directory holds, ready to build an Embedder from."""

    bert: Any  # a PackedForward that is one of transformers' models
    tokenizer: PreTrainedTokenizerFast
    settings: Settings
    dense: nn.Linear | None
    dense_activation: str
    calibration: Calibration | None = None  # the ranges that int8 rounds by


def usable_device(name: str | torch.device | None) -> torch.device:
    """The device of this name; of none, a GPU if there is one, else the CPU.

    Raises:
        InputError: an unknown name, or a device that is not there or that torch was built without.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device: '{name}' can't be used ({first_line(error)})") from None
    return device


def read_model(name: str) -> Parts:
    """Read a model directory or Hub name; see `Embedder.load` for what it raises."""
    directory = local_directory(name)
    settings = Settings(origin=name, commit=commit_of(directory))
    try:
        checked = check_manifest(directory)
        modules = read_modules(directory)
        folder = modules["Transformer"]
        bert = read_bert(folder, checked)
        tokenizer = read_tokenizer(folder, bert.config.vocab_size)
        read_pooling(modules, settings)
        read_lengths_and_prompts(directory, folder, settings, bert.longest, tokenizer)
        dense, activation = read_dense(modules, bert.config.hidden_size, checked)
        calibration = read_calibration(folder / CALIBRATION_FILE, bert.config.num_hidden_layers, checked)
    except OSError as error:  # no permission, a directory where a file should be, a name that is too long
        raise InputError(f"{error.filename or directory}: can't be read ({error.strerror or error})") from None
    except InputError:
        raise
    except Exception as error:  # anyone may have made the directory, and no check above expected this
        what = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{directory}: can't be read as a model ({what})") from None
    return Parts(bert, tokenizer, settings, dense, activation, calibration)


def read_object(path: Path, optional: bool = False) -> dict[str, Any]:
    """A JSON object from a file; empty where an optional one is missing.

    Raises:
        InputError: missing, corrupt, or JSON of another kind.
    """
    if optional and not path.exists():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: must hold a JSON object")
    return value


def read_modules(directory: Path) -> dict[str, Path]:
    """modules.json as {kind: folder}, such as {"Transformer": ".", "Pooling": "./1_Pooling"}.

    Raises:
        InputError: modules other than MODULES or in another order, which would change the embeddings.
    """
    path = directory / "modules.json"
    if not path.exists():
        return {"Transformer": directory}
    try:
        modules = [(module["type"].rpartition(".")[2], inside(directory, module["path"])) for module in read_json(path)]
    except (TypeError, KeyError, AttributeError):
        raise InputError(f"{path}: not a list of modules with type and path") from None
    kinds = [kind for kind, _ in modules]
    if "Transformer" not in kinds or kinds != [kind for kind in MODULES if kind in kinds]:
        raise InputError(f"{path}: modules {' '.join(kinds)}; supported: {' '.join(MODULES)}, once and in this order")
    for kind, folder in modules[1:]:
        values = read_object(folder / "config.json", optional=kind == "Normalize")
        if values.get("module_input_name", "sentence_embedding") != "sentence_embedding" or values.get("use_residual"):
            raise InputError(f"{folder}/config.json: module_input_name and use_residual are not supported")
    return dict(modules)


def read_bert(folder: Path, checked: Collection[Path]) -> PackedForward:
    """The encoder: config.json and the weights that go with it, in fp32."""
    config = read_config(folder / "config.json")
    weights = read_weights(folder, checked)
    of_layers = sum(name.startswith(("encoder.layer.", "transformer.layer.")) for name in weights)
    if math.ceil(of_layers / TENSORS_OF_A_LAYER) < config.num_hidden_layers:
        raise InputError(f"{folder}: config.json asks for {config.num_hidden_layers} layers, the weights hold fewer")
    architecture = ARCHITECTURES[config.model_type]
    has_pooler = "pooler.dense.weight" in weights
    try:
        with torch.device("meta"):  # shapes only: a corrupt config could ask for too much memory
            empty = architecture(config, add_pooling_layer=has_pooler)
    except Exception as error:
        raise InputError(
            f"{folder}/config.json: no {config.model_type} can be built from it ({first_line(error)})"
        ) from None
    shapes = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    check_weights(shapes, weights, folder)
    check_size(folder, filter(Path.is_file, folder.iterdir()), sum(4 * math.prod(shape) for shape in shapes.values()))
    with no_init_weights():  # no random weights: all of them are loaded
        bert = architecture(config, add_pooling_layer=has_pooler)
    bert.load_state_dict({name: weights[name] for name in shapes})
    return bert.eval()


def read_config(path: Path) -> PretrainedConfig:
    """config.json, if it is one of ARCHITECTURES.

    Raises:
        InputError: missing, corrupt, or another architecture.
    """
    values = read_object(path)
    kind = values.get("model_type", "unknown")
    if kind not in ARCHITECTURES:
        raise InputError(f"{path}: the architecture is {kind!r}; only {', '.join(ARCHITECTURES)} are supported")
    if values.get("is_decoder") or values.get("position_embedding_type", "absolute") != "absolute":
        raise InputError(f"{path}: only encoders with absolute positions are supported, no decoders")
    architecture = ARCHITECTURES[kind]
    try:
        config = architecture.config_class.from_dict(values | {"dtype": "float32"})
    except Exception as error:  # transformers validates with its own and huggingface_hub's exceptions
        raise InputError(f"{path}: not a config of {kind} ({first_line(error)})") from None
    names = ["hidden_size", "num_hidden_layers", "num_attention_heads", architecture.inner_size, "vocab_size"]
    names += ["max_position_embeddings"] + (["type_vocab_size"] if hasattr(config, "type_vocab_size") else [])
    for name in names:
        size, least = getattr(config, name), int(name != "num_hidden_layers")
        if not isinstance(size, int) or size < least:
            raise InputError(f"{path}: {name} must be a whole number of at least {least}, got {size!r}")
    activation = getattr(config, architecture.activation)
    if activation not in transformers.activations.ACT2FN:
        raise InputError(f"{path}: unknown {architecture.activation} {activation!r}")
    epsilon = getattr(config, "layer_norm_eps", 1e-12)  # DistilBERT's can't be chosen
    if not isinstance(epsilon, int | float) or not 0 <= epsilon < math.inf:
        raise InputError(f"{path}: layer_norm_eps must be a number of at least 0, got {epsilon!r}")
    return config


def read_tokenizer(folder: Path, vocab_size: int) -> PreTrainedTokenizerFast:
    """The model's tokenizer, in its Rust form.

    Raises:
        InputError: missing, corrupt, or with other words than the model.
    """
    if not (folder / "tokenizer.json").exists() and not (folder / "vocab.txt").exists():
        raise InputError(f"{folder}: no tokenizer there (tokenizer.json or vocab.txt)")
    with tokenizer_errors(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
        words = tokenizer.get_vocab().values()
        longest_word = getattr(tokenizer.backend_tokenizer.model, "max_input_chars_per_word", 0)
        tried = [] if longest_word > LONGEST_WORD else [tokenizer(text)["input_ids"] for text in TRIAL_TEXTS]
        largest = max([*words, *sum(tried, [])])
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError(f"{folder}: the tokenizer {type(tokenizer).__name__} has no fast form")
    if longest_word > LONGEST_WORD:
        raise InputError(f"{folder}: max_input_chars_per_word is {longest_word}; at most {LONGEST_WORD} are supported")
    if largest >= vocab_size:
        raise InputError(f"{folder}: the tokenizer numbers words up to {largest}, the model has {vocab_size}")
    if len(words) < 0.9 * vocab_size:  # some models have a few unused numbers
        raise InputError(
            f"{folder}: the tokenizer knows {len(words)} words, the model {vocab_size}; is a file cut off?"
        )
    if not tried[0]:
        raise InputError(f"{folder}: the tokenizer puts no [CLS] and [SEP] around a text")
    return tokenizer


def read_pooling(modules: dict[str, Path], settings: Settings) -> None:
    """Set pooling and normalisation from modules.json and the pooling module's config.

    Raises:
        InputError: a pooling other than cls or mean.
    """
    settings.normalize = "Normalize" in modules
    if "Pooling" not in modules:
        settings.notes.append(f"{settings.origin} names no pooling: taking mean, as sentence-transformers does")
        return
    path = modules["Pooling"] / "config.json"
    values = read_object(path)
    old_names = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
    modes = [old_names.get(key, key) for key, on in values.items() if key.startswith("pooling_mode_") and on]
    mode = values.get("pooling_mode") or modes or "mean"
    mode = mode[0] if isinstance(mode, list) and len(mode) == 1 else mode
    if not isinstance(mode, str) or mode not in list(Pooling):
        raise InputError(f"{path}: pooling {mode} is not supported (cls and mean are)")
    if values.get("include_prompt") is False:
        raise InputError(f"{path}: include_prompt = false is not supported")
    settings.pooling = Pooling(mode)


def read_lengths_and_prompts(
    directory: Path, folder: Path, settings: Settings, longest: int, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Set maximum length, lower-casing, prompts, similarity and truncation from the sentence-transformers config files.

    Raises:
        InputError: a value that makes no sense, or a setting that would change the embeddings and is not supported.
    """
    transformer = read_object(folder / "sentence_bert_config.json", optional=True)
    path = directory / "config_sentence_transformers.json"
    whole = read_object(path, optional=True)
    for key in ("processing_kwargs", "tokenizer_name_or_path"):
        if (transformer | whole).get(key):
            raise InputError(f"{directory}: {key} in its sentence-transformers config is not supported")
    limit = transformer.get("max_seq_length")
    limit = tokenizer.model_max_length if limit is None else limit
    if not isinstance(limit, int) or limit < 3:
        names = "max_seq_length in sentence_bert_config.json, or else model_max_length in tokenizer_config.json"
        raise InputError(f"{folder}: {names}, must be a whole number of at least 3, got {limit!r}")
    prompts = whole.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise InputError(f"{path}: prompts must be texts by name")
    if any(len(text or "") > LONGEST_PROMPT for text in prompts.values()):
        raise InputError(
            f"{path}: a prompt of more than {LONGEST_PROMPT:,} characters; it would go before every sentence"
        )
    default, similarity = whole.get("default_prompt_name"), whole.get("similarity_fn_name") or "cosine"
    if default is not None and default not in list(prompts):
        raise InputError(f"{path}: default_prompt_name {default!r} is not among the prompts")
    if not isinstance(similarity, str):
        raise InputError(f"{path}: similarity_fn_name must be a name, got {similarity!r}")
    cut = whole.get("truncate_dim")
    if cut is not None and (type(cut) is not int or cut < 1):
        raise InputError(f"{path}: truncate_dim must be a whole number of at least 1, got {cut!r}")
    settings.truncate_dim = cut
    history = whole.get(HISTORY)
    settings.history = history if isinstance(history, dict) else {}
    settings.max_length = min(limit, longest)
    settings.lowercase = bool(transformer.get("do_lower_case"))
    settings.prompts = {name: text or "" for name, text in prompts.items()}
    settings.default_prompt_name, settings.similarity_fn_name = default, similarity


def read_dense(modules: dict[str, Path], inputs: int, checked: Collection[Path]) -> tuple[nn.Linear | None, str]:
    """The dense module after pooling and its activation's name in torch.nn, if the model has one.

    Raises:
        InputError: corrupt, or an activation other than DENSE_ACTIVATIONS.
    """
    if "Dense" not in modules:
        return None, "Identity"
    folder = modules["Dense"]
    values = read_object(folder / "config.json")
    activation = str(values.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if activation not in DENSE_ACTIVATIONS:
        raise InputError(f"{folder}/config.json: activation {activation} is not supported")
    weights = read_weights(folder, checked)
    outputs, bias = values.get("out_features"), bool(values.get("bias", True))
    if not isinstance(outputs, int) or outputs < 1 or values.get("in_features") != inputs:
        raise InputError(f"{folder}/config.json: in_features must be {inputs}, and out_features a number of at least 1")
    check_weights({"linear.weight": (outputs, inputs)} | ({"linear.bias": (outputs,)} if bias else {}), weights, folder)
    dense = nn.Linear(inputs, outputs, bias=bias)
    dense.load_state_dict({name: weights[f"linear.{name}"] for name in dense.state_dict()})
    return dense, activation


def read_calibration(path: Path, layers: int, checked: Collection[Path]) -> Calibration | None:
    """The ranges that int8 rounds by, if the model comes with them."""
    if not path.exists():
        return None
    try:
        return calibration_of(load_tensors(path, path not in checked)[0], layers)
    except KeyError as error:
        raise InputError(f"{path}: has no {error}, so it belongs to another model; delete it") from None
