"""Data sets that Hugging Face `datasets` wrote or loads are read as `datasets` itself reads them."""

import pickle

import pytest

from jaxtune.errors import UserError
from jaxtune.tasks import Task, from_hf_folder, from_hub

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.parity

RECORDS = [
    {
        "id": str(i),
        "messages": [
            {"role": "user", "content": f"Which number is {i}?"},
            {"role": "assistant", "content": "This one."},
        ],
        "call": {"name": "f", "arguments": {"x": i} if i % 2 else {"city": "Rome", "days": [i]}},
    }
    for i in range(30)
]


def test_a_saved_data_set_gives_the_records_that_were_saved(tmp_path):
    saved = datasets.Dataset.from_list(RECORDS)
    saved.save_to_disk(tmp_path / "saved", num_shards=3)
    source = from_hf_folder(tmp_path / "saved")
    assert list(source) == RECORDS
    assert pickle.loads(pickle.dumps(source))[17] == RECORDS[17]
    assert Task(name="t", splits={"train": source}).read("train", 4).id == "4"


def test_a_selection_is_saved_as_selected(tmp_path):
    chosen = datasets.Dataset.from_list(RECORDS).shuffle(seed=3).select(range(7))
    chosen.save_to_disk(tmp_path / "saved")
    assert [record["id"] for record in from_hf_folder(tmp_path / "saved")] == chosen["id"][:]


def test_each_split_of_a_saved_dict_is_read(tmp_path):
    parts = datasets.Dataset.from_list(RECORDS).train_test_split(test_size=0.2, seed=0)
    parts.save_to_disk(tmp_path / "saved")
    for split in ("train", "test"):
        assert [record["id"] for record in from_hf_folder(tmp_path / "saved", split=split)] == parts[split]["id"][:]


def test_the_hub_loader_reads_what_load_dataset_loads(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets.Dataset.from_list(RECORDS).to_json(tmp_path / "a.jsonl")
    files = {"train": str(tmp_path / "a.jsonl")}
    whole, half = (from_hub("json", split=split, data_files=files) for split in ("train", "train[:50%]"))
    assert list(whole) == RECORDS
    assert len(half) == 15
    assert half.fingerprint != whole.fingerprint
    whole.check_unchanged()


def test_a_data_set_that_cannot_be_loaded_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="no-such-owner/no-such-set.* cannot be loaded"):
        len(from_hub("no-such-owner/no-such-set", split="train"))
    with pytest.raises(UserError, match="cannot be loaded"):
        len(from_hub("json", split="train", data_files=str(tmp_path / "none.jsonl")))
