"""What is kept of a sweep on disk: one file for each finished point.

joblib's memo is not used for it: it empties the folder of a function if the one file that holds its source is
damaged, takes a flipped bit of a number for the number, and says nothing of a file that could not be written.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any


class Store:
    """Files of finished points in one folder; each begins with a hash of the key, the point and the content.

    Parameters
    ----------
    folder : path
        Folder of all that has the key.
    key : str
        Key of the function with all that it reads.
    """

    def __init__(self, folder: str, key: str) -> None:
        self.folder, self.key = folder, key

    def _path(self, point: str) -> Path:
        return Path(self.folder, f"{point[:32]}.point")

    def _sum(self, point: str, data: bytes) -> bytes:
        return hashlib.sha256(f"{self.key}{point}".encode() + data).digest()

    def has(self, point: str) -> bool:
        """Whether there is a file of a point."""
        return self._path(point).exists()

    def get(self, point: str) -> bytes | None:
        """What is kept of a point; None if that is nothing, or damaged."""
        try:
            found = self._path(point).read_bytes()
        except OSError:
            return None
        return found[32:] if found[:32] == self._sum(point, found[32:]) else None

    def put(self, point: str, data: bytes) -> str:
        """Keep a point; why it could not be, or ``""``."""
        try:
            os.makedirs(self.folder, exist_ok=True)
            _write(self._path(point), self._sum(point, data) + data)
        except OSError as error:
            return error.strerror or str(error)
        return ""


def open_store(store: Any, key: str, about: dict[str, str]) -> Store:
    """The store of one key in the user's folder; checked by writing to it what it is for."""
    try:
        path = Path(store)
    except TypeError:
        raise ValueError(f"store must be the path of a folder or None; got {store!r:.80}") from None
    if path.is_file():
        raise ValueError(f"store must be a folder; {path} is a file")
    name = re.sub(r"\W+", "_", about["function"].rpartition(":")[2]).strip("_")[:40]
    folder = path.absolute() / f"{name}-{key[:24]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "sweep.json", json.dumps(about, indent=1).encode())
    except OSError as error:
        raise ValueError(f"store must be a folder that can be written to; {path}: {error}") from error
    return Store(str(folder), key)


def _write(path: Path, data: bytes) -> None:
    """Write a file, under its name only once all of it is written."""
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
