"""Notes of processes of one user: as long as their writers live, and from nobody else."""

import os
import tempfile
from pathlib import Path

import pytest

from netloader.io.host_notes import HostNotes, users_folder
from tests.support.children import process
from tests.unit.io.helpers import eventually

WRITER = """
    import sys
    from netloader.io.host_notes import HostNotes
    notes = HostNotes("kind-")
    notes.put(b"before")
    notes.put(b"of a child")
    print("written", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path / f"netloader-{os.geteuid()}"


def test_a_note_is_read_while_its_writer_lives(folder: Path) -> None:
    ours = HostNotes("kind-")
    ours.put(b"mine")
    with process(WRITER) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert ours.others() == (b"of a child",)
        assert HostNotes("another-").others() == ()
        child.kill()
        child.wait()
        assert ours.others() == ()
        assert len([*folder.iterdir()]) == 1, "what nobody holds is removed"
    ours.take_back()
    assert [*folder.iterdir()] == []


def test_a_forked_child_does_not_keep_a_note_alive(folder: Path) -> None:
    ours, reader = HostNotes("kind-"), HostNotes("kind-")
    ours.put(b"mine")
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    try:
        assert reader.others() == (b"mine",)
        path, file = ours._own or (Path(), None)
        assert file is not None
        file.close()  # as the end of this process would
        assert eventually(lambda: reader.others() == ())
        assert not path.exists()
    finally:
        os.close(write)
        os.waitpid(child, 0)
        os.close(read)
    assert folder.exists()


def test_what_is_no_note_is_left_out_at_once(folder: Path) -> None:
    notes = HostNotes("kind-")
    os.mkfifo(folder / "kind-pipe")
    (folder / "kind-folder").mkdir()
    (folder / "kind-link").symlink_to("/etc/hostname")
    (folder / "kind-text").write_text("nobody holds it")
    assert notes.others() == ()
    assert Path("/etc/hostname").exists()


@pytest.mark.parametrize("what", ["open", "a link", "a file"])
def test_a_folder_of_others_is_refused(what: str, tmp_path: Path) -> None:
    folder = users_folder()
    folder.rmdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    if what == "open":
        folder.mkdir()
        folder.chmod(0o770)
    elif what == "a link":
        folder.symlink_to(elsewhere)
    else:
        folder.touch(mode=0o600)
    with pytest.raises(PermissionError, match="this user alone"):
        users_folder()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused() -> None:
    os.chown(users_folder(), 12345, -1)
    with pytest.raises(PermissionError, match="this user alone"):
        HostNotes("kind-")
