"""Copies in the cache of files and folders of object stores, for readers that jump about in a file or map it.

A store answers neither at the speed of a disk. A copy is named by its URL and by what the store says of its version, so
a changed object is another copy, and a copy that is there is used as long as nobody touched it. The record of a copy,
written when it is whole, has the size, the time and the SHA-256 of each file.
"""

import contextlib
import errno
import fcntl
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from etils import epath

from jaxtune.errors import UserError, say
from jaxtune.storage.documents import UnreadableDocument, made_folder, number, read_object, write_json
from jaxtune.storage.fingerprints import file_digests, json_fingerprint, sized_fingerprint, text_fingerprint
from jaxtune.storage.stores import Store, StoreError, scheme_of

CREDENTIALS = {
    "gs": "`gcloud auth application-default login`, or GOOGLE_APPLICATION_CREDENTIALS",
    "gcs": "`gcloud auth application-default login`, or GOOGLE_APPLICATION_CREDENTIALS",
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or `aws configure`",
    "s3a": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or `aws configure`",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or `az login`",
    "abfs": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or `az login`",
}
"""By scheme: where the libraries of the usual stores look for credentials."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


def fetched_file(url: str, cache: pathlib.Path) -> pathlib.Path:
    """Copy on this disk of one object. Raises `StoreError` where there is none, or where it cannot be read."""
    folder, _, name = url.rpartition("/")
    if name in ("", ".", "..") or not re.fullmatch(r"[^:]+://.+", folder):
        raise UserError(f"{url!r} names no file of a bucket; give for example gs://bucket/data/chats.jsonl")
    store = Store(folder, "data")
    with _readable(url):
        return _copy(store, url, lambda: _version_of(store, name), cache) / name


def fetched_folder(url: str, cache: pathlib.Path, patterns: tuple[str, ...]) -> pathlib.Path:
    """Copy on this disk of the objects right below a URL whose names match one of some patterns such as `*.json`.

    Raises `StoreError` where there are none, or where they cannot be read.
    """
    url = url.rstrip("/")
    store, name = Store(url, "models"), url.rpartition("/")[2]
    with _readable(url):
        return _copy(store, url, lambda: _versions_below(store, patterns), cache, inside=name) / name


def _version_of(store: Store, name: str) -> dict[str, str]:
    version = store.version(name)
    if not version:
        raise StoreError("no such object" if version is None else "is a folder, not a file")
    return {name: version}


def _versions_below(store: Store, patterns: tuple[str, ...]) -> dict[str, str]:
    found = {name: version for name, version in store.names().items() if "/" not in name}
    wanted = {name: version for name, version in found.items() if any(fnmatchcase(name, p) for p in patterns)}
    if not wanted:
        there = f"it holds {', '.join(sorted(found)[:8])}" if found else "nothing is there"
        raise StoreError(f"no files {', '.join(patterns)}; {there}")
    return wanted


@contextlib.contextmanager
def _readable(url: str) -> Iterator[None]:
    """Errors of a store name what was to be read, and what must be given to read it."""
    try:
        yield
    except StoreError as error:
        given = CREDENTIALS.get(scheme_of(url))
        how = f" ({given})" if given else ""
        raise StoreError(
            f"{url} cannot be read: {error}\nIt must exist, and the credentials{how} must allow reading it."
        ) from error


def _copy(
    store: Store, url: str, look: Callable[[], dict[str, str]], cache: pathlib.Path, *, inside: str = ""
) -> pathlib.Path:
    """Folder that holds, in its folder `inside`, the copies of the objects that `look` finds.

    Made where it is missing or no longer as it was made.
    """
    versions, base = look(), cache.absolute() / "fetched"
    place = base / f"{text_fingerprint(url)[:16]}-{json_fingerprint(versions)[:16]}"
    made_folder(base)
    with open(f"{place}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes on a machine, one brings it
        if not _is_whole(place / inside, versions, _record(place)):
            say(f"fetching {url} into {base}", file=sys.stderr, flush=True)
            _bring(store, list(versions), place, inside)
            if look() != versions:
                shutil.rmtree(place)
                raise StoreError("it was changed while it was read; start again")
    return place


def _is_whole(folder: pathlib.Path, versions: Mapping[str, str], record: pathlib.Path) -> bool:
    """Whether every file is as it was brought, by the record of that; one of another time is read to see."""
    try:
        facts: dict[str, Any] = read_object(record)
        for name in versions:
            stat, known = (folder / name).stat(), facts[name]
            if stat.st_size != number(known["size"]):
                return False
            if stat.st_mtime_ns != known["modified"] and _digest(folder / name) != known["sha256"]:
                return False
    except (UnreadableDocument, KeyError, TypeError, ValueError, FileNotFoundError):
        return False
    return True


def _bring(store: Store, names: Sequence[str], place: pathlib.Path, inside: str) -> None:
    incoming = f".{place.name}."
    for left in place.parent.glob(f"{incoming}*"):  # by a process that was killed
        shutil.rmtree(left)
    aside = place.with_name(f"{incoming}{os.getpid()}")
    folder = aside / inside
    folder.mkdir(parents=True)
    try:
        store.ask("get", [store.path(name) for name in names], [str(folder / name) for name in names])
    except StoreError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _FULL:
            raise UserError(
                f"{store.url} does not fit into the cache {place.parent}: {error}; set JAXTUNE_CACHE to a folder with "
                "room"
            ) from error
        raise
    digests = file_digests(epath.Path(folder), names)
    facts = {
        name: {"size": size, "modified": (folder / name).stat().st_mtime_ns, "sha256": digest}
        for name, (size, digest) in zip(names, digests, strict=True)
    }
    _record(place).unlink(missing_ok=True)
    if place.exists():
        shutil.rmtree(place)
    aside.rename(place)
    write_json(_record(place), facts)


def _record(place: pathlib.Path) -> pathlib.Path:
    return place.with_name(f"{place.name}.json")


def _digest(file: pathlib.Path) -> str:
    return sized_fingerprint(epath.Path(file))[1]
