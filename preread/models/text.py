"""The text side of a model: tokenizer and chat template, without torch and without weights."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from preread.models.chat import ChatTemplate
from preread.models.template import eos_text, read_template
from preread.models.tokenizer import Tokenizer


class Text(NamedTuple):
    """eos_id: the end token that the tokenizer's settings name, None if they name none."""

    tokenizer: Tokenizer
    chat: ChatTemplate
    eos_id: int | None


def load_text(folder: Path) -> Text:
    """Read tokenizer and template of a model folder.

    Raises ModelNotFound, BadCheckpoint, UnsupportedModel.
    """
    tokenizer = Tokenizer(folder)
    bos = "".join(tokenizer.token_text(i) for i in tokenizer.bos_ids)
    chat = ChatTemplate(tokenizer, read_template(folder, bos))
    end = eos_text(folder)
    return Text(tokenizer, chat, None if end is None else tokenizer.token_id(end))
