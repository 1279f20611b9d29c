"""The built-in templates against stored renders, and templates that come with a model."""

import dataclasses
import datetime
import json
import os
import pathlib
import re

import pytest
from chats import chats_for, family_tokenizer, picture

import jaxtune
from jaxtune.chat import (
    TEMPLATES,
    Bos,
    ChatTemplate,
    Conversation,
    Message,
    Reasoning,
    load_template,
    render,
    render_prompt,
    render_text,
)
from jaxtune.chat.tokenizer import ByteTokenizer
from jaxtune.errors import UserError

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "templates"


def golden_text(name):
    tokenizer = family_tokenizer(name)
    parts = []
    for chat in chats_for(name):
        parts.append(f"=== {chat.id}\n{picture(render(chat, TEMPLATES[name], tokenizer), tokenizer)}")
        prompt = tokenizer.decode(render_prompt(chat, TEMPLATES[name], tokenizer))
        parts.append(f"=== {chat.id}, prompt of the last answer\n{prompt}")
    return "\n".join(parts) + "\n"


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_built_in_template_renders_as_stored(name):
    """What trains stands between « and »: the answer with its end-of-turn token, nothing else."""
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("JAXTUNE_UPDATE_GOLDEN"):
        file.write_text(golden_text(name), encoding="utf-8")
    assert golden_text(name) == file.read_text(encoding="utf-8"), (
        f"the render of template {name!r} moved. Models tuned with it expect the stored text; change it only to follow "
        "the family's own template, then regenerate: JAXTUNE_UPDATE_GOLDEN=1 pytest tests/chat/test_template.py"
    )


def test_every_template_file_is_in_the_table():
    folder = pathlib.Path(jaxtune.__file__).parent / "chat" / "templates"
    files = {path.stem for path in folder.glob("*.jinja")}
    assert files == set(TEMPLATES)


def test_a_template_is_found_in_every_place_where_models_keep_it(tmp_path):
    source = TEMPLATES["chatml"].source
    other = "{{ 'other' }}"
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": source}))
    assert load_template(tmp_path).source == source
    named = [{"name": "default", "template": source}, {"name": "rag", "template": other}]
    config.write_text(json.dumps({"chat_template": named}))
    assert load_template(tmp_path).source == source
    assert load_template(tmp_path, "rag").source == other
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": other}))
    assert load_template(tmp_path).source == other
    (tmp_path / "chat_template.jinja").write_text(source)
    assert load_template(tmp_path).source == source == load_template(tmp_path / "chat_template.jinja").source
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text(other)
    assert load_template(tmp_path, "tool_use").source == other


@pytest.mark.parametrize(
    ("files", "variant", "message"),
    [
        ({}, "default", "no chat template here"),
        ({"tokenizer_config.json": "{}"}, "default", "no chat template here"),
        ({"tokenizer_config.json": '{"chat_template": null}'}, "default", "Base models have none: choose a built-in"),
        ({"tokenizer_config.json": '{"chat_template": 3}'}, "default", "neither a text nor a list"),
        ({"tokenizer_config.json": '{"chat_template": '}, "default", "not valid JSON"),
        ({"tokenizer_config.json": '{"chat_template": "x"}'}, "rag", "has no chat template 'rag'; it has: default"),
    ],
)
def test_a_missing_or_damaged_template_is_an_error_with_a_remedy(tmp_path, files, variant, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        load_template(tmp_path, variant)


def test_a_template_that_is_not_text_is_an_error(tmp_path):
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe{{")
    with pytest.raises(UserError, match=r"chat_template\.jinja: byte 1: not UTF-8"):
        load_template(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        load_template(tmp_path / "nothing")


def test_the_fingerprint_follows_all_that_decides_a_render():
    """Prevents a stale cache: a changed template, variable or date changes the key."""
    template = TEMPLATES["qwen3"]
    changed = [
        dataclasses.replace(template, source=template.source + " "),
        dataclasses.replace(template, variables={"enable_thinking": False}),
        dataclasses.replace(template, today=template.today.replace(year=2025)),
        dataclasses.replace(template, exact_marks=True),
    ]
    prints = {t.fingerprint for t in [template, *changed]}
    assert len(prints) == 5
    assert dataclasses.replace(template, name="other").fingerprint == template.fingerprint


def test_variables_reach_the_template_and_their_order_is_irrelevant():
    one = ChatTemplate(name="t", source="", variables={"b": 1, "a": "x"})
    assert one == ChatTemplate(name="t", source="", variables={"a": "x", "b": 1}) and hash(one)
    quiet = dataclasses.replace(TEMPLATES["qwen3"], variables={"enable_thinking": False})
    chat = Conversation([Message("user", "hi"), Message("assistant", "ho")])
    tokenizer = family_tokenizer("qwen3")
    assert picture(render(chat, TEMPLATES["qwen3"], tokenizer), tokenizer).endswith(
        "assistant\n«<think>\n\n</think>\n\nho<|im_end|>»\n"
    )
    assert picture(render(chat, quiet, tokenizer), tokenizer).endswith(
        "assistant\n<think>\n\n</think>\n\n«ho<|im_end|>»\n"
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_marks_and_prefix_rendering_find_the_same_responses(name):
    """Prevents an all-zero mask for templates without generation marks: the mask is derived, and right."""
    bare = re.sub(r"\bgeneration\b", "if true", TEMPLATES[name].source).replace("endgeneration", "endif")
    assert bare != TEMPLATES[name].source and "generation %}" not in bare
    tokenizer = family_tokenizer(name)
    for chat in chats_for(name):
        marked = render(chat, TEMPLATES[name], tokenizer)
        derived = render(chat, ChatTemplate(name="bare", source=bare), tokenizer)
        assert picture(derived, tokenizer) == picture(marked, tokenizer)


# Settings of a template


@pytest.mark.parametrize("value", [False, True, 3, 0.5, 'it\'s "so"\n{{ x }}'])
def test_an_exported_template_takes_its_variables_for_defaults(value):
    """Prevents a model that is asked in another way than it was trained, wherever it is loaded."""
    source = "{{ mood | tojson }}" + TEMPLATES["chatml"].source
    told = ChatTemplate(name="told", source=source, variables={"mood": value}, bos=Bos.ADD)
    tokenizer = ByteTokenizer(eos="<|im_end|>")
    asked = Conversation([Message("user", "a"), Message("assistant", "b")])
    alone = ChatTemplate(name="alone", source=told.portable)
    assert render_text(asked, alone, tokenizer) == render_text(asked, told, tokenizer)
    assert render_text(asked, told, tokenizer).startswith("<bos>" + json.dumps(value))
    other = dataclasses.replace(alone, variables={"mood": "other"})
    assert render_text(asked, other, tokenizer).startswith('<bos>"other"'), "defaults give way to what is asked for"
    assert told.described == f"told, mood={value!r}, BOS: add"


def test_settings_change_the_fingerprint_and_dates_are_said():
    dated = ChatTemplate(name="dated", source="{{ strftime_now('%d') }}")
    assert dated.described == "dated, dated 2024-07-26"
    changes = (
        {"variables": {"a": 1}},
        {"today": datetime.date(2025, 1, 1)},
        {"exact_marks": True},
        {"bos": Bos.ADD},
        {"reasoning": Reasoning.DROP},
    )
    prints = {dataclasses.replace(dated, **change).fingerprint for change in changes} | {dated.fingerprint}
    assert len(prints) == len(changes) + 1


@pytest.mark.parametrize("name", ["", "a b", "__class__", "x = 1 %}"])
def test_a_variable_without_a_proper_name_is_refused(name):
    with pytest.raises(UserError, match="can't be named"):
        ChatTemplate(name="t", source="", variables={name: 1})
