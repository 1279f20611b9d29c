"""Malformed files of every format: a reader gives records or a `UserError`, never another exception, never a hang."""

import datetime
import decimal
import gzip
import json
import os
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from array_record.python.array_record_module import ArrayRecordWriter
from bad_inputs import chat
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from jaxtune import validate
from jaxtune.errors import UserError
from jaxtune.tasks import (
    RecordError,
    Task,
    from_array_record,
    from_file,
    from_hf_folder,
    from_jsonl,
    from_list,
    from_parquet,
)
from jaxtune.tasks.sources import compressed
from jaxtune.tasks.sources.arrow import is_plain_name
from jaxtune.tasks.sources.compressed import gunzip, unzstd
from jaxtune.tasks.sources.jsonl import TOO_DEEP, parse_line
from jaxtune.tasks.values import MAX_DEPTH, Unwritable, canonical, keys_and_depth, type_name

RECORDS = [chat(i) for i in range(20)]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXTUNE_CACHE", str(tmp_path / "cache"))


def write_arrow(folder: Path, table: pa.Table) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(folder / "data.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    return folder


def write_array_record(path: Path) -> Path:
    writer = ArrayRecordWriter(str(path), "group_size:4")
    for record in RECORDS:
        writer.write(json.dumps(record).encode())
    writer.close()
    return path


def write_parquet(path: Path) -> Path:
    parquet.write_table(pa.Table.from_pylist(RECORDS), path, row_group_size=7)
    return path


class Files(dict[str, bytes]):
    """Contents of files by name; hypothesis, which prints a test's arguments, warns of those that are long."""

    def __repr__(self) -> str:
        return f"<contents of {', '.join(self)}>"


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Files:
    """The bytes of a sound file of each format."""
    folder = tmp_path_factory.mktemp("good")
    write_arrow(folder / "saved", pa.Table.from_pylist(RECORDS))
    return Files(
        {
            "a.jsonl": LINES,
            "a.jsonl.gz": gzip.compress(LINES),
            "a.jsonl.zst": zstandard.ZstdCompressor(write_checksum=True).compress(LINES),
            "a.parquet": write_parquet(folder / "a.parquet").read_bytes(),
            "a.array_record": write_array_record(folder / "a.array_record").read_bytes(),
            "saved/data.arrow": (folder / "saved" / "data.arrow").read_bytes(),
            "saved/state.json": (folder / "saved" / "state.json").read_bytes(),
        }
    )


def damaged(content: bytes, kind: str, place: int, noise: bytes) -> bytes:
    place %= len(content)
    match kind:
        case "flip":
            return content[:place] + bytes([content[place] ^ (noise[0] or 1)]) + content[place + 1 :]
        case "cut":
            return content[:place]
        case "insert":
            return content[:place] + noise + content[place:]
        case "zeros":
            return content[:place] + bytes(len(noise) * 4) + content[place + len(noise) * 4 :]
        case _:
            return noise


def read_all(path: Path) -> None:
    """Everything of a file: success or `UserError`, and the report of `validate` agrees that there is an error."""
    source = from_file(path)
    try:
        records = [source[i] for i in range(len(source))]
        assert all(isinstance(record, dict) for record in records)
        assert len(source.fingerprint) == 64
    except UserError:
        assert validate.validate_files([path]).num_errors
    else:
        validate.validate_files([path])


@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.array_record", "saved/data.arrow", "saved/state.json"],
)
@given(
    kind=st.sampled_from(["flip", "cut", "insert", "zeros", "noise"]),
    place=st.integers(0, 1 << 14),
    noise=st.binary(min_size=1, max_size=40),
)
@settings(max_examples=40, deadline=None)
def test_a_damaged_file_gives_records_or_a_user_error(name, kind, place, noise, good, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    for other in good if name.startswith("saved") else [name]:
        (folder / other).parent.mkdir(exist_ok=True)
        (folder / other).write_bytes(good[other])
    (folder / name).write_bytes(damaged(good[name], kind, place, noise))
    read_all(folder / name.split("/")[0])
    shutil.rmtree(folder)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.sampled_from(["..", "../data.arrow", "\0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["filename", "_data_files"]), inner),
    max_leaves=6,
)


@given(state=VALUES)
@settings(max_examples=60, deadline=None)
def test_no_state_json_crashes_the_reader_or_leads_out_of_its_folder(state, tmp_path_factory):
    folder = tmp_path_factory.mktemp("state")
    (folder / "saved").mkdir()
    (folder / "data.arrow").write_bytes(b"outside")
    (folder / "saved" / "state.json").write_text(json.dumps(state))
    source = from_hf_folder(folder / "saved")
    with pytest.raises(UserError):
        len(source)
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["../out/data.arrow", "/etc/hostname", "a/b", "..", ".", "", "a\0b", "a\\b", 5, None])
def test_a_saved_data_set_names_files_of_its_own_folder_only(name, tmp_path):
    write_arrow(tmp_path / "out", pa.Table.from_pylist(RECORDS))
    folder = write_arrow(tmp_path / "saved", pa.Table.from_pylist(RECORDS))
    assert len(from_hf_folder(folder)) == 20
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(UserError, match="called by its plain name"):
        len(from_hf_folder(folder))
    report = validate.validate_files([folder])
    assert report.num_errors == 1


@given(name=st.text(max_size=8) | st.sampled_from(["..", ".", "a/..", "\\", "x\0"]))
def test_a_plain_name_joined_to_a_folder_lies_in_it(name):
    if is_plain_name(name):
        assert os.path.dirname(os.path.normpath(os.path.join("/a/b", name))) == "/a/b"


def test_deeply_nested_json_in_a_folders_description_is_an_error(tmp_path):
    folder = write_arrow(tmp_path / "saved", pa.Table.from_pylist(RECORDS))
    (folder / "state.json").write_text('{"_data_files": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(UserError, match=r"state.json cannot be read"):
        len(from_hf_folder(folder))


# Paths.


@pytest.mark.parametrize("kind", ["named pipe", "loop of links", "long name", "folder", "device", "NUL", "dangling"])
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet", ".array_record"])
def test_a_path_that_is_no_file_is_named_and_not_opened(kind, suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    match kind:
        case "named pipe":
            os.mkfifo(path)
        case "loop of links":
            path.symlink_to(path)
        case "dangling":
            path.symlink_to(tmp_path / "nothing")
        case "long name":
            path = tmp_path / ("x" * 300 + suffix)
        case "folder":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/null")
        case "NUL":
            path = tmp_path / ("x\0" + suffix)
    opener = {".parquet": from_parquet, ".array_record": from_array_record}.get(suffix, from_jsonl)
    with pytest.raises(RecordError, match="unreadable-file"):
        len(opener(path))
    if kind != "folder":
        assert set(validate.validate_files([path]).counts) == {"unreadable-file"}


# Unpacking.


PACKERS = {".gz": lambda data: gzip.compress(data), ".zst": lambda data: zstandard.ZstdCompressor().compress(data)}


@pytest.mark.parametrize("suffix", PACKERS)
@given(parts=st.lists(st.binary(max_size=300) | st.just(b"a" * 200_000), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_unpacking_gives_the_bytes_of_all_members_in_blocks_of_bounded_size(suffix, parts, tmp_path_factory):
    path = tmp_path_factory.mktemp("pack") / f"a{suffix}"
    path.write_bytes(b"".join(map(PACKERS[suffix], parts)))
    with path.open("rb") as file:
        blocks = list({".gz": gunzip, ".zst": unzstd}[suffix](file))
    assert b"".join(blocks) == b"".join(parts)
    assert all(len(block) <= 1 << 20 for block in blocks)


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_small_file_that_unfolds_to_a_large_one_is_stopped_and_leaves_nothing(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(compressed, "FREE_RATIO", 1 << 20)
    path = tmp_path / f"bomb.jsonl{suffix}"
    path.write_bytes(PACKERS[suffix](b" " * (40 << 20)))
    with pytest.raises(RecordError, match="too-large: its .* bytes unfold to more than .* decompress it yourself"):
        len(from_jsonl(path))
    assert not list((tmp_path / "cache" / "decompressed").iterdir())
    assert validate.validate_files([path]).counts == {"too-large": 1}


def test_a_parquet_dictionary_that_unfolds_to_gigabytes_is_stopped_and_repetition_is_read(tmp_path):
    """Half a megabyte in 150 rows: the file holds it once, packed to less than a kilobyte."""
    table = lambda rows: pa.table({"prompt": ["x" * 500_000] * rows, "completion": [str(i) for i in range(rows)]})
    parquet.write_table(table(150), tmp_path / "bomb.parquet", compression="zstd")
    with pytest.raises(RecordError, match=r"bomb\.parquet: too-large: its [\d,]+ bytes unfold to more than 67,108,864"):
        from_parquet(tmp_path / "bomb.parquet")[0]
    parquet.write_table(table(30), tmp_path / "small.parquet", compression="zstd")
    source = from_parquet(tmp_path / "small.parquet")
    assert [source[i]["completion"] for i in (0, 17, 29)] == ["0", "17", "29"]


def test_chats_that_repeat_a_little_are_no_bomb(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(LINES * 2000))
    assert len(from_jsonl(path)) == 40_000


def test_unpacking_stops_before_the_disk_is_full(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(compressed.shutil, "disk_usage", lambda _: usage._replace(free=compressed.RESERVE - 1))
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(LINES))
    with pytest.raises(UserError, match="bytes are free there.*--data.cache-dir, to a folder with room"):
        len(from_jsonl(path))
    assert not list((tmp_path / "cache" / "decompressed").iterdir())


def test_a_letter_changed_in_the_decompressed_copy_is_noticed_and_the_copy_made_again(tmp_path, capsys):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(LINES))
    assert from_jsonl(path)[3] == RECORDS[3]
    (copy,) = (tmp_path / "cache" / "decompressed").iterdir()
    copy.write_bytes(LINES.replace(b"plus", b"pluz"))
    assert [from_jsonl(path)[i] for i in range(20)] == RECORDS
    assert "is damaged; decompressing" in capsys.readouterr().err
    (copy,) = (tmp_path / "cache" / "decompressed").iterdir()
    assert copy.read_bytes() == LINES


def test_the_copy_lies_in_the_folder_that_a_task_is_told(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(LINES))
    shards = from_jsonl(path, path)
    task = Task(name="t", records=shards, splits={"test": 0.5, "validation": from_jsonl(path)})
    moved = task.cached_in(tmp_path / "elsewhere")
    assert {name: len(moved.source(name)) for name in moved.splits}["validation"] == 20
    assert [moved.fingerprint(name) for name in task.splits] == [task.fingerprint(name) for name in task.splits]
    assert len(list((tmp_path / "elsewhere" / "decompressed").iterdir())) == 1


# Values.


def nested(depth: int, kind: str) -> str:
    return {"array": "[" * depth + "]" * depth, "object": '{"a":' * depth + "1" + "}" * depth}[kind]


@pytest.mark.parametrize("kind", ["array", "object"])
@pytest.mark.parametrize("depth", [MAX_DEPTH - 1, MAX_DEPTH, 600, 5_000, 100_000])
def test_nesting_has_one_limit_wherever_it_stands(kind, depth, tmp_path):
    path = tmp_path / "a.jsonl"
    good = json.dumps(chat(1))
    path.write_text(f'{good}\n{good[:-1]}, "meta": {nested(depth, kind)}}}\n')
    expected = {"nested-too-deeply": 1} if depth >= MAX_DEPTH else {}
    found = validate.validate_files([path]).counts
    assert {rule: count for rule, count in found.items() if rule == "nested-too-deeply"} == expected
    if expected:
        with pytest.raises(RecordError, match="a.jsonl:2: nested-too-deeply"):
            from_jsonl(path)[1]
    else:
        assert from_jsonl(path)[1]["meta"]


@pytest.mark.parametrize("kind", ["array", "object"])
def test_the_limit_of_nesting_is_not_the_interpreters(kind):
    """Later Pythons parse thousands of levels, where the fast parser refuses more than a thousand."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(12_000)
    try:
        for depth in (MAX_DEPTH, 600, 1_500, 5_000):
            assert parse_line(nested(depth + 1, kind).encode()) == (None, [TOO_DEEP]), depth
    finally:
        sys.setrecursionlimit(before)


def test_nesting_in_memory_has_the_same_limit():
    deep: dict = {}
    for _ in range(MAX_DEPTH):
        deep = {"a": [deep]}
    with pytest.raises(RecordError, match="list:1: nested-too-deeply"):
        from_list([{"prompt": "a", "completion": "b", "meta": deep}])[0]
    loop: list = []
    loop.append(loop)
    with pytest.raises(RecordError, match="list:1: nested-too-deeply"):
        from_list([{"prompt": loop}])[0]


@given(
    value=st.recursive(
        st.none() | st.integers(), lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=2), x)
    )
)
def test_keys_and_depth_are_those_of_a_recursion(value):
    def count(value):
        parts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else None
        if parts is None:
            return 0, 0
        inner = list(map(count, parts))
        own = len(value) if isinstance(value, dict) else 0
        return own + sum(keys for keys, _ in inner), 1 + max((depth for _, depth in inner), default=0)

    assert keys_and_depth(value) == count(value)


def test_a_file_of_carriage_returns_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES.replace(b"\n", b"\r"))
    (problem,) = validate.validate_files([path]).problems
    assert (problem.rule, problem.line) == ("invalid-json", 1)
    assert "carriage return alone" in problem.message
    assert "carriage" not in parse_line(b'{"a": 1} x')[1][0][1]


@pytest.mark.parametrize(
    "value, name",
    [
        (b"x", "bytes"),
        (datetime.datetime(2026, 1, 2, 3), "a date with time"),
        (datetime.date(2026, 1, 2), "a date"),
        (datetime.time(1, 2), "a time of day"),
        (datetime.timedelta(hours=1), "a duration"),
        (decimal.Decimal("1.50"), "a decimal number"),
        (1.5, "a number"),
        (True, "true or false"),
        ([1], "an array"),
        ({"a": 1}, "an object"),
        (None, "null"),
    ],
)
def test_what_columnar_files_hold_besides_json_is_called_by_its_name(value, name, tmp_path):
    assert type_name(value) == name
    column = pa.array([value, value])
    table = pa.table({"prompt": column, "completion": pa.array(["a", "b"])})
    parquet.write_table(table, tmp_path / "a.parquet")
    report = validate.validate_files([tmp_path / "a.parquet"])
    if value is not None:  # a null column is an absent field
        assert report.counts["wrong-type"] == 2
        assert f"prompt is {name};" in report.problems[0].message
    task = Task(name="t", records=from_parquet(tmp_path / "a.parquet"), splits={"test": 0.5})
    assert sum(len(task.source(split)) for split in task.splits) == 2


def test_a_date_that_python_lacks_is_named_with_its_row(tmp_path):
    column = pa.array([0, 1 << 61], pa.timestamp("us"))
    parquet.write_table(pa.table({"prompt": column}), tmp_path / "a.parquet")
    with pytest.raises(RecordError, match=r"a.parquet:2: wrong-type: a value has no form in Python"):
        from_parquet(tmp_path / "a.parquet")[1]


@pytest.mark.parametrize("inner", [False, True])
def test_two_columns_of_one_name_are_an_error(inner, tmp_path):
    twice = pa.struct([pa.field("prompt", pa.string()), pa.field("prompt", pa.string())])
    if inner:
        table = pa.table([pa.array([None], twice)], names=["fields"])
    else:
        table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"])
    where = "fields.prompt" if inner else "prompt"
    parquet.write_table(table, tmp_path / "a.parquet")
    write_arrow(tmp_path / "saved", table)
    for path in (tmp_path / "a.parquet", tmp_path / "saved"):
        with pytest.raises(RecordError, match=f"duplicate-key: 2 columns are called '{where}'"):
            len(from_file(path))
        assert validate.validate_files([path]).counts == {"duplicate-key": 1}


def test_what_cannot_be_hashed_is_an_error_with_its_place():
    for value in ("\ud83d", {"a", "b"}, [frozenset()], {"b": object()}):
        with pytest.raises(Unwritable):
            canonical({"a": value})
    source = from_list([{"prompt": "a", "completion": "b"}, {"prompt": "\ud83d", "completion": "b"}])
    with pytest.raises(RecordError, match="list:2: unwritable"):
        _ = source.fingerprint
    task = Task(name="t", records=source, splits={"test": 0.5})
    with pytest.raises(UserError, match="list:2: unwritable"):
        task.source("test")


def raises(raw: bytes) -> dict:
    return json.loads(raw)["no such field"]


def returns_text(raw: bytes) -> dict:
    return raw.decode()  # pyright: ignore[reportReturnType]


def leaves(raw: bytes) -> dict:
    return sys.exit(3)


@pytest.mark.parametrize(
    "decode, said",
    [
        (raises, "KeyError: 'no such field' (.*test_hostile_files.py:[0-9]+)"),
        (returns_text, "returned a string"),
        (leaves, "SystemExit: 3"),
    ],
)
def test_a_decode_function_that_fails_is_named_with_the_record(decode, said, tmp_path):
    path = write_array_record(tmp_path / "a.array_record")
    with pytest.raises(RecordError, match=f"a.array_record:3: decode-failed: .*{said}"):
        from_array_record(path, decode=decode)[2]
