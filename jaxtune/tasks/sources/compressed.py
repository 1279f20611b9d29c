"""JSON lines under gzip or zstd: decompressed once into the cache folder, then read at random like any other file.

Neither format can be entered in the middle, so random access needs the text somewhere. A copy on disk costs its size
once and nothing per read; decompressing blocks again and again would cost a block per record. The copy is named by the
sha256 of the compressed bytes and its own: another file, another copy; the same file in another place, the same copy;
and a copy whose bytes are no longer those of its name is made again.
"""

import functools
import hashlib
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, SupportsIndex

from jaxtune.errors import UserError, say
from jaxtune.storage.documents import made_folder
from jaxtune.storage.stores import default_cache
from jaxtune.tasks.problems import Problem, RecordError
from jaxtune.tasks.sources.base import FileSource, RecordSource
from jaxtune.tasks.sources.jsonl import JsonlSource
from jaxtune.tasks.sources.pinned import PinnedFile

BLOCK = 1 << 20
"""Most bytes that gunzip gives at once."""

FED = 1 << 12
"""Bytes that zstd is given at once: each may unfold to some 30,000, and all that come of one call lie in memory."""

MAX_RATIO = 200
"""Times its size that a file may unfold to; chats unfold to 3 to 10 times, the same line over and over to 1,000."""

FREE_RATIO = 1 << 26
"""Bytes up to which a file may unfold whatever its size was."""

RESERVE = 1 << 28
"""Bytes that are left free on the disk of the cache folder."""


def gunzip(file: BinaryIO) -> Iterator[bytes]:
    """Blocks of a gzip file of one or more members; raises `EOFError` or `zlib.error` when it is damaged."""
    member, fed = zlib.decompressobj(wbits=31), False
    while data := file.read(BLOCK):
        while data:
            if member.eof:
                member, fed = zlib.decompressobj(wbits=31), False
            if block := member.decompress(data, BLOCK):
                yield block
            fed, data = True, member.unused_data if member.eof else member.unconsumed_tail
    if fed and not member.eof:
        raise EOFError("the file ends in the middle of its compressed data")


def unzstd(file: BinaryIO) -> Iterator[bytes]:
    """Blocks of a zstd file of one or more frames; raises `EOFError` or `ZstdError` when it is damaged."""
    import zstandard

    start = zstandard.ZstdDecompressor().decompressobj
    frame, fed = start(), False
    while data := file.read(FED):
        while data:
            if frame.eof:
                frame, fed = start(), False
            if block := frame.decompress(data):
                yield block
            fed, data = True, frame.unused_data if frame.eof else b""
    if fed and not frame.eof:
        raise EOFError("the file ends in the middle of its compressed data")


FORMATS: dict[str, Callable[[BinaryIO], Iterator[bytes]]] = {".gz": gunzip, ".zst": unzstd}
"""Decompressor by file name suffix."""


class CompressedJsonlSource(FileSource):
    """Random access to .jsonl.gz or .jsonl.zst through a decompressed copy in the cache folder."""

    from_cache = (*FileSource.from_cache, "_plain")

    def __init__(self, path: str | os.PathLike[str], cache: Path | None = None):
        """`cache`: folder of the copy; None takes `default_cache()` when it is needed."""
        super().__init__(path, cache)
        self._kind = Path(path).suffix
        if self._kind not in FORMATS:
            raise UserError(f"{path}: compressed JSON lines end in {' or '.join(FORMATS)}")

    @functools.cached_property
    def _plain(self) -> JsonlSource:
        return JsonlSource(self._decompressed(), shown_as=self.name)

    def check_format(self) -> None:
        """Raises `RecordError` when the first decompressed bytes show that they are not UTF-8 JSON lines."""
        self._plain.check_format()

    @property
    def text_path(self) -> Path:
        """The file of plain JSON lines."""
        return self._plain.path

    def cached_in(self, folder: Path) -> RecordSource:
        return self._with_cache(folder)

    def _decompressed(self) -> Path:
        """The copy; made where it is missing, or no longer what its name says."""
        folder = (self.cache or default_cache()) / "decompressed"
        for copy in folder.glob(f"{self.pins[0].sha256}.*.jsonl"):
            if PinnedFile(copy, shown_as=str(copy)).sha256 == copy.suffixes[-2][1:]:
                return copy.resolve()
            say(f"{copy} is damaged; decompressing {self.name} again", file=sys.stderr, flush=True)
            copy.unlink(missing_ok=True)
        return self._decompress(folder)

    def _decompress(self, folder: Path) -> Path:
        part = folder / f"{self.pins[0].sha256}.{os.getpid()}.part"
        digest = hashlib.sha256()
        made_folder(folder)
        try:
            with self.path.open("rb") as packed, part.open("wb", buffering=BLOCK) as plain:
                for block in self._bounded(packed, folder):
                    digest.update(block)
                    plain.write(block)
            copy = folder / f"{self.pins[0].sha256}.{digest.hexdigest()}.jsonl"
            part.replace(copy)
        except OSError as error:
            raise UserError(
                f"{self.name} cannot be decompressed into {folder}: {error}; set JAXTUNE_CACHE, or --data.cache-dir, "
                "to a folder with room"
            ) from error
        finally:
            if part.exists():
                part.unlink()
        return copy.resolve()

    def _bounded(self, packed: BinaryIO, folder: Path) -> Iterator[bytes]:
        """Decompressed blocks as long as their sum stays in proportion to the file, and the disk has room."""
        most = max(FREE_RATIO, MAX_RATIO * self.pins[0].size)
        total = checked = 0
        for block in blocks(packed, self._kind, self.name):
            total += len(block)
            if total > most:
                message = f"its {self.pins[0].size:,} bytes unfold to more than {most:,}, which no text of chats does"
                raise RecordError([Problem(rule="too-large", message=message, file=self.name)])
            if total >= checked:
                checked = total + RESERVE // 8
                if (free := shutil.disk_usage(folder).free) < RESERVE:
                    raise OSError(f"{free:,} bytes are free there, and the last {RESERVE:,} stay so")
            yield block

    @property
    def fingerprint(self) -> str:
        """sha256 of the decompressed bytes: compressing a file does not change its identity."""
        return self._plain.fingerprint

    def __len__(self) -> int:
        return len(self._plain)

    def raw(self, i: SupportsIndex) -> bytes:
        """The bytes of record i's line, without its line end."""
        return self._plain.raw(i)

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        return self._plain[i]

    def line(self, i: SupportsIndex) -> int:
        return self._plain.line(i)


def blocks(file: BinaryIO, kind: str, name: str) -> Iterator[bytes]:
    """Blocks of an open file; raises `RecordError` when it is damaged or not of the format of its suffix `kind`."""
    import zstandard

    try:
        yield from FORMATS[kind](file)
    except (zlib.error, zstandard.ZstdError, EOFError) as error:
        message = f"{kind[1:]} decompression fails: {error}"
        raise RecordError([Problem(rule="damaged-file", message=message, file=name)]) from error
