"""Files in folders of others: whole or not at all, nothing overwritten, no link followed."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from netloader.files import placing
from netloader.files.placing import HIDDEN, place
from netloader.files.rules import FilesError
from tests.support.threads import at_once

FILES = {"a/b/one": b"1" * 99, "a/two.so": b"\x7fELF", "three": b""}


def tree(root: Path) -> dict[str, bytes | str]:
    """All that is in a folder: contents of files, where links lead, and folders."""
    return {
        path.relative_to(root).as_posix(): (
            str(path.readlink())
            if path.is_symlink()
            else path.read_bytes()
            if path.is_file()
            else "folder"
        )
        for path in sorted(root.rglob("*"))
    }


def files(root: Path) -> dict[str, bytes | str]:
    return {name: held for name, held in tree(root).items() if held != "folder"}


def test_files_appear_under_their_names_and_what_is_there_stays(tmp_path: Path) -> None:
    root = tmp_path / "new" / "root"
    (root / "a").mkdir(parents=True)
    (root / "a" / "two.so").write_bytes(b"mine")
    assert place(FILES, root) == ("a/b/one", "three")
    assert files(root) == {**FILES, "a/two.so": b"mine"}
    assert place(FILES, root) == ()
    assert files(root) == {**FILES, "a/two.so": b"mine"}


@pytest.mark.parametrize("at", ["a", "a/b"])
def test_a_link_in_the_way_is_named_and_nothing_is_written(tmp_path: Path, at: str) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    outside.mkdir()
    (root / at).parent.mkdir(parents=True)
    (root / at).symlink_to(outside)
    before = tree(tmp_path)
    with pytest.raises(FilesError, match=f"{root / at} is no folder of its own"):
        place(FILES, root)
    assert tree(tmp_path) == before


def test_a_file_in_the_way_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")
    before = tree(tmp_path)
    with pytest.raises(FilesError, match="a is no folder of its own"):
        place(FILES, tmp_path)
    assert tree(tmp_path) == before


def test_a_link_in_the_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("untouched")
    root = tmp_path / "root"
    root.mkdir()
    (root / "three").symlink_to(outside)
    assert "three" not in place(FILES, root)
    assert outside.read_text() == "untouched"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FilesError, match="file/root cannot be used: Not a directory"):
        place(FILES, tmp_path / "file" / "root")


def test_a_process_that_is_killed_leaves_no_file_half_and_the_next_one_cleans_up(
    tmp_path: Path,
) -> None:
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from netloader.files import placing\n"
        "write = placing.write_new\n"
        "def killed(path, content, mode):\n"
        "    write(path, content[:50], mode)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "placing.write_new = killed\n"
        "placing.place({'a/one': b'1' * 99}, Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    assert subprocess.run(command, check=False, timeout=120).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(HIDDEN)
    place(FILES, tmp_path)
    assert files(tmp_path) == FILES


def test_what_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / f"{HIDDEN}theirs"
    theirs.mkdir()
    handle = os.open(theirs, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    place(FILES, tmp_path)
    assert theirs.is_dir()
    os.close(handle)
    place(FILES, tmp_path)
    assert not theirs.exists()


def test_two_that_place_at_once_have_one_whole_set(tmp_path: Path) -> None:
    placed = at_once(lambda: place(FILES, tmp_path))
    assert sorted(name for names in placed for name in names) == sorted(FILES)
    assert files(tmp_path) == FILES


def test_a_disk_that_is_full_is_named_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes, mode: int) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(placing, "write_new", full)
    with pytest.raises(FilesError, match="No space left on device"):
        place(FILES, tmp_path)
    assert tree(tmp_path) == {}


def test_a_lock_of_another_process_is_not_waited_for(tmp_path: Path) -> None:
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        assert at_once(lambda: place(FILES, tmp_path), threads=1) == [tuple(sorted(FILES))]
    finally:
        os.close(handle)


def test_a_new_folder_that_another_process_sweeps_away_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock
    swept: list[int] = []

    def late(handle: int, how: int) -> None:
        if not swept:
            swept.append(handle)
            placing._sweep(tmp_path)
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    assert place(FILES, tmp_path) == tuple(sorted(FILES))
    assert files(tmp_path) == FILES
    assert swept


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EWOULDBLOCK, "other processes remove each new folder in it"),
        (errno.ENOTSUP, "not supported"),
    ],
)
def test_where_no_folder_can_be_locked_no_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def refused(handle: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(FilesError, match=f"{tmp_path} cannot be used: .*{words}"):
        place(FILES, tmp_path)
    assert files(tmp_path) == {}


def test_content_is_on_the_disk_before_its_name_and_names_are_on_it_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[object] = []
    fsync, link = os.fsync, os.link

    def synced(handle: int) -> None:
        fsync(handle)
        done.append(os.fstat(handle).st_ino)

    def named(written: Path, name: str, **how: Any) -> None:
        link(written, name, **how)
        done.append(("named", written.stat().st_ino))

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "link", named)
    place(FILES, tmp_path)
    for name in FILES:
        path = tmp_path / name
        order = [path.stat().st_ino, ("named", path.stat().st_ino), path.parent.stat().st_ino]
        assert sorted(order, key=done.index) == order
