"""Writing model directories in the field's layout, so that other tools load them."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedTokenizerFast

from shortstack.model.directory import CALIBRATION_FILE, HISTORY, Parts, Settings, read_object
from shortstack.model.engine.calibration import tensors_of
from shortstack.model.files import atomic_directory, check_replaceable, write_json, write_text
from shortstack.model.manifest import write_manifest
from shortstack.model.pooling import Pooling
from shortstack.model.tensors import save_tensors

# Files that every model directory has: its config, and weights in one of two formats and any number of parts.
MARKS = ("config.json", "*model*.[sb][ai][fn]*")


def write_model(parts: Parts, path: Path, model_card: str | None) -> None:
    """Write a model directory, whole or not at all; see `Embedder.save`."""
    check_replaceable(path, MARKS, "model", "place to save to")
    bert, tokenizer, settings, dense, activation, calibration = parts
    with atomic_directory(path) as directory:
        config: dict[str, Any] = json.loads(bert.config.to_json_string(use_diff=False))
        write_json(directory / "config.json", config | {"architectures": [bert.published], "dtype": "float32"})
        save_tensors(directory / "model.safetensors", bert.state_dict())
        if calibration is not None:
            save_tensors(directory / CALIBRATION_FILE, tensors_of(calibration))
        write_tokenizer(tokenizer, settings.max_length, directory)
        modules = ["Transformer", "Pooling"]
        modules += ["Dense"] if dense is not None else []
        modules += ["Normalize"] if settings.normalize else []
        folders = ["", *(f"{number}_{kind}" for number, kind in enumerate(modules) if number)]
        types = [f"sentence_transformers.models.{kind}" for kind in modules]
        entries = [{"idx": i, "name": str(i), "path": folders[i], "type": types[i]} for i in range(len(modules))]
        write_json(directory / "modules.json", entries)
        lengths = {"max_seq_length": settings.max_length, "do_lower_case": settings.lowercase}
        write_json(directory / "sentence_bert_config.json", lengths)
        write_json(directory / "1_Pooling" / "config.json", pooling_config(settings, bert.config.hidden_size))
        if dense is not None:
            write_dense(dense, activation, directory / "2_Dense")
        if settings.normalize:
            write_json(directory / f"{modules.index('Normalize')}_Normalize" / "config.json", {})
        write_json(directory / "config_sentence_transformers.json", library_config(settings))
        write_text(directory / "README.md", model_card or f"# A sentence embedder from {settings.origin}\n")
        write_manifest(directory)


def write_tokenizer(tokenizer: PreTrainedTokenizerFast, max_length: int, directory: Path) -> None:
    """Write the tokenizer's files.

    fastembed takes the smaller of two lengths, and transformers updates only one of them, so both are set here. Older
    loaders read the special tokens from a file that transformers 5 no longer writes.
    """
    tokenizer.model_max_length = max_length
    tokenizer.save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    values = read_object(path)
    write_json(path, values | {key: max_length for key in ("max_length", "model_max_length") if key in values})
    write_json(directory / "special_tokens_map.json", tokenizer.special_tokens_map)


def library_config(settings: Settings) -> dict[str, Any]:
    """config_sentence_transformers.json."""
    return {
        "model_type": "SentenceTransformer",
        "__version__": {"transformers": transformers.__version__, "pytorch": torch.__version__},
        "prompts": settings.prompts,
        "default_prompt_name": settings.default_prompt_name,
        "similarity_fn_name": settings.similarity_fn_name,
    } | {key: value for key, value in (("truncate_dim", settings.truncate_dim), (HISTORY, settings.history)) if value}


def pooling_config(settings: Settings, hidden_size: int) -> dict[str, Any]:
    return {
        "word_embedding_dimension": hidden_size,
        "pooling_mode_cls_token": settings.pooling is Pooling.CLS,
        "pooling_mode_mean_tokens": settings.pooling is Pooling.MEAN,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
        "include_prompt": True,
    }


def write_dense(dense: nn.Linear, activation: str, folder: Path) -> None:
    module = "linear" if activation == "Identity" else "activation"
    config = {
        "in_features": dense.in_features,
        "out_features": dense.out_features,
        "bias": dense.bias is not None,
        "activation_function": f"torch.nn.modules.{module}.{activation}",
    }
    write_json(folder / "config.json", config)
    save_tensors(folder / "model.safetensors", {f"linear.{name}": t for name, t in dense.state_dict().items()})
