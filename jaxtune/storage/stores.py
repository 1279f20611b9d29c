"""Object stores reached through fsspec: `gs://`, `s3://`, `az://` and whatever else it knows; their errors as one."""

import os
import pathlib
import posixpath
import re
import secrets
import shutil
from collections.abc import Mapping
from typing import Any

from jaxtune.errors import UserError, first_line
from jaxtune.storage.documents import is_remains, replace_file, replacing

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs", "az": "adlfs", "abfs": "adlfs"}
"""The package that reaches each of the usual stores."""


class StoreError(UserError):
    """Error of an object store that did not do what it was asked."""


def default_cache() -> pathlib.Path:
    """Folder of copies of what lies elsewhere: `$JAXTUNE_CACHE`, else `.cache/jaxtune` in the working folder."""
    return pathlib.Path(os.environ.get("JAXTUNE_CACHE") or pathlib.Path(".cache") / "jaxtune")


def is_url(text: str) -> bool:
    """Whether a text is a URL such as gs://bucket/runs/x, and no path."""
    return _URL.match(text) is not None


def scheme_of(url: str) -> str:
    """The scheme of a URL in small letters; `file` for a path."""
    found = _URL.match(url)
    return found[1].lower() if found else "file"


def refuse_unserved(url: str | None, holds: str) -> None:
    """Raise UserError where no installed package reaches a URL's scheme; `holds` is what could not be read from there.

    Asks no store for anything, so it needs neither credentials nor a network. Paths, and None, pass.
    """
    if url is None or not is_url(url):
        return
    import fsspec

    try:
        fsspec.get_filesystem_class(scheme_of(url))
    except (ImportError, ValueError) as error:  # ValueError: no such scheme
        raise UserError(f"{holds} cannot be read from {url}: {error}{_remedy(url, error)}") from error


def _remedy(url: str, error: Exception) -> str:
    package = PACKAGES.get(scheme_of(url))
    return f"; pip install {package}" if package and isinstance(error, ImportError) else ""


class Store:
    """A folder of an object store. Every method raises `StoreError` where the store cannot be reached or refuses."""

    def __init__(self, url: str, holds: str = "files"):
        """`holds` is what an error says cannot be kept there. Raises UserError where no package reaches the scheme."""
        import fsspec

        self._is_disk = scheme_of(url) in ("file", "local")
        local = {"auto_mkdir": True} if self._is_disk else {}  # other stores have no folders to be made
        try:
            # Others write there too, so nothing may be answered from a listing of before.
            self._store, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False, **local)
        except (ImportError, ValueError) as error:  # ValueError: no such scheme
            raise UserError(f"{holds} cannot be kept at {url}: {error}{_remedy(url, error)}") from error
        except Exception as error:  # a driver that is here and lacks something: libraries of a system, credentials
            said = f"{type(error).__name__}: {first_line(error)[:300]}"  # some list every place where they looked
            raise StoreError(f"{holds} cannot be kept at {url}: {said}") from error
        self.url, self._holds = url, holds

    def check(self) -> None:
        """Raise `StoreError` unless files can be written, read and removed below the URL."""
        probe = self.path(f".jaxtune-probe-{secrets.token_hex(8)}")  # several hosts may ask at once
        try:
            self.ask("pipe_file", probe, b"jaxtune")
            self.ask("cat_file", probe)
            self.ask("rm_file", probe)
        except StoreError as error:
            raise StoreError(
                f"{self._holds} cannot be kept at {self.url}: {error}\n"
                "The bucket must exist, and the credentials must allow reading, writing and deleting in it."
            ) from error

    def read(self, name: str) -> bytes | None:
        """Content of an object below the URL; None where there is none."""
        path = self.path(name)
        return self.ask("cat_file", path) if self.ask("exists", path) else None

    def create(self, name: str, content: bytes) -> None:
        """Write an object that is not there yet; of several processes that try, one succeeds."""
        path = self.path(name)
        if not self._is_disk:
            self.ask("pipe_file", path, content, mode="create")
            return
        with self.ask("open", path, "xb") as file:  # fsspec looks and then writes, where the system does both at once
            file.write(content)

    def write(self, name: str, content: bytes) -> None:
        """Put an object below the URL, in place of one of that name; a reader sees the old or the new, whole."""
        path = self.path(name)
        if not self._is_disk:
            self.ask("pipe_file", path, content)
            return
        try:  # fsspec empties a file of the disk and then fills it
            pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, content)
        except OSError as error:
            raise StoreError(f"{type(error).__name__}: {error}") from error

    def put(self, files: Mapping[str, pathlib.Path]) -> None:
        """Put files of this machine below the URL by the names given; a reader sees each object old or new, whole."""
        if not self._is_disk:
            self.ask("put", [str(file) for file in files.values()], [self.path(name) for name in files])
            return
        try:  # as in `write`; a model is too large to be held in memory
            for name, file in files.items():
                path = pathlib.Path(self.path(name))
                path.parent.mkdir(parents=True, exist_ok=True)
                with file.open("rb") as source, replacing(path) as target:
                    shutil.copyfileobj(source, target, 1 << 20)
        except OSError as error:
            raise StoreError(f"{type(error).__name__}: {error}") from error

    def version(self, name: str) -> str | None:
        """Version of an object as the store tells it (size, date, tag); empty for a folder, None for nothing there.

        (Most libraries' `exists` answers no where the credentials are wrong, too.)
        """
        try:
            facts = self.ask("info", self.path(name))
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        return "" if facts.get("type") == "directory" else _version(facts)

    def names(self) -> dict[str, str]:
        """Names of all objects below the URL, each with what the store says of its version (size, date, tag)."""
        found = self.ask("find", self._root, detail=True)
        files = {path: facts for path, facts in found.items() if facts.get("type") != "directory" and path[-1:] != "/"}
        versions = {posixpath.relpath(path, self._root): _version(facts) for path, facts in files.items()}
        if self._is_disk:
            versions = {name: version for name, version in versions.items() if not is_remains(posixpath.basename(name))}
        for name in versions:
            if {"", ".", ".."} & set(name.split("/")):
                raise StoreError(f"{self.url} holds an object {name!r}, which cannot be a file in a folder")
        return versions

    def ask(self, method: str, *arguments: Any, **settings: Any) -> Any:
        """Call a method of the store, whose errors are its library's own: credentials, rights, network, no bucket."""
        try:
            return getattr(self._store, method)(*arguments, **settings)
        except Exception as error:
            raise StoreError(f"{type(error).__name__}: {error}") from error

    def path(self, *parts: str) -> str:
        """The store's own name of an object below the URL."""
        return posixpath.join(self._root, *parts)


def _version(facts: dict[str, Any]) -> str:
    """What tells one content of an object from another; a store that counts reads in its facts must not count here."""
    return repr(sorted((key, str(value)) for key, value in facts.items() if key not in ("atime", "name")))
