"""Read regular files only: no link, no device, and no pipe that would be waited for.

New files are written so that they are whole after a power loss, too.
"""

import errno
import os
import stat
from pathlib import Path


def read_regular(path: Path, most: int) -> bytes:
    """The first `most` bytes of a file.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        return file.read(most)


def read_whole(path: Path, nbytes: int) -> bytes:
    """What a file holds that had this size a moment ago.

    Raises:
        OSError: it cannot be read, is no regular file, or has another size now.
    """
    data = read_regular(path, nbytes + 1)
    if len(data) != nbytes:
        raise OSError(errno.EBUSY, "it is being written to", str(path))
    return data


def write_new(path: Path, content: bytes, mode: int) -> None:
    """Make a file with this content, and wait until it is on the disk.

    Raises:
        OSError: there is something of this name, or the file cannot be written.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(handle)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
