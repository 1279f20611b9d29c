"""Hostile inputs: data, model folders, templates, configs and options that nobody should be able to hurt with."""

import gzip
import json
import os
import pathlib
import shutil
import struct
from collections.abc import Callable, Iterator
from typing import Any

import more_inputs
import shared
from hostile import ANSWER, WEIGHTS, Attack, chat, field, lines
from shared import Log

from jaxtune.errors import printable

MEMORY = 10 << 30
"""Address space of a command: JAX alone maps some GB that it does not use."""


def campaign(folder: pathlib.Path, log: Log, seed: int) -> None:
    """Every attack that was not tried yet."""
    config = shared.prepare(folder / "project")
    place = folder / "hostile"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    attacks = [*data_files(place), *data_in_a_run(place, config), *model_folders(place, config.parent / "base")]
    attacks += [*templates(place, config), *config_files(place), *options(config), *run_folders(place, config)]
    attacks += more_inputs.attacks(place / "more", config, place.parent / "finished run")
    names = [attack.name for attack in attacks]
    assert len(set(names)) == len(names), "two attacks have one name"
    for attack in attacks:
        if log.wants("inputs", attack.name):
            judge(attack, folder, log)


def judge(attack: Attack, folder: pathlib.Path, log: Log) -> None:
    """An error in words within bounds of time and memory, and nothing written where nothing belongs."""
    canary = folder / "canary"
    canary.unlink(missing_ok=True)
    environ = {"JAXTUNE_CACHE": str(folder / "cache")}
    command = shared.jaxtune(*attack.command)
    before = attack.untouched.read_bytes() if attack.untouched else None
    said = shared.run(command, folder / "said.log", seconds=60, memory=MEMORY, environ=environ)
    raw = [character for character in said.text if printable(character) != character != "\r"]
    allowed = (0,) if attack.accepted else (0, 1, 2, 74, 76) if attack.either else (1, 2)
    ended = said.code in allowed
    wrote = canary.exists() or (attack.untouched is not None and attack.untouched.read_bytes() != before)
    right = ended and not said.crashed and not raw and not wrote
    trouble = (f"{len(raw)} control characters; " if raw else "") + ("wrote a file; " if wrote else "")
    log.add("inputs", attack.name, attack.kind, right, f"{trouble}{said.seconds:.1f} s, {said.in_short()}")


# Data


def data_contents() -> Iterator[tuple[str, bytes]]:
    """File name and content; every one has an error."""
    good = [chat(n) for n in range(5)]
    deep = b'{"a":' * 600 + b"1" + b"}" * 600
    yield "nested 600 deep.jsonl", lines(*good, json.dumps(chat(9))[:-1].encode() + b', "meta": ' + deep + b"}\n")
    yield "nested 100000 deep.jsonl", lines(b"[" * 100_000 + b"]" * 100_000 + b"\n")
    yield "number of 5000 digits.jsonl", lines(*good, b'{"id": "x", "messages": ' + b"9" * 5000 + b"}\n")
    yield "weight 1e300.jsonl", lines({"messages": [{"role": "user", "content": "a"}, {**ANSWER, "weight": 1e300}]})
    yield "weight -1.jsonl", lines({"messages": [{"role": "user", "content": "a"}, {**ANSWER, "weight": -1}]})
    yield "NaN.jsonl", lines(b'{"id": "x", "weight": NaN, "messages": []}\n')
    yield "1e400.jsonl", lines(b'{"id": "x", "weight": 1e400, "messages": []}\n')
    yield "key twice.jsonl", lines(b'{"id": "x", "id": "y", "messages": []}\n')
    yield "NUL bytes.jsonl", lines(*good) + bytes(1000)
    yield "overlong UTF-8.jsonl", lines(*good) + b'{"id": "\xc0\xaf"}\n'
    yield "lone surrogate.jsonl", lines(b'{"messages": [{"role": "user", "content": "\\ud83d"}]}\n')
    yield "carriage returns alone.jsonl", lines(*good).replace(b"\n", b"\r")
    yield "utf-16.jsonl", lines(*good).decode().encode("utf-16")
    yield "roles as lists.jsonl", lines({"messages": [{"role": ["user"], "content": "a"}, ANSWER]})
    yield "roles as objects.jsonl", lines({"messages": [{"role": {"a": 1}, "content": "a"}, ANSWER]})
    yield "messages as a number.jsonl", lines({"messages": 7})
    yield "200000 messages.jsonl", lines({"messages": [{"role": "user", "content": "a"}] * 200_000})
    yield "a line of 20 MB.jsonl", lines({"messages": [{"role": "user", "content": "a" * 20_000_000}]})
    yield (
        "terminal escapes.jsonl",
        lines({**chat(1), "id": "\x1b]0;PWNED\x07\x1b[2J", "\x1b[31mfield": 1, "messages": 3}),
    )
    yield "right to left.jsonl", lines({**chat(1), "id": "\u202egnp.exe", "messages": 3})
    yield (
        "tool calls of strings.jsonl",
        lines({"messages": [{"role": "user", "content": "a"}, {**ANSWER, "tool_calls": 3}]}),
    )
    yield "labels shifted.jsonl", lines({"input_ids": [1, 2, 3], "labels": [2, 3, -100]})
    yield "ids of 2**63.jsonl", lines({"tokens": [1, 2**63], "loss_mask": [0, 1]})
    yield "negative ids.jsonl", lines({"tokens": [1, -5], "loss_mask": [0, 1]})
    yield "ids true.jsonl", lines({"tokens": [True, False], "loss_mask": [0, 1]})
    yield "an array.json", json.dumps(good).encode()
    yield "empty.jsonl", b""
    yield "noise.jsonl", bytes(range(256)) * 40
    yield "gz cut.jsonl.gz", gzip.compress(lines(*good))[:-9]
    yield "gz garbage behind.jsonl.gz", gzip.compress(lines(*good)) + b"garbage"
    yield "gz bomb.jsonl.gz", gzip.compress(b" " * 400_000_000, 1)
    yield "zst noise.jsonl.zst", b"\x28\xb5\x2f\xfd" + b"\x00" * 100
    yield "noise.parquet", b"PAR1" + bytes(100) + b"PAR1"
    yield "noise.array_record", b"riegeli" * 30


def data_files(place: pathlib.Path) -> Iterator[Attack]:
    """Files for `validate`."""
    for name, content in data_contents():
        (place / name).write_bytes(content)
        yield Attack("data files", name, ("validate", place / name))
    yield Attack("data files", "no such file", ("validate", place / "none.jsonl"))
    yield Attack("data files", "a name of 300 characters", ("validate", place / ("x" * 300 + ".jsonl")))
    os.mkfifo(place / "pipe.jsonl")
    yield Attack("data files", "a named pipe", ("validate", place / "pipe.jsonl"))
    (place / "loop.jsonl").symlink_to(place / "loop.jsonl")
    yield Attack("data files", "a loop of links", ("validate", place / "loop.jsonl"))
    (place / "null.jsonl").symlink_to("/dev/zero")
    yield Attack("data files", "an endless device", ("validate", place / "null.jsonl"))
    bad = place / "\x1b[2J\x1b]0;x\x07.jsonl"
    bad.write_bytes(b"{}\n")
    yield Attack("data files", "escapes in the file's name", ("validate", bad))
    (place / "sound.jsonl").write_bytes(lines(*map(chat, range(5))))
    yield Attack("data files", "a sound file", ("validate", place / "sound.jsonl"), accepted=True)
    for number, state in enumerate(STATES):
        folder = place / f"arrow{number}"
        folder.mkdir()
        (folder / "state.json").write_text(json.dumps(state))
        yield Attack("data files", f"state.json {json.dumps(state)[:60]}", ("validate", folder))


STATES: tuple[Any, ...] = (
    {"_data_files": [{"filename": "../arrow1/data.arrow"}]}, {"_data_files": [{"filename": "/etc/passwd"}]},
    {"_data_files": 5}, [], {"_data_files": [{"filename": None}]}, {"_data_files": [{"filename": ".."}]},
)  # fmt: skip


def data_in_a_run(place: pathlib.Path, config: pathlib.Path) -> Iterator[Attack]:
    """The same files as the data of a run: refused before anything is written."""
    for name, content in list(data_contents())[:16:2]:
        project = place / f"run {name}"
        shutil.copytree(config.parent, project, ignore=shutil.ignore_patterns("cache", "making", "programs"))
        if name.endswith(".jsonl"):
            (project / "middle-train.jsonl").write_bytes(content)
            command = ("train", project / "config.py", "--run-dir", project / "run")
            yield Attack("data of a run", f"train on {name}", command)


# Models

NUMBERS = ("NaN", "Infinity", "-1", "0", "1e300", "9223372036854775808", '"8"', "null", "[8]")


def model_folders(place: pathlib.Path, base: pathlib.Path) -> Iterator[Attack]:
    """Changed copies of a model folder for `import-hf`."""

    def changed(name: str, change: Callable[[pathlib.Path], object], *, accepted: bool = False) -> Attack:
        folder = place / f"model {len(list(place.iterdir()))}"
        shutil.copytree(base, folder)
        change(folder)
        return Attack("model folders", name, ("import-hf", folder), accepted)

    write = lambda file, content: lambda folder: (folder / file).write_bytes(content)
    yield changed("the sound folder", lambda folder: None, accepted=True)
    for key in ("hidden_size", "num_hidden_layers", "rms_norm_eps"):
        for text in NUMBERS:
            if key == "rms_norm_eps" and text in ("0", "null"):
                continue  # a model without an epsilon, and one with the family's own: both are sound
            yield changed(f"{key} {text}", field("config.json", key, text))
    for key, text in (("model_type", '["llama"]'), ("model_type", '"\\u001b[2J"'), ("rope_scaling", "[1]")):
        yield changed(f"{key} {text}", field("config.json", key, text))
    deep = b"[" * 100_000 + b"]" * 100_000
    for file in ("config.json", "tokenizer_config.json", "model.safetensors.index.json", "tokenizer.json"):
        yield changed(f"{file} nested 100000 deep", write(file, deep))
        yield changed(f"{file} of noise", write(file, bytes(range(256))))
    outside = place / "outside.safetensors"
    shutil.copyfile(base / "model.safetensors", outside)
    for target in ("../outside.safetensors", str(outside), "a/b.safetensors", 5, ["x"], None, "..\\x", "\x00"):
        yield changed(f"index names {target!r}", index_to(target))
    yield changed("index is a list", write("model.safetensors.index.json", b'{"weight_map": [1, 2]}'))
    yield changed("weights are a pipe", lambda folder: ((folder / WEIGHTS).unlink(), os.mkfifo(folder / WEIGHTS)))
    yield changed("weights link in a loop", lambda folder: loop(folder / WEIGHTS))
    for name, header in HEADERS.items():
        yield changed(f"header {name}", write(WEIGHTS, struct.pack("<Q", len(header)) + header + bytes(64)))
    yield changed("header of 2**62 bytes", write(WEIGHTS, struct.pack("<Q", 1 << 62)))
    yield changed("weights cut", lambda folder: cut(folder / WEIGHTS))
    yield changed("no weights", lambda folder: (folder / WEIGHTS).unlink())
    yield changed("tokenizer of noise", write("tokenizer.model", bytes(range(256)) * 9))


HEADERS = {
    "of noise": bytes(range(200, 256)),
    "with a key twice": b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
    b'"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
    "nested": b'{"a":' * 20_000,
    "with negative offsets": b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}',
    "with a shape of 2**62": b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]}}',
    "with true for a shape": b'{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}',
}


def index_to(target: Any) -> Callable[[pathlib.Path], object]:
    """An index that puts every tensor into one file."""

    def change(folder: pathlib.Path) -> None:
        from safetensors import safe_open

        with safe_open(folder / WEIGHTS, "np") as file:
            names = list(file.keys())
        (folder / WEIGHTS).unlink()
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, target)}))

    return change


def loop(path: pathlib.Path) -> None:
    path.unlink()
    path.symlink_to(path)


def cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


# Templates


def templates(place: pathlib.Path, config: pathlib.Path) -> Iterator[Attack]:
    """Chat templates that reach out of the sandbox, grow without end, or never end."""
    canary = place.parent / "canary"
    touch = f"__import__('os').system('touch {canary}')"
    texts = {
        "globals of cycler": f"{{{{ cycler.__init__.__globals__.os.system('touch {canary}') }}}}",
        "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "attr filter": "{{ ''|attr('__class__') }}",
        "format": "{{ '{0.__class__}'.format(messages) }}",
        "map attribute": "{{ messages|map(attribute='__class__')|list }}",
        "context": "{{ self._TemplateReference__context }}",
        "eval of a global": f"{{{{ eval({touch!r}) }}}}",
        "import": "{% import 'os' as os %}",
        "include": "{% include '/etc/passwd' %}",
        "power": "{{ 10**10**9 }}",
        "repeat": "{{ 'a'*10**10 }}",
        "percent": "{{ '%999999999d' % 1 }}",
        "indent": "{{ [[[[[1]]]]]|tojson(indent=1000000000) }}",
        "nested tojson": "{{ " + "[" * 60 + "]" * 60 + "|tojson(indent=1000000)|length }}",
        "list of strings": "{% set ns=namespace(l=[]) %}{% for i in range(9000) %}"
        "{% set ns.l = ns.l + ['a'*3900000] %}{% endfor %}",
        "range": "{% for i in range(10**9) %}{% endfor %}",
        "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "brackets": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "nots": "{{ " + "not " * 5000 + "1 }}",
        "sum": "{{ " + "+".join(["'a'"] * 8000) + " }}",
        "elifs": "{% if 0 %}" + "{% elif 0 %}" * 3000 + "{% endif %}",
        "loops 25 deep": "{% for a in [1] %}" * 25 + "{% endfor %}" * 25,
        "syntax": "{% for %}{{",
        "unknown filter": "{{ messages|nothing }}",
        "terminal": "{{ raise_exception('\x1b[2Jx') }}",
        "writes nothing": "nothing",
    }
    for name, text in texts.items():
        file = place / f"{name}.jinja"
        file.write_text(text)
        yield Attack("templates", f"template {name}", ("preview", config, "--model.template", file))


# Configs and options


def config_files(place: pathlib.Path) -> Iterator[Attack]:
    """Config files that raise, leave, loop or return something else."""
    bodies = {
        "raises ValueError": "raise ValueError('no')", "raises OSError": "open('/no/such')",
        "recursion without end": "return config()", "leaves": "import sys; sys.exit(0)",
        "returns a number": "return 5", "divides by zero": "return 1 / 0", "asserts": "assert False, 'no'",
        "names nothing": "return nothing", "interrupts nothing": "raise StopIteration",
    }  # fmt: skip
    for name, body in bodies.items():
        file = place / f"config {name}.py"
        file.write_text(f"def config():\n    {body}\n")
        yield Attack("config files", f"config {name}", ("options", file))
    for name, text in {
        "syntax": "def config(:\n",
        "nothing": "",
        "noise": "\x00\x01",
        "leaves": "raise SystemExit(0)",
    }.items():
        file = place / f"text {name}.py"
        file.write_text(text)
        yield Attack("config files", f"config file with {name}", ("options", file))


def options(config: pathlib.Path) -> Iterator[Attack]:
    """Values that no run can have."""
    values = (
        *("seed 9223372036854775808", "seed x", "batch.rows 1000000000000", "batch.rows 0", "batch.rows -1"),
        *("duration.steps 1000000000000000", "duration.steps nan", "optim.peak-lr nan", "optim.peak-lr -1"),
        *(
            "optim.peak-lr inf",
            "optim.b1 1.5",
            "optim.clip-norm -1",
            "health.spike-factor nan",
            "data.prefetch 1000000000",
        ),
        *("health.skip-budget -5", "health.peak-flops -1", "lora.targets (", "data.seq-len 0", "data.seq-len 1e9"),
        *("mixture.temperature -1", "mixture.temperature nan", "mixture.max-repeats 0", "eval.every -3"),
        *("checkpoint.save-every 0", "checkpoint.keep-latest -1", "mesh.devices 99", "optim.schedule spiral"),
        *("loss.label-smoothing 2", "model.template-date yesterday", "data.processes 100000", "temperature 3"),
    )
    for value in values:
        name, _, text = value.partition(" ")
        command = ("train", config, "--run-dir", config.parent / "never", f"--{name}", text)
        yield Attack("options", f"--{value}", command)
    for text in ("gs://bucket/run", "/proc/1/run", "x\x00y", "a" * 300):
        yield Attack("options", f"--run-dir {text[:40]!r}", ("train", config, "--run-dir", text))


# Run folders of others


def run_folders(place: pathlib.Path, config: pathlib.Path) -> Iterator[Attack]:
    """Changed copies of a finished run, for the commands that read run folders."""
    sound = place.parent / "finished run"
    if not (sound / "seal.json").exists():
        shutil.rmtree(sound, ignore_errors=True)
        train = shared.jaxtune(*shared.quick("train", config, "--run-dir", sound))
        said = shared.run(train, place.parent / "making.log", seconds=600)
        assert said.code == 0, said.text
    put = {
        "a pipe": lambda path: os.mkfifo(path),
        "an endless device": lambda path: path.symlink_to("/dev/zero"),
        "a loop of links": lambda path: path.symlink_to(path),
    }
    for number, (what, make) in enumerate(put.items()):
        for name in ("config.json", "metrics.jsonl", "seal.json", "summary.json", f"model/{WEIGHTS}"):
            run = place / f"run {number} {name.replace('/', ' ')}"
            shutil.copytree(sound, run)
            (run / name).unlink()
            make(run / name)
            yield Attack("run folders", f"{name} is {what}", ("verify", run))
        yield Attack("run folders", f"generate: weights are {what}", ("generate", run, "--prompt", "a"))
        strange = place / f"strange {number}"
        shutil.copytree(sound, strange)
        make(strange / "more")
        yield Attack("run folders", f"beside the run's files is {what}", ("verify", strange), accepted=True)
    escapes = place / "escapes"
    shutil.copytree(sound, escapes)
    (escapes / "\x1b[2J\x9b31m\u202egnp.exe").write_text("x")
    (escapes / "upwards").symlink_to(escapes)
    for command in ("verify", "report"):
        yield Attack("run folders", f"{command}: escapes in a file's name", (command, escapes), accepted=True)
    lines = (escapes / "metrics.jsonl").read_text().splitlines()
    nested = place / "nested"
    shutil.copytree(sound, nested, symlinks=True)
    (nested / "metrics.jsonl").write_text("\n".join([*lines, "[" * 100_000 + "]" * 100_000, ""]))
    yield Attack("run folders", "report: metrics nested 100000 deep", ("report", nested))
