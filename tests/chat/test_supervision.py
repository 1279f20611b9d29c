"""The proof of supervision: its parts, and the rules on BOS, on calls, and on text that a tokenizer cannot spell."""

import dataclasses
import datetime
import json
import math

import numpy as np
import pytest
from chats import TURNS, picture
from hypothesis import given
from hypothesis import strategies as st
from reasoning_templates import TEXT_ARGUMENTS, TOKENIZER, shape

from jaxtune.batch import Example
from jaxtune.chat import TEMPLATES, Bos, ChatTemplate, Conversation, Message, check, render, render_prompt, render_text
from jaxtune.chat.supervision import _runs
from jaxtune.chat.tokenizer import ByteTokenizer
from jaxtune.errors import UserError

CHATML = TEMPLATES["chatml"]
END = 9


@given(st.integers(1, 3), st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=5))
def test_a_run_ends_where_the_weight_or_the_turn_ends(before, turns):
    """Prevents two answers without a prompt between them from passing for one."""
    tokens, weights, wanted = [1] * before, [0.0] * before, []
    for prompt, said in turns:
        tokens += [1] * prompt + [2] * said + [END]
        weights += [0.0] * prompt + [1.0] * (said + 1)
        wanted.append((len(tokens) - said - 1, len(tokens)))
    example = Example(tokens=np.array(tokens, np.int32), loss_weights=np.array(weights, np.float32))
    assert _runs(example, 0.0, [END]) == wanted


# BOS


@pytest.mark.parametrize("bos", Bos)
def test_a_missing_bos_is_named_and_added_by_choice(bos):
    """Prevents training without the token that a model saw before every text."""
    tokenizer = ByteTokenizer(eos="<|im_end|>", adds_bos=True)
    template = dataclasses.replace(CHATML, bos=bos)
    example = render(TURNS, template, tokenizer)
    rules = [violation.rule for violation in check(example, TURNS, template, tokenizer)]
    assert rules == (["no-bos"] if bos is Bos.TEMPLATE else [])
    assert (example.tokens[0] == tokenizer.bos_id) == (bos is Bos.ADD)
    prompt = render_prompt(TURNS, template, tokenizer)
    assert example.tokens[: len(prompt)].tolist() == prompt
    assert len(template.fingerprint) == 64 and (template.fingerprint == CHATML.fingerprint) == (bos is Bos.TEMPLATE)


@pytest.mark.parametrize("bos", Bos)
def test_a_bos_that_the_template_writes_is_never_doubled(bos):
    tokenizer = ByteTokenizer(eos="<|im_end|>", adds_bos=True)
    template = dataclasses.replace(CHATML, source="{{ bos_token }}" + CHATML.source, bos=bos)
    example = render(TURNS, template, tokenizer)
    assert (example.tokens == tokenizer.bos_id).sum() == 1 and check(example, TURNS, template, tokenizer) == []


# Calls


def calling(arguments):
    calls = [{"type": "function", "function": {"name": "weather", "arguments": arguments}}]
    return Conversation([Message("user", "q"), Message("assistant", None, tool_calls=calls)])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=5,
)


@pytest.mark.parametrize("template", [shape("channels"), ChatTemplate(name="text", source=TEXT_ARGUMENTS)])
@given(arguments=st.dictionaries(st.text(max_size=4), VALUES, max_size=3))
def test_arguments_render_alike_as_an_object_and_as_its_json_text(template, arguments):
    """Prevents JSON inside JSON, and templates that take one of the two forms alone."""
    texts = {
        render_text(calling(given), template, TOKENIZER)
        for given in (arguments, json.dumps(arguments), json.dumps(arguments, ensure_ascii=False, indent=1))
    }
    assert texts == {render_text(calling(arguments), template, TOKENIZER)}
    assert json.dumps(arguments, ensure_ascii=False) in texts.pop()
    example = render(calling(arguments), template, TOKENIZER)
    assert check(example, calling(arguments), template, TOKENIZER) == []


BAD_ARGUMENTS = ["{'a': 1}", "[1]", "{", "[" * 9999, '{"a": NaN}', "3", '{"a": 1e999}', '{"a": 1, "a": 2}']
BAD_ARGUMENTS += ['{"a": "\\ud83d"}', f'{{"a": {"9" * 5000}}}', '{"a": [{"b": 1, "b": 1}]}']


@pytest.mark.parametrize("arguments", BAD_ARGUMENTS)
def test_arguments_that_are_no_json_object_are_named(arguments):
    with pytest.raises(UserError, match="'weather'.*Give an object"):
        render(calling(arguments), shape("channels"), TOKENIZER)


def nested(depth):
    value: dict = {"a": 1}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


@pytest.mark.parametrize("given", [nested, lambda depth: json.dumps(nested(depth))])
@pytest.mark.parametrize("depth", [100, 101, 700])
def test_arguments_and_tools_nested_beyond_measure_are_refused_and_no_crash(given, depth):
    deep = calling(given(depth))
    if depth == 100:
        assert '{"a": ' * 99 + '{"a": 1' + "}" * 100 in render_text(deep, shape("channels"), TOKENIZER)
        return
    with pytest.raises(UserError, match="'weather' are nested more than 100 deep"):
        render(deep, shape("channels"), TOKENIZER)
    with pytest.raises(UserError, match="the tools are nested more than 100 deep"):
        render(dataclasses.replace(calling({}), tools=[nested(depth)]), shape("channels"), TOKENIZER)


@pytest.mark.parametrize("value", [math.nan, -math.inf, datetime.date(2020, 1, 1)])
@pytest.mark.parametrize("template", [shape("channels"), ChatTemplate(name="text", source=TEXT_ARGUMENTS)])
def test_values_that_json_lacks_are_refused_in_either_form(template, value):
    """Prevents the bare word NaN, which no reader of calls takes, as a trained answer."""
    with pytest.raises(UserError, match="JSON"):
        render(calling({"a": [value]}), template, TOKENIZER)


def test_a_turn_with_calls_ends_with_its_own_token():
    text = picture(render(calling({"city": "Bern"}), shape("channels"), TOKENIZER), TOKENIZER)
    assert text.endswith('<|message|>{"city": "Bern"}<|call|>»')


def test_a_turn_that_ends_with_text_that_is_no_token_is_refused_with_that_text():
    """Prevents a search for a missing `<|im_end|>` where the tokenizer lacks the token that ends calls."""
    end = "{{ '<|call|>' if m.tool_calls else '<|im_end|>' }}"
    call = "m.tool_calls[0].function.name ~ (m.tool_calls[0].function.arguments | tojson)"
    said = "{{ (" + call + ") if m.tool_calls else m.content }}"
    turns = "{% for m in messages %}<|im_start|>{{ m.role }}\n" + said + end + "\n{% endfor %}"
    template = ChatTemplate(
        name="calls", source=turns + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(UserError, match=r"'<\|call\|>': only a token of the tokenizer can end a turn"):
        render(calling({"city": "Bern"}), template, ByteTokenizer(eos="<|im_end|>"))
