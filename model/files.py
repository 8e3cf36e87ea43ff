"""Files that are whole or not there, and the error of a wrong input. No torch, which takes seconds to import: commands
answer `--help` without it."""

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# What killed processes leave behind: .NAME.*.tmp, which was to become NAME; .NAME.*.old, which was NAME before; and the
# temporary files of safetensors 0.8.
LEFTOVER = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.(tmp|old)|\.tmp[A-Za-z0-9]{6}")


class InputError(ValueError):
    """A wrong argument or input: what is wrong, where, and what to do. Exit status 2."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text; its type's name where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch's error on a GPU or a CPU, Python's, or that of cuBLAS for its workspace."""
    texts = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or any(text in str(error) for text in texts)


def check_replaceable(path: Path, marks: Sequence[str], kind: str, instead: str) -> None:
    """Raise InputError unless nothing, an empty directory or one of the same kind is at `path`.

    A directory of the kind has a file for each of the patterns `marks`; `kind` and `instead`, what to choose, are for
    the error.
    """
    if (path / ".git").exists():
        raise InputError(f"{path}: is a git repository, so it is not replaced; choose another {instead}")
    of_the_kind = all(any(path.glob(mark)) for mark in marks)
    if path.is_file() or (path.exists() and not of_the_kind and any(path.iterdir())):
        raise InputError(f"{path}: exists and is not a {kind}, so it is not replaced; choose another {instead}")


@contextlib.contextmanager
def errors_about(path: Path, temporary: Path) -> Iterator[None]:
    """Let a failed write to `temporary` inside the block name `path`, which the user knows.

    Rust libraries (safetensors, tokenizers) name the cause only in their message, as "... (os error 28)". It is raised
    as the OSError of that number.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None or str(error.filename).startswith(str(temporary)):
            error.filename = str(path)
        raise
    except Exception as error:
        match = re.search(r"\(os error (\d+)\)", str(error))
        if match is None:
            raise
        raise OSError(int(match[1]), os.strerror(int(match[1])), str(path)) from error


def make_directory(path: Path) -> None:
    """Make a directory and those above it where they are missing, and flush that to disk."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        flush_to_disk(folder.parent)


@contextlib.contextmanager
def temporary_beside(path: Path, directory: bool = False) -> Iterator[Path]:
    """Yield a new temporary file or directory beside `path`, which is removed when the block ends if it is still there.

    It is locked until then, which tells `remove_leftovers` that its process is alive. What a killed process left for
    the same `path` is removed first.
    """
    make_directory(path.parent)
    remove_leftovers(path.parent, path.name)
    descriptor, temporary = -1, path
    try:
        with errors_about(path, path.with_name(f".{path.name}.")):
            while descriptor < 0:
                temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
                temporary.mkdir() if directory else temporary.touch(exist_ok=False)
                descriptor = lock_of(temporary)
            yield temporary
    finally:
        if descriptor >= 0:
            os.close(descriptor)
        if temporary != path:
            remove(temporary)


def lock_of(path: Path) -> int:
    """Lock a file or directory until the returned descriptor is closed; -1 if another process holds it or it is gone.

    Where the file system has no locks, every process looks as if it had ended.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return -1
    with contextlib.suppress(OSError):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return -1
    if not path.exists():  # another process took it for a leftover between making it and locking it
        os.close(descriptor)
        return -1
    return descriptor


def remove(path: Path) -> None:
    """Remove a file or a directory with all that is in it, as far as possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; flush it to disk and rename it over `path` when the block ends well.

    After a crash, or an error inside the block, `path` is what it was before.
    """
    path = Path(path)
    with temporary_beside(path) as temporary:
        yield temporary
        flush_to_disk(temporary)
        os.replace(temporary, path)
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

    After a crash, or an error inside the block, `path` is what it was before: the two are swapped in one step. Where
    the system or the file system can't do that, a process that is killed between two renames leaves the old one beside
    `path` as `.NAME.*.old`, and the next that writes there puts it back first.
    """
    path = Path(path).resolve()  # a link stays, what it points to is replaced
    with temporary_beside(path, directory=True) as temporary:
        yield temporary
        for file in [temporary, *temporary.rglob("*")]:
            flush_to_disk(file)
        if not path.exists() or not exchange(temporary, path):
            replace_directory(temporary, path)
        flush_to_disk(path.parent)  # before the old one is removed


def exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step; False where the system or the file system has no call for it."""
    library = ctypes.CDLL(None)
    names = os.fsencode(one), os.fsencode(other)
    try:
        if sys.platform == "darwin":
            return library.renamex_np(*names, 2) == 0  # RENAME_SWAP
        return library.renameat2(-100, names[0], -100, names[1], 2) == 0  # AT_FDCWD, RENAME_EXCHANGE
    except AttributeError:
        return False


def replace_directory(new: Path, path: Path) -> None:
    """Put a directory in place of the one at `path`, if there is one, by renames."""
    old = new.with_suffix(".old")
    if path.exists():
        os.rename(path, old)
    try:
        os.rename(new, path)
    except BaseException:
        if old.exists():
            os.rename(old, path)
        raise
    if old.exists():
        flush_to_disk(path.parent)
        remove(old)


def remove_leftovers(directory: Path, name: str | None = None) -> None:
    """Remove the temporary files that killed processes left for `name`, or for any name; running processes' stay."""
    for path in list(directory.iterdir()) if directory.exists() else []:
        match = LEFTOVER.fullmatch(path.name)
        if match is None or name not in (None, match["name"]):
            continue
        with contextlib.suppress(OSError):  # such as another user's file
            lock = path.with_suffix(".tmp") if path.suffix == ".old" else path
            descriptor = lock_of(lock)
            if descriptor >= 0 or not lock.exists():
                if path.suffix == ".old" and not (place := directory / match["name"]).exists():
                    os.rename(path, place)
                remove(path)
            if descriptor >= 0:
                os.close(descriptor)


def sha256_of_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
