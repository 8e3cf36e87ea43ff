"""A disk that loses its power: of what a run did to its files, only what was flushed to disk is sure to be there.

A file's content is kept by fsync of the file, and the names in a directory by fsync of the directory; a rename that was
not flushed has not happened. Of the rest a file system may have kept any earlier state, which is drawn at random.
"""

import pickle
import random
from pathlib import Path
from typing import Any


class Node:
    """A file or a directory: what it is now, what is sure to be kept, and for a directory what was done since."""

    def __init__(self, now: Any) -> None:
        self.now: Any = now
        self.kept: Any = type(now)()
        self.pending: list[dict[str, Node | None]] = []

    def change(self, names: "dict[str, Node | None]") -> None:
        """Change names in a directory, all or none of them."""
        self.pending.append(names)
        self.now = changed(self.now, names)

    def flush(self) -> None:
        self.kept = self.now
        self.pending = []

    def survives(self, draw: random.Random | None) -> Any:
        """What is there after the power was lost: no more than is sure, or at random some of the rest."""
        if draw is None:
            return self.kept
        if isinstance(self.now, bytes):
            sure = len(self.kept) if self.now.startswith(self.kept) else 0  # what was added to is there still
            return draw.choice([self.kept, self.now[: draw.randint(sure, len(self.now))]])
        names = self.kept
        for change in self.pending[: draw.randint(0, len(self.pending))]:
            names = changed(names, change)
        return names


def changed(names: dict[str, Node], changes: dict[str, Node | None]) -> dict[str, Node]:
    return {name: node for name, node in (names | changes).items() if node is not None}


class Disk:
    """The files below a directory, which is empty at first and is not lost itself."""

    def __init__(self, place: Path) -> None:
        self.place, self.root = place, Node({})

    def directory_of(self, path: str) -> tuple[Node | None, str]:
        *above, name = Path(path).relative_to(self.place).parts
        node: Node | None = self.root
        for part in above:
            node = node.now.get(part) if node is not None else None
        return node, name

    def find(self, path: str) -> Node | None:
        if path == str(self.place):
            return self.root
        directory, name = self.directory_of(path)
        return directory.now.get(name) if directory is not None else None

    def do(self, kind: str, path: str, *more: Any) -> None:
        """One operation of a journal. One that failed, as making a directory that is there, changes nothing."""
        node = self.find(path)
        if kind == "fsync":
            if node is not None:
                node.flush()
            return
        directory, name = self.directory_of(path)
        if directory is None:
            return
        if kind in ("open", "mkdir") and node is None:
            directory.change({name: Node({} if kind == "mkdir" else b"")})
        elif kind == "content" and node is not None:
            node.now = more[0]
        elif kind in ("remove", "rmdir") and node is not None:
            directory.change({name: None})
        elif kind in ("rename", "link", "exchange") and node is not None:
            other, new = self.directory_of(more[0])
            assert other is directory, "a rename across directories is two changes, which this model does not know"
            replaced = directory.now.get(new)
            if kind == "link" and replaced is not None:
                return
            left = {"rename": None, "link": node, "exchange": replaced}[kind]
            directory.change({name: left, new: node})

    def restore(self, draw: random.Random | None) -> None:
        """Write what survives below the directory, which must be empty."""

        def write(node: Node, path: Path) -> None:
            content = node.survives(draw)
            if isinstance(content, bytes):
                path.write_bytes(content)
                return
            path.mkdir(exist_ok=True)
            for name, below in content.items():
                write(below, path / name)

        write(self.root, self.place)


def read_journal(path: Path) -> list[tuple[Any, ...]]:
    """The operations and marks that `operations.Journal` noted."""
    entries = []
    with path.open("rb") as file:
        while file.peek(1):
            entries.append(pickle.load(file))
    return entries
