"""Model directories that someone made to do harm: each loads, or gives one line, in bounded time and memory."""

import contextlib
import json
import pickle
import random
import resource
import shutil
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import in_child
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from test_directory import shard, to_bin
from tiny import edit, load, make_bert_dir

from shortstack.distillation.command_line import printable
from shortstack.model.files import InputError
from shortstack.model.weights import check_size

SECONDS = 10  # for one directory
VALUES: list[Any] = [0, -1, 1, 10**9, 10**30, 1.5, float("nan"), None, True]
VALUES += ["", "x", "\x1b[2J\n", "../x", "a\0b", "\ud800", [], {}, [[]], {"": 0}]
JSON_FILES = [
    "config.json", "tokenizer.json", "tokenizer_config.json", "modules.json", "sentence_bert_config.json",
    "config_sentence_transformers.json", "1_Pooling/config.json", "2_Dense/config.json", "model.safetensors.index.json",
]  # fmt: skip


# -- kinds of harm ---------------------------------------------------------------------------------------------------


def change_json(model: Path, draw: random.Random) -> None:
    """Put a nonsensical value anywhere into one of the JSON files."""
    path = model / draw.choice(JSON_FILES)
    value = place = json.loads(path.read_text(encoding="utf-8"))
    while isinstance(place, (dict, list)) and place:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw.choice(keys[:40])
        if not isinstance(place[key], (dict, list)) or not place[key] or draw.random() < 0.3:
            place[key] = draw.choice(VALUES)
            break
        place = place[key]
    path.write_text(json.dumps(value), encoding="utf-8")


def damage(model: Path, draw: random.Random) -> None:
    """Cut a file off, flip a bit of it, or fill it with noise."""
    path = draw.choice([path for path in sorted(model.rglob("*")) if path.is_file()])
    content = bytearray(path.read_bytes() or b"x")
    place = draw.randrange(len(content))
    kind = draw.randrange(3)
    if kind == 0:
        content = content[:place]
    elif kind == 1:
        content[place] ^= 1 << draw.randrange(8)
    else:
        content[place : place + 64] = draw.randbytes(64)
    path.write_bytes(content)


def misplace(model: Path, draw: random.Random) -> None:
    """Let a file be missing, a directory, or a link to itself."""
    path = draw.choice([path for path in sorted(model.rglob("*")) if path.is_file()])
    path.unlink()
    kind = draw.randrange(3)
    if kind == 1:
        path.mkdir()
    elif kind == 2:
        path.symlink_to(path)


def as_bin(model: Path, draw: random.Random) -> None:
    """Weights as a pickle that is small and takes much: strides of 0, zeros that were compressed, a Python object."""
    weights: dict[str, Any] = dict(load_file(model / "model.safetensors"))
    (model / "model.safetensors").unlink()
    path, kind = model / "pytorch_model.bin", draw.randrange(5)
    if kind == 0:
        weights["embeddings.word_embeddings.weight"] = torch.zeros(1).expand(10**6, 10**3)
    elif kind == 1:
        weights["zeros"] = torch.zeros(10**7)
    elif kind == 2:
        weights["object"] = bytearray(10)
    torch.save(weights, path, _use_new_zipfile_serialization=kind != 3)
    if kind == 1:
        recompress(path)
    elif kind == 2:
        path.write_bytes(pickle.dumps({"a": Allocate()}))


class Allocate:
    """Unpickles to a gigabyte."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (10**9,)


def recompress(path: Path) -> None:
    """A .bin file with its tensors compressed, and one of them much larger."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content * (16 if len(content) == 4 * 10**7 else 1))


def many_layers(model: Path, draw: random.Random) -> None:
    """A config that asks for layers without end, and a tensor that says the last of them is there."""
    count = 10 ** draw.randrange(3, 10)
    weights = load_file(model / "model.safetensors")
    weights[f"encoder.layer.{count - 1}.output.dense.weight"] = torch.ones(1)
    save_file(weights, model / "model.safetensors")
    edit(model / "config.json", num_hidden_layers=count)


def bad_pattern(model: Path, draw: random.Random) -> None:
    """A tokenizer with a regular expression that takes for ever, or words without a limit."""
    patterns = [r"(a*)*b", r"(a|a)*c", r"(?:(?:a+)+)+$", "(", r"(\s*)*y", "a{1,99999}"]
    pattern = {"Regex": draw.choice(patterns)}
    tokenizer = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    kind = draw.randrange(3)
    if kind == 0:
        tokenizer["normalizer"] = {"type": "Replace", "pattern": pattern, "content": "x"}
    elif kind == 1:
        tokenizer["pre_tokenizer"] = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    else:
        tokenizer["model"]["max_input_chars_per_word"] = 10 ** draw.randrange(3, 12)
    (model / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")


HARMS: list[Callable[[Path, random.Random], None]] = [
    change_json, change_json, change_json, damage, misplace, as_bin, many_layers, bad_pattern,
]  # fmt: skip


# -- the tests -------------------------------------------------------------------------------------------------------


def limit_memory(more: int | None) -> None:
    """Let the process have no more than some bytes beyond what it has, or lift that."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    limit = resource.RLIM_INFINITY if more is None else (int(status["VmSize"].split()[0]) << 10) + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


OF_ONE_HARM_UPON_ANOTHER = (OSError, ValueError, KeyError, IndexError, TypeError, SafetensorError)


def try_all(sources: list[Path], seeds: range, place: Path, results: Path) -> None:
    """Load a directory for each seed and write what came of it: "loaded", or the error's line."""
    for seed in seeds:
        draw = random.Random(seed)
        model = Path(shutil.copytree(sources[seed % len(sources)], place / str(seed)))
        for _ in range(draw.choice((1, 1, 2))):
            with contextlib.suppress(*OF_ONE_HARM_UPON_ANOTHER):
                draw.choice(HARMS)(model, draw)
        limit_memory(4 * sum(path.stat().st_size for path in model.rglob("*") if path.is_file()) + 500_000_000)
        signal.alarm(SECONDS)  # which ends the process
        try:
            load(model).encode(["one sentence", "another"])
            line = "loaded"
        except InputError as error:
            line = printable(str(error))  # as commands print it
        signal.alarm(0)
        limit_memory(None)
        with results.open("a", encoding="utf-8", errors="surrogatepass") as file:
            file.write(json.dumps([seed, line]) + "\n")
        shutil.rmtree(model)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux limits a process's address space")
@pytest.mark.parametrize(
    "seeds",
    [range(100), *(pytest.param(range(a, a + 100), marks=pytest.mark.long) for a in range(100, 1000, 100))],
    ids=str,
)
def test_a_hostile_directory_loads_or_gives_one_line(tmp_path: Path, seeds: range) -> None:
    """Of the usual layout, with a dense module and prompts, in shards, and pickled with vocab.txt."""
    plain = make_bert_dir(tmp_path / "plain", layers=2)
    (plain / "vocab.txt").unlink()
    dense = (3, "torch.nn.modules.activation.Tanh")
    more = make_bert_dir(tmp_path / "dense", layers=2, dense=dense, prompts={"q": "q "})
    sharded, pickled = (make_bert_dir(tmp_path / name, layers=2) for name in ("sharded", "pickled"))
    shard(sharded)
    to_bin(pickled)
    (pickled / "tokenizer.json").unlink()
    results, errors = tmp_path / "results", tmp_path / "errors"
    status, printed = in_child(
        lambda: try_all([plain, more, plain, sharded, plain, pickled], seeds, tmp_path, results), errors
    )
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    assert status == 0, f"seed {seeds[len(lines)]}: {status}, {printed[-3000:]}"
    assert "Traceback" not in printed and "panicked" not in printed and "\x1b" not in printed
    assert [seed for seed, _ in lines] == list(seeds)
    assert 5 < sum(line == "loaded" for _, line in lines) < 75
    for seed, line in lines:
        assert line.isprintable() and len(line) < 3000, (seed, line)


def test_the_bound_lets_fp8_through_and_no_bomb(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(10**6))
    check_size(file, [file], 504_000_000)
    with pytest.raises(InputError, match=f"{file}: asks for 504 MB, far more than its 1.0 MB can fill"):
        check_size(file, [file], 504_000_001)
