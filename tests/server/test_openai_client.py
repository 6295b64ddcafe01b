"""The `openai` client as oracle, unchanged, against our server."""

from __future__ import annotations

import json

import openai
import pytest

import preread
from preread.backend import Generate, LogLikelihood, RequestBatch
from preread.contexts.rows import collect
from preread.tokens.ragged import stacked
from preread.types import Finish

from .conftest import Served

SYSTEM = "Answer from the list.\n" + "\n".join(f"Room {n} has key {n * 3}." for n in range(20))
ASKED = "Which key has room 4?"
CHAT = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": ASKED}]


def test_a_chat_is_what_the_engine_says(served: Served) -> None:
    """Law 1 over HTTP: also where the shared part is cached the second time."""
    with served.client() as client:
        said = [
            client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=12)  # type: ignore[arg-type]
            for _ in range(2)
        ]
    batch = RequestBatch(Generate(max_tokens=12), [ASKED], (preread.Prefix(SYSTEM),))
    (row,) = served.engine.run(collect(served.engine.backend, batch))
    for reply in said:
        assert reply.choices[0].message.content == row.text
        assert reply.choices[0].message.role == "assistant"
        assert reply.choices[0].finish_reason == str(row.finish)
        assert reply.model == "tiny" and reply.object == "chat.completion"
        assert reply.usage is not None
        assert reply.usage.completion_tokens == row.usage.output_tokens
        assert reply.usage.prompt_tokens == row.usage.cached_tokens + row.usage.computed_tokens
    details = [reply.usage.prompt_tokens_details for reply in said if reply.usage]
    assert details[0] and details[1]
    assert details[0].cached_tokens == 0 < row.usage.context_tokens <= details[1].cached_tokens  # type: ignore[operator]


def test_a_context_is_asked_by_its_name(served: Served, handbook: preread.Context) -> None:
    want = handbook.ask("How much leave is there?", max_tokens=8)
    with served.client() as client:
        assert [model.id for model in client.models.list()] == ["tiny", "handbook"]
        assert client.models.retrieve("handbook").owned_by == "preread"
        said = client.chat.completions.create(
            model="handbook",
            messages=[{"role": "user", "content": "How much leave is there?"}],
            max_completion_tokens=8,
        )
    assert said.choices[0].message.content == want.text
    own = said.model_extra["preread"]  # type: ignore[index]
    assert own["context"] == {"name": "handbook", "version": 1}
    assert own["citations"] == [
        {"source": c.source, "start_line": c.start_line, "end_line": c.end_line,
         "quote": c.quote, "match": c.match}
        for c in want.citations
    ]  # fmt: skip
    assert said.usage and said.usage.prompt_tokens_details
    assert said.usage.prompt_tokens_details.cached_tokens == want.usage.cached_tokens > 0


def test_a_conversation_goes_on_where_it_was(served: Served, handbook: preread.Context) -> None:
    """The history is sent again each time and read once; the caller's own instructions come after
    the context, which stays as it was read."""
    session = handbook.session("s")
    first = session.ask("How much leave is there?", max_tokens=8)
    second = session.ask("And who is asked?", max_tokens=8)
    turns = [
        {"role": "user", "content": "How much leave is there?"},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "And who is asked?"},
    ]
    instructed = [{"role": "system", "content": "Be brief."}, *turns]
    with served.client() as client:
        said, other = (
            client.chat.completions.create(model="handbook", messages=messages, max_tokens=8)  # type: ignore[arg-type]
            for messages in (turns, instructed)
        )
    assert said.choices[0].message.content == second.text
    assert other.usage and other.usage.prompt_tokens_details and said.usage
    assert other.usage.prompt_tokens > said.usage.prompt_tokens
    assert handbook.tokens - 8 <= (other.usage.prompt_tokens_details.cached_tokens or 0)


@pytest.mark.parametrize("model", ["tiny", "handbook"])
def test_a_stream_is_the_answer(served: Served, handbook: preread.Context, model: str) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": ASKED}], "max_tokens": 20}
    with served.client() as client:
        whole = client.chat.completions.create(**body)
        source = client.chat.completions.create(
            **body, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(source)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    *_, last, counted = chunks
    assert last.choices[0].finish_reason == whole.choices[0].finish_reason
    assert counted.choices == [] and counted.usage and whole.usage
    assert counted.usage.completion_tokens == whole.usage.completion_tokens
    assert counted.usage.prompt_tokens == whole.usage.prompt_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    with served.client() as client:
        assert all(c.usage is None for c in client.chat.completions.create(**body, stream=True))


def test_its_helpers_for_streams_work(served: Served, handbook: preread.Context) -> None:
    asked = {"model": "handbook", "messages": [{"role": "user", "content": ASKED}]}
    with served.client() as client:
        whole = client.chat.completions.create(**asked).choices[0].message.content or ""
        stop = whole[len(whole) // 2]  # they raise for an answer that is cut off by its limit
        with client.chat.completions.stream(**asked, stop=stop) as stream:
            done = stream.get_final_completion()
    assert done.choices[0].finish_reason == "stop"
    assert done.choices[0].message.content == whole.partition(stop)[0]


def test_a_schema_is_kept_to(served: Served) -> None:
    schema = {
        "type": "object",
        "properties": {"there": {"type": "boolean"}},
        "required": ["there"],
        "additionalProperties": False,
    }
    with served.client() as client:
        said = client.chat.completions.create(
            model="tiny",
            messages=CHAT,  # type: ignore[arg-type]
            max_tokens=200,
            response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
        )
    if said.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(said.choices[0].message.content or "")["there"], bool)
    else:  # cut off: incomplete, and said so
        assert said.choices[0].finish_reason == "length"


def test_logprobs_are_those_of_the_tokens(served: Served) -> None:
    with served.client() as client:
        said = client.chat.completions.create(
            model="tiny", messages=CHAT, max_tokens=6, logprobs=True,  # type: ignore[arg-type]
            extra_body={"ignore_eos": True, "return_token_ids": True},
        )  # fmt: skip
        plain = client.completions.create(
            model="tiny", prompt="Once upon", max_tokens=5, logprobs=0,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
    choice = said.choices[0]
    assert choice.logprobs is not None and choice.logprobs.content is not None
    tokens = choice.logprobs.content
    assert len(tokens) == 6 == len(choice.model_extra["token_ids"])  # type: ignore[index]
    joined = b"".join(bytes(token.bytes or []) for token in tokens).decode(errors="replace")
    assert joined == choice.message.content
    assert all(token.logprob <= 1e-6 for token in tokens)
    logs = plain.choices[0].logprobs
    assert logs and logs.tokens and logs.token_logprobs and logs.text_offset
    assert len(logs.token_logprobs) == len(logs.tokens) == 5 and logs.text_offset[0] == 0


def test_completions_of_texts_and_of_tokens(served: Served) -> None:
    want = served.engine.generate(["Once upon", "There was"], max_tokens=5, ignore_eos=True)
    extra = {"ignore_eos": True}
    with served.client() as client:
        both = client.completions.create(
            model="tiny", prompt=["Once upon", "There was"], max_tokens=5, extra_body=extra
        )
        ids = list(served.engine.text.tokenizer.prompt_tokens("Once upon"))  # type: ignore[union-attr]
        one = client.completions.create(model="tiny", prompt=ids, max_tokens=5, extra_body=extra)
        streamed = client.completions.create(
            model="tiny", prompt="Once upon", max_tokens=5, stream=True, extra_body=extra
        )
        text = "".join(chunk.choices[0].text for chunk in streamed)
    assert [choice.text for choice in both.choices] == [answer.text for answer in want]
    assert [choice.index for choice in both.choices] == [0, 1]
    assert both.usage and both.usage.completion_tokens == 10
    assert one.choices[0].text == text == want[0].text


def test_echo_scores_the_prompt(served: Served) -> None:
    tokenizer = served.engine.text.tokenizer  # type: ignore[union-attr]
    ids = tokenizer.prompt_tokens("Once upon a time")
    want = served.engine.run(_score(served.engine, ids))
    with served.client() as client:
        said = client.completions.create(
            model="tiny", prompt="Once upon a time", max_tokens=0, echo=True, logprobs=0
        )
    logs = said.choices[0].logprobs
    assert logs and logs.token_logprobs and logs.tokens
    assert said.choices[0].text == "Once upon a time" == "".join(logs.tokens)
    assert logs.token_logprobs[0] is None
    assert logs.token_logprobs[1:] == pytest.approx(want, abs=1e-4)
    assert said.usage and said.usage.completion_tokens == 0


async def _score(engine: preread.Engine, ids: list[int]) -> tuple[float, ...]:
    work = LogLikelihood(stacked([ids[1:]]))
    (row,) = await collect(engine.backend, RequestBatch(work, stacked([ids[:1]]), raw=True))
    return tuple(row.logprobs)


def test_labels_get_probabilities(served: Served, handbook: preread.Context) -> None:
    """Our own field: one forward, nothing is written."""
    want = handbook.choose("Is there leave?", ["yes", "no"])
    with served.client() as client:
        said = client.chat.completions.create(
            model="handbook", messages=[{"role": "user", "content": "Is there leave?"}],
            extra_body={"labels": ["yes", "no"]},
        )  # fmt: skip
    own = said.model_extra["preread"]  # type: ignore[index]
    assert said.choices[0].message.content == want.label
    assert own["probabilities"] == pytest.approx(want.probabilities, abs=1e-5)
    assert own["mass"] == pytest.approx(want.mass, abs=1e-5)
    assert said.usage and said.usage.completion_tokens == 0


@pytest.mark.parametrize(
    ("error", "changed"),
    [
        (openai.NotFoundError, {"model": "handbok"}),
        (openai.NotFoundError, {"model": "../docs"}),
        (openai.BadRequestError, {"n": 2}),
        (openai.BadRequestError, {"temperature": 3}),
        (openai.BadRequestError, {"top_logprobs": 2}),
        (openai.BadRequestError, {"tools": [{"type": "function"}]}),
        (openai.BadRequestError, {"max_tokens": 100_000}),
        (openai.BadRequestError, {"messages": [{"role": "user", "content": " "}]}),
    ],
)
def test_errors_are_its_errors(
    served: Served, handbook: preread.Context, error: type[openai.APIStatusError], changed: object
) -> None:
    body = {"model": "handbook", "messages": CHAT[1:], "max_tokens": 4, **changed}  # type: ignore[dict-item]
    with served.client() as client, pytest.raises(error) as refused:
        client.chat.completions.create(**body)
    (field,) = changed  # type: ignore[misc]
    told = refused.value
    assert told.param == ("messages" if field == "max_tokens" else field)
    assert told.message and told.type == "invalid_request_error"
    if field == "max_tokens":
        assert told.code == "context_length_exceeded" and "100,000" in told.message


def test_finish_reasons_have_its_names() -> None:
    assert {str(Finish.STOP), str(Finish.LENGTH)} == {"stop", "length"}
