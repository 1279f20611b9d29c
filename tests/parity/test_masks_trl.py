"""Masks against TRL's training templates and `transformers`' own assistant masks."""

import dataclasses
import datetime
import json
import os
import pathlib

import numpy as np
import pytest
from chats import SINGLE, TOOL, TOOLS, TURNS
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_tokenizers import write_hf

from jaxtune.chat import (
    TEMPLATES,
    ChatTemplate,
    Conversation,
    Message,
    check,
    load_template,
    load_tokenizer,
    render,
    render_prompt,
)
from jaxtune.chat.thinking import without_reasoning

pytestmark = pytest.mark.parity
trl_templates = pytest.importorskip("trl.chat_template_utils")
transformers = pytest.importorskip("transformers")

FOLDER = pathlib.Path(trl_templates.__file__).parent / "chat_templates"
CONTROLS = (
    *("<pad>", "<bos>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>"),
    *("<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<|end|>", "<|user|>", "<|assistant|>"),
    *("<|system|>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"),
    *("<|SYSTEM_TOKEN|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|start|>", "<|channel|>", "<|message|>"),
    *("<|return|>", "<|call|>", "<end_of_utterance>", "[gMASK]", "<sop>", "<|observation|>"),
)
NAMES = (
    *("cohere", "cohere2", "gemma", "gemma3", "glm4moe", "gptoss", "lfm2", "llama3", "phi3", "phi3_5", "qwen2_5"),
    *("qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6", "qwen3_8", "qwen3_instruct_2507", "qwen3_vl"),
)
"""TRL's training templates for text."""
OPEN_THOUGHT = ("qwen3_5_think", "qwen3_6", "qwen3_8")
"""Their generation prompt ends with `<think>` and a newline; an empty thought begins with one: the cut moves ids."""


def split_like_llama3(spec):
    """Newlines stay together, as in the families' own tokenizers; GPT-2's rule would split them before a word."""
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    words += r"\s*[\r\n]+|\s+(?!\S)|\s+"
    split = {"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": False}
    spec["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [split, {**spec["pre_tokenizer"], "use_regex": False}],
    }


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = write_hf(tmp_path_factory.mktemp("hf"), controls=CONTROLS, eos="<|endoftext|>", change=split_like_llama3)
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<bos>", eos_token="<|endoftext|>", pad_token="<pad>"
    )
    return theirs, load_tokenizer(folder)


def their_mask(tokenizer, conversation, source):
    messages = [
        {"role": message.role, "content": message.content}
        | ({"tool_calls": list(message.tool_calls)} if message.tool_calls else {})
        | ({"reasoning_content": message.reasoning} if message.reasoning else {})
        for message in conversation.messages
    ]
    tools = None if conversation.tools is None else list(conversation.tools)
    result = tokenizer.apply_chat_template(
        messages, tools=tools, chat_template=source, return_dict=True, return_assistant_tokens_mask=True
    )
    return result["input_ids"], result["assistant_masks"]


def trained(name, **kwargs):
    source = (FOLDER / f"{name}_training.jinja").read_text(encoding="utf-8")
    return ChatTemplate(name=name, source=source, today=datetime.date.today(), **kwargs)


def plain(*texts):
    return Conversation([Message(role, text) for role, text in zip(("user", "assistant") * 4, texts, strict=False)])


CHATS = (
    plain("Hi there.", "Hello!"),
    plain("  What is 2 + 2?\n\nThink.", "4", "And 3 + 3?", "It is 6.\n\nSix"),
    plain("a", "Yes, é and 你好!", "b"),
)


@pytest.mark.parametrize("name", NAMES)
def test_masks_equal_trls_on_its_training_templates(pair, name):
    theirs, ours = pair
    template = trained(name, exact_marks=True)
    for conversation in CHATS:
        ids, mask = their_mask(theirs, conversation, template.source)
        example = render(conversation, template, ours)
        assert example.tokens.tolist() == ids
        assert example.loss_weights.tolist() == mask
        assert sum(mask) > 0


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3"])
def test_masks_equal_trls_with_tools_and_reasoning(pair, name):
    theirs, ours = pair
    template = trained(name, exact_marks=True)
    chat = TOOLS if name == "qwen3" else without_reasoning(TOOLS)  # the other has no place for reasoning: refused
    ids, mask = their_mask(theirs, chat, template.source)
    example = render(chat, template, ours)
    assert example.tokens.tolist() == ids and example.loss_weights.tolist() == mask


CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Köln"}}}
CALLING = Conversation(
    [
        Message("user", "Is it warm in Köln?"),
        Message("assistant", "", reasoning="I need the weather.", tool_calls=[CALL]),
        Message("tool", "21", name="get_weather"),
        Message("assistant", "Yes, 21 °C.", reasoning="21 is warm."),
    ],
    tools=[TOOL],
)


@pytest.mark.parametrize("name", ["gptoss", "gptoss_training", "qwen3_5_think", "qwen3_6"])
def test_the_answer_after_a_call_stands_behind_the_prompt_that_transformers_gives_for_it(pair, name):
    """The finished chat of gpt-oss leaves out what was thought before the call; the prompt for the answer holds it."""
    theirs, ours = pair
    template = ChatTemplate(name=name, source=(FOLDER / f"{name}.jinja").read_text(encoding="utf-8"))
    template = dataclasses.replace(template, today=datetime.date.today())
    messages = [
        {"role": "user", "content": "Is it warm in Köln?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]}
        | dict.fromkeys(("reasoning_content", "thinking"), "I need the weather."),
        {"role": "tool", "content": "21", "name": "get_weather"},
    ]
    prompt = theirs.apply_chat_template(
        messages, tools=[TOOL], chat_template=template.source, add_generation_prompt=True
    )["input_ids"]
    example = render(CALLING, template, ours)
    assert example.tokens[: len(prompt)].tolist() == prompt == render_prompt(CALLING, template, ours)
    assert "I need the weather." in ours.decode(prompt) and check(example, CALLING, template, ours) == []
    trains = ours.decode(example.tokens[example.loss_weights > 0].tolist())
    assert all(text in trains for text in ("I need the weather.", "get_weather", "21 is warm.", "Yes, 21 °C."))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OPEN_THOUGHT])
def test_by_default_only_text_around_the_answer_is_taken_from_trls_mask(pair, name):
    """TRL's marks also enclose the newline after the turn, and here and there the end of the generation prompt."""
    theirs, ours = pair
    for conversation in CHATS:
        ids, mask = their_mask(theirs, conversation, trained(name).source)
        example = render(conversation, trained(name), ours)
        assert example.tokens.tolist() == ids
        extra = np.array(mask, bool) & (example.loss_weights == 0)
        assert not (~np.array(mask, bool) & (example.loss_weights > 0)).any()
        left_out = ours.decode([token for token, is_extra in zip(ids, extra, strict=True) if is_extra])
        assert left_out.replace("<think>", "").replace("</think>", "").replace("<|endoftext|>", "").strip() in (
            "",
            "<|start|>assistant" * sum(m.role == "assistant" for m in conversation.messages),
        )


@pytest.mark.parametrize("name", ["gemma", "gemma3", "llama3", "phi3", "qwen2_5", "qwen3_instruct_2507", "cohere"])
def test_the_mask_derived_without_marks_equals_that_of_trls_marked_template(pair, name):
    """The family's own template has no marks; prefix rendering finds what TRL's patched copy marks."""
    _, ours = pair
    bare = ChatTemplate(name=name, source=(FOLDER / f"{name}.jinja").read_text(encoding="utf-8"))
    for conversation in CHATS:
        derived = render(conversation, bare, ours)
        marked = render(conversation, trained(name), ours)
        assert np.array_equal(derived.tokens, marked.tokens)
        assert np.array_equal(derived.loss_weights, marked.loss_weights)


def test_a_character_of_several_tokens_at_the_end_of_an_answer_trains_whole(pair, record_property):
    """Releases of `transformers` mark only a character's first token there: at times fewer than ours, never more."""
    theirs, ours = pair
    source = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}"
    )
    conversation = plain("a", "犬")
    ids, mask = their_mask(theirs, conversation, source)
    example = render(conversation, ChatTemplate(name="t", source=source, exact_marks=True), ours)
    marked = example.loss_weights > 0
    assert example.tokens.tolist() == ids
    assert ours.decode(example.tokens[marked].tolist()) == "犬"
    assert not (np.array(mask, bool) & ~marked).any()
    record_property(f"tokens that transformers {transformers.__version__} marks", f"{sum(mask)} of {marked.sum()}")


WORDS = st.sampled_from(["fox", "The", " ", "42", ".", "é", "你好", "x = [1]", "\tdo", "it's", "end"])
TEXT = st.lists(WORDS, min_size=1, max_size=6).map("".join).map(lambda text: f"a{text}z")


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXT, min_size=2, max_size=7), name=st.sampled_from(["qwen3", "llama3", "gemma3", "phi3"]))
def test_masks_equal_trls_on_generated_chats(pair, texts, name):
    theirs, ours = pair
    template = trained(name, exact_marks=True)
    ids, mask = their_mask(theirs, plain(*texts), template.source)
    example = render(plain(*texts), template, ours)
    assert example.tokens.tolist() == ids and example.loss_weights.tolist() == mask


REAL = os.environ.get("JAXTUNE_TOKENIZERS", "")
FAMILIES = {"qwen3": "qwen3", "gemma3": "gemma3", "llama3_1": "llama3"}


@pytest.mark.skipif(not REAL, reason="JAXTUNE_TOKENIZERS names no folder of real tokenizers")
@pytest.mark.parametrize("folder", FAMILIES)
def test_masks_equal_trls_with_real_tokenizers(folder):
    path = pathlib.Path(REAL) / folder
    theirs, ours = transformers.AutoTokenizer.from_pretrained(path), load_tokenizer(path)
    template = trained(FAMILIES[folder], exact_marks=True)
    conversations = [c for c in (*CHATS, SINGLE, TURNS) if folder != "gemma3" or c is not TURNS]
    for conversation in conversations:
        text = "".join(message.content or "" for message in conversation.messages)
        if "<|im_end|>" in text:  # user text that spells a control token: a control token for them, text for us
            continue
        ids, mask = their_mask(theirs, conversation, template.source)
        example = render(conversation, template, ours)
        assert example.tokens.tolist() == ids and example.loss_weights.tolist() == mask
        own = load_template(path)
        assert check(render(conversation, own, ours), conversation, own, ours) == []
        prompt = render_prompt(conversation, own, ours)
        messages = [{"role": m.role, "content": m.content} for m in conversation.messages]
        messages = messages[:-1] if messages[-1]["role"] == "assistant" else messages
        assert prompt == theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]


def test_tool_declarations_are_spelled_like_theirs(pair):
    theirs, ours = pair
    conversation = Conversation([Message("user", "a"), Message("assistant", "b")], tools=[TOOL])
    template = trained("qwen3", exact_marks=True)
    assert render(conversation, template, ours).tokens.tolist() == their_mask(theirs, conversation, template.source)[0]


DATA, SMOLLM2 = (pathlib.Path(os.environ.get(name, "")) for name in ("JAXTUNE_EXTRA_DATA", "JAXTUNE_SMOLLM2"))


@pytest.mark.skipif(not (DATA.name and SMOLLM2.name), reason="JAXTUNE_EXTRA_DATA and JAXTUNE_SMOLLM2 are not set")
def test_masks_equal_those_of_transformers_on_real_chats():
    """Real conversations of seven tasks: same ids, same mask, and every one proves its supervision."""
    theirs, ours = transformers.AutoTokenizer.from_pretrained(SMOLLM2), load_tokenizer(SMOLLM2)
    files = sorted(DATA.glob("mixture_compact/*/validation.jsonl"))
    records = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(records) > 100
    straddling = 0
    for record in records:
        conversation = Conversation([Message(m["role"], m["content"]) for m in record["messages"]], id=record["id"])
        for template in (TEMPLATES["smollm2"], load_template(SMOLLM2)):
            example = render(conversation, template, ours)
            assert check(example, conversation, template, ours) == []
            ids, mask = their_mask(theirs, conversation, TEMPLATES["smollm2"].source)
            if any(m["role"] == "assistant" and m["content"][:1].isspace() for m in record["messages"]):
                straddling += 1
                continue
            assert example.tokens.tolist() == ids and (example.loss_weights > 0).tolist() == [bool(m) for m in mask]
    assert straddling < len(records) / 10
