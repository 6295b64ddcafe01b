"""The chat format: markers, template, and the same text without the template engine."""

from collections.abc import Sequence

from training.documents import Message

START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
SPECIAL = (PAD, START, END)
"""In the order of their ids 0, 1, 2."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def render(messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
    """What the template gives for these messages."""
    text = "".join(f"{START}{m.role}\n{m.content}{END}\n" for m in messages)
    return text + (f"{START}assistant\n" if add_generation_prompt else "")
