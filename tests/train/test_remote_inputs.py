"""Inputs of a run that lie in an object store: base model, tokenizer, template, data, texts of retention."""

import dataclasses
import json
import pathlib

import pytest
from helpers import tiny_config, tiny_model

from jaxtune.errors import UserError
from jaxtune.hf import folder as hf
from jaxtune.hf.peft import adapter_folder
from jaxtune.storage.stores import Store
from jaxtune.tasks import Task, from_jsonl
from jaxtune.train.identity import identify
from jaxtune.train.resolution import resolve

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model and data files, and the URL of its copy in a store."""
    folder = tmp_path_factory.mktemp("inputs")
    tiny_model(folder / "base")
    for number, name in enumerate(("train", "validation")):
        rows = [{"prompt": f"say {k}", "completion": str(k)} for k in range(100 * number, 100 * number + 20)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "kept.jsonl").write_text(json.dumps({"text": "What was known before should be known after."}) + "\n")
    (folder / "words.jinja").write_text(TEMPLATE)
    store = Store(f"memory://{folder}")
    for file in folder.rglob("*"):
        if file.is_file():
            store.write(file.relative_to(folder).as_posix(), file.read_bytes())
    return folder, store.url


def config_of(folder: pathlib.Path, place: str):
    splits = {name: from_jsonl(f"{place}/{name}.jsonl") for name in ("train", "validation")}
    config = tiny_config(folder)
    model = dataclasses.replace(
        config.model, path=f"{place}/base", tokenizer=f"{place}/base/tokenizer.model", template=f"{place}/words.jinja"
    )
    texts = dataclasses.replace(config.eval, retention=(f"{place}/kept.jsonl",), generate=False)
    return dataclasses.replace(config, model=model, tasks=(Task(name="say", splits=splits),), eval=texts)


def test_a_run_has_the_same_identity_wherever_its_inputs_lie(place, tmp_path, monkeypatch, capfd):
    folder, url = place
    monkeypatch.setenv("JAXTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    here, there = (identify(resolve(config_of(tmp_path, str(one)), questions=False)) for one in (folder, url))
    same = ("tokenizer", "template", "plan", "seeds", "base_model", "blocks", "batches")
    assert {name: there[name] for name in same} == {name: here[name] for name in same}
    digests = lambda manifest: list(manifest["data"].values())
    assert digests(there) == digests(here) and len(digests(here)) == 5
    assert capfd.readouterr().err.count(f"fetching {url}/base into") == 2, "of the tokenizer, not the weights again"
    assert len(list((tmp_path / "cache").rglob("model.safetensors"))) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}, "no folder `memory:` is made"


def test_a_model_at_a_url_that_is_missing_or_out_of_reach_is_refused(place, tmp_path, monkeypatch):
    _, url = place
    monkeypatch.setenv("JAXTUNE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=rf"{url}/none cannot be read: no files \*.json.*nothing is there"):
        hf.resolve(f"{url}/none")
    config = config_of(tmp_path, url)
    for name, missing in (("tokenizer", "base/none.model"), ("tokenizer", "none"), ("template", "none.jinja")):
        model = dataclasses.replace(config.model, **{name: f"{url}/{missing}"})
        with pytest.raises(UserError, match=f"{url}/{missing} cannot be read: no "):
            resolve(dataclasses.replace(config, model=model))
    with pytest.raises(UserError, match="models cannot be read from nosuch://bucket/model"):
        hf.resolve("nosuch://bucket/model")
    with pytest.raises(UserError, match="adapters cannot be read from nosuch://bucket/adapter"):
        adapter_folder("nosuch://bucket/adapter")
    Store(f"{url}/adapter").write("adapter_config.json", b"{}")
    assert [path.name for path in adapter_folder(f"{url}/adapter").iterdir()] == ["adapter_config.json"]


def test_tokens_are_shared_through_the_cache_folder_at_a_url_and_copies_lie_on_the_disk(
    place, tmp_path, monkeypatch, capfd
):
    folder, url = place
    monkeypatch.chdir(tmp_path)
    config = config_of(tmp_path, str(folder))
    shared = f"memory://{tmp_path}/cache"
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, cache_dir=shared))
    plans = []
    for host in ("one", "two"):
        monkeypatch.setenv("JAXTUNE_CACHE", str(tmp_path / host))
        plans.append(resolve(config, questions=False).plan.hash)
    assert plans[0] == plans[1] and capfd.readouterr().err.count("fetching tokens") == 2
    assert len({name.split("/")[1] for name in Store(shared).names()}) == 2, "a store for each split"
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}
    with pytest.raises(UserError, match="tokens cannot be read from nosuch://bucket/cache"):
        dataclasses.replace(config.data, cache_dir="nosuch://bucket/cache")
