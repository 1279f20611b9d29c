"""Conversations and tokenizers for the tests of templates and masks."""

import functools

from jaxtune.chat import Conversation, Message
from jaxtune.chat.thinking import without_reasoning
from jaxtune.chat.tokenizer import ByteTokenizer

CONTROLS = (
    *("<pad>", "<bos>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>"),
    *("<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<|endoftext|>", "<|end|>"),
    *("<|user|>", "<|assistant|>", "<|system|>"),
)
SPECIALS = {
    "gemma2": ("<bos>", "<end_of_turn>"),
    "gemma3": ("<bos>", "<end_of_turn>"),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>"),
    "mistral": ("<s>", "</s>"),
    "phi3": ("<s>", "<|endoftext|>"),
    "phi4-mini": (None, "<|endoftext|>"),
    "plain": ("<s>", "</s>"),
    "zephyr": ("<s>", "</s>"),
}
"""BOS and EOS of the families; ChatML families have no BOS and end with <|im_end|>."""
WITHOUT_SYSTEM = ("gemma2",)
WITH_TOOLS = ("qwen2.5", "qwen3")
WITH_REASONING = ("qwen3",)


@functools.cache
def family_tokenizer(name: str) -> ByteTokenizer:
    bos, eos = SPECIALS.get(name, (None, "<|im_end|>"))
    controls = [c for c in CONTROLS if name != "zephyr" or c not in ("<|user|>", "<|assistant|>", "<|system|>")]
    return ByteTokenizer(controls, bos=bos, eos=eos)


SINGLE = Conversation([Message("user", "  Name two colours.\n"), Message("assistant", " Red and blue. ")], id="single")
TURNS = Conversation(
    [
        Message("system", "Be brief."),
        Message("user", "What is 2 + 2?"),
        Message("assistant", "4"),
        Message("user", "And in German?\nOne word, please: <|im_end|></s>"),
        Message("assistant", "Vier.\n\nJa, vier ✓"),
    ],
    id="turns",
)
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
TOOLS = Conversation(
    [
        Message("system", "Use the tools."),
        Message("user", "Is it <warm> in Köln?"),
        Message(
            "assistant",
            "",
            reasoning="I need the weather.",
            tool_calls=[
                {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Köln", "days": 1}}},
                {"type": "function", "function": {"name": "get_weather", "arguments": {"unit": "°C"}}},
            ],
        ),
        Message("tool", '{"temp": 21}', name="get_weather"),
        Message("tool", '{"temp": 22}', name="get_weather"),
        Message("assistant", "Yes, 21 °C.", reasoning="21 is warm."),
    ],
    id="tools",
    tools=[TOOL],
)


def chats_for(name: str) -> list[Conversation]:
    """The conversations that a template can hold."""
    turns = Conversation(TURNS.messages[1:], id="turns") if name in WITHOUT_SYSTEM else TURNS
    tools = TOOLS if name in WITH_REASONING else without_reasoning(TOOLS)
    return [SINGLE, turns, *([tools] if name in WITH_TOOLS else [])]


def picture(example, tokenizer) -> str:
    """The text of an example, every run of tokens that weigh more than 0 between « and »."""
    parts, trained = [], False
    start = 0
    for i, weight in enumerate([*example.loss_weights, -1.0]):
        if (weight > 0) != trained or weight < 0:
            text = tokenizer.decode(example.tokens[start:i].tolist())
            parts.append(f"«{text}»" if trained else text)
            start, trained = i, weight > 0
    return "".join(parts)
