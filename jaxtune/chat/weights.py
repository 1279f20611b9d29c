"""Loss weights of the tokens of a rendered chat."""

import bisect
import enum
from collections.abc import Sequence

from jaxtune.chat.conversation import Message
from jaxtune.chat.layout import ChatLayout
from jaxtune.chat.responses import Response


class MaskPolicy(enum.Enum):
    """Policy for tokens that train, with the weight of their message; all others carry `prompt_loss_weight`."""

    ASSISTANT = "assistant"  # every assistant response with its end-of-turn token
    LAST_ASSISTANT = "last_assistant"  # the last assistant response only
    COMPLETION = "completion"  # all text from the response to the last user message on, tool results included
    ALL = "all"  # every token


def segment_weights(
    layout: ChatLayout, messages: Sequence[Message], policy: MaskPolicy, prompt_loss_weight: float
) -> list[float]:
    """The loss weight of each segment; a segment lies wholly inside or outside a response.

    Responses that are set aside weigh what prompts do, whatever the policy.
    """
    weights = [1.0 if policy is MaskPolicy.ALL else prompt_loss_weight] * len(layout.segments)
    starts = [segment.start for segment in layout.segments]
    trained = layout.responses[-1:] if policy is MaskPolicy.LAST_ASSISTANT else layout.responses
    if policy is MaskPolicy.COMPLETION:
        last_user = max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)
        trained = tuple(response for response in layout.responses if response.message > last_user)
        if trained:
            low, high = bisect.bisect_left(starts, trained[0].start), bisect.bisect_left(starts, trained[-1].stop)
            weights[low:high] = [1.0] * (high - low)
    for response in (*trained, *(response for response in layout.responses if response.aside)):
        low, high = bisect.bisect_left(starts, response.start), bisect.bisect_left(starts, response.stop)
        weight = prompt_loss_weight if response.aside else stated_weight(messages[response.message])
        weights[low:high] = [weight] * (high - low)
    return weights


def stated_weight(message: Message) -> float:
    """The weight that an assistant message gives itself."""
    return 1.0 if message.weight is None else float(message.weight)


def trained_messages(
    responses: Sequence[Response], messages: Sequence[Message], policy: MaskPolicy, prompt_loss_weight: float
) -> list[int]:
    """Assistant messages whose tokens weigh other than prompts do."""
    chosen = responses[-1:] if policy is MaskPolicy.LAST_ASSISTANT else responses
    open_to = [response.message for response in chosen if not response.aside]
    return [i for i in open_to if stated_weight(messages[i]) != prompt_loss_weight]
