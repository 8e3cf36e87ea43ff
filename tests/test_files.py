"""Nothing is ever half-written, damage is noticed, and errors end a command with one line."""

import errno
import io
import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from processes import in_child
from tiny import contents

from shortstack.distillation import RunError
from shortstack.distillation.command_line import printable, run_command
from shortstack.distillation.run import read_json_lines
from shortstack.model import files
from shortstack.model.files import (
    InputError,
    atomic_directory,
    atomic_path,
    read_json,
    remove_leftovers,
    write_json,
    write_text,
)
from shortstack.model.tensors import load_tensors, save_tensors, sha256_of_tensors

# -- single files ----------------------------------------------------------------------------------------------------


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "a.json"
    write_json(path, {"é": [1, None]})
    assert path.read_text(encoding="utf-8") == '{\n  "é": [\n    1,\n    null\n  ]\n}\n'
    assert read_json(path) == {"é": [1, None]}
    write_text(path, "other")
    assert contents(path.parent) == {"a.json": b"other"}
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


@pytest.mark.parametrize("atomic", [atomic_path, atomic_directory])
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, OSError])
def test_an_error_while_writing_leaves_what_was_there(
    tmp_path: Path, atomic: Callable, kind: type[BaseException]
) -> None:
    name = "a.txt" if atomic is atomic_path else "a.txt/inside"
    write_text(tmp_path / name, "old")
    with pytest.raises(kind) as caught, atomic(tmp_path / "a.txt") as temporary:
        (temporary / "inside" if temporary.is_dir() else temporary).write_text("half of the n")
        raise kind(errno.ENOSPC, "full")
    assert contents(tmp_path) == {name: b"old"}
    if kind is OSError:
        assert caught.value.filename == str(tmp_path / "a.txt")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_error_of_the_system_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(*arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="Input/output error") as caught:
        write_text(path, "new")
    monkeypatch.undo()
    assert caught.value.filename == str(path)
    assert contents(tmp_path) == {"a.txt": b"old"}


def test_the_error_of_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic_path(tmp_path / "a.txt"):
        (tmp_path / "missing.txt").read_text()
    assert caught.value.filename == str(tmp_path / "missing.txt") or caught.value.filename == tmp_path / "missing.txt"


def test_a_place_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError) as caught:
        write_text(tmp_path / "file" / "a.txt", "new")
    assert str(tmp_path / "file") in str(caught.value) and ".tmp" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_a_read_only_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()

    def write() -> None:
        os.seteuid(65534)
        run_command(lambda: write_text(tmp_path / "place" / "a.txt", "new"))

    status, line = in_child(write, tmp_path / "errors")
    assert status == 1 and line.count("\n") == 1
    assert line.startswith(f"error: {tmp_path}/place") and "not writable" in line
    assert contents(tmp_path / "place") == {}


def killed_after(steps: int, action: Callable[[], None], exchanges: bool = True) -> Callable[[], None]:
    """The action, killed before its n-th call to the system: each is one at which the machine may stop."""
    calls = iter(range(steps))

    def dying(function: Callable) -> Callable:
        def call(*arguments: object, **keywords: object) -> object:
            if next(calls, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        return call

    def run() -> None:
        for owner, names in ((os, "fsync replace rename unlink"), (Path, "touch mkdir write_text")):
            for name in names.split():
                setattr(owner, name, dying(getattr(owner, name)))
        files.exchange = dying(files.exchange) if exchanges else lambda one, other: False
        action()

    return run


@pytest.mark.parametrize("steps", range(9))
def test_killed_while_writing_a_file(tmp_path: Path, steps: int) -> None:
    """SIGKILL before the n-th call to the system: the file is the old or the new one, whole."""
    path = tmp_path / "a.txt"
    write_text(path, "old" * 99)
    status, errors = in_child(killed_after(steps, lambda: write_text(path, "new" * 99)), tmp_path / "errors")
    assert status == (0 if steps > 6 else -signal.SIGKILL), errors
    assert path.read_text() == ("new" if steps > 4 else "old") * 99


@pytest.mark.parametrize("exchanges", [True, False], ids=["one step", "two renames"])
@pytest.mark.parametrize("steps", range(14))
def test_killed_while_writing_a_directory(tmp_path: Path, steps: int, exchanges: bool) -> None:
    """The same for a directory. Where no call swaps two, the next to write there puts the old one back."""
    path = tmp_path / "place" / "model"
    with atomic_directory(path) as temporary:
        (temporary / "a").write_text("old")
        (temporary / "only old").write_text("old")

    def write() -> None:
        with atomic_directory(path) as temporary:
            (temporary / "a").write_text("new")
            (temporary / "only new").write_text("new")

    status, errors = in_child(killed_after(steps, write, exchanges), tmp_path / "errors")
    assert status in (-signal.SIGKILL, 0), errors
    assert path.exists() or not exchanges
    remove_leftovers(path.parent)
    old, new = {"a": b"old", "only old": b"old"}, {"a": b"new", "only new": b"new"}
    assert contents(path) in (old, new)
    assert [each.name for each in path.parent.iterdir()] == ["model"]
    if status == 0:
        assert contents(path) == new


@pytest.mark.parametrize("atomic", [atomic_path, atomic_directory])
def test_what_another_process_is_writing_is_left_alone(tmp_path: Path, atomic: Callable) -> None:
    with atomic(tmp_path / "a") as temporary:
        file = temporary / "file" if temporary.is_dir() else temporary
        file.write_text("first")
        remove_leftovers(tmp_path)
        with atomic(tmp_path / "a") as other:
            (other / "file" if other.is_dir() else other).write_text("second")
    path = tmp_path / "a" / "file" if atomic is atomic_directory else tmp_path / "a"
    assert contents(tmp_path) == {str(path.relative_to(tmp_path)): b"first"}


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / ".a.txt.0123abcd.tmp").write_text("half")
    (tmp_path / ".b.txt.0123abcd.tmp").write_text("of another file")
    write_text(tmp_path / "a.txt", "new")
    assert contents(tmp_path) == {"a.txt": b"new", ".b.txt.0123abcd.tmp": b"of another file"}


def test_new_directories_are_flushed_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = []
    monkeypatch.setattr(files, "flush_to_disk", flushed.append)
    write_text(tmp_path / "one" / "two" / "a.txt", "new")
    assert {tmp_path, tmp_path / "one", tmp_path / "one" / "two"} <= set(flushed)


def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path: Path) -> None:
    place = tmp_path / "place"
    write_text(place / "a.txt", "old")
    save_tensors(place / "a.safetensors", {"x": torch.ones(3)})
    before = contents(place)
    for path, action in (
        (place / "a.txt", lambda: write_text(place / "a.txt", "x" * 5000)),
        (place / "a.safetensors", lambda: save_tensors(place / "a.safetensors", {"x": torch.ones(5000)})),
    ):

        def write(action: Callable[[], None] = action) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
            run_command(action)

        status, line = in_child(write, tmp_path / "errors")
        assert status == 1
        assert line.startswith(f"error: {path}: no space left to write") and line.count("\n") == 1
        assert contents(place) == before


# -- directories -----------------------------------------------------------------------------------------------------


def test_a_directory_is_written_and_replaced(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with atomic_directory(tmp_path / "deep" / "model") as temporary:
            (temporary / "folder").mkdir()
            (temporary / "folder" / text).write_text(text)
    assert contents(tmp_path) == {"deep/model/folder/new": b"new"}


@pytest.mark.parametrize("failing", [{1}, {2}, {2, 3}], ids=str)
def test_a_failed_rename_never_loses_the_old_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: set[int]
) -> None:
    """The renames are: the old one out of the way, the new one in place, and after a failure the old one back."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "a").write_text("old")
    calls = iter(range(1, 9))
    rename = os.rename

    def fail(*arguments: Path) -> None:
        if next(calls) in failing:
            raise OSError(errno.EIO, "Input/output error")
        rename(*arguments)

    monkeypatch.setattr(os, "rename", fail)
    monkeypatch.setattr(files, "exchange", lambda one, other: False)
    with pytest.raises(OSError, match="Input/output error"), atomic_directory(path) as temporary:
        (temporary / "a").write_text("new")
    assert list(contents(tmp_path).values()) == [b"old"]
    assert path.exists() or 3 in failing


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with atomic_directory(tmp_path / "link") as temporary:
        (temporary / "a").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "real") == {"a": b"new"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


# -- JSON ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"9" * 5000, b'{"a": 1} x', "{'a': 1}".encode("utf-16")]
)
def test_what_is_not_json_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match="a.json: not JSON") as caught:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


def test_lines_that_hold_no_object_are_skipped(tmp_path: Path) -> None:
    objects = [b'{"step": 1}', b'{"step": 2, "text": "\xff"}', b'{"a": 6}']
    others = [b"[3]", b'"4"', b"", b'{"step": 5', b"[" * 9999]
    (tmp_path / "log").write_bytes(b"\n".join([*objects[:2], *others, objects[2]]))
    assert read_json_lines(tmp_path / "log") == [{"step": 1}, {"step": 2, "text": "\ufffd"}, {"a": 6}]


# -- tensors ---------------------------------------------------------------------------------------------------------

TENSORS = {
    "weights": torch.arange(12, dtype=torch.float32).view(3, 4),
    "half": torch.ones(5, dtype=torch.bfloat16),
    "numbers": torch.tensor([3, -1]),
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 7),
}


def test_tensors_and_state_come_back(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a", TENSORS | {"turned": TENSORS["weights"].T}, {"step": 3, "text": "é"})
    tensors, state = load_tensors(tmp_path / "a")
    assert state == {"step": 3, "text": "é"}
    assert tensors.keys() == {*TENSORS, "turned"}
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor)
    assert torch.equal(tensors["turned"], TENSORS["weights"].T)


@given(data=st.data())
def test_flipped_bits_and_cuts_are_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "flipped"
    save_tensors(path, TENSORS, {"step": 3})
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(whole[:place])
        with pytest.raises(InputError, match="flipped"):
            load_tensors(path)
        return
    flipped = bytearray(whole)
    flipped[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(bytes(flipped))
    try:
        tensors, state = load_tensors(path)
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return
    # a flip in the names of the checksum's own fields, or one that changes no meaning: the tensors must be right
    assert state in ({"step": 3}, None)
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_a_tensor_file_has_the_mode_that_the_umask_asks_for(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        save_tensors(tmp_path / "a", TENSORS)
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~umask


def test_tensor_files_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    """In whatever order the tensors come; and safetensors itself reads them, none starting at an odd place."""
    from safetensors.torch import load

    contents = set()
    for number, names in enumerate((list(TENSORS), list(TENSORS)[::-1])):
        save_tensors(tmp_path / str(number), {name: TENSORS[name] for name in names}, {"step": 3})
        contents.add((tmp_path / str(number)).read_bytes())
    [content] = contents
    read = load(content)
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in TENSORS.items())
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    for name, tensor in TENSORS.items():
        assert (8 + size + header[name]["data_offsets"][0]) % tensor.element_size() == 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's address space")
def test_writing_tensors_takes_no_memory_of_their_size(tmp_path: Path) -> None:
    def write() -> None:
        tensors = {str(number): torch.ones(8, 1 << 20) for number in range(4)}  # 128 MiB
        save_tensors(tmp_path / "warm", {"a": torch.ones(1)})
        status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        limit = (int(status["VmSize"].split()[0]) << 10) + (48 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        save_tensors(tmp_path / "a", tensors)

    status, errors = in_child(write, tmp_path / "errors")
    assert status == 0, errors


def test_leftovers_of_ours_and_of_older_versions_are_removed(tmp_path: Path) -> None:
    for name in (".a.txt.0123abcd.tmp", ".tmpAb3xY9", ".hidden", ".tmp", ".tmp-of-yours", "a.tmp"):
        (tmp_path / name).write_text("x")
    remove_leftovers(tmp_path)
    assert contents(tmp_path).keys() == {".hidden", ".tmp", ".tmp-of-yours", "a.tmp"}


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_a_file_that_may_not_be_read_is_not_called_missing(tmp_path: Path) -> None:
    save_tensors(tmp_path / "tensors", TENSORS)
    write_json(tmp_path / "json", {})
    tmp_path.chmod(0o755)
    for read, name in ((load_tensors, "tensors"), (read_json, "json")):
        (tmp_path / name).chmod(0o600)

        def forbidden(read: Callable = read, name: str = name) -> None:
            os.chdir(tmp_path)
            os.seteuid(65534)
            run_command(lambda: read(name))

        status, line = in_child(forbidden, tmp_path / "errors")
        assert (status, line) == (2, f"error: {name}: can't be read (Permission denied)\n")


def test_safetensors_of_others_have_no_state(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "a", metadata={"state": "not JSON", "format": "pt"})
    tensors, state = load_tensors(tmp_path / "a")
    assert state is None and torch.equal(tensors["a"], torch.ones(2))
    save_file({"a": torch.ones(2)}, tmp_path / "b", metadata={"sha256": "of something else"})
    assert load_tensors(tmp_path / "b")[1] is None


def test_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "missing", tmp_path / "file" / "below"):
        for read in (read_json, load_tensors):
            with pytest.raises(InputError, match=f"{path}: no such file"):
                read(path)
    with pytest.raises(InputError, match=f"{tmp_path}: truncated or not a safetensors file"):
        load_tensors(tmp_path)


def test_checksums_see_names_types_shapes_and_values() -> None:
    base = {"a": torch.zeros(4)}
    others = [
        {"b": torch.zeros(4)},
        {"a": torch.zeros(2, 2)},
        {"a": torch.zeros(4, dtype=torch.int32)},
        {"a": torch.tensor([0.0, 0, 0, 1])},
        {"a": torch.zeros(4), "b": torch.zeros(0)},
    ]
    sums = {sha256_of_tensors(tensors) for tensors in [base, *others]} | {sha256_of_tensors(base, "extra")}
    assert len(sums) == 7
    assert sha256_of_tensors({"a": torch.zeros(8)[::2]}) == sha256_of_tensors(base)


def test_no_text_of_others_reaches_the_terminal_raw(capsys: pytest.CaptureFixture[str]) -> None:
    assert printable("é 中 \x1b[2J a\r\n\tb\x07 \u202e \ud800") == r"é 中 \x1b[2J a b\x07 \u202e \ud800"

    def main() -> None:
        raise InputError("\x1b]0;title\x07.txt: no such file")

    with pytest.raises(SystemExit):
        run_command(main)
    assert capsys.readouterr().err == "error: \\x1b]0;title\\x07.txt: no such file\n"


def test_what_a_terminal_of_ascii_can_not_show_is_spelled_out(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    run_command(lambda: print("é"))
    assert raw.getvalue() == b"\\xe9\n"


# -- commands --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("a.csv:3:\n no score"), 2, "error: a.csv:3: no score"),
        (RunError("stopped"), 1, "error: stopped"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "log"), 1, "error: log: no space left to write; free some"),
        (OSError(errno.EROFS, "Read-only file system", "log"), 1, "error: log: not writable or readable"),
        (OSError(errno.EIO, "Input/output error", "log"), 1, "error: log: Input/output error"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), 1, "error: a file: No such file or directory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"), 1, "error: out of memory: train: raise"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "error: out of memory: train: raise"),
        (MemoryError(), 1, "error: out of memory: train: raise --grad"),
    ],
    ids=repr,
)
def test_errors_that_users_can_fix_are_one_line(
    capsys: pytest.CaptureFixture[str], error: BaseException, status: int, line: str
) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        run_command(main)
    assert caught.value.code == status
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(line) and err.count("\n") == 1


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyError("a bug")], ids=repr)
def test_bugs_keep_their_traceback(error: Exception) -> None:
    def main() -> None:
        raise error

    with pytest.raises(type(error), match="a bug"):
        run_command(main)
