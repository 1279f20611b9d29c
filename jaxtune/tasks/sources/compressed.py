"""JSON lines under gzip or zstd: decompressed once into the cache folder, then read at random like any other file.

Neither format can be entered in the middle, so random access needs the text somewhere. A copy on disk costs its size
once and nothing per read; decompressing blocks again and again would cost a block per record. The copy is named by the
sha256 of the compressed bytes: another file, another copy; the same file in another place, the same copy.
"""

import functools
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, SupportsIndex

from jaxtune.errors import UserError
from jaxtune.tasks.problems import Problem, RecordError
from jaxtune.tasks.sources.base import RecordSource
from jaxtune.tasks.sources.jsonl import BLOCK, JsonlSource
from jaxtune.tasks.sources.pinned import PinnedFile, cache_folder


def gunzip(file: BinaryIO) -> Iterator[bytes]:
    """Blocks of a gzip file of one or more members; raises `EOFError` or `zlib.error` when it is damaged."""
    yield from _members(file, lambda: zlib.decompressobj(wbits=31))


def unzstd(file: BinaryIO) -> Iterator[bytes]:
    """Blocks of a zstd file of one or more frames; raises `EOFError` or `ZstdError` when it is damaged."""
    import zstandard

    yield from _members(file, lambda: zstandard.ZstdDecompressor().decompressobj())


def _members(file: BinaryIO, start: Callable[[], Any]) -> Iterator[bytes]:
    member, fed = start(), False
    while data := file.read(1 << 20):
        while data:
            if member.eof:
                member, fed = start(), False
            if block := member.decompress(data):
                yield block
            fed, data = True, member.unused_data if member.eof else b""
    if fed and not member.eof:
        raise EOFError("the file ends in the middle of its compressed data")


FORMATS: dict[str, Callable[[BinaryIO], Iterator[bytes]]] = {".gz": gunzip, ".zst": unzstd}
"""Decompressor by file name suffix."""


class CompressedJsonlSource(RecordSource):
    """Random access to .jsonl.gz or .jsonl.zst through a decompressed copy in the cache folder."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.name = str(path)
        if self.path.suffix not in FORMATS:
            raise UserError(f"{path}: compressed JSON lines end in {' or '.join(FORMATS)}")

    @functools.cached_property
    def _pin(self) -> PinnedFile:
        return PinnedFile(self.path, shown_as=self.name)

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

    def _decompressed(self) -> Path:
        """The copy; made where it is missing. Its name ends in its size, so a copy cut short is not taken for whole."""
        folder = cache_folder() / "decompressed"
        for copy in folder.glob(f"{self._pin.sha256}.*.jsonl"):
            if copy.stat().st_size == int(copy.suffixes[-2][1:]):
                return copy
        return self._decompress(folder)

    def _decompress(self, folder: Path) -> Path:
        part = folder / f"{self._pin.sha256}.{os.getpid()}.part"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self.path.open("rb") as packed, part.open("wb", buffering=BLOCK) as plain:
                for block in blocks(packed, self.path):
                    plain.write(block)
            copy = folder / f"{self._pin.sha256}.{part.stat().st_size}.jsonl"
            part.replace(copy)
        except OSError as error:
            raise UserError(
                f"{self.name} cannot be decompressed into {folder}: {error}; set JAXTUNE_CACHE to a folder with room"
            ) from error
        finally:
            part.unlink(missing_ok=True)
        return copy.resolve()

    @property
    def fingerprint(self) -> str:
        """sha256 of the decompressed bytes: compressing a file does not change its identity."""
        return self._plain.fingerprint

    @property
    def origins(self) -> frozenset[str]:
        return frozenset((str(self.path.resolve()),))

    def __len__(self) -> int:
        return len(self._plain)

    def raw(self, i: SupportsIndex) -> bytes:
        """The bytes of record i's line, without its line end."""
        return self._plain.raw(i)

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        return self._plain[i]

    def line(self, i: SupportsIndex) -> int:
        return self._plain.line(i)

    def file(self, i: SupportsIndex) -> str:
        return self.name

    def check_unchanged(self) -> None:
        self._pin.check()


def blocks(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Blocks of an open file; raises `RecordError` when it is damaged or not of the format its name says."""
    import zstandard

    try:
        yield from FORMATS[path.suffix](file)
    except (zlib.error, zstandard.ZstdError, EOFError) as error:
        message = f"{path.suffix[1:]} decompression fails: {error}"
        raise RecordError([Problem(rule="damaged-file", message=message, file=str(path))]) from error
