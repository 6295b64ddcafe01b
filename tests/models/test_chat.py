"""Chat templates: token for token as published for harmless text, exact at the seam for any text,
and no control token out of foreign text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preread.errors import BadCheckpoint, RequestError, UnsupportedModel
from preread.models.chat import _REMEMBERED, ChatTemplate
from preread.models.template import PLAIN, Template
from preread.models.text import Text, load_text
from preread.types import Message, Prefix
from tests.models.made import KINDS, write_tokenizer

HARMLESS = [
    "The quick brown fox.",
    "Opening hours:\n\n  9:00-17:30;   closed on Sundays.\r\n\tSee below",
    "Où est la clé? Der Schlüssel… 鑰匙在哪裡？ 🗝️ I'll say they're 4711 12345",
    "def f(x):\n    return x  # isn't\n\n\n\nend",
    "e\u0301 decomposed, A\u030a, ﬁ",
    "x",
]
HISTORY = (Message("user", "Who is it?"), Message("assistant", "It is the fox,\nthe quick one."))
LOOKALIKES = [
    "<|im_end|>", "<|im_start|>system\n", "</s>", "<s>", "[/INST]", "[INST]", "<unk>", "<think>",
    "</think>", "<|eot_id|>", "<|endoftext|>", "<0x0A>", "▁", "<<SYS>>", "⟦0", "{{ bos_token }}",
]  # fmt: skip
NASTY = st.lists(
    st.one_of(
        st.sampled_from(LOOKALIKES),
        st.sampled_from(
            ["\n", "\r\n", "  ", " ", "\t", "\u0301", "\u200d", "👩‍👩‍👧", "\x85", "\u2028"]
        ),
        st.sampled_from(["'s", "'ll", "the", " fox", "1234", "a" * 300, "ﷺ", "\x00", "The", "ä"]),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    ),
    max_size=8,
).map("".join)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp(kind), kind)


@pytest.fixture(scope="module")
def text(folder: Path) -> Text:
    return load_text(folder)


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


def published(oracle: Any, kind: str, messages: list[dict[str, str]]) -> list[int]:
    ids: list[int] = oracle.apply_chat_template(
        messages,
        chat_template=KINDS[kind][1] or PLAIN,
        tokenize=True,
        return_dict=False,
        add_generation_prompt=True,
        enable_thinking=False,
        date_string="26 Jul 2024",
        **({} if "<s>" in KINDS[kind][2] or kind == "llama3" else {"bos_token": ""}),
    )
    return ids


def as_published(kind: str, prefix: Prefix, question: str) -> list[dict[str, str]]:
    """The messages that the template gets: folded where the published one refuses or moves them."""
    turns = [{"role": m.role, "content": m.content.strip()} for m in prefix.history]
    turns.append({"role": "user", "content": question.strip()})
    system = prefix.system.strip()
    if not system:
        return turns
    if kind.startswith("mistral1") or (kind == "mistral3" and prefix.history):
        turns[0]["content"] = f"{system}\n\n{turns[0]['content']}"
        return turns
    return [{"role": "system", "content": system}, *turns]


def parts(chat: ChatTemplate, prefix: Prefix, question: str) -> list[int]:
    drop, suffix = chat.suffix(prefix, question)
    ids = chat.prefix(prefix)
    assert 0 <= drop <= len(ids)
    return [*ids[: len(ids) - drop].tolist(), *suffix.tolist()]


@pytest.mark.parametrize("history", [(), HISTORY, HISTORY * 2], ids=["first", "second", "third"])
@pytest.mark.parametrize("system", ["", *HARMLESS])
def test_harmless_text_is_encoded_as_published(
    kind: str, text: Text, oracle: Any, system: str, history: tuple[Message, ...]
) -> None:
    prefix = Prefix(system, history)
    for question in HARMLESS:
        ids = published(oracle, kind, as_published(kind, prefix, question))
        assert text.chat.whole(prefix, question).tolist() == ids
        assert parts(text.chat, prefix, question) == ids


@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(system=NASTY, question=NASTY, asked=NASTY, answered=NASTY, turns=st.booleans())
def test_any_text_is_cut_exactly_and_none_of_it_is_control(
    text: Text, system: str, question: str, asked: str, answered: str, turns: bool
) -> None:
    chat = text.chat
    history = (Message("user", asked), Message("assistant", answered)) if turns else ()
    prefix = Prefix(system, history)
    whole = chat.whole(prefix, question)
    assert parts(chat, prefix, question) == whole.tolist()
    harmless = Prefix("x" if system.strip() else "", HISTORY if turns else ())
    assert control(text, whole) == control(text, chat.whole(harmless, "x"))


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(system=NASTY, questions=st.lists(NASTY, min_size=2, max_size=5))
def test_questions_encoded_at_once_are_those_encoded_one_by_one(
    text: Text, system: str, questions: list[str]
) -> None:
    prefix = Prefix(system)
    for asked in (questions, [f"{question} x" for question in questions]):  # none empty
        many = text.chat.suffixes(prefix, asked)
        one = [text.chat.suffix(prefix, question) for question in asked]
        assert many == [(drop, ids.tolist()) for drop, ids in one]


def test_a_text_that_is_not_unicode_is_found_among_many(text: Text) -> None:
    with pytest.raises(RequestError, match="lone surrogate"):
        text.chat.suffixes(Prefix("the fox"), ["the", "a \ud800 b"])


def control(text: Text, ids: Any) -> list[int]:
    """Control tokens in order (<unk> stands for unknown characters, not for its text)."""
    tokenizer = text.tokenizer
    names = {"<think>", "</think>"}.union(*(control for _, _, control in KINDS.values()))
    wanted = {tokenizer.token_id(name) for name in names if name != "<unk>"} - {None}
    return [i for i in np.asarray(ids).tolist() if i in wanted]


def test_the_prefix_holds_the_documents_and_the_question_comes_cheap(kind: str, text: Text) -> None:
    prefix = Prefix("The quick brown fox.\n" * 300)
    ids = text.chat.prefix(prefix)
    drop, suffix = text.chat.suffix(prefix, "Who is quick?")
    assert len(ids) > 1000
    assert drop == 0
    assert len(suffix) < 60
    read = text.chat._read(prefix)
    again = sum(len(span.text) for span in read.tail)  # characters that each question encodes
    assert again < 100 or kind == "plain-odd"


def test_a_longer_session_begins_with_the_shorter_one(text: Text) -> None:
    short, long = (
        Prefix("The quick brown fox.", HISTORY),
        Prefix("The quick brown fox.", HISTORY * 2),
    )
    first = text.chat.prefix(Prefix("The quick brown fox.")).tolist()
    ids = text.chat.prefix(short).tolist()
    assert ids[: len(first)] == first
    assert text.chat.prefix(long).tolist()[: len(ids)] == ids


def test_an_answer_continues_the_prompt(kind: str, text: Text) -> None:
    """Prompt + answer_tokens is what the template lays out for the turn that was answered."""
    prefix, answer = Prefix("The fox."), "The quick brown one"
    prompt = text.chat.whole(prefix, "Who?").tolist()
    ids = prompt + text.chat.answer_tokens(answer).tolist()
    after = Prefix("The fox.", (Message("user", "Who?"), Message("assistant", answer)))
    laid = text.chat.whole(after, "Next?").tolist()
    if kind == "qwen3":  # an earlier answer is laid out without the empty thoughts
        thoughts = len(text.tokenizer.encode_text("\n\n")) * 2 + 2
        ids = [*prompt[:-thoughts], *ids[len(prompt) :]]
    assert laid[: len(ids)] == ids


def test_thoughts_of_earlier_answers_are_dropped(text: Text, kind: str) -> None:
    turns = (Message("user", "Who?"), Message("assistant", "<think>\nhm\n</think>\n\nThe fox."))
    ids = text.chat.whole(Prefix("x", turns), "Next?")
    assert ("hm" in text.tokenizer.decode(ids)) == (kind != "qwen3")


def test_memory_is_bounded_and_results_are_read_only(text: Text) -> None:
    for i in range(_REMEMBERED + 5):
        ids = text.chat.prefix(Prefix(f"document {i}"))
    assert len(text.chat._reads) == _REMEMBERED
    assert text.chat.prefix(Prefix(f"document {_REMEMBERED + 4}")) is ids
    assert ids.dtype == np.int32
    with pytest.raises(ValueError, match="read-only"):
        ids[0] = 1


def test_white_space_around_contents_is_not_read(text: Text) -> None:
    a, b = Prefix(" \n the fox\n\n"), Prefix("the fox")
    assert text.chat.whole(a, "\n who? ").tolist() == text.chat.whole(b, "who?").tolist()


def chat_with(text: Text, source: str) -> ChatTemplate:
    return ChatTemplate(text.tokenizer, Template(source, {}, "test"))


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
        "{% for m in messages %}{{ m.content | e }}{% endfor %}",
        "{% for m in messages %}{{ m.content | tojson }}{% endfor %}",
        "{% for m in messages %}{{ m.content + m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.role }}{% endfor %}",
        "{{ raise_exception('no') }}",
        "{{ messages[0].nothing.there }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
    ],
)
def test_a_template_that_changes_texts_is_refused(text: Text, source: str) -> None:
    with pytest.raises(UnsupportedModel, match="template"):
        chat_with(text, source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages if m.role != 'system' %}Q {{ m.content }}\n{% endfor %}",
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "Q {{ m.content }}\n{% endfor %}",
        "{% for m in messages | reverse %}Q {{ m.content }}\n{% endfor %}",
        "{% if messages[0].role == 'system' %}{{ messages[0].content * 2 }}{% endif %}"
        "{% for m in messages if m.role != 'system' %}Q {{ m.content }}\n{% endfor %}",
    ],
    ids=["drops", "refuses", "moves", "repeats"],
)
def test_system_text_is_folded_into_the_first_user_turn(text: Text, source: str) -> None:
    chat = chat_with(text, source)
    if "reverse" not in source:
        long = chat.whole(Prefix("the dog", HISTORY[:1]), "who?")
        assert text.tokenizer.decode(long).strip().startswith("Q the dog\n\nWho is it?\nQ who?")
    ids = chat.whole(Prefix("the dog"), "who?")
    assert text.tokenizer.decode(ids).strip() == "Q the dog\n\nwho?"
    assert parts(chat, Prefix("the dog"), "who?") == ids.tolist()


def test_turns_that_the_template_refuses_are_the_callers_mistake(kind: str, text: Text) -> None:
    doubled = Prefix("x", (Message("user", "a"), Message("user", "b")))
    if kind in ("llama2", "mistral1", "mistral1-words"):
        with pytest.raises(RequestError, match="alternate"):
            text.chat.prefix(doubled)
    else:
        assert parts(text.chat, doubled, "c") == text.chat.whole(doubled, "c").tolist()


def test_a_role_cannot_smuggle_text_into_the_template(text: Text) -> None:
    bad = Message("user<|im_end|>", "x")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="role"):
        text.chat.prefix(Prefix("", (bad,)))


def test_a_lone_surrogate_is_named(text: Text) -> None:
    with pytest.raises(RequestError, match=r"Character \d+ .* surrogate"):
        text.chat.suffix(Prefix("x"), "a\udc80")


def test_templates_see_a_fixed_day_and_may_mark_generations() -> None:
    template = Template(
        "{{ strftime_now('%d %b %Y') }}{% generation %}{{ x | tojson(indent=None) }}"
        "{% endgeneration %}{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}"
        "{% endfor %}",
        {"x": {"a": "<ü>"}},
        "test",
    )
    assert template.render([]) == '26 Jul 2024{"a": "<ü>"}1'


def test_where_a_template_comes_from(folder: Path, tmp_path: Path) -> None:
    import json
    import shutil

    def decoded(path: Path) -> str:
        text = load_text(path)
        return text.tokenizer.decode(text.chat.whole(Prefix("s"), "q")).strip()

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    listed = [
        {"name": "tools", "template": "no"},
        {"name": "default", "template": "A{{messages[-1].content}}"},
    ]
    (copy / "tokenizer_config.json").write_text(json.dumps({"chat_template": listed}))
    assert decoded(copy) == "As\n\nq"
    (copy / "chat_template.jinja").write_text("B{% for m in messages %}{{ m.content }}{% endfor %}")
    assert decoded(copy) == "Bsq"
    (copy / "chat_template.jinja").write_text("{% for m in messages %}")
    with pytest.raises(BadCheckpoint, match=r"chat_template\.jinja"):
        load_text(copy)
    (copy / "chat_template.jinja").unlink()
    (copy / "tokenizer_config.json").unlink()
    assert decoded(copy) == "s\n\nQuestion: q\nAnswer:"
