"""Chat templates as published: Jinja from the model folder, rendered the way transformers does.

A template is foreign code, so it runs in the immutable sandbox. It never sees the user's texts:
`layout` renders it with placeholders and returns what it wrote around them.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from preread.errors import BadCheckpoint, RequestError
from preread.models.folder import AGAIN, read_json

if TYPE_CHECKING:
    from preread.types import Role

# Templates that print today's date would make every prefix new each morning; this is the day that
# Llama 3's own template falls back to.
PINNED_DATE = datetime.datetime(2024, 7, 26, tzinfo=datetime.UTC)

PLAIN = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ m.content + '\n\n' }}"
    "{% elif m.role == 'user' %}{{ 'Question: ' + m.content + '\n' }}"
    "{% else %}{{ 'Answer: ' + m.content + '\n\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Answer:' }}{% endif %}"
)
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


class Template:
    """A compiled chat template and the variables it may read."""

    def __init__(self, source: str, variables: Mapping[str, Any], where: str) -> None:
        """where: named in errors. Raises BadCheckpoint if it is no valid Jinja."""
        from jinja2 import TemplateError

        self.source, self.where = source, where
        self._variables = dict(variables)
        try:
            self._compiled = _environment().from_string(source)
        except TemplateError as exc:
            raise BadCheckpoint(
                f"{where}: the chat template is not valid: {exc}.", hint=AGAIN
            ) from exc

    def render(self, messages: Sequence[Mapping[str, str]], generate: bool = True) -> str:
        """The text. Raises RequestError with the template's own words if it refuses."""
        try:
            text: str = self._compiled.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=generate,
                **self._variables,
            )
            return text
        except Exception as exc:  # foreign code may raise anything
            raise RequestError(
                f"{self.where}: the chat template refuses these messages: {exc}.",
                hint="Turns must alternate, user first.",
            ) from exc

    def layout(self, roles: Sequence[Role], generate: bool = True) -> list[str] | None:
        """What the template writes around the contents of messages with these roles:
        len(roles) + 1 stretches of text. None if it drops, repeats, changes or reorders a content,
        or refuses."""
        marks = [_placeholder(i) for i in range(len(roles))]
        messages = [{"role": r, "content": m} for r, m in zip(roles, marks, strict=True)]
        try:
            text = self.render(messages, generate)
        except RequestError:
            return None
        around = re.split("|".join(map(re.escape, marks)), text) if marks else [text]
        found = re.findall("|".join(map(re.escape, marks)), text) if marks else []
        return around if found == marks else None


def _placeholder(index: int) -> str:
    """Content that survives trimming, and shows any escaping or squeezing by not surviving it."""
    return f"⟦{index}: Aa\"<&'\n\n  >⟧"


def read_template(folder: Path, bos: str) -> Template:
    """The template of a model folder: `chat_template.jinja`, else `chat_template` of
    `tokenizer_config.json` (a text, or a list of named ones: "default"), else PLAIN with `bos` in
    front. Raises BadCheckpoint."""
    settings = _optional(folder / "tokenizer_config.json")
    legacy = _optional(folder / "special_tokens_map.json")
    variables: dict[str, Any] = {"enable_thinking": False}
    for name in _SPECIAL:
        if text := _token_text(settings.get(name) or legacy.get(name)):
            variables[name] = text
    separate = folder / "chat_template.jinja"
    if separate.is_file():
        try:
            return Template(separate.read_text(encoding="utf-8"), variables, str(separate))
        except UnicodeDecodeError as exc:
            raise BadCheckpoint(f"{separate}: {exc}.", hint=AGAIN) from exc
    given = settings.get("chat_template")
    if isinstance(given, list):
        named = (entry for entry in given if isinstance(entry, dict))
        given = {entry.get("name"): entry.get("template") for entry in named}.get("default")
    if isinstance(given, str):
        return Template(given, variables, str(folder / "tokenizer_config.json"))
    return Template(PLAIN, variables | {"bos_token": bos}, "the plain template")


def eos_text(folder: Path) -> str | None:
    """The end-of-sequence token that the tokenizer's settings name, if any."""
    settings = _optional(folder / "tokenizer_config.json")
    legacy = _optional(folder / "special_tokens_map.json")
    return _token_text(settings.get("eos_token") or legacy.get("eos_token"))


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _token_text(value: Any) -> str | None:
    """A special token as tokenizer_config.json writes it: a text, or an object with its flags."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _environment() -> Any:
    """Jinja as transformers sets it up (utils/chat_template_utils.py)."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what an assistant wrote, for training; here it does nothing."""

        tags = {"generation"}  # noqa: RUF012  # the library's way

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.If(nodes.Const(True), body, [], []).set_lineno(line)

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = PINNED_DATE.strftime
    return environment
