"""Small models and texts for tests, made with plain transformers, tokenizers and JSON, and how tests load and compare.

Shapes and settings follow real teachers in small: random weights, but every tensor differs from its default, so that a
swapped, dropped or transposed one changes the embeddings.
"""

import gzip
import itertools
import json
import random
import string
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, BertConfig, BertModel

from shortstack.model import Embedder
from shortstack.model.tokens import Tokenized


def words(text: str) -> list[str]:
    return text.split()


NOUNS = words(
    """man woman child dog cat bird horse car train boat city river mountain house school teacher doctor artist king
    ship garden market kitchen table window door book letter song game team player ball field road bridge forest storm
    winter summer morning night country army company"""
)
VERBS = words(
    """sees finds follows likes paints builds opens closes carries watches helps leaves visits crosses buys sells
    reads writes sings plays throws catches draws cooks eats drinks feeds rides drives washes"""
)
ADJECTIVES = words(
    """small big old young red green blue white black quiet loud fast slow happy sad rich poor cold warm dark
    bright heavy light long short strong empty full"""
)
ADVERBS = words("slowly quickly often never today yesterday again alone together quietly")
PLACES = words("near under over behind inside outside across before after with")
OTHERS = words("the a an and or but of to in on at is are was were it he she they not very ; , . ! ? ' - ( )")
ENDINGS = words("##s ##ed ##ing ##ly ##er ##est ##ness")

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CHARACTERS = string.ascii_lowercase + string.digits
VOCABULARY = [
    *SPECIAL,
    *CHARACTERS,
    *(f"##{character}" for character in CHARACTERS),
    *sorted({*NOUNS, *VERBS, *ADJECTIVES, *ADVERBS, *PLACES, *OTHERS, *ENDINGS} - set(CHARACTERS)),
]

AWKWARD = [
    "",
    " ",
    " \t\n ",
    "a",
    "The dog sees the cat.",
    "THE DOG SEES THE CAT!",
    "naïve café, Straße, ΣΊΣΥΦΟΣ, İstanbul",
    "一只猫坐在桌子上。",
    "مرحبا بالعالم",
    "emoji 😀👩‍👩‍👧 and symbols ∑∞≠",
    "zero​width and nul \0 and bell \a",
    "[MASK] is a [SEP] special [CLS] word",
    "x" * 500,
    "the dog sees the cat " * 200,
    "!?" * 300,
]


STS_BENCHMARK = (
    "main-captions\tMSRvid\t2012test\t0001\t5.000\tA plane is taking off.\tAn air plane is taking off.\n"
    'main-news\tMSRpar\t2012test\t0002\t2.5\t"Yes", he said.\tIt costs 3" more.\textra\tsource\n'
)


def english_sentences(n: int, seed: int = 0) -> list[str]:
    """n distinct sentences of 4 to about 30 words, most of them in VOCABULARY; the same for the same seed."""
    pick = random.Random(seed).choice

    def clause() -> str:
        parts = ["the", pick(ADJECTIVES), pick(NOUNS), pick(VERBS), pick(["the", "a"]), pick(NOUNS)]
        if pick((True, False)):
            parts += [pick(PLACES), "the", pick(ADJECTIVES), pick(NOUNS)]
        if pick((True, False)):
            parts.append(pick(ADVERBS))
        return " ".join(parts)

    found: dict[str, None] = {}
    while len(found) < n:
        text = " and ".join(clause() for _ in range(pick((1, 1, 1, 2, 3))))
        found[text.capitalize() + pick(".!?")] = None
    return list(itertools.islice(found, n))


def write_documents(directory: Path, count: int = 12) -> list[Path]:
    """Markdown with three headings a file, two paragraphs below each, all with sentences that occur nowhere else."""
    directory.mkdir()
    texts = iter(english_sentences(count * 9, seed=3))
    files = [directory / f"{number:02d}.md" for number in range(count)]
    for number, file in enumerate(files):
        parts = [f"# Heading {number}-{part}\n\n{next(texts)}\n\n{next(texts)} {next(texts)}\n" for part in range(3)]
        file.write_text("\n".join(parts), encoding="utf-8")
    return files


def make_tokenizer() -> Tokenizer:
    """A lower-casing WordPiece tokenizer over VOCABULARY, as BERT's: [CLS] text [SEP]."""
    numbers = {word: number for number, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", numbers["[CLS]"]), ("[SEP]", numbers["[SEP]"])],
    )
    return tokenizer


def make_bert(layers: int = 6, hidden: int = 32, heads: int = 4, seed: int = 0, **config: Any) -> BertModel:
    """transformers' own BertModel, in evaluation mode, with no weight left at its default."""
    settings: dict[str, Any] = {"vocab_size": len(VOCABULARY), "max_position_embeddings": 512}
    settings |= {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    settings |= {"intermediate_size": 4 * hidden} | config
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        bert = BertModel(BertConfig(**settings))
        for parameter in bert.parameters():
            parameter += 0.15 * torch.randn(parameter.shape)
    return bert.eval()


def make_family_dir(path: Path, kind: str) -> Path:
    """A model directory as `make_bert_dir`'s of another architecture, by its model_type; its weights are random."""
    make_bert_dir(path, layers=3)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": len(VOCABULARY)}
    sizes |= {"hidden_dim": 64} if kind == "distilbert" else {"intermediate_size": 64}
    if kind in ("roberta", "xlm-roberta"):
        sizes["type_vocab_size"] = 1
    config = AutoConfig.for_model(kind, max_position_embeddings=80, pad_token_id=1, **sizes)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModel.from_config(config)
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn(parameter.shape)
    write(path / "config.json", config.to_dict() | {"dtype": "float32"})
    save_file(model.state_dict(), path / "model.safetensors", metadata={"format": "pt"})
    tokenizer = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    swapped = {"[PAD]": 1, "[UNK]": 0}  # MPNet's padding is always 1
    tokenizer["model"]["vocab"] |= swapped
    for token in tokenizer["added_tokens"]:
        token["id"] = swapped.get(token["content"], token["id"])
    tokenizer["added_tokens"].sort(key=lambda token: token["id"])
    write(path / "tokenizer.json", tokenizer)
    (path / "vocab.txt").unlink()
    edit(path / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    return path


def make_bert_dir(
    path: Path,
    layers: int = 6,
    hidden: int = 32,
    heads: int = 4,
    pooling: str | None = "mean",
    normalize: bool = True,
    prompts: dict[str, str] | None = None,
    default_prompt: str | None = None,
    max_length: int = 64,
    dense: tuple[int, str] | None = None,
    dtype: str = "float32",
    seed: int = 0,
    **config: Any,
) -> Path:
    """A model directory in the sentence-transformers layout; returns its path.

    Args:
        path: where to; made if it is missing.
        layers, hidden, heads, seed: of `make_bert`.
        pooling: cls, mean or another of the field's modes; None leaves modules.json out, as plain transformers does.
        normalize: whether a Normalize module is the last.
        prompts, default_prompt: for config_sentence_transformers.json.
        max_length: tokens that are read of a sentence.
        dense: output dimensions and activation (such as "torch.nn.modules.activation.Tanh") of a Dense module.
        dtype: what config.json names and the weights are stored in.
        config: further fields of BertConfig.
    """
    path.mkdir(parents=True, exist_ok=True)
    bert = make_bert(layers, hidden, heads, seed, **config).to(getattr(torch, dtype))
    settings = bert.config.to_dict() | {"architectures": ["BertModel"], "model_type": "bert", "dtype": dtype}
    write(path / "config.json", settings)
    save_file(bert.state_dict(), path / "model.safetensors", metadata={"format": "pt"})
    make_tokenizer().save(str(path / "tokenizer.json"))
    (path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    names |= {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    write(path / "tokenizer_config.json", names)
    if pooling is None:
        return path

    modules = ["Transformer", "Pooling", *(["Dense"] if dense else []), *(["Normalize"] if normalize else [])]
    folders = ["", *(f"{number}_{kind}" for number, kind in enumerate(modules) if number)]
    rows = [
        {"idx": number, "name": str(number), "path": folder, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, folder) in enumerate(zip(modules, folders, strict=True))
    ]
    write(path / "modules.json", rows)
    write(path / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    keys = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "mean_sqrt_len": "mean_sqrt_len_tokens"}
    keys |= {"weightedmean": "weightedmean_tokens", "lasttoken": "lasttoken"}
    modes = {f"pooling_mode_{key}": mode == pooling for mode, key in keys.items()}
    write(path / "1_Pooling" / "config.json", {"word_embedding_dimension": hidden} | modes)
    whole = {"prompts": prompts or {}, "default_prompt_name": default_prompt, "similarity_fn_name": "cosine"}
    write(path / "config_sentence_transformers.json", whole)
    if dense is not None:
        outputs, activation = dense
        values = {"in_features": hidden, "out_features": outputs, "bias": True, "activation_function": activation}
        write(path / "2_Dense" / "config.json", values)
        numbers = np.random.default_rng(seed).normal(0, 0.3, (outputs, hidden + 1)).astype(np.float32)
        weights = {"linear.weight": torch.from_numpy(numbers[:, 1:].copy())}
        weights["linear.bias"] = torch.from_numpy(numbers[:, 0].copy())
        save_file(weights, path / "2_Dense" / "model.safetensors", metadata={"format": "pt"})
    return path


def write(path: Path, value: Any) -> None:
    """Write JSON, making the folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def edit(path: Path, **changes: Any) -> None:
    """Set fields of a JSON object in a file; None takes a field out."""
    value = json.loads(path.read_text(encoding="utf-8")) | changes
    write(path, {key: item for key, item in value.items() if item is not None})


def put(path: Path, content: str | bytes) -> str:
    """Write a file, gzip-compressed where its name says so; returns its name."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def parquet_bytes(columns: dict[str, list[Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below a directory by its path in it, hidden ones included."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def load(path: Path | str) -> Embedder:
    """A model in full precision, for exact comparison."""
    return Embedder.load(path, device="cpu", precision="fp32")


def peer(path: Path) -> SentenceTransformer:
    """The same by sentence-transformers."""
    return SentenceTransformer(str(path), device="cpu", model_kwargs={"dtype": torch.float32})


def positions_of(lengths: torch.Tensor) -> torch.Tensor:
    """0, 1, 2, ... restarting at each sentence: (B,) lengths to (N,) positions."""
    starts = lengths.cumsum(0) - lengths
    return torch.arange(int(lengths.sum())) - torch.repeat_interleave(starts, lengths)


def tokens_of(*sentences: list[int]) -> Tokenized:
    """Sentences given by their token numbers."""
    lengths = np.array([len(sentence) for sentence in sentences])
    return Tokenized(np.array(list(itertools.chain(*sentences)), dtype=np.int32), lengths)
