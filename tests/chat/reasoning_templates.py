"""Templates of the shapes that reasoning models come with, in a few lines each, and a tokenizer with their tokens."""

from jaxtune.chat import ChatTemplate
from jaxtune.chat.tokenizer import ByteTokenizer

_START = "{%- for m in messages %}"
_END = "{%- endfor %}"
_LAST_QUESTION = (
    "{%- set ns = namespace(query=-1) %}"
    "{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.query = loop.index0 %}{%- endif %}{%- endfor %}"
)
_OTHERS = "{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}"
_CALLS = (
    "{%- for call in m.tool_calls or [] %}{%- set call = call.function %}"
    "{{- '<tool_call>\n<function=' + call.name + '>' }}"
    "{%- for key, value in call.arguments | items %}"
    "{{- '<parameter=' + key + '>' ~ value ~ '</parameter>' }}{%- endfor %}"
    "{{- '</function>\n</tool_call>' }}{%- endfor %}"
)

OPENS_ALWAYS = (
    _LAST_QUESTION + _START + "{%- if m.role == 'assistant' %}{{- '<|im_start|>assistant\n' }}"
    "{%- if loop.index0 > ns.query %}{{- '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}{%- endif %}"
    "{{- m.content }}"
    + _CALLS
    + "{{- '<|im_end|>\n' }}"
    + _OTHERS
    + _END
    + "{%- if tools %}{{- tools | tojson }}{%- endif %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{{- '<think>\n\n</think>\n\n' if enable_thinking is defined and enable_thinking is false else '<think>\n' }}"
    "{%- endif %}"
)
"""The prompt opens the block; finished turns after the last question show it, empty or not."""

OPENS_OR_NOT = (
    _LAST_QUESTION + _START + "{%- if m.role == 'assistant' %}{{- '<|im_start|>assistant\n' }}"
    "{%- if m.reasoning_content and loop.index0 > ns.query %}{{- '<think>\n' + m.reasoning_content + '\n</think>\n' }}"
    "{%- else %}{{- '<think></think>' }}{%- endif %}{{- m.content }}"
    + _CALLS
    + "{{- '<|im_end|>\n' }}"
    + _OTHERS
    + _END
    + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{{- '<think></think>' if enable_thinking is defined and not enable_thinking else '<think>\n' }}{%- endif %}"
)
"""The prompt opens the block with a new line; a turn without reasoning shows it closed at once."""

FORGETS = (
    "{{- bos_token }}" + _START + "{%- if m.role == 'user' %}{{- '<｜User｜>' + m.content }}{%- endif %}"
    "{%- if m.role == 'assistant' %}{{- '<｜Assistant｜>' }}"
    "{{- m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}{%- endif %}"
    + _END
    + "{%- if add_generation_prompt %}{{- '<｜Assistant｜><think>\n' }}{%- endif %}"
)
"""The prompt opens the block; no finished turn shows one."""

CHANNELS = (
    _START + "{%- if m.role == 'assistant' %}{{- '<|start|>assistant' }}"
    "{%- set ns = namespace(later=false) %}{%- for f in messages[loop.index:] %}"
    "{%- if f.role == 'assistant' and not f.tool_calls %}{%- set ns.later = true %}{%- endif %}{%- endfor %}"
    "{%- set thought = m.thinking or (m.content if m.tool_calls else '') %}"
    "{%- if thought and (loop.last or (m.tool_calls and not ns.later)) %}"
    "{{- '<|channel|>analysis<|message|>' + thought + '<|end|><|start|>assistant' }}{%- endif %}"
    "{%- if m.tool_calls %}{%- set call = m.tool_calls[0].function %}"
    "{{- ' to=functions.' + call.name + '<|channel|>commentary json<|message|>' }}"
    "{{- call.arguments | tojson + '<|call|>' }}"
    "{%- else %}{{- '<|channel|>final<|message|>' + m.content }}"
    "{{- '<|return|>' if loop.last else '<|end|>' }}{%- endif %}"
    "{%- elif m.role == 'tool' %}"
    "{{- '<|start|>functions.' + messages[loop.index0 - 1].tool_calls[0].function.name + ' to=assistant' }}"
    "{{- '<|channel|>commentary<|message|>' + m.content + '<|end|>' }}"
    "{%- else %}{{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{%- endif %}"
    + _END
    + "{%- if tools %}{{- tools | tojson }}{%- endif %}"
    "{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"
)
"""Reasoning and answer are messages of their own; calls end with a token of their own. What was thought, or said,
before a call is shown until the answer has been given."""

TEXT_ARGUMENTS = (
    _START + "{{- '<|im_start|>' + m.role + '\n' + m.content }}"
    "{%- for call in m.tool_calls or [] %}"
    "{{- call.function.name + '\n' + call.function.arguments + '\n' }}{%- endfor %}"
    "{{- '<|im_end|>\n' }}" + _END + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
"""Joins the arguments of a call to text, so that they must be text."""

SILENT_CALLS = (
    _START + "{%- if m.role == 'assistant' and m.content is none %}{{- '<|im_start|>assistant\n' }}"
    "{%- for call in m.tool_calls %}{{- call.function.name + '\n' + call.function.arguments + '<|call|>' }}"
    "{%- endfor %}{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}{%- endif %}"
    + _END
    + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
"""Writes the calls of messages whose text is None, and those alone (DeepSeek-V3)."""

SHAPES = {"opens": OPENS_ALWAYS, "opens-or-not": OPENS_OR_NOT, "forgets": FORGETS, "channels": CHANNELS}

TOKENIZER = ByteTokenizer(
    (
        *("<pad>", "<s>", "<｜end▁of▁sentence｜>", "<|im_start|>", "<|im_end|>", "<|call|>", "<|end|>", "<|return|>"),
        *("<|start|>", "<|channel|>", "<|message|>", "<｜User｜>", "<｜Assistant｜>"),
    ),
    bos="<s>",
    eos="<｜end▁of▁sentence｜>",
)


def shape(name: str, **options: object) -> ChatTemplate:
    """One of `SHAPES` as a template."""
    return ChatTemplate(name=name, source=SHAPES[name], **options)  # pyright: ignore[reportArgumentType]
