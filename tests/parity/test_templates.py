"""Renders against `transformers`: our sandbox, the built-in templates, and the prompts for generation."""

import datetime
import json
import os
import pathlib

import pytest
from chats import SINGLE, TOOL, TOOLS, TURNS, WITHOUT_SYSTEM, chats_for, family_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune.chat import TEMPLATES, ChatTemplate, Conversation, Message, render_text
from jaxtune.chat import sandbox as jinja
from jaxtune.errors import UserError

pytestmark = pytest.mark.parity
chat_template_utils = pytest.importorskip("transformers.utils.chat_template_utils")
trl_templates = pytest.importorskip("trl.chat_template_utils")

TRL = pathlib.Path(trl_templates.__file__).parent / "chat_templates"
FAMILIES = {
    "gemma2": "gemma",
    "gemma3": "gemma3",
    "llama3": "llama3",
    "phi3": "phi3",
    "qwen2.5": "qwen2_5",
    "qwen3": "qwen3",
}
"""The families' own templates, as TRL keeps them to recognise models by."""
ZEPHYR = (
    "{% for message in messages %}\n"
    "{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n"
    "{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def original(name):
    if name in FAMILIES:
        return (TRL / f"{FAMILIES[name]}.jinja").read_text(encoding="utf-8")
    return {"zephyr": ZEPHYR, "chatml": CHATML}[name]


def as_dicts(conversation):
    messages = []
    for message in conversation.messages:
        plain = {"role": message.role, "content": message.content}
        plain |= {"tool_calls": list(message.tool_calls)} if message.tool_calls else {}
        plain |= {"reasoning_content": message.reasoning} if message.reasoning is not None else {}
        messages.append(plain | ({"name": message.name} if message.name else {}))
    return messages


def theirs(source, messages, tools, variables, *, generation_prompt=False):
    rendered, _ = chat_template_utils.render_jinja_template(
        [messages], tools=tools, chat_template=source, add_generation_prompt=generation_prompt, **variables
    )
    return rendered[0]


def ours(source, messages, tools, variables, *, generation_prompt=False, today=None):
    variables = {
        "messages": messages,
        "tools": tools,
        "documents": None,
        "add_generation_prompt": generation_prompt,
        **variables,
    }
    template = jinja.compile_template(source, "theirs")
    return jinja.render(template, "theirs", variables, today=today or datetime.date.today()).text


def specials(name):
    tokenizer = family_tokenizer(name)
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    return {key: tokenizer.piece(token) for key, token in ids.items() if token is not None}


@pytest.mark.parametrize("name", [*FAMILIES, "zephyr", "chatml"])
def test_a_built_in_template_renders_byte_for_byte_like_the_familys_own(name):
    tokenizer = family_tokenizer(name)
    for conversation in chats_for(name):
        tools = None if conversation.tools is None else list(conversation.tools)
        text = render_text(conversation, TEMPLATES[name], tokenizer)
        assert text == theirs(original(name), as_dicts(conversation), tools, specials(name))
        prompt = as_dicts(conversation)[:-1]
        expected = theirs(original(name), prompt, tools, specials(name), generation_prompt=True)
        assert ours(TEMPLATES[name].source, prompt, tools, specials(name), generation_prompt=True) == expected


TEXT = st.text("ab \n<>|/think", max_size=10)
TURN = st.tuples(TEXT, TEXT, st.none() | TEXT)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from([*FAMILIES, "zephyr", "chatml"]),
    system=st.none() | TEXT,
    turns=st.lists(TURN, min_size=1, max_size=3),
)
def test_generated_chats_render_like_the_familys_own(name, system, turns):
    messages = [] if system is None or name in WITHOUT_SYSTEM else [{"role": "system", "content": system}]
    for question, answer, thought in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
        if thought is not None and name == "qwen3":
            messages[-1]["reasoning_content"] = thought
    for prompt in (False, True):
        expected = theirs(original(name), messages, None, specials(name), generation_prompt=prompt)
        assert ours(TEMPLATES[name].source, messages, None, specials(name), generation_prompt=prompt) == expected


@pytest.mark.parametrize("thinking", [True, False])
def test_qwen3_follows_enable_thinking_like_the_familys_own(thinking):
    for conversation in (SINGLE, TURNS, TOOLS):
        tools = None if conversation.tools is None else list(conversation.tools)
        variables = {"enable_thinking": thinking}
        for messages, prompt in ((as_dicts(conversation), False), (as_dicts(conversation)[:-1], True)):
            expected = theirs(original("qwen3"), messages, tools, variables, generation_prompt=prompt)
            assert ours(TEMPLATES["qwen3"].source, messages, tools, variables, generation_prompt=prompt) == expected


@pytest.mark.parametrize("file", sorted(TRL.glob("*.jinja")), ids=lambda path: path.stem)
def test_our_sandbox_renders_every_template_like_transformers(file):
    """Some sixty families' templates, with system messages, several turns, tools and reasoning."""
    source = file.read_text(encoding="utf-8")
    variables = {"bos_token": "<bos>", "eos_token": "<eos>"}
    rendered = 0
    for conversation in (SINGLE, TURNS, TOOLS, Conversation(SINGLE.messages, tools=[TOOL])):
        tools = None if conversation.tools is None else list(conversation.tools)
        for messages, prompt in ((as_dicts(conversation), False), (as_dicts(conversation)[:-1], True)):
            # `transformers` gives templates the reasoning under this name, too; so does `chat`.
            messages = [
                m | ({"thinking": m["reasoning_content"]} if "reasoning_content" in m else {}) for m in messages
            ]
            try:
                expected = theirs(source, messages, tools, variables, generation_prompt=prompt)
            except (TypeError, ValueError, chat_template_utils.jinja2.TemplateError) as error:
                with pytest.raises(UserError, match="chat template 'theirs'"):
                    ours(source, messages, tools, variables, generation_prompt=prompt)
                assert error is not None
                continue
            assert ours(source, messages, tools, variables, generation_prompt=prompt) == expected
            rendered += 1
    assert rendered >= 2


REAL = pathlib.Path(os.environ.get("JAXTUNE_TOKENIZERS", ""))


@pytest.mark.skipif(not REAL.name, reason="JAXTUNE_TOKENIZERS names no folder of real tokenizers")
@pytest.mark.parametrize(("folder", "name"), [("qwen3", "qwen3"), ("gemma3", "gemma3"), ("llama3_1", "llama3")])
def test_built_in_templates_equal_those_of_real_tokenizer_folders(folder, name):
    source = json.loads((REAL / folder / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
    tokenizer = family_tokenizer(name)
    for conversation in chats_for(name):
        own = ChatTemplate(name=name, source=source)
        assert render_text(conversation, TEMPLATES[name], tokenizer) == render_text(conversation, own, tokenizer)


SMOLLM2 = pathlib.Path(os.environ.get("JAXTUNE_SMOLLM2", ""))


@pytest.mark.skipif(not SMOLLM2.name, reason="JAXTUNE_SMOLLM2 names no model folder")
def test_smollm2_renders_like_its_own_template():
    source = (SMOLLM2 / "chat_template.jinja").read_text(encoding="utf-8")
    for conversation in (SINGLE, TURNS, Conversation([Message("system", ""), *SINGLE.messages])):
        expected = theirs(source, as_dicts(conversation), None, {})
        assert ours(TEMPLATES["smollm2"].source, as_dicts(conversation), None, {}) == expected
