"""Finished token stores in a bucket, so that hosts without a shared disk, or with empty ones, need not make them again.

A store is two files under a name that stands for all that decides its content. `meta.json` is sent last, and what was
brought is verified by its digests before it is used, like any other store.
"""

import os
import posixpath
import shutil
import sys
from pathlib import Path

from jaxtune.errors import say
from jaxtune.storage.stores import Store

META = "meta.json"
"""The file that says that a store is whole."""
FILES = ("data", META)
"""Files of a store, in the order in which they are sent."""


def bring(shared: Store, folder: Path) -> bool:
    """Put the store of that name into `folder`, which appears whole or not at all; False where the bucket has none."""
    if shared.version(posixpath.join(folder.name, META)) is None:
        return False
    say(f"fetching tokens {folder.name} from {shared.url}", file=sys.stderr, flush=True)
    for left in folder.parent.glob(f"{folder.name}.*.incoming"):  # of a run that was killed here
        shutil.rmtree(left)
    aside = folder.with_name(f"{folder.name}.{os.getpid()}.incoming")
    aside.mkdir()
    shared.ask("get", [shared.path(folder.name, file) for file in FILES], [str(aside / file) for file in FILES])
    os.replace(aside, folder)
    return True


def send(shared: Store, folder: Path) -> None:
    """Put a finished store into the bucket, in place of one of its name."""
    for file in FILES:
        shared.put({posixpath.join(folder.name, file): folder / file})
