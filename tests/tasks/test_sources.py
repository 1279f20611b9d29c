import gzip
import hashlib
import json
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from array_record.python.array_record_module import ArrayRecordWriter
from bad_inputs import chat
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from jaxtune.chat import Conversation
from jaxtune.errors import UserError
from jaxtune.storage.stores import Store
from jaxtune.tasks import (
    RecordError,
    RecordSource,
    Task,
    from_array_record,
    from_file,
    from_hf_folder,
    from_hub,
    from_jsonl,
    from_list,
    from_parquet,
    from_tfds,
)
from jaxtune.tasks.sources.array_record import decoded
from jaxtune.tasks.sources.combined import SubsetSource
from jaxtune.tasks.sources.jsonl import JsonlSource

RECORDS = [chat(i) for i in range(20)]
CALLS = [
    {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome", "days": [1, 2]}}},
    {"type": "function", "function": {"name": "sum", "arguments": {"x": 1.5, "deep": {"y": None}}}},
    {"type": "function", "function": {"name": "raw", "arguments": '{"a":  1}'}},
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXTUNE_CACHE", str(tmp_path / "cache"))


def jsonl(path: Path, records: list = RECORDS) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def make_jsonl(folder: Path) -> RecordSource:
    return from_jsonl(jsonl(folder / "a.jsonl"))


def make_gzip(folder: Path) -> RecordSource:
    text = jsonl(folder / "plain.jsonl").read_bytes()
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(text[:500]) + gzip.compress(text[500:]))
    return from_jsonl(folder / "a.jsonl.gz")


def make_zstd(folder: Path) -> RecordSource:
    text = jsonl(folder / "plain.jsonl").read_bytes()
    pack = zstandard.ZstdCompressor().compress
    (folder / "a.jsonl.zst").write_bytes(pack(text[:500]) + pack(text[500:]))
    return from_jsonl(folder / "a.jsonl.zst")


def make_shards(folder: Path) -> RecordSource:
    return from_jsonl(jsonl(folder / "a.jsonl", RECORDS[:7]), jsonl(folder / "b.jsonl", RECORDS[7:]))


def make_parquet(folder: Path) -> RecordSource:
    parquet.write_table(pa.Table.from_pylist(RECORDS), folder / "a.parquet", row_group_size=3)
    return from_parquet(folder / "a.parquet")


def write_array_record(path: Path, records: list[bytes]) -> Path:
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    return path


def make_array_record(folder: Path) -> RecordSource:
    return from_array_record(write_array_record(folder / "a.array_record", [json.dumps(r).encode() for r in RECORDS]))


def make_hf_folder(folder: Path) -> RecordSource:
    write_hf_folder(folder / "saved", RECORDS)
    return from_hf_folder(folder / "saved")


def write_hf_folder(folder: Path, records: list) -> None:
    """The layout that `datasets.Dataset.save_to_disk` writes, in two Arrow streams of small batches."""
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist(records)
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    half = len(records) // 2
    for name, part in zip(names, (table.slice(0, half), table.slice(half)), strict=True):
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(part, max_chunksize=4)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "x", "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")


def make_list(folder: Path) -> RecordSource:
    return from_list(RECORDS)


def in_a_store(make, folder: Path) -> RecordSource:
    """The source of a file that another maker wrote, at a URL and no longer on the disk."""
    [file] = make(folder).origins
    url = f"memory://{file}"
    Store(url.rpartition("/")[0]).write(Path(file).name, Path(file).read_bytes())
    Path(file).unlink()
    return from_file(url)


def make_jsonl_url(folder: Path) -> RecordSource:
    return in_a_store(make_jsonl, folder)


def make_gzip_url(folder: Path) -> RecordSource:
    return in_a_store(make_gzip, folder)


def make_zstd_url(folder: Path) -> RecordSource:
    return in_a_store(make_zstd, folder)


def make_parquet_url(folder: Path) -> RecordSource:
    return in_a_store(make_parquet, folder)


def make_array_record_url(folder: Path) -> RecordSource:
    return in_a_store(make_array_record, folder)


URL_MAKERS = [make_jsonl_url, make_gzip_url, make_zstd_url, make_parquet_url, make_array_record_url]
MAKERS = [make_jsonl, make_gzip, make_zstd, make_shards, make_parquet, make_array_record, make_hf_folder, make_list]
MAKERS += URL_MAKERS


@pytest.mark.parametrize("make", MAKERS)
def test_every_format_gives_the_records_that_were_written_in_any_order(make, tmp_path):
    source = make(tmp_path)
    assert len(source) == 20
    assert [source[i] for i in (7, 0, 19, 3, 3)] == [RECORDS[i] for i in (7, 0, 19, 3, 3)]
    assert list(source) == RECORDS
    assert source[np.int64(5)] == RECORDS[5]
    with pytest.raises(IndexError):
        source[20]


@pytest.mark.parametrize("make", MAKERS)
def test_every_format_survives_a_trip_to_another_process(make, tmp_path):
    source = make(tmp_path)
    source[3]
    again = pickle.loads(pickle.dumps(source))
    assert again[11] == RECORDS[11]
    assert again.fingerprint == source.fingerprint
    assert again.where(11) == source.where(11)


@pytest.mark.parametrize("make", MAKERS)
def test_fingerprints_follow_the_content(make, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = make(tmp_path / "one"), make(tmp_path / "two")
    assert one.fingerprint == two.fingerprint
    assert len(one.fingerprint) == 64
    original = RECORDS[4]
    RECORDS[4] = chat(77)
    try:
        (tmp_path / "three").mkdir()
        assert make(tmp_path / "three").fingerprint != one.fingerprint
    finally:
        RECORDS[4] = original


@pytest.mark.parametrize("make", [make_jsonl, make_gzip, make_zstd, make_parquet, make_array_record, make_hf_folder])
def test_a_file_that_changes_while_in_use_is_an_error(make, tmp_path):
    source = make(tmp_path)
    assert source[0] == RECORDS[0]
    assert source.fingerprint
    source.check_unchanged()
    (origin,) = source.origins
    file = next(Path(origin).glob("*.arrow")) if Path(origin).is_dir() else Path(origin)
    content = file.read_bytes()
    file.write_bytes(content)
    source.check_unchanged()  # another time, the same bytes
    file.write_bytes(content[:100] + b"X" + content[101:])
    with pytest.raises(UserError, match="changed while it was in use"):
        source.check_unchanged()
    file.unlink()
    with pytest.raises(UserError, match="removed while it was in use"):
        source.check_unchanged()


def test_nothing_is_read_before_it_is_needed(tmp_path):
    missing = [from_jsonl(tmp_path / "no.jsonl"), from_parquet(tmp_path / "no.parquet"), from_jsonl(tmp_path / "no.gz")]
    missing += [
        from_array_record(tmp_path / "no.array_record"),
        from_jsonl(tmp_path / "no1.jsonl", tmp_path / "no2.jsonl"),
    ]
    for source in missing:
        Task(name="t", splits={"train": source})
        with pytest.raises(RecordError, match="no such file"):
            len(source)


def test_lines_end_at_line_feeds_alone(tmp_path):
    texts = ["a\u2028b", "c\u2029d", "e\x85f", "g\x0bh\x0ci", "j\rk"]
    lines = [json.dumps({"t": text}, ensure_ascii=False) for text in texts]
    (tmp_path / "a.jsonl").write_bytes("\n".join(lines).encode())
    source = from_jsonl(tmp_path / "a.jsonl")
    assert [record["t"] for record in source] == texts


def test_blank_lines_are_skipped_and_line_numbers_stay_those_of_the_file(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\n{"a":0}\n  \t\r\n\n{"a":1}\r\n \n{"a":2}\n\n')
    source = from_jsonl(tmp_path / "a.jsonl")
    assert [record["a"] for record in source] == [0, 1, 2]
    assert [source.line(i) for i in range(3)] == [2, 5, 7]
    assert source.where(2) == f"{tmp_path}/a.jsonl:7"


@given(
    lines=st.lists(st.sampled_from([b"", b" ", b"\t\r", b'{"a":1}', b' {"b":2} ', b"x" * 70, b" " * 70]), max_size=12),
    block=st.integers(1, 40),
    ends=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_the_index_finds_each_line_whatever_the_size_of_blocks(lines, block, ends, tmp_path_factory):
    path = tmp_path_factory.mktemp("index") / "a.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n" * ends)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxtune.tasks.sources.jsonl.BLOCK", block)
        source = JsonlSource(path)
        expected = [(i + 1, line) for i, line in enumerate(lines) if line.strip()]
        assert [(source.line(i), source.raw(i)) for i in range(len(source))] == expected
        assert source.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_bad_line_is_named_with_file_line_rule_and_remedy(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n\n{"a": 1, "a": NaN}\n[1]\n')
    source = from_jsonl(tmp_path / "a.jsonl")
    with pytest.raises(RecordError) as error:
        source[1]
    assert {(p.rule, p.line) for p in error.value.problems} == {("duplicate-key", 3), ("nan-literal", 3)}
    assert f"{tmp_path}/a.jsonl:3: duplicate-key: the key 'a' stands twice" in str(error.value)
    assert pickle.loads(pickle.dumps(error.value)).problems == error.value.problems
    with pytest.raises(RecordError, match="a.jsonl:4: not-an-object: the record is an array"):
        source[2]


@pytest.mark.parametrize(
    ("number", "kept"),
    [
        *[(str(n), True) for n in (2**64 - 1, -(2**63), 10**18)],
        *[(str(n), False) for n in (2**64, -(2**63) - 1, 10**30)],
        *[(text, True) for text in ("1e30", "0.1234567890123456789", '"18446744073709551616"')],
    ],
)
def test_an_integer_that_would_lose_digits_is_named(tmp_path, number, kept):
    """The fast parser makes a float of it: 18446744073709551616 would train as 1.8446744073709552e+19."""
    (tmp_path / "a.jsonl").write_text(f'{{"n": [{number}]}}\n')
    if kept:
        assert from_jsonl(tmp_path / "a.jsonl")[0] == {"n": [json.loads(number)]}
    else:
        with pytest.raises(RecordError, match=f"a.jsonl:1: large-integer: {number} does not fit into 64 bits"):
            from_jsonl(tmp_path / "a.jsonl")[0]


def test_a_file_that_was_cut_short_while_in_use_is_an_error_and_not_a_crash(tmp_path):
    path = jsonl(tmp_path / "a.jsonl")
    source = from_jsonl(path)
    assert source[0] == RECORDS[0]
    with path.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(UserError, match="became shorter"):
        source[19]


def test_compressed_files_are_known_by_their_content_and_named_by_their_own_name(tmp_path):
    packed = make_gzip(tmp_path)
    assert packed.fingerprint == from_jsonl(tmp_path / "plain.jsonl").fingerprint
    assert packed.where(4) == f"{tmp_path}/a.jsonl.gz:5"
    assert len(list((tmp_path / "cache" / "decompressed").iterdir())) == 1


def test_a_damaged_copy_in_the_cache_is_made_again(tmp_path):
    assert make_gzip(tmp_path)[3] == RECORDS[3]
    (copy,) = (tmp_path / "cache" / "decompressed").iterdir()
    copy.write_bytes(copy.read_bytes()[:-10])
    assert from_jsonl(tmp_path / "a.jsonl.gz")[19] == RECORDS[19]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_damaged_compression_is_named(suffix, tmp_path):
    source = {".gz": make_gzip, ".zst": make_zstd}[suffix](tmp_path)
    (origin,) = source.origins
    content = Path(origin).read_bytes()
    for bad in (content[:-7], b"no " + content, b"\x00" * 30):
        Path(origin).write_bytes(bad)
        with pytest.raises(RecordError, match="damaged-file"):
            len(from_jsonl(origin))


@given(content=st.binary(max_size=200))
@settings(max_examples=40, deadline=None)
def test_no_bytes_crash_a_reader(content, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.array_record"):
        (folder / name).write_bytes(content)
        source = from_file(folder / name)
        try:
            records = [source[i] for i in range(len(source))]
        except RecordError as error:
            assert all(problem.file == str(folder / name) for problem in error.problems)
        else:
            assert all(isinstance(record, dict) for record in records)


@given(place=st.integers(4, 2000), value=st.integers(0, 255))
@settings(max_examples=40, deadline=None)
def test_no_flipped_byte_crashes_the_parquet_reader(place, value, tmp_path_factory):
    folder = tmp_path_factory.mktemp("flip")
    make_parquet(folder)
    content = bytearray((folder / "a.parquet").read_bytes())
    content[place % len(content)] = value
    (folder / "a.parquet").write_bytes(content)
    source = from_parquet(folder / "a.parquet")
    try:
        assert all(isinstance(source[i], dict) for i in range(len(source)))
    except RecordError as error:
        assert error.problems[0].file == str(folder / "a.parquet")


def test_parquet_keeps_few_row_groups_in_memory(tmp_path):
    source = make_parquet(tmp_path)
    for i in range(20):
        source[i]
    assert len(source._groups) == 2  # pyright: ignore[reportAttributeAccessIssue]


def tool_record(call: dict) -> dict:
    asked = {"role": "user", "content": "Go."}
    return {"messages": [asked, {"role": "assistant", "content": None, "tool_calls": [call]}]}


def test_tool_call_arguments_survive_reading_unchanged(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [tool_record(call) for call in CALLS])
    task = Task(name="t", splits={"train": from_jsonl(path)})
    for i, call in enumerate(CALLS):
        assert read(task, i).messages[1].tool_calls == [call]


def read(task: Task, i: int) -> Conversation:
    conversation = task.read("train", i)
    assert isinstance(conversation, Conversation)
    return conversation


def test_tool_call_arguments_with_different_keys_survive_arrow(tmp_path):
    records = [
        {"arguments": {"city": "Rome"}, "list": [{"a": 1}, {"b": "x"}]},
        {"arguments": {"x": 1, "deep": {"y": 2}}, "list": []},
    ]
    parquet.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    assert list(from_parquet(tmp_path / "a.parquet")) == records


def test_an_array_record_may_hold_other_than_json(tmp_path):
    path = write_array_record(tmp_path / "a.array_record", [b"question\tanswer"])
    source = from_array_record(path, decode=split_tab)
    assert source[0] == {"prompt": "question", "completion": "answer"}
    with pytest.raises(RecordError, match="a.array_record:1: invalid-json"):
        from_array_record(path)[0]


def split_tab(raw: bytes) -> dict[str, str]:
    prompt, completion = raw.decode().split("\t")
    return {"prompt": prompt, "completion": completion}


def test_a_saved_dict_of_splits_needs_a_split(tmp_path):
    write_hf_folder(tmp_path / "saved" / "test", RECORDS)
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["test"]}')
    assert from_hf_folder(tmp_path / "saved", split="test")[5] == RECORDS[5]
    with pytest.raises(UserError, match=r"holds the splits \['test'\]"):
        len(from_hf_folder(tmp_path / "saved"))
    with pytest.raises(UserError, match="holds one data set without splits"):
        len(from_hf_folder(tmp_path / "saved" / "test", split="train"))
    with pytest.raises(UserError, match="no folder"):
        len(from_hf_folder(tmp_path / "none"))
    with pytest.raises(UserError, match="is no saved data set"):
        len(from_hf_folder(tmp_path))


def test_the_hub_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'jaxtune\[hub\]'"):
        len(from_hub("someone/chats", split="train"))


def test_a_path_given_for_a_name_of_the_hub_is_told(tmp_path, monkeypatch):
    def refuse(name, *_, **__):
        raise ValueError(f"Couldn't find {name} on the Hub")

    offline = types.SimpleNamespace(load_dataset=refuse, exceptions=types.SimpleNamespace(DatasetsError=RuntimeError))
    monkeypatch.setitem(sys.modules, "datasets", offline)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chats.jsonl").write_text("")
    with pytest.raises(UserError, match=r"Couldn't find .*chats.jsonl is there: if that is meant, use from_file"):
        len(from_hub("chats.jsonl", split="train"))
    with pytest.raises(UserError, match=r"no file or folder is called chat.jsonl either.*; did you mean chats.jsonl\?"):
        len(from_hub("chat.jsonl", split="train"))


def test_several_files_keep_their_own_lines(tmp_path):
    source = make_shards(tmp_path)
    assert source.where(6) == f"{tmp_path}/a.jsonl:7"
    assert source.where(7) == f"{tmp_path}/b.jsonl:1"
    assert source.origins == {str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")}
    with pytest.raises(UserError, match="at least one file"):
        from_jsonl()


def test_a_subset_reports_places_of_the_whole(tmp_path):
    subset = SubsetSource(make_jsonl(tmp_path), np.array([2, 5, 11]), label="odd")
    assert list(subset) == [RECORDS[i] for i in (2, 5, 11)]
    assert subset.where(1) == f"{tmp_path}/a.jsonl:6"


def test_a_list_is_copied():
    records = [{"prompt": "a", "completion": "b"}]
    source = from_list(records)
    records[0]["prompt"] = "changed"
    assert source[0]["prompt"] == "a"


BUILDER = """
import tensorflow_datasets as tfds


class MyChat(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        text = tfds.features.Text()
        turns = tfds.features.Sequence({"role": text, "content": text})
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({"id": text, "messages": turns}))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(20), "test": self._generate_examples(5)}

    def _generate_examples(self, n):
        for i in range(n):
            turns = [{"role": "user", "content": f"How much is {i} €?"}, {"role": "assistant", "content": str(i)}]
            yield i, {"id": str(i), "messages": turns}
"""


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    (root / "my_chat").mkdir()
    (root / "my_chat" / "__init__.py").write_text("")
    (root / "my_chat" / "my_chat.py").write_text(BUILDER)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root))
        from my_chat.my_chat import MyChat  # pyright: ignore[reportMissingImports]

        MyChat(data_dir=root / "data", file_format="array_record").download_and_prepare()
        yield root / "data"
    for name in ("my_chat", "my_chat.my_chat"):
        sys.modules.pop(name, None)


def test_tfds_data_sets_are_read_at_random_without_tensorflow(tfds_folder):
    source = from_tfds("my_chat", split="train", data_dir=tfds_folder)
    task = Task(name="chat", splits={"train": source, "test": from_tfds("my_chat", split="test", data_dir=tfds_folder)})
    assert len(source) == 20
    assert len(task.source("test")) == 5
    seen = {read(task, i).id: read(task, i) for i in (7, 2, 19, *range(20))}
    assert set(seen) == {str(i) for i in range(20)}
    assert [(m.role, m.content) for m in seen["13"].messages] == [("user", "How much is 13 €?"), ("assistant", "13")]
    again = pickle.loads(pickle.dumps(source))
    assert again[4] == source[4]
    assert "tensorflow" not in sys.modules


def test_a_prepared_tfds_folder_needs_no_builder(tfds_folder):
    folder = tfds_folder / "my_chat" / "1.0.0"
    half = from_tfds(str(folder), split="train[:50%]")
    whole = from_tfds(str(folder), split="train")
    assert len(half) == 10
    assert half[3] == whole[3]
    assert half.fingerprint != whole.fingerprint
    whole.check_unchanged()
    with pytest.raises(UserError, match="Unknown split 'nope'"):
        len(from_tfds(str(folder), split="nope"))


def test_an_unknown_tfds_data_set_is_named(tmp_path):
    with pytest.raises(UserError, match="TFDS finds no data set 'no_such_set'"):
        len(from_tfds("no_such_set", split="train", data_dir=tmp_path))


def test_the_format_is_told_by_the_name(tmp_path):
    for make in (make_jsonl, make_gzip, make_zstd, make_parquet, make_array_record):
        (origin,) = make(tmp_path).origins
        assert list(from_file(origin)) == RECORDS
    write_hf_folder(tmp_path / "folder", RECORDS)
    assert list(from_file(tmp_path / "folder")) == RECORDS


@pytest.mark.parametrize("make", URL_MAKERS)
def test_a_file_at_a_url_has_the_fingerprint_of_the_file(make, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    local = {one.__name__: one for one in MAKERS}[make.__name__.removesuffix("_url")](tmp_path / "here")
    there = make(tmp_path / "there")
    assert there.fingerprint == local.fingerprint and there.where(3).startswith("memory:///")
    assert there.origins == {there.name}, "known without asking the store"


def test_copies_of_files_at_urls_lie_in_the_folder_that_they_are_given(tmp_path, capfd):
    source = make_gzip_url(tmp_path).cached_in(tmp_path / "elsewhere")
    assert source[3] == RECORDS[3] and not (tmp_path / "cache").exists()
    assert {path.name for path in (tmp_path / "elsewhere").iterdir()} == {"fetched", "decompressed"}
    assert from_file(source.name).cached_in(tmp_path / "elsewhere")[3] == RECORDS[3]
    assert capfd.readouterr().err.count("fetching memory://") == 1


def test_a_file_that_is_not_at_its_url_and_a_url_that_nothing_reaches_are_refused(tmp_path):
    source = from_jsonl("memory://bucket/none.jsonl")  # opened when it is read
    with pytest.raises(RecordError, match=r"memory://bucket/none.jsonl.*unreadable-file.*no such object") as caught:
        len(source)
    assert "the credentials must allow reading it" in str(caught.value)
    with pytest.raises(UserError, match="data cannot be read from nosuch://bucket/a.parquet"):
        from_parquet("nosuch://bucket/a.parquet")
    with pytest.raises(UserError, match="read from a disk only.*from_parquet"):
        from_hf_folder("memory://bucket/saved")
    with pytest.raises(UserError, match="read from a disk only.*from_array_record"):
        from_tfds("my_chat", split="train", data_dir="memory://bucket/tfds")


def test_damage_in_a_file_at_a_url_is_told_with_the_url(tmp_path):
    Store(f"memory://{tmp_path}").write("a.jsonl.gz", gzip.compress(b"x" * 1000)[:-9])
    with pytest.raises(RecordError, match=f"memory://{tmp_path}/a.jsonl.gz.*damaged-file"):
        len(from_jsonl(f"memory://{tmp_path}/a.jsonl.gz"))


@pytest.mark.parametrize(
    "odd", [{1: "a"}, {"metadata": {"deep": [{None: 2}]}}, {"messages": [{"role": "user", "content": "a", b"x": 1}]}]
)
def test_keys_that_are_no_text_are_named_with_their_record(odd):
    with pytest.raises(RecordError, match=r"list:2.*wrong-type: the key (1|None|b'x') is no text"):
        from_list([chat(1), {**chat(2), **odd}])[1]
    assert decoded(lambda raw: odd, b"")[1][0][0] == "decode-failed"
    assert decoded(lambda raw: chat(1), b"") == (chat(1), [])


def test_a_decoded_record_without_an_end_is_told():
    endless: dict = {}
    endless["self"] = [endless]
    assert decoded(lambda raw: endless, b"")[1][0][0] == "nested-too-deeply"
