"""Weights of a model directory that anyone may have made: no code runs, and memory is bounded by the files' size."""

import io
import pickletools
import re
import zipfile
from collections.abc import Collection, Iterable
from pathlib import Path

import torch

from shortstack.model.bert import ARCHITECTURES
from shortstack.model.files import InputError, first_line, read_json
from shortstack.model.tensors import load_tensors

PREFIXES = sorted({f"{model.base_model_prefix}." for model in ARCHITECTURES.values()})  # of names in weight files
PICKLE_LIMIT = 2**24  # bytes of the part of a .bin file that lists its content; 50 KB in a large model
# What such a part may name: tensors, their storages and dictionaries.
GLOBALS = re.compile(
    r"collections OrderedDict|torch(\.storage)? \w+Storage|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
)
WITHOUT_ZIP = 4  # pickles before the tensors in a file of torch before 1.6: two marks, the system, the shapes


def read_weights(folder: Path, checked: Collection[Path] = ()) -> dict[str, torch.Tensor]:
    """Tensors by the names that transformers' encoders have, from safetensors (one file or several) or a .bin file.

    Args:
        folder: where.
        checked: files whose checksum was compared already.

    Raises:
        InputError: no weights, a corrupt file, or one that asks for far more memory than it is long.
    """
    single, index, pickled = (
        folder / name for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    )
    if single.exists():
        tensors, _ = load_tensors(single, single not in checked)
    elif index.exists():
        tensors = read_shards(index, checked)
    elif pickled.exists():
        tensors = read_pickled(pickled)
    else:
        raise InputError(f"{folder}: no weights there (model.safetensors or pytorch_model.bin)")
    named = {}
    for name, tensor in tensors.items():
        prefix = next((prefix for prefix in PREFIXES if str(name).startswith(prefix)), "")
        name = str(name).removeprefix(prefix).replace("LayerNorm.gamma", "LayerNorm.weight")
        named[name.replace("LayerNorm.beta", "LayerNorm.bias")] = tensor
    return named


def read_shards(index: Path, checked: Collection[Path] = ()) -> dict[str, torch.Tensor]:
    """The tensors of all files that an index names; those of `checked` are not hashed again."""
    value = read_json(index)
    files = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise InputError(f"{index}: weight_map must name each tensor's file")
    tensors: dict[str, torch.Tensor] = {}
    for name in sorted(set(files.values())):
        path = inside(index.parent, name)
        tensors |= load_tensors(path, path not in checked)[0]
    return tensors


def read_pickled(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .bin file.

    Raises:
        InputError: it is corrupt, holds anything else, or unpacks to far more than its size.
    """
    try:
        check_pickles(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # a corrupt pickle can raise anything
        raise InputError(f"{path}: damaged, or holds more than weights ({first_line(error)})") from None
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise InputError(f"{path}: not a dictionary of weights")
    if any(value.layout != torch.strided or value.device.type != "cpu" for value in tensors.values()):
        raise InputError(f"{path}: only dense tensors are supported")
    check_size(path, [path], sum(value.nbytes for value in tensors.values()))
    return tensors


def check_pickles(path: Path) -> None:
    """Raise InputError if a .bin file names anything but tensors, or unpacks to more than `check_size` allows.

    Where the file is corrupt, exceptions of many kinds are raised.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            check_size(path, [path], sum(entry.file_size for entry in archive.infolist()))
            names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            streams = [io.BytesIO(archive.open(name).read(PICKLE_LIMIT)) for name in names]
    else:
        with path.open("rb") as file:
            streams = [io.BytesIO(file.read(PICKLE_LIMIT))] * WITHOUT_ZIP
    for stream in streams:
        for opcode, argument, _ in pickletools.genops(stream):
            named = opcode.name in ("INST", "STACK_GLOBAL") or opcode.name.startswith("EXT")
            if named or (opcode.name == "GLOBAL" and not GLOBALS.fullmatch(str(argument))):
                what = argument or opcode.name
                raise InputError(f"{path}: damaged, or holds more than weights ({what}); save it as safetensors")


def check_size(path: Path, files: Iterable[Path], needed: int) -> None:
    """Raise InputError if `path` needs far more bytes of memory than its `files` can fill.

    fp8 weights take 4 times the files' size in fp32; 500 MB more are allowed.
    """
    size = sum(file.stat().st_size for file in files)
    if needed > 4 * size + 500_000_000:
        raise InputError(f"{path}: asks for {needed / 1e6:,.0f} MB, far more than its {size / 1e6:,.1f} MB can fill")


def check_weights(shapes: dict[str, tuple[int, ...]], tensors: dict[str, torch.Tensor], folder: Path) -> None:
    """Raise InputError unless every name of `shapes` has a tensor of that shape, of finite floating-point numbers."""
    missing = [name for name in shapes if name not in tensors]
    if missing:
        raise InputError(f"{folder}: {len(missing)} tensors are missing, {missing[0]} first; does config.json fit?")
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise InputError(f"{folder}: {name} has shape {tuple(tensors[name].shape)}, config.json asks for {shape}")
        if not tensors[name].is_floating_point():
            raise InputError(f"{folder}: {name} is {tensors[name].dtype}; quantised weights are not supported")
        if not tensors[name].isfinite().all():
            raise InputError(f"{folder}: {name} holds numbers that are not finite (NaN or infinity); fetch it again")


def inside(directory: Path, name: str) -> Path:
    """`directory / name`; InputError if that leads out of `directory`."""
    path = directory / name
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise InputError(f"{directory}: a file name leads out of the model directory: {name}")
    return path
