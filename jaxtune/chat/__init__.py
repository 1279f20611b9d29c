"""From messages to token ids with a loss weight each: conversations, templates, tokenizers, proof of supervision."""

from jaxtune.chat.conversation import ROLES as ROLES
from jaxtune.chat.conversation import Conversation as Conversation
from jaxtune.chat.conversation import Message as Message
from jaxtune.chat.rendering import prompt_text as prompt_text
from jaxtune.chat.rendering import render as render
from jaxtune.chat.rendering import render_batch as render_batch
from jaxtune.chat.rendering import render_each as render_each
from jaxtune.chat.rendering import render_prompt as render_prompt
from jaxtune.chat.rendering import render_text as render_text
from jaxtune.chat.rendering import stop_ids as stop_ids
from jaxtune.chat.rendering import terminator_id as terminator_id
from jaxtune.chat.responses import Response as Response
from jaxtune.chat.supervision import Proven as Proven
from jaxtune.chat.supervision import Violation as Violation
from jaxtune.chat.supervision import check as check
from jaxtune.chat.supervision import render_proven as render_proven
from jaxtune.chat.template import TEMPLATES as TEMPLATES
from jaxtune.chat.template import Bos as Bos
from jaxtune.chat.template import ChatTemplate as ChatTemplate
from jaxtune.chat.template import Reasoning as Reasoning
from jaxtune.chat.template import load_template as load_template
from jaxtune.chat.tokenizer import Tokenizer as Tokenizer
from jaxtune.chat.tokenizers import load_tokenizer as load_tokenizer
from jaxtune.chat.weights import MaskPolicy as MaskPolicy
