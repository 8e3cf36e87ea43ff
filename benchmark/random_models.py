"""Embedders with random weights of any BERT shape, and random sentences for any tokenizer: what speed is measured on
where there is no model or no text. Speed does not depend on what the numbers are."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, PreTrainedTokenizerFast

from shortstack.model import DistilledBert, Embedder
from shortstack.model.embedder import Settings
from shortstack.model.files import InputError, read_json
from shortstack.model.pooling import Pooling

SHAPES: dict[str, dict[str, Any]] = {
    "bert-tiny": {"num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 2},
    "minilm-l6": {"num_hidden_layers": 6, "hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12},
    "bert-base": {"num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    "bert-large": {"num_hidden_layers": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16},
}


def shape_config(shape: str) -> BertConfig:
    """The config of a named shape or of a config.json.

    Raises:
        InputError: no such shape or file.
    """
    if shape in SHAPES:
        return BertConfig(**SHAPES[shape])
    if not Path(shape).is_file():
        raise InputError(f"--shape: {shape!r} is neither one of {', '.join(SHAPES)} nor a config.json")
    try:
        values = read_json(shape)
        if values.get("model_type", "bert") != "bert":
            raise InputError(f"{shape}: of the kind {values['model_type']!r}; --shape takes the config.json of a BERT")
        return BertConfig.from_dict(values)
    except InputError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{shape}: no BERT config ({error})") from None


def random_embedder(shape: str | BertConfig, layers: int, device: torch.device | str, precision: str) -> Embedder:
    """An embedder with random weights and cls pooling, with a tokenizer whose words are numbers."""
    config = shape if isinstance(shape, BertConfig) else shape_config(shape)
    config.num_hidden_layers = layers
    torch.manual_seed(0)
    with torch.device(device):  # a GPU draws a large model's weights at once, a CPU in seconds
        bert = DistilledBert(config, add_pooling_layer=False)
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])}
    words |= {str(number): number for number in range(4, config.vocab_size)}
    rust = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    rust.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", words["[CLS]"]), ("[SEP]", words["[SEP]"])]
    rust.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rust, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    settings = Settings(pooling=Pooling.CLS, max_length=config.max_position_embeddings, origin=str(shape))
    return Embedder(bert, tokenizer, settings).eval().to(device).use_precision(precision)


def random_sentences(embedder: Embedder, count: int, mean_tokens: float) -> list[str]:
    """Sentences of words drawn from a tokenizer's vocabulary, [CLS] and [SEP] counted in their lengths.

    A tokenizer may cut a word it does not have as a whole, so that a sentence can come out longer.
    """
    vocabulary = embedder.tokenizer.get_vocab()
    words = sorted(word for word in vocabulary if word.isdigit() or word.isalpha() and word.islower())
    generator = np.random.default_rng(0)
    lengths = np.maximum(3, generator.poisson(mean_tokens, size=count)) - 2
    ends = lengths.cumsum()
    drawn = generator.integers(len(words), size=ends[-1])
    return [" ".join(words[word] for word in part) for part in np.split(drawn, ends[:-1])]
