"""More hostile inputs: special files in every place, bombs, names, numbers of all commands."""

import gzip
import json
import os
import pathlib
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

from hostile import ANSWER, WEIGHTS, Attack, chat, field, lines

HUGE = "9" * 400
"""A whole number that no float holds."""
PUT: dict[str, Callable[[pathlib.Path], object]] = {
    "a folder": lambda path: path.mkdir(),
    "a socket": lambda path: bind(path),
    "a named pipe": lambda path: os.mkfifo(path),
    "an endless device": lambda path: path.symlink_to("/dev/zero"),
    "a link to nothing": lambda path: path.symlink_to(path.parent / "nothing"),
}


def bind(path: pathlib.Path) -> None:
    """A socket in the file system; its name may be longer than sockets' own names may be."""
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path.name)
    finally:
        os.chdir(here)


def attacks(place: pathlib.Path, config: pathlib.Path, run: pathlib.Path) -> Iterator[Attack]:
    """Everything of this file."""
    place.mkdir()
    yield from data(place)
    yield from tables(place)
    yield from folders(place, config.parent / "base")
    yield from adapters(place, config)
    yield from runs(place, config, run)
    yield from sweeps(place)
    yield from numbers(place, config, run)


# Data


def contents() -> Iterator[tuple[str, bytes]]:
    """File name and content; every one has an error."""
    deep_json = json.dumps("[" * 100_000 + "]" * 100_000)
    question = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", '
    yield "weight of 400 digits.jsonl", lines(question + b'"content": "b", "weight": ' + HUGE.encode() + b"}]}\n")
    yield "ids of 400 digits.jsonl", lines(b'{"tokens": [1, ' + HUGE.encode() + b'], "loss_mask": [0, 1]}\n')
    yield "mask of 400 digits.jsonl", lines(b'{"tokens": [1, 2], "loss_mask": [0, ' + HUGE.encode() + b"]}\n")
    yield "content of 400 digits.jsonl", lines(question + b'"content": ' + HUGE.encode() + b"}]}\n")
    yield "weight as text.jsonl", lines({"messages": [{"role": "user", "content": "a"}, {**ANSWER, "weight": "1"}]})
    yield "weight true.jsonl", lines({"messages": [{"role": "user", "content": "a"}, {**ANSWER, "weight": True}]})
    yield "weight NaN.jsonl", lines(question + b'"content": "b", "weight": NaN}]}\n')
    yield "a role with a newline.jsonl", lines({"messages": [{"role": "us\ner", "content": "a"}, ANSWER]})
    yield (
        "arguments nested.jsonl",
        lines(
            question
            + b'"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": '
            + deep_json.encode()
            + b"}}]}]}\n"
        ),
    )
    yield "content of parts 90 deep.jsonl", lines(question + b'"content": ' + b"[" * 90 + b"]" * 90 + b"}]}\n")
    yield "tools 90 deep.jsonl", lines(question + b'"content": "b"}], "tools": ' + b"[" * 90 + b"]" * 90 + b"}\n")
    yield "zst bomb.jsonl.zst", zst(b" " * 400_000_000)
    yield "gz in gz.jsonl.gz", gzip.compress(gzip.compress(lines(chat(1))))
    yield "many members.jsonl.gz", gzip.compress(b"x") * 20_000
    yield "bidi task.jsonl", lines({**chat(1), "id": "\u2066\u202e\u2028\x85\x7f", "messages": [1]})
    yield "a surrogate in a key.jsonl", lines(b'{"id": "x", "\\udc80": 1, "messages": 3}\n')


def zst(content: bytes) -> bytes:
    import zstandard

    return zstandard.compress(content)


def data(place: pathlib.Path) -> Iterator[Attack]:
    """Files, names and folders for `validate`."""
    for name, content in contents():
        (place / name).write_bytes(content)
        sound = name in ("weight true.jsonl", "arguments nested.jsonl")  # a mark; text that only a template reads
        yield Attack("data files", f"more: {name}", ("validate", place / name), either=sound)
    for number, (what, make) in enumerate(PUT.items()):
        folder = place / f"special {number}"
        folder.mkdir()
        make(folder / "data.jsonl")
        yield Attack("data files", f"data.jsonl is {what}", ("validate", folder / "data.jsonl"))
        (folder / "other.jsonl").write_bytes(lines({}))
        yield Attack("data files", f"a folder of data with {what}", ("validate", folder))
    for name in ("a\nb.jsonl", "\u202egnp.jsonl", "\udcff\udcfe.jsonl", " .jsonl", "-x.jsonl", "a'\"`$(id).jsonl"):
        (place / name).write_bytes(b"{}\n")
        yield Attack("data files", f"name {ascii(name)}", ("validate", f"{place}/{name}"))
        yield Attack("data files", f"name {ascii(name)} --json", ("validate", f"{place}/{name}", "--json"))


def tables(place: pathlib.Path) -> Iterator[Attack]:
    """Parquet and Arrow."""
    import pyarrow as pa
    from pyarrow import ipc, parquet

    def table(name: str, columns: dict[str, Any], **options: Any) -> Attack:
        parquet.write_table(pa.table(columns), place / name, **options)
        return Attack("data files", name, ("validate", place / name))

    long = "x" * 1_000_000
    yield table("a bomb.parquet", {"prompt": [long] * 3000, "response": [long] * 3000}, compression="zstd")
    yield table("no columns.parquet", {})
    yield table("5000 columns.parquet", {f"c{i}": [1] for i in range(5000)})
    yield table("escapes in columns.parquet", {"\x1b[2J\u202e": [1], "prompt": ["a"]})
    yield table("empty names.parquet", {"": ["a"], " ": ["b"]})
    deep: Any = pa.int32()
    for _ in range(60):
        deep = pa.list_(deep)
    yield table("lists 60 deep.parquet", {"messages": pa.array([None], deep)})
    yield table(
        "dates.parquet", {"prompt": pa.array([1], pa.timestamp("ns")), "response": pa.array([2**62], pa.int64())}
    )
    yield table("durations.parquet", {"prompt": pa.array([2**62], pa.duration("us")), "response": ["a"]})
    yield table("dates beyond years.parquet", {"prompt": pa.array([2**61], pa.timestamp("us")), "response": ["a"]})
    for name, options in (("plain.arrow", None), ("packed.arrow", ipc.IpcWriteOptions(compression="zstd"))):
        strings = pa.table({"prompt": ["a" * 100] * 1000, "response": ["b"] * 1000})
        with ipc.new_file(str(place / name), strings.schema, options=options) as writer:
            writer.write_table(strings)
        whole = (place / name).read_bytes()
        for at in (9, len(whole) // 3, len(whole) // 2, len(whole) - 30, len(whole) - 300):
            damaged = bytearray(whole)
            damaged[at : at + 8] = b"\xff" * 8
            target = place / f"{at} {name}"
            target.write_bytes(bytes(damaged))
            yield Attack("data files", f"0xff in {name} at {at}", ("validate", target), either=True)


# Models


def folders(place: pathlib.Path, base: pathlib.Path) -> Iterator[Attack]:
    """Changed copies of a model folder for `import-hf`."""

    def changed(name: str, change: Callable[[pathlib.Path], object], *, either: bool = False) -> Attack:
        folder = place / f"model {len(list(place.iterdir()))}"
        shutil.copytree(base, folder)
        change(folder)
        return Attack("model folders", name, ("import-hf", folder), either=either)

    def replaced(name: str, make: Callable[[pathlib.Path], object]) -> Callable[[pathlib.Path], object]:
        return lambda folder: ((folder / name).unlink(missing_ok=True), make(folder / name))

    files = ("config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS, f"{WEIGHTS}.index.json")
    for file in (*files, "tokenizer.model", "chat_template.jinja", "generation_config.json"):
        for what, make in PUT.items():
            optional = file in (
                "chat_template.jinja",
                "generation_config.json",
                "tokenizer.json",
                f"{WEIGHTS}.index.json",
            )
            optional = optional or file == "tokenizer_config.json"
            yield changed(f"the model's {file} is {what}", replaced(file, make), either=optional)
    for key in ("vocab_size", "num_attention_heads", "intermediate_size", "max_position_embeddings", "rope_theta"):
        for text in (HUGE, "1e400", "true", "-1", "0.5"):
            if key == "rope_theta" and text == "0.5":
                continue
            yield changed(f"{key} {text[:9]}", field("config.json", key, text), either=key == "max_position_embeddings")
    for key, text in {
        "eos_token_id": HUGE,
        "bos_token_id": '"x"',
        "pad_token_id": "[[1]]",
        "architectures": '["\\u001b[2J"]',
        "layer_types": "[" + ",".join(['"full_attention"'] * 100_000) + "]",
        "tie_word_embeddings": '"yes"',
        "rope_scaling": '{"rope_type": "yarn", "factor": ' + HUGE + "}",
        "torch_dtype": '"\\u001b[2J"',
        "rope_parameters": '{"rope_type": "\\u001b[2J"}',
        "quantization_config": '{"quant_method": ["x"]}',
        "head_dim": "1e400",
        "sliding_window": "-5",
        "hidden_act": '["silu"]',
        "attention_bias": '"no"',
    }.items():
        yield changed(f"more: {key} {text[:20]!r}", field("config.json", key, text), either=True)
    for name, header in HEADERS.items():
        write = lambda folder, header=header: (folder / WEIGHTS).write_bytes(
            struct.pack("<Q", len(header)) + header + bytes(64)
        )
        yield changed(f"header {name}", write)
    for name, text in TOKENIZERS.items():
        yield changed(f"tokenizer.json {name}", lambda folder, text=text: (folder / "tokenizer.json").write_text(text))
    for key, text in {
        "chat_template": "5",
        "chat_template ": '[{"name": 3, "template": "x"}]',
        "chat_template  ": "[5]",
        "eos_token": "[1]",
        "bos_token": '{"content": 5}',
        "add_bos_token": '"x"',
        "extra_special_tokens": "[5]",
        "added_tokens_decoder": '{"-5": {"content": "x"}}',
        "additional_special_tokens": '"abc"',
    }.items():
        change = field("tokenizer_config.json", key.strip(), text)
        yield changed(f"tokenizer_config {key}: {text}", change, either=True)


HEADERS = {
    "of spaces": b" " * 50_000_000,
    "that is a list": b"[1]",
    "of no bytes": b"",
    "with an escape for a type": b'{"a":{"dtype":"\\u001b[2J","shape":[1],"data_offsets":[0,4]}}',
    "with an escape for a name": b'{"\\u001b[2J\\n":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    "with 100000 dimensions": b'{"a":{"dtype":"F32","shape":['
    + b",".join([b"1"] * 100_000)
    + b'],"data_offsets":[0,4]}}',
    "with floats for offsets": b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0.0,4.0]}}',
    "with offsets of 400 digits": b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,' + HUGE.encode() + b"]}}",
    "with a shape of 400 digits": b'{"a":{"dtype":"F32","shape":[' + HUGE.encode() + b'],"data_offsets":[0,4]}}',
    "with metadata of numbers": b'{"__metadata__":5,"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    "with overlaps": b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},'
    b'"b":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}}',
}


def tokenizer(**changes: Any) -> str:
    """A small tokenizer.json with changes."""
    whole: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
    }
    return json.dumps(whole | changes).replace('"@"', HUGE)


def nested(kind: str, depth: int) -> Any:
    """A sequence in a sequence in a sequence."""
    inner: Any = {"type": "NFC"}
    for _ in range(depth):
        inner = {"type": "Sequence", kind: [inner]}
    return inner


TOKENIZERS = {
    "with an id of 400 digits": tokenizer(model={"type": "BPE", "vocab": {"a": "@"}, "merges": []}),
    "with a negative id": tokenizer(model={"type": "BPE", "vocab": {"a": -1}, "merges": []}),
    "with ids as text": tokenizer(model={"type": "BPE", "vocab": {"a": "0"}, "merges": []}),
    "with merges of numbers": tokenizer(model={"type": "BPE", "vocab": {"a": 0}, "merges": [1, 2]}),
    "with a merge of unknown parts": tokenizer(model={"type": "BPE", "vocab": {"a": 0}, "merges": [["x", "y"]]}),
    "with a model of no type": tokenizer(model={"vocab": 3}),
    "without a model": tokenizer(model=None),
    "with normalizers 40 deep": tokenizer(normalizer=nested("normalizers", 40)),
    "with a slow expression": tokenizer(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    ),
    "with a broken expression": tokenizer(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}
    ),
    "with an added id of 2**63": tokenizer(added_tokens=[{"id": 2**63, "content": "x", "special": True}]),
    "with added tokens of numbers": tokenizer(added_tokens=[5]),
    "with an empty vocabulary": tokenizer(model={"type": "BPE", "vocab": {}, "merges": []}),
    "with escapes for tokens": tokenizer(model={"type": "BPE", "vocab": {"\x1b[2J": 0}, "merges": []}),
    "of an unknown kind": tokenizer(model={"type": "\x1b[2J", "vocab": {}}),
    "of unigrams that are NaN": tokenizer(model={"type": "Unigram", "unk_id": 0, "vocab": [["a", None]]}),
    "that is a number": "5",
    "that is empty": "",
}


def adapters(place: pathlib.Path, config: pathlib.Path) -> Iterator[Attack]:
    """PEFT adapters as the model of `generate`."""
    base = config.parent / "base"
    changes: dict[str, dict[str, Any]] = {
        "rank of 400 digits": {"r": "@"},
        "rank -1": {"r": -1},
        "rank true": {"r": True},
        "alpha NaN": {"lora_alpha": "#"},
        "targets (": {"target_modules": "("},
        "targets (a+)+$": {"target_modules": "(a+)+$"},
        "targets 5": {"target_modules": 5},
        "targets [5]": {"target_modules": [5]},
        "base ../..": {"base_model_name_or_path": "../.."},
        "base /dev/zero": {"base_model_name_or_path": "/dev/zero"},
        "base of escapes": {"base_model_name_or_path": "\x1b[2J"},
        "base 5": {"base_model_name_or_path": 5},
        "a type of escapes": {"peft_type": "\x1b[2J"},
        "pattern 5": {"rank_pattern": 5},
        "pattern of text": {"rank_pattern": {"(": "x"}},
        "dora": {"use_dora": "x"},
    }
    for name, change in changes.items():
        folder = place / f"adapter {len(list(place.iterdir()))}"
        folder.mkdir()
        values = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none"}
        values |= {"base_model_name_or_path": str(base), "task_type": "CAUSAL_LM"}
        text = json.dumps(values | change).replace('"@"', HUGE).replace('"#"', "NaN")
        (folder / "adapter_config.json").write_text(text)
        header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
        (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
        yield Attack("model folders", f"adapter: {name}", ("generate", folder, "--prompt", "a"))


# Run folders and sweeps


def runs(place: pathlib.Path, config: pathlib.Path, sound: pathlib.Path) -> Iterator[Attack]:
    """Changed copies of a finished run."""

    def copy(change: Callable[[pathlib.Path], object]) -> pathlib.Path:
        run = place / f"run {len(list(place.iterdir()))}"
        shutil.copytree(sound, run)
        change(run)
        return run

    names = sorted(path.name for path in sound.iterdir() if path.suffix in (".json", ".jsonl"))
    for number, name in enumerate(names):
        what = ("a folder", "a named pipe", "a socket")[number % 3]
        run = copy(lambda run, name=name, what=what: ((run / name).unlink(), PUT[what](run / name)))
        yield Attack("run folders", f"verify: {name} is {what}", ("verify", run))
        yield Attack("run folders", f"report: {name} is {what}", ("report", run), either=True)
        for text in ("5", "[]", "{}", "NaN" if number % 2 else '{"a": ' + HUGE + "}"):
            command = ("report", "verify")[(number + len(text)) % 2]
            run = copy(lambda run, name=name, text=text: (run / name).write_text(text + "\n"))
            yield Attack("run folders", f"{command}: {name} says {text[:14]}", (command, run), either=True)
    secret = place / "secret"
    secret.write_text("secret")

    def lock(target: Callable[[pathlib.Path], object]) -> pathlib.Path:
        return copy(lambda run: target(run / ".writer"))

    for what, make in {**PUT, "a link out": lambda path: path.symlink_to(secret)}.items():
        command = ("train", config, "--run-dir", lock(make), "--resume")
        yield Attack("run folders", f"train --resume: .writer is {what}", command, either=True, untouched=secret)
    for name in ("model", "checkpoints"):
        run = copy(lambda run, name=name: (shutil.rmtree(run / name), (run / name).symlink_to("/etc")))
        for command in ("verify", "report"):
            yield Attack("run folders", f"{command}: {name} is a link to /etc", (command, run), either=True)
        yield Attack(
            "run folders", f"generate: {name} is a link to /etc", ("generate", run, "--prompt", "a"), either=True
        )
        yield Attack(
            "run folders", f"export: {name} is a link to /etc", ("export-hf", run, place / f"out {name}"), either=True
        )
    for path in ("/dev/zero", "/etc/passwd", "../../../etc/passwd", "\x1b[2J", "a\x00b", "x" * 5000, "5"):
        value = 5 if path == "5" else path
        run = copy(lambda run, value=value: edit(run / "command.json", value))
        yield Attack("run folders", f"verify: command.json names {ascii(path)[:30]}", ("verify", run), either=True)


def edit(path: pathlib.Path, value: Any) -> None:
    """Put a value for every text of a JSON file's first level."""
    values = json.loads(path.read_text())
    path.write_text(json.dumps({key: value if isinstance(old, str) else old for key, old in values.items()}))


def sweeps(place: pathlib.Path) -> Iterator[Attack]:
    """Sweep folders for `report` and `recommend`."""
    texts = (
        "5",
        "[]",
        "{}",
        "[" * 5000,
        HUGE,
        '{"arms": 5}',
        '{"arms": [{"../../x": 1}]}',
        '{"runs": {"../../etc": {}}}',
    )
    for text in texts:
        folder = place / f"sweep {len(list(place.iterdir()))}"
        (folder / "runs").mkdir(parents=True)
        (folder / "sweep.json").write_text(text)
        for command in ("report", "recommend"):
            yield Attack("run folders", f"{command}: sweep.json says {text[:30]}", (command, folder))
    for what, make in PUT.items():
        folder = place / f"sweep {len(list(place.iterdir()))}"
        (folder / "runs").mkdir(parents=True)
        make(folder / "sweep.json")
        yield Attack("run folders", f"report: sweep.json is {what}", ("report", folder))


# Numbers on the command line


def numbers(place: pathlib.Path, config: pathlib.Path, run: pathlib.Path) -> Iterator[Attack]:
    """Numbers that no command can use."""
    for text in ("nan", "inf", "-1", "1e400", "-inf"):
        yield Attack("options", f"generate --temperature {text}", generated(run, "--temperature", text))
    for option, texts in {
        "--top-p": ("nan", "inf", "-1", "0", "2"),
        "--min-p": ("nan", "inf", "-1", "2"),
        "--top-k": ("0x", "-1", HUGE),
        "--max-new-tokens": ("0", "-1", "1e3", HUGE),
        "--seed": (HUGE, "1.5", str(2**64), str(-(2**63) - 1)),
    }.items():
        for text in texts:
            yield Attack("options", f"generate {option} {text[:20]}", generated(run, option, text))
    for values in (
        "--sizes a=nan",
        "--sizes a=-1",
        "--sizes a=0",
        f"--sizes a={HUGE}",
        "--sizes a",
        "--sizes =5",
        "--sizes a=1 a=2",
        "--sizes a=1 --temperature nan",
        "--sizes a=1 --temperature -1",
        "--sizes a=1 --temperature 1e400x",
        "--sizes a=1 --rate-max nan",
        "--sizes a=1 --rate-max -1",
        "--sizes a=1 --max-repeats nan",
        "--sizes a=1 --max-repeats -1",
        "--sizes a=1 --max-examples -1",
        "--sizes a=1 --budget -1",
        f"--sizes a=1 --budget {HUGE}",
        "--sizes a=1 --weights a=nan",
        "--sizes a=1 --weights a=inf",
        "--sizes a=1 --weights a=-1",
        "--sizes a=1 --weights a=0",
        "--sizes a=1 --weights b=1",
        "--sizes a=1 b=2 --weights a=1e-320 b=1e308",
        f"--sizes a=1 --weights a={HUGE}",
    ):
        short = values.replace(HUGE, "9...")
        yield Attack("options", f"mix {short}", ("mix", *values.split()), either="1e-320" in values)
    for values in (
        "--device-gib nan",
        "--device-gib -1",
        "--device-gib 0",
        "--device-gib inf",
        "--devices 0",
        f"--devices {HUGE}",
    ):
        yield Attack("options", f"plan-memory {values[:30]}", ("plan-memory", config, *values.split()))
    for values in (
        "--compare temperature=nan",
        "--compare temperature=-1",
        "--compare temperature=",
        "--compare x=1",
        "--compare =",
        f"--index {HUGE}",
        "--index -1",
        "--index 99999",
        "--examples -1",
        "--task nothing",
        "--id nothing",
        "--task \x1b[2J",
        "--id data.jsonl:99999999999999999999",
    ):
        yield Attack("options", f"preview {ascii(values)[:40]}", ("preview", config, *values.split(" ")))
    for values in (
        "--grid optim.peak-lr=nan",
        "--grid optim.peak-lr=inf,1",
        "--grid optim.peak-lr=",
        "--grid =1",
        "--grid x",
        "--grid",
        "--grid optim.peak-lr=1e-3 --seeds -1",
        f"--grid optim.peak-lr=1e-3 --seeds {HUGE}",
        f"--grid seed={HUGE}",
        "--grid optim.peak-lr=1e-3 --seeds 0 0",
        "--random 0 --space optim.peak-lr=log:1:2",
        "--random 3 --space optim.peak-lr=log:nan:2",
        "--random 3 --space optim.peak-lr=log:0:inf",
        "--random 3 --space optim.peak-lr=log:2:1",
        "--random 3 --space optim.peak-lr=uniform:1e400:2",
        "--random 3 --space optim.peak-lr=spiral:1:2",
        "--random 3 --space x",
        "--mixtures -1",
        "--mixtures 3 --concentration nan",
        "--mixtures 3 --concentration -1",
        "--mixtures 3 --concentration inf",
        "--power nan",
        "--power 0",
        "--power -1",
        "--power inf",
        "--grid optim.peak-lr=1e-3,1e-2 --halving nan",
        "--grid optim.peak-lr=1e-3,1e-2 --halving 1",
        "--grid optim.peak-lr=1e-3,1e-2 --halving 2 --rungs nan,1",
        "--grid optim.peak-lr=1e-3,1e-2 --halving inf",
        "--grid optim.peak-lr=1e-3,1e-2 --halving 2 --rung-decay nan",
        "--grid optim.peak-lr=1e-3 --stacked --stack-size 0",
        f"--grid optim.peak-lr=1e-3 --design-seed {HUGE} --random 2",
        "--arms /dev/zero",
        "--arms /dev/null",
        "--arms /",
    ):
        command = ("sweep", config, "--sweep-dir", place / "never", "--dry-run", *values.split())
        yield Attack("options", f"sweep {values.replace(HUGE, '9...')}", command, either="--power" in values)
    for values in (
        "--heartbeat-seconds 0 --coordinator localhost:9 --processes 2 --process 0",
        "--resume-step -1",
        f"--resume-step {HUGE}",
        "--coordinator x --processes 2 --process 0",
        "--coordinator localhost:99999 --processes 2 --process 0",
        f"--coordinator localhost:9 --processes {HUGE} --process 0 --start-seconds 1",
        f"--coordinator localhost:{HUGE} --processes 2 --process 1 --start-seconds 1",
        "--process -1 --processes 1 --coordinator a:1",
        "--coordinator \x1b[2J:1 --processes 2 --process 1 --start-seconds 1",
        "--start-seconds 0",
        "--heartbeat-seconds 99999999",
    ):
        command = ("train", config, "--run-dir", place / "never", *values.split(" "))
        yield Attack("options", f"train {ascii(values.replace(HUGE, '9...'))}", command, either="76" in values)
    for option, text in (("--limit", HUGE), ("--limit", "-1"), ("--limit", "x")):
        bad = place / "for limits.jsonl"
        bad.write_bytes(b"{}\n")
        yield Attack("options", f"validate {option} {text[:9]}", ("validate", bad, option, text))
    for text in ("-1", "x", "nan", HUGE):
        yield Attack("options", f"export-hf --step {text[:9]}", ("export-hf", run, place / "exported", "--step", text))
        yield Attack("options", f"verify --replay {text[:9]}", ("verify", run, "--replay", text), either=text == HUGE)
    for values in ("--examples 0", f"--examples {HUGE}", "--tasks nothing large", "--tasks large", "--seeds nan"):
        tasks = () if "--tasks" in values else ("--tasks", "large", "small")
        command = ("conflict", config, "--sweep-dir", place / "never", *tasks, "--dry-run", *values.split())
        yield Attack("options", f"conflict {values[:40]}", command, either=True)


def generated(run: pathlib.Path, *options: str) -> tuple[object, ...]:
    return "generate", run, "--prompt", "a", *options
