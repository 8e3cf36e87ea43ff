"""Files that are whole or not there, and the two errors that end a command with one line."""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import safe_open

FORMAT = {"format": "pt"}  # what transformers looks for in a safetensors file
DTYPES = {  # the format's names of the types that we write
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
# Names under which processes leave what they had not finished: ours; and those of safetensors 0.8, which wrote through
# a file of its own.
LEFTOVER = re.compile(r"\..*\.tmp|\.tmp[A-Za-z0-9]{6}")


class InputError(ValueError):
    """A wrong argument or input: what is wrong, where, and what to do. Exit status 2."""


class RunError(RuntimeError):
    """A run that could not go on: what happened and how to continue. Exit status 1."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text; its type's name where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch's error on a GPU or a CPU, Python's, or that of cuBLAS for its workspace."""
    texts = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(text in str(error) for text in texts)


def check_replaceable(path: Path, mark: str, kind: str, instead: str) -> None:
    """Make sure that a directory of some kind may be written at `path`.

    Args:
        path: may be missing, an empty directory, or one of the same kind.
        mark: a file that every directory of this kind has.
        kind, instead: what it is, and what to choose otherwise, for the error.

    Raises:
        InputError: something else is there.
    """
    if path.exists() and not (path / mark).exists() and (path.is_file() or any(path.iterdir())):
        raise InputError(f"{path}: is there and no {kind}, so it is not replaced; choose another {instead}")


@contextlib.contextmanager
def errors_about(path: Path, temporary: Path) -> Iterator[None]:
    """Let a failed write to `temporary` inside the block name `path`, which the user knows.

    Rust libraries (safetensors, tokenizers) tell a failed write only in their text, as "... (os error 28)": it becomes
    the OSError that it stands for.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None or str(error.filename).startswith(str(temporary)):
            error.filename = str(path)
        raise
    except Exception as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error


def temporary_beside(path: Path) -> Path:
    """A free name for a temporary file or directory beside `path`; makes the parent directory where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; flush it to disk and rename it over `path` when the block ends well.

    After a crash, or an error inside the block, `path` is what it was before.
    """
    path = Path(path)
    temporary = temporary_beside(path)
    try:
        with errors_about(path, temporary):
            temporary.touch(exist_ok=False)
            yield temporary
            flush_to_disk(temporary)
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
    flush_to_disk(path.parent)


def flush_to_disk(path: Path) -> None:
    """fsync a file or a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path | str, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file is missing, is not UTF-8 or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no such file") from None
    except PermissionError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({first_line(error)})") from None


@contextlib.contextmanager
def atomic_directory(path: Path | str) -> Iterator[Path]:
    """Yield a temporary directory beside `path` that replaces what is at `path` when the block ends well.

    After an error inside the block `path` is what it was before. No portable call swaps two directories: a machine that
    stops between the two renames leaves the old one beside `path`, under the hidden name `.NAME.*.old`.
    """
    path = Path(path).resolve()  # a link stays, what it points to is replaced
    temporary = temporary_beside(path)
    old = temporary.with_suffix(".old")
    try:
        with errors_about(path, temporary):
            temporary.mkdir()
            yield temporary
            for file in [temporary, *temporary.rglob("*")]:
                flush_to_disk(file)
            if path.exists():
                os.rename(path, old)
            try:
                os.rename(temporary, path)
            except BaseException:
                if old.exists():
                    os.rename(old, path)
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    flush_to_disk(path.parent)


@contextlib.contextmanager
def locked(path: Path, busy: str | None = None) -> Iterator[None]:
    """Hold a lock file while the block runs. The system releases it when the process ends, however it ends.

    Args:
        path: the lock file.
        busy: what to say where another process holds it; None waits for it.

    Raises:
        InputError: `busy`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=-1 if busy is None else 0):
            yield
    except Timeout:
        raise InputError(str(busy)) from None


def remove_leftovers(directory: Path, older_than: float = 0.0) -> None:
    """Remove the temporary files that killed processes left.

    Args:
        directory: where; unless the caller holds its lock, others may be at work in it.
        older_than: seconds since a file was last written to, which keeps those of others safe.
    """
    for path in directory.glob(".*"):
        if not LEFTOVER.fullmatch(path.name):
            continue
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime < older_than:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def sha256_of_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    """Write a file in the safetensors format: the same bytes for the same content, one tensor at a time.

    The library's own writer puts the metadata in another order each time, and makes a second temporary file.

    Args:
        tensors: contiguous, on the CPU.
        path: the file.
        metadata: texts by name, for the header.
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


def load_tensors(path: Path | str) -> tuple[dict[str, torch.Tensor], Any]:
    """Read a safetensors file: its tensors, and the JSON value `save_tensors` stored beside them (None in other files).

    The tensors are memory-mapped: the file must not be changed in place while they are in use.

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
    whole = not ours or metadata == FORMAT | {
        "state": metadata["state"],
        "sha256": sha256_of_tensors(tensors, metadata["state"]),
    }
    if not whole:
        raise InputError(f"{path}: checksum does not match, the file is damaged; fetch or write it again")
    return tensors, state
