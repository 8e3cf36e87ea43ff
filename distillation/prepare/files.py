"""Text files of `assets`, beside a manifest of what they must be."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shortstack.model.files import InputError, read_json, sha256_of_file, write_json, write_text


def are_there(assets: Path, manifest: str, version: dict[str, Any], names: Sequence[str]) -> bool:
    """Whether every file is what the manifest says, and the manifest is of this very version."""
    try:
        value = read_json(assets / manifest)
        whole = all(value[key] == version[key] for key in version) and all(
            (assets / name).is_file() and sha256_of_file(assets / name) == value["sha256"][name] for name in names
        )
    except (InputError, KeyError, TypeError):
        return False
    if whole:
        print(f"{assets / names[0]} and what belongs to it: already there, SHA-256 matches", flush=True)
    return whole


def write_all(assets: Path, manifest: str, version: dict[str, Any], contents: dict[str, list[str]]) -> None:
    """Write the lines of each file, and the manifest last, so that it never describes files that were not written."""
    for name, lines in contents.items():
        write_text(assets / name, "".join(f"{line}\n" for line in lines))
        print(f"{assets / name}: {len(lines):,} lines", flush=True)
    write_json(assets / manifest, {**version, "sha256": {name: sha256_of_file(assets / name) for name in contents}})
