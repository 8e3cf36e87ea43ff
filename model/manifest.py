"""One file with the SHA-256 of every other file of a model, so that damage and mixed-up files are noticed."""

from pathlib import Path

from shortstack.model.files import InputError, read_json, sha256_of_file, write_json

MANIFEST = "checksums.json"
NOT_COVERED = (MANIFEST, "README.md")  # the model card is for people, who may edit it


def write_manifest(directory: Path) -> None:
    """Write the checksums of all files below a directory, once all of them are written."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    sums = {path.relative_to(directory).as_posix(): sha256_of_file(path) for path in files}
    write_json(directory / MANIFEST, {name: sums[name] for name in sums if name not in NOT_COVERED})


def check_manifest(directory: Path) -> set[Path]:
    """Make sure that the files of a model are still those that were written, and return them.

    Files added later are not checked. A directory without a manifest, as other tools write them, is not checked.

    Raises:
        InputError: a file is missing or has changed, or the manifest itself is corrupt.
    """
    manifest = directory / MANIFEST
    if not manifest.exists():
        return set()
    sums = read_json(manifest)
    if not isinstance(sums, dict) or not sums or not all(isinstance(value, str) for value in sums.values()):
        raise InputError(f"{manifest}: damaged, must give a checksum for every file; fetch or write the model again")
    advice = f"fetch or write the model again, or, if you changed it yourself, delete {manifest}"
    for name, wanted in sums.items():
        path = directory / name
        if ".." in path.parts or Path(name).is_absolute():
            raise InputError(f"{manifest}: a file name leads out of the model directory: {name}")
        if not path.is_file():
            raise InputError(f"{path}: no such file, but {MANIFEST} gives its checksum; {advice}")
        if sha256_of_file(path) != wanted:
            raise InputError(f"{path}: checksum does not match, the file is damaged or was edited; {advice}")
    return {directory / name for name in sums}
