"""Copies of checkpoints in an object store that Orbax does not write to: `s3://`, `az://` and whatever fsspec reaches.

A copy counts once its document is in the store. The document is sent last and removed first, so a copy that was cut
off, while it was sent or while it was removed, is never taken for a checkpoint.
"""

import pathlib
import posixpath
import re
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from jaxtune.errors import say
from jaxtune.storage.documents import parse_json
from jaxtune.storage.stores import Store


class Bucket(Store):
    """The copies of one run's checkpoints below `url`, one folder a step as on disk.

    Every method raises `StoreError` where the store cannot be reached or refuses.
    """

    def __init__(self, url: str, document: str, marks: Sequence[str] = ()):
        """`document` is the file that makes a step complete; `marks` are files that Orbax writes after it."""
        super().__init__(url, "checkpoints")
        self._document, self._marks = document, tuple(marks)

    def steps(self) -> list[str]:
        """Names of the complete copies, ascending."""
        found = self.ask("glob", posixpath.join(self._root, "*", self._document))
        names = {posixpath.basename(posixpath.dirname(path)) for path in found}
        return sorted(name for name in names if re.fullmatch(r"\d+", name))

    def send(self, folder: pathlib.Path, name: str) -> None:
        """Make the copy `name` equal to `folder`; sends nothing if it is, and the document alone if no file differs."""
        document = (folder / self._document).read_bytes()
        there = self._there(name)
        if there == document:
            self._send_marks(folder, name)
            return
        if there is None or _files(there) != _files(document):
            self.remove(name)
            names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
            names.remove(self._document)
            self.put({posixpath.join(name, one): folder / one for one in names})
        self.write(posixpath.join(name, self._document), document)

    def _send_marks(self, folder: pathlib.Path, name: str) -> None:
        for mark in self._marks:
            here = (folder / mark).read_bytes() if (folder / mark).is_file() else None
            if here is not None and self.read(posixpath.join(name, mark)) != here:
                self.write(posixpath.join(name, mark), here)

    def bring(self, folder: pathlib.Path) -> None:
        """Make the checkpoints in `folder` those of the store: what is only here goes, what is only there comes."""
        there = self.steps()
        for step in folder.iterdir() if folder.is_dir() else ():
            document = step / self._document
            same = step.name in there and document.is_file() and document.read_bytes() == self._there(step.name)
            if step.name.isdecimal() and not same:
                shutil.rmtree(step)
        folder.mkdir(parents=True, exist_ok=True)
        for name in there:
            if not (folder / name).exists():
                say(f"fetching checkpoint {name} from {self.url}", file=sys.stderr)
                self.fetch(name, folder / name)

    def fetch(self, name: str, folder: pathlib.Path) -> None:
        """Bring a copy to `folder`, as a whole or not at all."""
        unfinished = folder.parent / f".fetching-{name}"
        shutil.rmtree(unfinished, ignore_errors=True)
        there = self.ask("find", self.path(name))
        here = [unfinished / posixpath.relpath(path, self.path(name)) for path in there]
        for path in here:
            path.parent.mkdir(parents=True, exist_ok=True)
        self.ask("get", there, [str(path) for path in here])
        unfinished.rename(folder)

    def remove(self, name: str) -> None:
        """Remove a copy, complete or not."""
        if self._there(name) is not None:
            self.ask("rm_file", self.path(name, self._document))
        if self.ask("exists", self.path(name)):
            self.ask("rm", self.path(name), recursive=True)

    def _there(self, name: str) -> bytes | None:
        return self.read(posixpath.join(name, self._document))


def _files(document: bytes) -> Any:
    try:
        return parse_json(document, name="a copied document")["files"]
    except (ValueError, KeyError, TypeError):  # no document of ours: the copy is sent again
        return None
