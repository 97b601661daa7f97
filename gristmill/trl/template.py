"""Where SFT's loss goes: on what the assistant says, and on nothing else.

A chat template has to mark that (`{% generation %}`). TRL brings marked templates for the models that it knows by the
exact text of their template; SmolLM2's is here. For any other template there are rows of prompt and completion whose
completion is one message: it carries loss whole, and nothing needs to be marked. What is left is refused, because TRL
would train on system prompts, user text and tool output as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gristmill.errors import UsageError


def training_template(template: str) -> str:
    """The chat template to train with: of SmolLM2's, the one that also marks what the assistant says.

    TRL needs `{% generation %}` around assistant turns to mask the rest, and ships such templates for the models that
    it knows; SmolLM2 is not among them. Both templates render the same text (a test compares them).
    """
    from gristmill.smollm import TEMPLATE

    return _SMOLLM_TRAINING if template == TEMPLATE else template


def assistant_only(tokenizer: Any, rows: Iterable[Mapping[str, Any]], name: str) -> bool:
    """Whether to mask by the template's marks (True), or to let completions carry loss whole (False).

    Args:
        tokenizer: with the template to train with.
        rows: conversational rows: `messages`, or `prompt` and `completion`.
        name: the model's, for the message.

    Raises:
        UsageError: neither would put loss on the assistant's words alone.
    """
    from trl.chat_template_utils import get_training_chat_template, has_generation_markers

    template = tokenizer.chat_template
    if template is None:
        raise UsageError(f"{name} has no chat template, so conversations cannot be rendered: add chat_template.jinja")
    if has_generation_markers(template):
        return True
    try:
        get_training_chat_template(tokenizer)
    except ValueError:
        several = any("messages" in row or len(row["completion"]) != 1 for row in rows)
        if not several:
            return False
        raise UsageError(
            f"the chat template of {name} does not mark what the assistant says ({{% generation %}}), and TRL knows no "
            "marked one for it, so that loss would fall on prompts and tool output too; put a marked template into a "
            ".jinja file and name it in train.options.chat_template_path, or write prompt and completion with one "
            "message each"
        ) from None
    return True


_SMOLLM_TRAINING = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
