"""Reasoning: what a template shows of it trains, what it leaves out is set aside, and no prompt is answered untruly."""

import dataclasses

import pytest
from chats import picture
from hypothesis import given, settings
from hypothesis import strategies as st
from reasoning_templates import SHAPES, SILENT_CALLS, TOKENIZER, shape

from jaxtune.chat import (
    TEMPLATES,
    ChatTemplate,
    Conversation,
    Message,
    Reasoning,
    check,
    render_prompt,
    render_proven,
    stop_ids,
)
from jaxtune.chat.thinking import closing_of, is_opened, thinking_part
from jaxtune.errors import UserError


def asked(*answers: Message) -> Conversation:
    """Each answer after a question."""
    return Conversation([m for k, answer in enumerate(answers) for m in (Message("user", f"q{k}"), answer)])


def proven(conversation, template):
    """The one example of a conversation, whose supervision holds."""
    (result,) = render_proven([conversation], template, TOKENIZER)
    if isinstance(result, UserError):
        raise result
    assert result.violations == ()
    return result


def trained(conversation, template):
    """Texts of the stretches that train."""
    shown = picture(proven(conversation, template).example, TOKENIZER)
    return [part.split("»")[0] for part in shown.split("«")[1:]]


def aside(conversation, template):
    return [response.message for response in proven(conversation, template).aside]


PLAIN = asked(Message("assistant", "7"))
THOUGHT = asked(Message("assistant", "7", reasoning="three and four"))
TWO = asked(Message("assistant", "7", reasoning="three and four"), Message("assistant", "14", reasoning="doubled"))


@pytest.mark.parametrize(
    ("name", "plain", "thought"),
    [
        ("opens", "\n</think>\n\n7<|im_end|>", "three and four\n</think>\n\n7<|im_end|>"),
        ("opens-or-not", "\n</think>\n7<|im_end|>", "three and four\n</think>\n7<|im_end|>"),
        (
            "forgets",
            "\n</think>\n\n7<｜end▁of▁sentence｜>",
            "three and four\n</think>\n\n7<｜end▁of▁sentence｜>",
        ),
        (
            "channels",
            "<|channel|>final<|message|>7<|return|>",
            "<|channel|>analysis<|message|>three and four<|end|>"
            "<|start|>assistant<|channel|>final<|message|>7<|return|>",
        ),
    ],
)
def test_a_single_turn_trains_from_the_end_of_its_prompt(name, plain, thought):
    """Prevents templates whose prompt opens a block of reasoning from refusing plain data, or teaching past it."""
    assert trained(PLAIN, shape(name)) == [plain]
    assert trained(THOUGHT, shape(name)) == [thought]


@pytest.mark.parametrize(
    ("opened", "closed"),
    [
        *((f"<{name}>", f"</{name}>") for name in ("thinking", "thought", "reasoning", "reason", "seed:think")),
        ("[THINK]", "[/THINK]"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<|begin_of_thought|>", "<|end_of_thought|>"),
        ("<|think_start|>", "<|think_end|>"),
    ],
)
def test_the_block_may_open_and_close_with_other_tags(opened, closed):
    source = SHAPES["opens"].replace("</think>", closed).replace("<think>", opened)
    template = ChatTemplate(name="other-tags", source=source)
    assert trained(PLAIN, template) == [f"\n{closed}\n\n7<|im_end|>"]
    assert trained(TWO, template) == [f"doubled\n{closed}\n\n14<|im_end|>"] and aside(TWO, template) == [1]
    inline = asked(Message("assistant", f"{opened}three and four{closed}7"))
    assert trained(inline, dataclasses.replace(template, reasoning=Reasoning.DROP)) == [f"\n{closed}\n\n7<|im_end|>"]


def test_chats_stand_or_fall_alone_where_a_block_is_opened_by_a_tag_of_its_own():
    """Prevents one probe that such a template cannot write from ending the check of every chat with it."""
    source = SHAPES["opens"].replace("</think>", "</muse>").replace("<think>", "<muse>")
    one, two = render_proven([PLAIN, TWO], ChatTemplate(name="muse", source=source), TOKENIZER)
    assert not isinstance(one, UserError) and one.violations == ()
    assert isinstance(two, UserError) and "differs from the prompt" in str(two)


@pytest.mark.parametrize("name", SHAPES)
def test_earlier_turns_shown_without_their_reasoning_carry_no_weight(name):
    """Prevents a model from learning to answer without thinking, in silence."""
    assert aside(TWO, shape(name)) == [1]
    assert len(trained(TWO, shape(name))) == 1 and "doubled" in trained(TWO, shape(name))[0]


@pytest.mark.parametrize(
    ("name", "turns"), [*((name, [3]) for name in SHAPES if name != "channels"), ("channels", [1, 3])]
)
def test_earlier_turns_without_reasoning_train_where_they_are_shown_as_they_are_made(name, turns):
    conversation = asked(Message("assistant", "7"), Message("assistant", "14"))
    assert [i for i in (1, 3) if i not in aside(conversation, shape(name))] == turns


@pytest.mark.parametrize("name", ["opens", "opens-or-not"])
def test_a_variable_of_the_template_takes_the_block_out_of_the_answer(name):
    quiet = shape(name, variables={"enable_thinking": False})
    assert trained(PLAIN, quiet) == ["7<|im_end|>"]
    with pytest.raises(UserError, match="reasoning"):
        proven(THOUGHT, quiet)
    assert trained(THOUGHT, dataclasses.replace(quiet, reasoning=Reasoning.DROP)) == ["7<|im_end|>"]


def test_policies_of_reasoning_keep_all_show_the_last_or_drop_all():
    def qwen(policy):
        return dataclasses.replace(TEMPLATES["qwen3"], reasoning=policy)

    assert trained(TWO, qwen(Reasoning.LAST)) == ["<think>\ndoubled\n</think>\n\n14<|im_end|>"]
    assert trained(TWO, qwen(Reasoning.DROP)) == ["7<|im_end|>", "<think>\n\n</think>\n\n14<|im_end|>"]
    with pytest.raises(UserError, match="leaves out the reasoning of message 1.*--data.reasoning last"):
        proven(TWO, qwen(Reasoning.KEEP))
    assert trained(THOUGHT, qwen(Reasoning.KEEP)) == trained(THOUGHT, qwen(Reasoning.LAST))
    inline = asked(Message("assistant", "<think>\nthree\n</think>\n\n7"), Message("assistant", "14"))
    assert aside(inline, qwen(Reasoning.LAST)) == [1] and aside(inline, qwen(Reasoning.DROP)) == []


@pytest.mark.parametrize(("name", "refused"), [("opens", True), ("opens-or-not", True), ("forgets", False)])
def test_an_answer_that_opens_a_second_block_of_reasoning_is_refused(name, refused):
    """Prevents a model from learning to think nothing and then to think again, where the text holds the block."""
    inline = asked(Message("assistant", "<think>\nthree\n</think>\n\n7"))
    (found,) = render_proven([inline], shape(name), TOKENIZER)
    assert not isinstance(found, UserError)
    assert [violation.rule for violation in found.violations] == ["double-reasoning"] * refused
    assert check(found.example, inline, shape(name), TOKENIZER) == list(found.violations)
    (dropped,) = render_proven([inline], shape(name, reasoning=Reasoning.DROP), TOKENIZER)
    assert not isinstance(dropped, UserError) and dropped.violations == ()


def test_reasoning_that_the_template_has_no_place_for_is_named_with_the_remedy():
    with pytest.raises(UserError, match="chatml.*leaves out the reasoning of message 1.*--data.reasoning drop"):
        proven(THOUGHT, TEMPLATES["chatml"])
    silent = asked(Message("assistant", "7", reasoning="three and four", weight=0))
    assert trained(silent, TEMPLATES["chatml"]) == []


def test_marks_inside_a_template_that_opens_the_block_work_too():
    """The remedy that the error for unmarked templates names has to work."""
    bare = "{{- m.content }}"
    text_alone = (
        shape("opens")
        .source.replace(bare, "{% generation %}" + bare)
        .replace("{{- '<|im_end|>\n' }}{%- else", "{{- '<|im_end|>' }}{% endgeneration %}{{- '\n' }}{%- else")
    )
    whole = text_alone.replace("{% generation %}", "").replace(
        "{{- '<|im_start|>assistant\n' }}{%- if loop", "{{- '<|im_start|>assistant\n' }}{% generation %}{%- if loop"
    )
    for source, wanted in ((text_alone, "7<|im_end|>"), (whole, "three and four\n</think>\n\n7<|im_end|>")):
        marked = dataclasses.replace(shape("opens"), source=source)
        assert source.count("generation %}") == 2 and trained(THOUGHT, marked) == [wanted]
        assert aside(TWO, marked) == [1]


CALL = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
CALLING = Conversation(
    [
        Message("user", "Weather?"),
        Message("assistant", None, tool_calls=[CALL], reasoning="I must look."),
        Message("tool", "12 C", tool_call_id="call00001", name="weather"),
        Message("assistant", "12 degrees.", reasoning="It says 12."),
    ]
)


@pytest.mark.parametrize("name", ["opens", "opens-or-not", "channels"])
def test_turns_with_calls_train_with_their_reasoning_and_their_end(name):
    texts = trained(CALLING, shape(name))
    assert len(texts) == 2 and "I must look." in texts[0] and "weather" in texts[0] and "It says 12." in texts[1]
    assert texts[0].endswith("<|call|>" if name == "channels" else "<|im_end|>")


def test_the_answer_after_calls_trains_behind_the_prompt_that_was_given_for_it():
    """The finished chat leaves out what was thought before the call; the prompt for the answer held it."""
    template = shape("channels")
    prompt = render_prompt(CALLING, template, TOKENIZER)
    found = proven(CALLING, template)
    assert found.example.tokens[: len(prompt)].tolist() == prompt and not found.aside
    assert "I must look." in TOKENIZER.decode(prompt) and "I must look." in trained(CALLING, template)[0]


def test_a_turn_with_calls_that_is_shown_without_its_text_is_set_aside():
    said = dataclasses.replace(CALLING.messages[1], content="I look it up.", reasoning=None)
    first = [CALLING.messages[0], said, *CALLING.messages[2:]]
    once, template = Conversation(first), shape("channels")
    assert "I look it up." in trained(once, template)[0] and aside(once, template) == []
    twice = Conversation([*first, Message("user", "Thanks."), Message("assistant", "Welcome.")])
    assert aside(twice, template) == [1, 3]  # the answer in the middle had reasoning, too
    assert trained(twice, template) == ["<|channel|>final<|message|>Welcome.<|return|>"]
    why = {one.message: one.aside.value for one in proven(twice, template).aside if one.aside}
    assert "without the text before its calls" in why[1] and "without its reasoning" in why[3]
    assert aside(twice, shape("opens-or-not")) == [1, 3]  # other templates show that text always
    shown = trained(Conversation([*first[:3], Message("assistant", "12 degrees.")]), TEMPLATES["qwen2.5"])
    assert "I look it up." in shown[0]
    mute = dataclasses.replace(template, source=template.source.replace("(m.content if m.tool_calls else '')", "''"))
    with pytest.raises(UserError, match="leaves out the text before the calls of message 1. Use a template that shows"):
        proven(Conversation(first[:2]), mute)


@pytest.mark.parametrize("text", [None, "", " "])
def test_calls_without_text_are_written_by_templates_that_look_for_none(text):
    template = ChatTemplate(name="silent", source=SILENT_CALLS)
    call = Message("assistant", text, tool_calls=[CALL])
    last = Message("assistant", "12 degrees.")
    chat = Conversation([CALLING.messages[0], call, CALLING.messages[2], last])
    assert trained(chat, template) == ['weather\n{"city": "Bern"}<|call|>', "12 degrees.<|im_end|>"]
    said = dataclasses.replace(call, content="I look it up.")
    with pytest.raises(UserError, match="leaves out the tool calls of message 1"):
        proven(Conversation([chat.messages[0], said, *chat.messages[2:]]), template)


def test_generation_stops_at_the_end_of_calls_and_not_inside_an_answer():
    stops = {TOKENIZER.piece(token) for token in stop_ids(shape("channels"), TOKENIZER)}
    assert stops == {"<|return|>", "<|call|>", "<｜end▁of▁sentence｜>"}


WORDS = st.text(st.sampled_from("ab7 \n<>{}"), max_size=6).filter(str.strip)


@pytest.mark.parametrize("name", [*SHAPES, "qwen3"])
@settings(max_examples=15, deadline=None)
@given(turns=st.lists(st.tuples(WORDS, st.none() | WORDS), min_size=1, max_size=3))
def test_no_turn_teaches_to_leave_out_its_reasoning(name, turns):
    """Property: what trains of a message with reasoning holds it; prompts are exact prefixes; the proof holds."""
    template = TEMPLATES[name] if name in TEMPLATES else shape(name)
    conversation = asked(*(Message("assistant", text, reasoning=thought) for text, thought in turns))
    result = proven(conversation, template)
    prompt = render_prompt(conversation, template, TOKENIZER)
    assert result.example.tokens[: len(prompt)].tolist() == prompt
    assert check(result.example, conversation, template, TOKENIZER) == []
    left_out = {response.message for response in result.aside}
    kept = [i for i in range(1, 2 * len(turns), 2) if i not in left_out]
    for i, text in zip(kept, trained(conversation, template), strict=True):
        assert "".join((turns[i // 2][1] or "").split()) in "".join(text.split())
    assert 2 * len(turns) - 1 in kept


@given(st.sampled_from(["<think>", "<think>\n", "[THINK]", "<seed:think>", "<thinking>\n\n"]), st.text(max_size=9))
def test_what_opens_a_block_is_closed_in_kind(opening, before):
    assert thinking_part(before + "|" + opening) == opening and is_opened(opening)
    closing = closing_of(opening)
    assert ("\n" in closing) == ("\n" in opening) and closing.strip().replace("/", "") == opening.strip()
    assert thinking_part(before + "|" + opening + closing) == opening + closing and not is_opened(opening + closing)
