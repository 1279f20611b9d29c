"""A lease that makes one process the only writer of a folder in an object store, which has no locks.

The lease is the object `.writer` in the folder. Its holder writes it anew every `BEAT` seconds, with a number that
grows, and reads it before everything that it sends. Whoever wants a lease that another process holds watches it: one
that does not change for `STALE` seconds has lost its holder and is taken over, at once where the holder was a process
of this machine that is gone. Clocks are compared only for leases that are hours old.
"""

import dataclasses
import datetime
import json
import os
import pathlib
import secrets
import socket
import sys
import threading
import time

from jaxtune.errors import say
from jaxtune.storage.documents import Json, UnreadableDocument, json_line, parse_json
from jaxtune.storage.locks import NAME, FolderInUse
from jaxtune.storage.stores import Store, StoreError

BEAT = 15.0
"""Seconds between two signs of life."""
STALE = 60.0
"""Seconds without one after which a lease has no holder."""
FORGOTTEN = 6 * 3600.0
"""Seconds since the last sign of life, by the clocks of two machines, after which nobody needs to watch."""
SETTLE = 2.0
"""Seconds between taking a lease over and looking whether another process did the same."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that holds a lease."""

    token: str
    """A name of chance; two holders never share one."""
    host: str
    process: int
    machine: str
    """The boot of a machine and the group of processes in which `process` is a number; empty where unknown."""
    since: str
    """Date and time, UTC."""

    @property
    def is_gone(self) -> bool:
        """Whether it was a process of this machine, and is no longer there."""
        if not self.machine or self.machine != _machine():
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.since}"


class Lease:
    """The right to write below a store's URL, held inside the block of this context manager.

    Raises `FolderInUse` where another process holds it, and `StoreError` where the store cannot be reached.
    """

    def __init__(self, store: Store):
        self._store = store
        self._path = store.path(NAME)
        now = datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds")
        self.holder = Holder(
            token=secrets.token_hex(16), host=socket.gethostname(), process=os.getpid(), machine=_machine(), since=now
        )
        self._beats = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        self._acquire()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        try:
            if _holder(self._read()) == self.holder:
                self._store.ask("rm_file", self._path)
        except StoreError as error:  # what was written is whole; the next writer waits for a sign of life
            say(f"warning: the lease of {self._store.url} could not be removed: {error}", file=sys.stderr)

    def confirm(self) -> None:
        """Raise `FolderInUse` where another process has the lease now, as after a long standstill of this one."""
        there = _holder(self._read())
        if there != self.holder:
            who = f"by {there}" if there else "by a process that has removed the lease"
            raise FolderInUse(f"{self._store.url} was taken over {who}; this process writes nothing more there")

    def _acquire(self) -> None:
        before = self._read()
        if before is not None:
            self._wait_for_silence(before)
            if self._read() == before:  # else another process was quicker, and lives
                self._store.ask("rm_file", self._path)
        try:
            self._store.create(NAME, self._content())
        except StoreError:  # it may be that another was quicker; what lies there says so
            if self._read() is None:
                raise
        if before is not None:
            time.sleep(SETTLE)
        if (there := _holder(self._read())) != self.holder:
            raise FolderInUse(_in_words(self._store.url, there))

    def _wait_for_silence(self, before: bytes) -> None:
        """Return once nobody holds the lease whose content was `before`; raise FolderInUse at a sign of life."""
        holder = _holder(before)
        if holder is not None and (holder.is_gone or _age(before) > FORGOTTEN):
            return
        who = f"{self._store.url} was being written by {holder or 'another process'}"
        say(f"{who}; waiting {STALE:.0f} s for a sign of life", file=sys.stderr, flush=True)
        deadline = time.monotonic() + STALE
        while time.monotonic() < deadline:
            time.sleep(min(2.0, STALE / 10))
            now = self._read()
            if now is None:
                return
            if now != before:
                raise FolderInUse(_in_words(self._store.url, _holder(now)))

    def _keep(self) -> None:
        """Sign the lease again and again, until the end or until it is another's; runs in a thread of its own."""
        while not self._end.wait(BEAT):
            try:
                if _holder(self._read()) != self.holder:
                    return  # `confirm` says so before anything more is sent
                self._store.write(NAME, self._content())
            except StoreError as error:
                say(f"the lease of {self._store.url} could not be renewed, trying again: {error}", file=sys.stderr)

    def _content(self) -> bytes:
        self._beats += 1
        return json_line({**dataclasses.asdict(self.holder), "beats": self._beats, "time": time.time()})

    def _read(self) -> bytes | None:
        return self._store.read(NAME)


def holder_of(store: Store) -> Holder | None:
    """The process that says it writes below a store's URL; None where none does."""
    return _holder(store.read(NAME))


def _holder(content: bytes | None) -> Holder | None:
    said = _said(content)
    names = [field.name for field in dataclasses.fields(Holder) if field.name != "process"]
    texts = {name: text for name in names if isinstance(text := said.get(name), str)}
    process = said.get("process")
    if type(process) is not int or not 0 < process < 2**31 or len(texts) < len(names):
        return None  # no lease, or one that was cut off while it was written, or that something else wrote
    return Holder(process=process, **texts)


def _age(content: bytes) -> float:
    """Seconds since the last sign of life by this machine's clock; 0 where the lease does not say."""
    when = _said(content).get("time")
    return time.time() - when if isinstance(when, float) else 0.0


def _said(content: bytes | None) -> Json:
    try:
        said = parse_json(content or b"{}", name=NAME)
    except UnreadableDocument:
        return {}
    return said if isinstance(said, dict) else {}


def _in_words(url: str, holder: Holder | None) -> str:
    who = str(holder) if holder else "another process"
    return f"{url} is being written by {who}; wait for its end or stop it, or choose another folder"


def _machine() -> str:
    """Boot and process namespace of this machine, within which the number of a process names one; empty off Linux."""
    boot, space = pathlib.Path("/proc/sys/kernel/random/boot_id"), pathlib.Path("/proc/self/ns/pid")
    try:
        return json.dumps([boot.read_text().strip(), os.readlink(space)])
    except OSError:
        return ""
