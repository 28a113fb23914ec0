"""Append-only files of whole lines: what jsonl.py and csv.py share.

A line is written with one system call and nothing is buffered here, so that ``kill -9`` loses at
most the line being written. A file that a killed run left behind is repaired before it grows.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from torch_gfshadow.errors import must

_BLOCK = 1 << 16


def checked_path(path: str | os.PathLike[str]) -> Path:
    """Return ``path`` as a file we will be able to write; nothing is created.

    Raises:
        TypeError: If ``path`` is not a path.
        ValueError: If it names a directory, or lies where nothing can be written.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(must("path", "a string or a path", repr(path), 'Pass "run.jsonl".'))
    if not os.fspath(path):
        raise ValueError(must("path", "the name of a file", "''", 'Pass "run.jsonl".'))
    file = Path(path).expanduser()
    if file.is_dir():
        example = file / "run.jsonl"
        raise ValueError(
            must("path", "a file", f"the directory {str(file)!r}", f"Name a file in it: {example}")
        )
    nearest = next(place for place in (file, *file.absolute().parents) if place.exists())
    if nearest != file and not nearest.is_dir():
        raise ValueError(
            must("path", "inside a directory", repr(str(file)), f"{nearest} is a file.")
        )
    if not os.access(nearest, os.W_OK):
        raise ValueError(
            must("path", "writable", repr(str(file)), f"No permission to write {nearest}.")
        )
    return file


def checked_directory(directory: str | os.PathLike[str]) -> Path:
    """Return ``directory`` as one we will be able to write in; nothing is created.

    Raises:
        ValueError: If it is a file, or lies under one.
    """
    path = Path(directory).expanduser()
    for place in (path, *path.absolute().parents):
        if place.exists() and not place.is_dir():
            fix = f"{place} is a file; choose another name."
            raise ValueError(must("directory", "a directory or new", repr(str(path)), fix))
    return path


class LineFile:
    """One file, opened for appending whole lines.

    Args:
        path: A path that :func:`checked_path` accepted; missing parents are created on opening.
        is_ours: Says of the first line whether this is our kind of file; we repair no other.
        is_whole: Says of the last line, as found, whether it was written to its end.
    """

    def __init__(
        self, path: Path, is_ours: Callable[[bytes], bool], is_whole: Callable[[bytes], bool]
    ) -> None:
        self.path = path
        self._is_ours, self._is_whole = is_ours, is_whole
        self._file: BinaryIO | None = None
        self._regular = False

    @property
    def is_open(self) -> bool:
        """Whether lines can be appended."""
        return self._file is not None

    def open(self) -> bool:
        """Open the file, repair its end, and say whether it is still empty.

        Raises:
            ValueError: If it holds something else than our lines.
            OSError: If it cannot be opened.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = open(self.path, "ab+", buffering=0)  # noqa: SIM115 - closed in close()
        try:
            # A pipe or /dev/stdout can be written but neither read back nor cut.
            self._regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            is_empty = self._repair(file) if self._regular else True
        except BaseException:
            file.close()
            raise
        self._file = file
        return is_empty

    def append(self, line: str) -> None:
        """Write ``line`` whole, or leave the file as it was and raise.

        Raises:
            OSError: If the disk is full, or the file went away.
        """
        if self._file is None:
            raise ValueError(must(str(self.path), "open", "a line after close()", "Call open()."))
        data = (line + "\n").encode()
        end = self._file.seek(0, os.SEEK_END) if self._regular else 0
        try:
            _write_all(self._file, data)
        except OSError:
            if self._regular:
                self._file.truncate(end)
            raise

    def close(self) -> None:
        """Close the file; harmless when repeated."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def __del__(self) -> None:
        # Many runs end without finish(). Nothing is buffered, so there is nothing to warn of.
        self.close()

    def _repair(self, file: BinaryIO) -> bool:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return True
        file.seek(0)
        if not self._is_ours(file.readline()):
            raise ValueError(
                must(
                    "path",
                    "a new file or one a logger of this kind wrote",
                    repr(str(self.path)),
                    "Nothing was changed in it; choose another name.",
                )
            )
        start = _start_of_last_line(file, size)
        file.seek(start)
        last = file.read(size - start)
        if not self._is_whole(last):
            file.truncate(start)
        elif not last.endswith(b"\n"):
            _write_all(file, b"\n")
        return start == 0 and not self._is_whole(last)


def _write_all(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:  # an unbuffered file may take less than it was given
        view = view[file.write(view) :]


def _start_of_last_line(file: BinaryIO, size: int) -> int:
    """Return where the last line begins; a newline that ends the file does not count."""
    end = size - 1
    while end > 0:
        begin = max(0, end - _BLOCK)
        file.seek(begin)
        newline = file.read(end - begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        end = begin
    return 0
