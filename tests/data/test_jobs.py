import functools
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import types
from typing import Any

import numpy as np
import pytest

from jaxtune import chat
from jaxtune.chat import TEMPLATES, Conversation, MaskPolicy, Message, supervision
from jaxtune.chat.tokenizer import ByteTokenizer
from jaxtune.data import jobs as cache
from jaxtune.data.encoding import Encoding, encode_records
from jaxtune.data.fit import FitOutcome, LengthPolicy
from jaxtune.data.jobs import code_fingerprint, tokenize
from jaxtune.data.store import DamagedStore, allow_open_stores, open_store
from jaxtune.errors import UserError
from jaxtune.storage.stores import Store, StoreError
from jaxtune.tasks import Task, Template, from_jsonl, from_list

WORDINGS = (
    Template(prompt="{question}", response="{answer}"),
    Template(prompt="Q: {question}", response="{answer}!"),
)


def encoding(**changes):
    settings: dict[str, Any] = {"template": TEMPLATES["chatml"], "tokenizer": ByteTokenizer(), "max_length": 160}
    return Encoding(**(settings | changes))


def sums(n=10, name="sums", **changes):
    records = [{"prompt": f"{i}+{i}=", "completion": str(2 * i)} for i in range(n)]
    return Task(name=name, splits={"train": from_list(records)}, **changes)


def worded(n=10):
    records = [{"question": f"{i}+{i}", "answer": str(2 * i)} for i in range(n)]
    return Task(name="worded", splits={"train": from_list(records)}, templates=WORDINGS)


def tokenized(tasks, folder, split="train", **changes):
    options = {name: changes.pop(name) for name in ("processes", "shared") if name in changes}
    return tokenize(tasks, split, encoding(**changes), folder, show_progress=False, **options)


def content(store):
    return [
        (example.tokens.tolist(), example.loss_weights.tolist())
        for number in range(len(store))
        for template in range(store.num_templates)
        for example in [store.example(number, template)]
    ]


@pytest.fixture
def encoded(monkeypatch):
    """Records that were really encoded, in order; parts of four records."""
    monkeypatch.setattr(cache, "PART", 4)
    seen = []
    honest = cache.encode_records

    def noting(task, split, records, encoding):
        seen.extend(records)
        return honest(task, split, records, encoding)

    monkeypatch.setattr(cache, "encode_records", noting)
    return seen


def test_the_cache_holds_what_rendering_gives(tmp_path, encoded):
    store = tokenized([worded()], tmp_path)["worded"]
    task, settings = worded(), encoding()
    for number in range(10):
        for template in range(2):
            conversation = task.read("train", number, template)
            assert isinstance(conversation, Conversation)
            rendered = chat.render(conversation, settings.template, settings.tokenizer)
            example = store.example(number, template)
            assert example.tokens.tolist() == rendered.tokens.tolist()
            assert example.loss_weights.tolist() == rendered.loss_weights.tolist()
            assert store.lengths[number, template] == len(rendered.tokens)
            assert store.loss_lengths[number, template] == (rendered.loss_weights[1:] > 0).sum()
    assert [store.record(number) for number in range(10)] == list(range(10))
    assert (len(store), store.num_templates, store.outcomes) == (10, 2, {"kept": 10})


def test_a_second_call_encodes_nothing_and_gives_the_same(tmp_path, encoded):
    first = content(tokenized([sums()], tmp_path)["sums"])
    assert encoded == list(range(10))
    again = tokenized([sums()], tmp_path)["sums"]
    assert content(again) == first
    assert len(encoded) == 10
    again.verify()


def changed_settings():
    other_template = TEMPLATES["zephyr"]
    controls = ("<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>", "<more>")
    return {
        "template": dict(template=other_template, tokenizer=ByteTokenizer((*controls, "</s>"), eos="</s>")),
        "tokenizer": dict(tokenizer=ByteTokenizer(controls)),
        "max_length": dict(max_length=159),
        "mask_policy": dict(mask_policy=MaskPolicy.ALL),
        "length_policy": dict(length_policy=LengthPolicy.TRUNCATE_PROMPT),
        "prompt_loss_weight": dict(prompt_loss_weight=0.5),
    }


@pytest.mark.parametrize("setting", changed_settings())
def test_a_changed_setting_is_never_served_from_a_stale_cache(tmp_path, encoded, setting):
    tokenized([sums()], tmp_path)
    tokenized([sums()], tmp_path, **changed_settings()[setting])
    assert encoded == [*range(10), *range(10)]


def test_changed_data_wordings_and_code_are_never_served_from_a_stale_cache(tmp_path, encoded, monkeypatch):
    tokenized([worded()], tmp_path)
    tokenized([worded(9)], tmp_path)
    records = [{"question": f"{i}+{i}", "answer": str(2 * i)} for i in range(10)]
    other = (WORDINGS[0], Template(prompt="q: {question}", response="{answer}!"))
    tokenized([Task(name="worded", splits={"train": from_list(records)}, templates=other)], tmp_path)
    monkeypatch.setattr(cache, "code_fingerprint", lambda: "another version")
    tokenized([worded()], tmp_path)
    assert len(encoded) == 10 + 9 + 10 + 10


def test_the_code_version_covers_every_module_that_decides_tokens():
    files = {path.name for path in cache._imported(cache.Path(cache.__file__))}
    assert {"encoding.py", "rendering.py", "layout.py", "tokenizer.py", "shapes.py", "jsonl.py", "fit.py"} <= files
    assert not {"loop.py", "planning.py", "transformer.py"} & files
    assert code_fingerprint() == code_fingerprint()


# Kills and damage


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, encoded, monkeypatch):
    whole = content(tokenized([sums(18)], tmp_path / "whole")["sums"])
    encoded.clear()
    honest, calls = cache.Job.encode, []

    def interrupted(job, number):
        calls.append(number)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return honest(job, number)

    monkeypatch.setattr(cache.Job, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tokenized([sums(18)], tmp_path)
    assert encoded == list(range(8))
    resumed = tokenized([sums(18)], tmp_path)["sums"]
    assert encoded == list(range(18))
    assert content(resumed) == whole


KILLED = """
    import os, signal, sys
    from jaxtune.data import jobs as cache
    from tests.data.test_jobs import sums, tokenized
    cache.PART = 4
    honest = cache.Part.write
    def write(part, path, *rest):
        if path.name.startswith("000002"):
            path.with_name(path.name + ".half.tmp").write_bytes(b"half a part")
            os.kill(os.getpid(), signal.SIGKILL)
        honest(part, path, *rest)
    cache.Part.write = write
    tokenized([sums(18)], sys.argv[1])
"""


def test_a_killed_process_leaves_whole_parts_that_the_next_run_uses(tmp_path, encoded):
    root = cache.Path(__file__).parent.parent.parent
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)], cwd=root, check=False)
    assert killed.returncode == -9
    store = tokenized([sums(18)], tmp_path)["sums"]
    assert encoded == list(range(8, 18))
    assert content(store) == content(tokenized([sums(18)], tmp_path / "fresh")["sums"])


def test_a_merge_that_was_killed_leaves_nothing_behind(tmp_path, encoded):
    store = tokenized([sums()], tmp_path)["sums"]
    shutil.rmtree(store.folder)
    left = store.folder.with_name(store.folder.name + ".99.tmp")
    left.mkdir()
    (left / "data").write_text("half")
    tokenized([sums()], tmp_path)
    assert not left.exists()


def test_a_damaged_part_is_done_again(tmp_path, encoded, monkeypatch):
    honest = cache.Job.merged
    monkeypatch.setattr(cache.Job, "merged", lambda job: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        tokenized([sums(12)], tmp_path)
    monkeypatch.setattr(cache.Job, "merged", honest)
    (parts,) = tmp_path.glob("*.parts")
    half = (parts / "000001.npz").read_bytes()[:-100]
    (parts / "000001.npz").write_bytes(half)
    encoded.clear()
    assert len(tokenized([sums(12)], tmp_path)["sums"]) == 12
    assert encoded == [4, 5, 6, 7]


def flip_one_bit(folder):
    with open(folder / "data", "r+b") as file:
        file.seek(400)
        byte = file.read(1)[0]
        file.seek(400)
        file.write(bytes([byte ^ 4]))


def truncate(folder):
    os.truncate(folder / "data", os.path.getsize(folder / "data") - 8)


def lose_the_data(folder):
    (folder / "data").unlink()


def lose_the_meta(folder):
    (folder / "meta.json").unlink()


def tear_the_meta(folder):
    (folder / "meta.json").write_text('{"format": "jaxtu')


def change_the_facts(folder):
    meta = json.loads((folder / "meta.json").read_text())
    meta["facts"]["max_length"] = 10
    (folder / "meta.json").write_text(json.dumps(meta))


def change_a_count(folder):
    meta = json.loads((folder / "meta.json").read_text())
    meta["outcomes"]["kept"] += 1
    (folder / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize(
    "damage", [change_a_count, flip_one_bit, truncate, lose_the_data, lose_the_meta, tear_the_meta, change_the_facts]
)
def test_a_damaged_cache_is_noticed_said_and_made_again(tmp_path, encoded, capsys, damage):
    store = tokenized([sums()], tmp_path)["sums"]
    before = content(store)
    damage(store.folder)
    again = tokenized([sums()], tmp_path)["sums"]
    assert content(again) == before
    assert len(encoded) == 20
    assert "token cache damaged, making it again" in capsys.readouterr().err


def test_a_folder_of_other_things_is_left_alone(tmp_path, encoded):
    store = tokenized([sums()], tmp_path)["sums"]
    shutil.rmtree(store.folder)
    store.folder.mkdir()
    (store.folder / "thesis.tex").write_text("do not delete")
    with pytest.raises(UserError, match="not a token cache of jaxtune; move it away"):
        tokenized([sums()], tmp_path)
    assert (store.folder / "thesis.tex").read_text() == "do not delete"


def test_a_store_of_other_facts_is_refused(tmp_path):
    store = tokenized([sums()], tmp_path)["sums"]
    with pytest.raises(DamagedStore, match="other facts"):
        open_store(store.folder, {"data": "something else"})


def test_a_store_that_changes_while_in_use_is_an_error(tmp_path):
    store = tokenized([sums()], tmp_path)["sums"]
    store.check_unchanged()
    flip_one_bit(store.folder)
    os.utime(store.folder / "data", ns=(0, 0))
    with pytest.raises(UserError, match="changed while it was in use"):
        store.check_unchanged()


def test_data_that_change_while_they_are_tokenised_are_an_error(tmp_path, encoded, monkeypatch):
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{i}", "completion": f"{i}"}) + "\n" for i in range(8)))
    task = Task(name="sums", splits={"train": from_jsonl(file)})
    honest = cache.Job.encode

    def changing(job, number):
        result = honest(job, number)
        file.write_text(file.read_text().replace("1", "7"))
        os.utime(file, ns=(0, 0))
        return result

    monkeypatch.setattr(cache.Job, "encode", changing)
    with pytest.raises(UserError, match="sums.jsonl"):
        tokenized([task], tmp_path / "cache")


def test_a_store_being_made_by_another_run_is_waited_for(tmp_path):
    store = tokenized([sums()], tmp_path)["sums"]
    held, done = threading.Event(), threading.Event()

    def hold():
        with cache._locked(tmp_path, [store.folder.name]):
            held.set()
            done.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(20)
    results = []
    waiter = threading.Thread(target=lambda: results.append(tokenized([sums()], tmp_path)))
    waiter.start()
    waiter.join(0.3)
    assert waiter.is_alive()
    done.set()
    waiter.join(20)
    holder.join()
    assert len(results[0]["sums"]) == 10


@pytest.fixture
def file_limit():
    """Sets how many files may be open; restored at the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda number: resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_many_tasks_need_one_open_file_each_and_the_limit_is_raised_for_them(tmp_path, file_limit):
    tasks = [sums(1, name=f"t{i}") for i in range(150)]
    before = len(os.listdir("/proc/self/fd"))
    file_limit(before + 100)
    stores = tokenized(tasks, tmp_path)
    assert len(os.listdir("/proc/self/fd")) <= before + 151
    assert all(len(store) == 1 for store in stores.values())


def test_more_tasks_than_the_system_allows_files_are_refused(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, 2048))
    with pytest.raises(UserError, match="5000 tasks need 5256 open files; the system allows 2048"):
        allow_open_stores(5000)


# Several processes


def doubled(record, mark):
    return Conversation([Message("user", record["question"]), Message("assistant", mark + record["answer"] * 2)])


def test_two_processes_give_the_same_as_one_also_with_functions_of_a_config_file(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "PART", 4)
    module = types.ModuleType("a_config_that_no_worker_can_import")
    module.__file__ = "somewhere/else.py"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(
        "from jaxtune.chat import Conversation, Message\n"
        "def shout(record):\n"
        "    question, answer = record['question'].upper(), record['answer']\n"
        "    return Conversation([Message('user', question), Message('assistant', answer)])",
        module.__dict__,
    )
    records = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(11)]
    wordings = (module.shout, functools.partial(doubled, mark=">"))
    tasks = [Task(name="loud", splits={"train": from_list(records)}, templates=wordings), sums(9)]
    one = tokenized(tasks, tmp_path / "one")
    two = tokenized(tasks, tmp_path / "two", processes=2)
    for name in ("loud", "sums"):
        assert content(one[name]) == content(two[name])
        assert one[name].fingerprint == two[name].fingerprint
    assert "Q3" in ByteTokenizer().decode(two["loud"].example(3, 0).tokens.tolist())


def ends_the_process(record) -> Conversation:
    """A wording that only a worker meets: what the system does to a process that takes too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("it goes on after SIGKILL")


def test_a_worker_that_is_killed_is_told_in_one_message_and_what_is_done_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "PART", 4)
    records = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(11)]
    task = Task(name="fatal", splits={"train": from_list(records)}, templates=(ends_the_process,))
    with pytest.raises(UserError, match=r"ended before its time \(data.processes=2\).*__main__"):
        tokenized([task], tmp_path, processes=2)


# Policies and problems


def test_dropped_and_cut_examples_are_counted_by_reason(tmp_path, encoded):
    records = [{"prompt": "a" * n, "completion": "b" * 5} for n in (5, 5, 200, 5, 300)]
    task = Task(name="long", splits={"train": from_list(records)})
    dropped = tokenized([task], tmp_path)["long"]
    assert dropped.outcomes == {"kept": 3, "dropped: longer than the maximum length": 2}
    assert [dropped.record(number) for number in range(len(dropped))] == [0, 1, 3]
    cut = tokenized([task], tmp_path, length_policy=LengthPolicy.TRUNCATE_PROMPT)["long"]
    assert cut.outcomes == {"kept": 3, "prompt truncated from the left": 2}
    assert cut.lengths.max() == 160


def test_an_example_takes_part_only_if_every_wording_of_it_fits(tmp_path, encoded):
    records = [{"question": "q" * n, "answer": "a"} for n in (10, 78)]
    task = Task(name="w", splits={"train": from_list(records)}, templates=WORDINGS)
    settings, lengths = encoding(), []
    for template in range(2):
        conversation = task.read("train", 1, template)
        assert isinstance(conversation, Conversation)
        lengths.append(len(chat.render(conversation, settings.template, settings.tokenizer).tokens))
    store = tokenized([task], tmp_path, max_length=lengths[0])["w"]
    assert lengths[0] < lengths[1]
    assert [store.record(number) for number in range(len(store))] == [0]
    assert sum(store.outcomes.values()) == 2


def test_prompt_weight_counts_as_loss_but_not_as_response(tmp_path):
    plain = tokenized([sums()], tmp_path)["sums"]
    weighted = tokenized([sums()], tmp_path, prompt_loss_weight=0.25)["sums"]
    assert (weighted.loss_lengths == weighted.lengths - 1).all()
    assert (weighted.response_lengths == plain.response_lengths).all()
    assert (plain.response_lengths == plain.loss_lengths).all()


def test_all_problems_of_all_tasks_come_in_one_message_before_anything_is_kept(tmp_path, encoded):
    good = {"prompt": "p", "completion": "c"}
    tasks = [
        Task(
            name="a", splits={"train": from_list([good, {"prompt": "p"}, {"prompt": 3, "completion": "c"}], name="A")}
        ),
        Task(name="b", splits={"train": from_list([{"completion": "c"}] + [good] * 6, name="B")}),
    ]
    with pytest.raises(UserError) as error:
        tokenized(tasks, tmp_path)
    message = str(error.value)
    assert "3 problems in the data; nothing was trained" in message
    for place in ("A:2", "A:3", "B:1"):
        assert place in message
    assert "By rule: " in message


def test_supervision_that_cannot_be_proven_is_refused_with_its_place(tmp_path, encoded, monkeypatch):
    def ends_untrained(*arguments):
        for one in (encoded := honest(*arguments)):
            assert not isinstance(one, UserError)
            one.example.loss_weights[np.flatnonzero(one.example.loss_weights)[-1]] = 0
        return encoded

    honest = supervision.encode_each
    monkeypatch.setattr(supervision, "encode_each", ends_untrained)
    expected = r"10 problems in the data(.|\n)*list:1: supervision: end-of-turn: message 1 does not end"
    with pytest.raises(UserError, match=expected):
        tokenized([sums()], tmp_path)


def test_turns_that_carry_no_weight_are_counted_and_named_by_line(tmp_path):
    """Prevents a template that leaves reasoning out of earlier turns from untraining them in silence."""
    answers = [{"role": "assistant", "content": "7", "reasoning": "three and four"}] * 2
    question = {"role": "user", "content": "3+4?"}
    records = [
        {"messages": [question, answers[0], question, answers[1]]},
        {"messages": [question, answers[0]]},
    ]
    task = Task(name="thinks", splits={"train": from_list(records, name="L")})
    settings = Encoding(template=TEMPLATES["qwen3"], tokenizer=ByteTokenizer(eos="<|im_end|>"), max_length=160)
    part, problems = encode_records(task, "train", range(2), settings)
    assert part.outcomes == {FitOutcome.KEPT_IN_PART.value: 1, "kept": 1}
    assert [(problem.rule, problem.line) for problem in problems] == [("set-aside", 1)]
    assert "message 1 is shown without its reasoning" in problems[0].message


def test_token_ids_that_the_tokenizer_does_not_have_are_refused(tmp_path):
    records = [{"tokens": [5, 300], "loss_weights": [0.0, 1.0]}]
    task = Task(name="ready", splits={"train": from_list(records)})
    with pytest.raises(UserError, match="list:1: bad-tokens: token 300, but the tokenizer has 261"):
        tokenized([task], tmp_path)


@pytest.mark.parametrize("tokens, where", [([0, 0, 5, 6], "first 2"), ([5, 6, 0, 0, 0], "last 3"), ([0, 5, 6, 0], "")])
@pytest.mark.parametrize("masked", [False, True])
def test_padding_of_token_records_is_named_where_no_mask_tells_of_it(tokens, where, masked, tmp_path):
    pad = ByteTokenizer().pad_id
    record = {"tokens": [t or pad for t in tokens], "loss_mask": [int(t == 6) for t in tokens]}
    mask = {"attention_mask": [int(t > 0) for t in tokens]} if masked else {}
    task = Task(name="ids", splits={"train": from_list([{**record, **mask}])})
    if where and not masked:
        with pytest.raises(UserError, match=rf"the {where} tokens are padding \('<pad>'\).*give attention_mask"):
            tokenized([task], tmp_path)
    else:
        store = tokenized([task], tmp_path)["ids"]
        assert content(store)[0][0] == ([5, 6] if masked else record["tokens"])


def test_an_example_too_long_for_the_error_policy_is_named(tmp_path, encoded):
    records = [{"prompt": "a" * 200, "completion": "b"}]
    task = Task(name="long", splits={"train": from_list(records, name="L")})
    with pytest.raises(UserError, match=r"L:1: too-long: an example has \d+ tokens, .* 160; raise --data.seq-len"):
        tokenized([task], tmp_path, length_policy=LengthPolicy.ERROR)


def test_a_task_without_a_usable_example_is_refused_with_the_reason(tmp_path, encoded):
    task = Task(name="long", splits={"train": from_list([{"prompt": "a" * 200, "completion": "b"}] * 3)})
    with pytest.raises(UserError, match="'long' has no usable example in 'train': 3 dropped: longer than"):
        tokenized([task], tmp_path)


@pytest.mark.parametrize("names", [("a/b", "a_b"), ("x" * 250, "x" * 249 + "y"), ("QA", "qa")])
def test_tasks_of_similar_names_over_the_same_records_have_stores_of_their_own(names, tmp_path):
    records = from_list([{"prompt": "a", "completion": "b"}])
    tasks = [Task(name=name, splits={"train": records}) for name in names]
    for _ in range(2):  # made, and found again
        assert [(store.task, len(store)) for store in tokenized(tasks, tmp_path).values()] == [(n, 1) for n in names]


def test_stores_pickle_as_the_name_of_their_folder(tmp_path):
    store = tokenized([sums()], tmp_path)["sums"]
    pickled = pickle.dumps(store)
    assert len(pickled) < 1000
    assert content(pickle.loads(pickled)) == content(store)


def test_records_of_tokens_are_kept_as_they_are(tmp_path):
    records = [{"tokens": [5, 6, 7, 8], "loss_weights": [0.0, 0.0, 1.0, 0.5]}]
    task = Task(name="ready", splits={"train": from_list(records)})
    store = tokenized([task], tmp_path)["ready"]
    example = store.example(0)
    assert example.tokens.tolist() == [5, 6, 7, 8]
    assert example.loss_weights.tolist() == [0, 0, 1, 0.5]
    assert np.asarray(store.loss_lengths).tolist() == [[2]]


def test_a_token_without_a_row_in_the_embedding_is_refused_and_a_spare_entry_is_not(tmp_path):
    words = ByteTokenizer()
    task = sums(3)
    used = max(int(store.tokens.max()) for store in content_arrays(tokenized([task], tmp_path / "all")[task.name]))
    fits = tokenized([task], tmp_path / "fits", embedding_rows=used + 1)[task.name]
    assert content(fits) == content(tokenized([task], tmp_path / "all")[task.name]) and used < words.vocab_size
    with pytest.raises(UserError, match=rf"token {used} .*, but the model's embedding has {used} rows"):
        tokenized([task], tmp_path / "short", embedding_rows=used)


def content_arrays(store):
    return [store.example(number) for number in range(len(store))]


def test_tokens_that_one_host_made_are_brought_by_another_from_the_bucket(tmp_path, encoded, capfd):
    shared = Store(f"memory://{tmp_path}/tokens")
    first = content(tokenized([sums(), worded()], tmp_path / "one", shared=shared)["sums"])
    assert len(encoded) == 20
    found = tokenized([sums(), worded()], tmp_path / "two", shared=shared)
    assert content(found["sums"]) == first and len(encoded) == 20, "nothing was encoded again"
    assert capfd.readouterr().err.count("fetching tokens") == 2
    tokenized([sums(), worded()], tmp_path / "two", shared=shared)
    assert "fetching" not in capfd.readouterr().err
    tokenized([sums(11)], tmp_path / "two", shared=shared)  # other data, other tokens
    assert len(encoded) == 31 and len({name.split("/")[0] for name in shared.names()}) == 3


def test_damaged_and_unfinished_tokens_in_the_bucket_are_made_again(tmp_path, encoded, capfd):
    shared = Store(f"memory://{tmp_path}/tokens")
    first = content(tokenized([sums()], tmp_path / "one", shared=shared)["sums"])
    [data] = [name for name in shared.names() if name.endswith("/data")]
    good = shared.read(data) or b""
    shared.write(data, bytes([good[0] ^ 1]) + good[1:])
    assert content(tokenized([sums()], tmp_path / "two", shared=shared)["sums"]) == first and len(encoded) == 20
    assert "token cache damaged, making it again" in capfd.readouterr().err
    assert shared.read(data) == good, "the good ones took the place of the damaged"
    shared.ask("rm_file", shared.path(data.replace("/data", "/meta.json")))
    assert content(tokenized([sums()], tmp_path / "three", shared=shared)["sums"]) == first and len(encoded) == 30


def test_a_bucket_that_cannot_be_reached_is_said(tmp_path, encoded, monkeypatch):
    def down(*_, **__):
        raise ConnectionError("the store is down")

    shared = Store(f"memory://{tmp_path}/tokens")
    monkeypatch.setattr(type(shared._store), "info", down)
    with pytest.raises(StoreError, match="ConnectionError: the store is down"):
        tokenized([sums()], tmp_path / "one", shared=shared)
