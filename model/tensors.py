"""Files of tensors: safetensors with a checksum, the same bytes for the same content, whole or not there."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from shortstack.model.files import InputError, atomic_path, first_line

FORMAT = {"format": "pt"}  # transformers requires this in a safetensors file
DTYPES = {  # the format's names of the types that are written
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def sha256_of_tensors(tensors: dict[str, torch.Tensor], extra: str = "") -> str:
    """SHA-256 over names, types, shapes and bytes of `tensors` in name order, and `extra`, in hexadecimal."""
    digest = hashlib.sha256(extra.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def save_tensors(path: Path | str, tensors: dict[str, torch.Tensor], state: Any = None) -> None:
    """Write tensors and a JSON value `state` as one safetensors file with a checksum, whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(state)
    metadata = FORMAT | {"state": text, "sha256": sha256_of_tensors(tensors, text)}
    with atomic_path(path) as temporary:
        write_safetensors(tensors, temporary, metadata)


def write_safetensors(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write contiguous CPU tensors as a safetensors file: the same bytes for the same content, one tensor at a time.

    The library's own writer puts the metadata in another order each time, and makes a second temporary file.
    """
    # As the library does: the largest elements first, so that each tensor starts at a multiple of its element's size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].nbytes
        kind, shape = DTYPES[tensors[name].dtype], list(tensors[name].shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(bytes_of(tensors[name]))


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """A contiguous CPU tensor's bytes, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def load_tensors(path: Path | str, check: bool = True) -> tuple[dict[str, torch.Tensor], Any]:
    """Read a safetensors file: its tensors, and the JSON value `save_tensors` stored beside them (None in other files).

    The tensors are memory-mapped: the file must not be changed in place while they are in use.

    Args:
        path: the file.
        check: compare the checksum of `save_tensors`; False where the whole file's was compared just now.

    Raises:
        InputError: the file is missing, truncated, not safetensors, or its checksum does not match.
    """
    try:
        with open(path, "rb"):  # safe_open says "no such file" of any that it may not read
            pass
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        ours = {"sha256", "state"} <= metadata.keys()
        state = json.loads(metadata["state"]) if ours else None
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no such file") from None
    except PermissionError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from None
    except Exception as error:  # safetensors' own, and torch's for a type or shape it does not know
        reason = first_line(error)
        raise InputError(f"{path}: truncated or not a safetensors file ({reason}); fetch or write it again") from None
    whole = not (ours and check) or metadata == FORMAT | {
        "state": metadata["state"],
        "sha256": sha256_of_tensors(tensors, metadata["state"]),
    }
    if not whole:
        raise InputError(f"{path}: checksum does not match, the file is damaged; fetch or write it again")
    return tensors, state


def read_kept(path: Path, state: Any, again: str) -> dict[str, torch.Tensor] | None:
    """Tensors that `save_tensors` kept with this state, to save a computation; None if there are none, or of another.

    A damaged file counts as none, after a line that ends in `again`: what is done instead.
    """
    if not path.exists():
        return None
    try:
        tensors, found = load_tensors(path)
    except InputError as error:
        print(f"{str(error).partition('; ')[0]}; {again}", flush=True)
        return None
    return tensors if found == state else None
