"""Copies of checkpoints in an object store that Orbax does not write to: `s3://`, `az://` and whatever fsspec reaches.

A copy counts once its document is in the store. The document is sent last and removed first, so a copy that was cut
off, while it was sent or while it was removed, is never taken for a checkpoint.
"""

import pathlib
import posixpath
import re
import shutil
from typing import Any

from jaxtune.errors import UserError
from jaxtune.storage.documents import parse_json


class StoreError(UserError):
    """Error of an object store that did not do what it was asked."""


class Bucket:
    """The copies of one run's checkpoints below `url`, one folder a step as on disk.

    Every method raises `StoreError` where the store cannot be reached or refuses.
    """

    def __init__(self, url: str, document: str):
        """`document` is the name of the file that makes a step complete."""
        import fsspec

        try:
            self._store, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False)  # others write there too
        except (ImportError, ValueError) as error:  # ValueError: no such scheme
            raise UserError(f"checkpoints cannot be kept at {url}: {error}") from error
        self.url, self._document = url, document

    def check(self) -> None:
        """Raise `StoreError` unless files can be written, read and removed below the URL."""
        probe = posixpath.join(self._root, ".jaxtune-probe")
        try:
            self._ask("pipe_file", probe, b"jaxtune")
            self._ask("cat_file", probe)
            self._ask("rm_file", probe)
        except StoreError as error:
            raise StoreError(
                f"checkpoints cannot be kept at {self.url}: {error}\n"
                "The bucket must exist, and the credentials must allow reading, writing and deleting in it."
            ) from error

    def steps(self) -> list[str]:
        """Names of the complete copies, ascending."""
        found = self._ask("glob", posixpath.join(self._root, "*", self._document))
        names = {posixpath.basename(posixpath.dirname(path)) for path in found}
        return sorted(name for name in names if re.fullmatch(r"\d+", name))

    def send(self, folder: pathlib.Path, name: str) -> None:
        """Make the copy `name` equal to `folder`; sends nothing if it is, and the document alone if no file differs."""
        document = (folder / self._document).read_bytes()
        there = self._there(name)
        if there == document:
            return
        if there is None or _files(there) != _files(document):
            self.remove(name)
            names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
            names.remove(self._document)
            self._ask("put", [str(folder / n) for n in names], [self._path(name, n) for n in names])
        self._ask("pipe_file", self._path(name, self._document), document)

    def fetch(self, name: str, folder: pathlib.Path) -> None:
        """Bring a copy to `folder`, as a whole or not at all."""
        unfinished = folder.parent / f".fetching-{name}"
        shutil.rmtree(unfinished, ignore_errors=True)
        there = self._ask("find", self._path(name))
        here = [unfinished / posixpath.relpath(path, self._path(name)) for path in there]
        for path in here:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._ask("get", there, [str(path) for path in here])
        unfinished.rename(folder)

    def remove(self, name: str) -> None:
        """Remove a copy, complete or not."""
        if self._there(name) is not None:
            self._ask("rm_file", self._path(name, self._document))
        if self._ask("exists", self._path(name)):
            self._ask("rm", self._path(name), recursive=True)

    def _there(self, name: str) -> bytes | None:
        path = self._path(name, self._document)
        return self._ask("cat_file", path) if self._ask("exists", path) else None

    def _ask(self, method: str, *arguments: Any, **settings: Any) -> Any:
        """Call a method of the store, whose errors are its library's own: credentials, rights, network, no bucket."""
        try:
            return getattr(self._store, method)(*arguments, **settings)
        except Exception as error:
            raise StoreError(f"{type(error).__name__}: {error}") from error

    def _path(self, *parts: str) -> str:
        return posixpath.join(self._root, *parts)


def _files(document: bytes) -> Any:
    try:
        return parse_json(document, name="a copied document")["files"]
    except (ValueError, KeyError, TypeError):  # no document of ours: the copy is sent again
        return None
