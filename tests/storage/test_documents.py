"""JSON documents: any value comes back as it was, any file reads or is refused by name, no write leaves half a file."""

import dataclasses
import enum
import json
import math
import os
import stat
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtune.errors import UserError
from jaxtune.storage import documents
from jaxtune.storage.documents import (
    Limits,
    UnreadableDocument,
    check_writable,
    made_folder,
    number,
    plain,
    read_json,
    replace_file,
    write_json,
)  # fmt: skip

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
SURROGATES = st.lists(st.characters(min_codepoint=0xD800, max_codepoint=0xDFFF))


@given(JSON | SURROGATES)
def test_what_is_written_reads_back_the_same(value):
    for content in (documents.json_bytes(value), documents.json_line(value)):
        assert documents.parse_json(content, name="x") == value
        assert content.endswith(b"\n")
    assert documents.json_line(value).count(b"\n") == 1


@given(st.binary(max_size=60) | JSON.map(lambda value: documents.json_bytes(value)[:-3]))
def test_any_bytes_are_json_or_refused_by_name(content):
    try:
        documents.parse_json(content, name="some/file.json")
    except UnreadableDocument as error:
        assert str(error).startswith("some/file.json: ")


@pytest.mark.parametrize(
    "content, told",
    [
        (b"", r"x: not valid JSON .*line 1, column 1"),
        (b'{\n "a": \n}', r"x: not valid JSON .*line 3, column 1"),
        (b'{"a": NaN}', r"x: NaN is no JSON number"),
        (b'{"a": -Infinity}', r"x: -Infinity is no JSON number"),
        (b"\xff\xfe", r"x: byte 1: not UTF-8"),
        (b"[" * 100_000, r"x: objects and lists are nested more than 100 deep"),
        (b"[" * 101 + b"]" * 101, r"x: objects and lists are nested more than 100 deep"),
        (b'{"a":' * 101 + b"1" + b"}" * 101, r"x: objects and lists are nested more than 100 deep"),
        (b"1" * 5000, r"x: .*digits"),
    ],
)
def test_what_is_no_json_is_refused_with_its_place(content, told):
    with pytest.raises(UnreadableDocument, match=told):
        documents.parse_json(content, name="x")


def test_the_depth_and_the_keys_that_are_allowed_pass():
    assert documents.parse_json(b"[" * 100 + b"]" * 100, name="x")
    assert documents.parse_json(b'{"a": 1, "a": 2}', name="x") == {"a": 2}
    assert documents.parse_json(b"[NaN]", name="x", limits=Limits(constants=True))
    assert documents.parse_json(b"\xef\xbb\xbf{}", name="x") == {}, "a byte order mark is no content"


def test_a_key_that_stands_twice_is_refused_where_asked():
    with pytest.raises(UnreadableDocument, match="the key 'b' stands twice"):
        documents.parse_json(b'[{"a": {"b": 1, "c": 3, "b": 2}}]', name="x", limits=Limits(unique_keys=True))


def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "large").write_text("[1, 2, 3]")
    (tmp_path / "endless").symlink_to("/dev/zero")
    special = "no regular file"
    told = {"pipe": special, "endless": special, "loop": "no such file|not readable", ".": "is a folder"}
    for name, message in {**told, "none": "no such file", "nu\0l": "null"}.items():
        for read in (read_json, documents.read_text):
            with pytest.raises(UnreadableDocument, match=message):
                read(tmp_path / name)
    with pytest.raises(UnreadableDocument, match="9 bytes; no file of more than 8"):
        read_json(tmp_path / "large", Limits(bytes=8))
    with pytest.raises(UnreadableDocument, match="an object is needed|a JSON object is needed, this is a list"):
        documents.read_object(tmp_path / "large")


def test_text_is_read_with_newlines_alone_and_refused_where_it_is_none(tmp_path):
    (tmp_path / "text").write_bytes("\ufeffä\r\nb\rc\n".encode())
    assert documents.read_text(tmp_path / "text") == (tmp_path / "text").read_text("utf-8") == "\ufeffä\nb\nc\n"
    (tmp_path / "latin").write_bytes(b"ab\xe4")
    with pytest.raises(UnreadableDocument, match="latin: byte 3: not UTF-8"):
        documents.read_text(tmp_path / "latin")


def test_plain_values_survive_json_and_non_finite_numbers_read_back():
    class Colour(enum.Enum):
        RED = "red"

    @dataclasses.dataclass
    class Point:
        x: float
        where: Path

    value = {
        Colour.RED: Point(math.inf, Path("a/b")),
        "array": np.array([0.5, np.nan], np.float32),
        "device": jnp.int32(3),
    }
    text = json.dumps(plain(value), allow_nan=False)
    assert json.loads(text) == {"red": {"x": "inf", "where": "a/b"}, "array": [0.5, None], "device": 3}
    assert number("inf") == math.inf and number("-inf") == -math.inf and math.isnan(number(None))


def test_plain_refuses_what_json_cannot_hold_unless_told_how():
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        plain({"f": print})
    assert plain({"f": [print]}, other=lambda value: value.__name__) == {"f": ["print"]}


def test_nested_objects_have_dotted_names():
    assert documents.dotted({"a": {"b": 1, "c": {"d": [2]}}, "e": {}}) == {"a.b": 1, "a.c.d": [2], "e": {}}


def test_a_failed_replacement_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def full_disk(handle):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        replace_file(path, b"{}")
    assert read_json(path) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_rights_of_files_follow_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o666 & ~mask


def test_a_sealed_document_survives_writing_and_every_change_is_told(tmp_path):
    path = tmp_path / "sealed.json"
    documents.write_sealed(path, {"lr": 2e-05, "files": {"a": "1"}, "nan": math.nan})
    assert documents.read_sealed(path) == {"lr": 2e-05, "files": {"a": "1"}, "nan": None}
    whole = path.read_bytes()
    changes = [
        whole.replace(b'"1"', b'"2"'),
        whole.replace(b'"a"', b'"b"'),
        whole.replace(b'"digest"', b'"digits"'),
        b"[]",
        b'{"a": 1}',
        whole[:-10],
        whole + b"\n",
        whole.replace(b": ", b":"),
    ]
    for changed in changes:
        path.write_bytes(changed)
        with pytest.raises(UserError, match=r"sealed\.json: "):
            documents.read_sealed(path)
    path.unlink()
    with pytest.raises(UserError, match="no such file"):
        documents.read_sealed(path)


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path):
    kept = [".writer", "a.json", ".a.json", ".a.json.0123456789ax", ".0123456789ab", "a.json.0123456789ab"]
    for name in (*kept, ".a.json.0123456789ab"):
        (tmp_path / name).write_text("half")
    documents.clear_remains(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_what_is_being_written_bears_the_name_of_remains(tmp_path):
    with documents.replacing(tmp_path / "a.json") as file:
        file.write(b"{}")
        (name,) = (path.name for path in tmp_path.iterdir())
        assert documents.is_remains(name)


def test_places_where_nothing_can_be_written_are_refused_with_the_reason(tmp_path):
    (tmp_path / "file").write_text("x")
    assert made_folder(tmp_path / "a" / "b").is_dir() and made_folder(str(tmp_path / "a")).is_dir()
    for place, why in (
        (tmp_path / "file", "File exists"),
        (tmp_path / "file" / "x", "Not a directory"),
        ("/proc/x", ""),
    ):
        with pytest.raises(UserError, match=f"{place} cannot be made .*{why}.*; give a folder on a disk"):
            made_folder(place)
    check_writable(tmp_path / "a" / "new.html")
    check_writable(tmp_path / "file")  # is replaced
    for place, why in (("a", "is a folder"), ("file/x", "file is a file"), ("none/x", "none does not exist")):
        with pytest.raises(UserError, match=why):
            check_writable(tmp_path / place)
