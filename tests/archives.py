"""Packages as PyPI and npm have them, made here."""

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path


def make_wheel(path: Path, folder: str, files: dict[str, bytes], extra: dict[str, bytes] | None = None) -> str:
    """Write a wheel that pip accepts; returns its SHA-256."""
    project, version = path.name.split("-")[:2]
    metadata = f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n".encode()
    information = {
        f"{project}-{version}.dist-info/METADATA": metadata,
        f"{project}-{version}.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{project}-{version}.dist-info/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**{folder + name: files[name] for name in files}, **information, **(extra or {})}.items():
            archive.writestr(name, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_tar(folder: str, files: dict[str, bytes]) -> bytes:
    """An archive as npm has them."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(folder + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return tar.getvalue()


def contents(directory: Path) -> dict[str, bytes]:
    """Every file under a directory with its bytes."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
