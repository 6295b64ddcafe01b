"""Trust, exactness against the published tokenizer, seams, and refusal of what is not exact."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Published

from preread.errors import BadCheckpoint, ModelNotFound, UnsupportedModel
from preread.models.tokenizer import At, Span, Tokenizer, clip
from tests.models.made import KINDS, write_tokenizer

WORDS = [
    "the",
    " fox",
    "\n",
    "\n\n",
    " ",
    "  ",
    "\r\n",
    "'s",
    "'",
    "12",
    "ä",
    "鑰匙",
    "🗝️",
    "\u0301",
    "_",
]
# Without unassigned characters, on which two releases of Unicode may differ.
ANY = st.characters(exclude_categories=["Cs", "Cn", "Co", "So"])
TEXT = st.lists(st.one_of(st.sampled_from(WORDS), st.text(ANY, max_size=4)), max_size=10).map(
    "".join
)
QUICK = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# One of each way that a tokenizer handles text; templates do not matter here.
SORTS = ["qwen3", "llama3", "llama2", "mistral1-words", "mistral3", "plain-gpt2", "plain-odd"]


@pytest.fixture(scope="module", params=SORTS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_tokenizer(tmp_path_factory.mktemp(request.param), request.param)
    spec = json.loads((path / "tokenizer.json").read_text())
    assert spec["added_tokens"]
    published = Published.from_file(str(path / "tokenizer.json"))
    published.add_special_tokens(
        [
            AddedToken("<eats-left>", lstrip=True),
            AddedToken("<eats-right>", rstrip=True),
            AddedToken("<word>", single_word=True),
            AddedToken("<fox", special=True),
            AddedToken("<fox>", special=True),
        ]
    )
    published.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def published(folder: Path) -> Published:
    return Published.from_file(str(folder / "tokenizer.json"))


CONTROL = sorted({name for _, _, names in KINDS.values() for name in names} | {"<think>"})
MARKED = st.lists(
    st.one_of(
        st.sampled_from([*CONTROL, "<eats-left>", "<eats-right>", "<word>", "<fox", "<fox>"]), TEXT
    ),
    max_size=8,
).map("".join)


@QUICK
@given(text=MARKED)
@example(text="\x1f<eats-left>")  # no white space to the library, white space to Python
@example(text="\x85<eats-left>")
def test_trusted_text_is_read_as_published(
    tokenizer: Tokenizer, published: Published, text: str
) -> None:
    expected = published.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode([Span(text, trusted=True)]) == expected


@QUICK
@given(text=MARKED)
def test_foreign_text_never_becomes_a_control_token(
    tokenizer: Tokenizer, published: Published, text: str
) -> None:
    ids = tokenizer.encode_text(text)
    unknown = tokenizer.token_id("<unk>")
    assert not tokenizer.special_ids.difference([unknown]).intersection(ids)
    assert tokenizer.token_id("<think>") not in ids
    published.encode_special_tokens = True
    try:  # the library's own switch knows tokens marked special only
        if "<think>" not in text and "</think>" not in text:
            assert ids == published.encode(text, add_special_tokens=False).ids
    finally:
        published.encode_special_tokens = False


@QUICK
@given(a=TEXT, b=TEXT)
def test_trust_ends_where_the_span_ends(tokenizer: Tokenizer, a: str, b: str) -> None:
    marker = "<fox>"
    spans = [Span(a), Span(marker, trusted=True), Span(b + marker)]
    ids = tokenizer.encode(spans)
    assert ids.count(tokenizer.token_id(marker) or -1) == 1
    assert (
        tokenizer.encode([Span(a + marker[:2], trusted=True), Span(marker[2:])]).count(
            tokenizer.token_id(marker) or -1
        )
        == 0
    )


@QUICK
@given(a=TEXT, b=TEXT, c=TEXT)
def test_spans_of_one_run_are_joined(tokenizer: Tokenizer, a: str, b: str, c: str) -> None:
    joined = tokenizer.encode_text(a + b + c)
    assert tokenizer.encode([Span(a), Span(b), Span(c)]) == joined
    assert tokenizer.encode([Span(a), Span(""), Span(b + c)]) == joined


@QUICK
@given(text=TEXT, more=TEXT)
def test_a_seam_holds_whatever_follows(tokenizer: Tokenizer, text: str, more: str) -> None:
    at = tokenizer.seam(text, 0, len(text))
    if at is not None:
        head, tail = tokenizer.encode_text(text[:at]), text[at:] + more
        assert head + tokenizer.encode_text(tail, At.MIDDLE) == tokenizer.encode_text(text + more)


def test_there_are_seams(tokenizer: Tokenizer) -> None:
    text = "The quick brown fox.\n" * 500 + "4711 " * 2000
    if "odd" in str(tokenizer.path):
        assert tokenizer.seam(text, 0, len(text)) is None
        return
    assert tokenizer.seam(text, 0, len(text)) == text.rindex(" fox")
    assert tokenizer.seam(text, len(text) - 50, len(text)) is None
    assert tokenizer.seam("the fox", 0, 3) is None


@QUICK
@given(text=TEXT)
def test_a_raw_prompt_begins_once(tokenizer: Tokenizer, published: Published, text: str) -> None:
    ids = tokenizer.prompt_tokens(text)
    published.encode_special_tokens = True
    try:
        assert ids == published.encode(text).ids
    finally:
        published.encode_special_tokens = False
    assert ids == [*tokenizer.bos_ids, *tokenizer.encode_text(text)]


@QUICK
@given(text=TEXT, cuts=st.lists(st.integers(0, 60), max_size=5))
def test_clip_keeps_text_and_trust(text: str, cuts: list[int]) -> None:
    spans = [Span(text, True), Span("x" + text), Span("", True), Span(text, True)]
    joined = "".join(span.text for span in spans)
    at = [0, *sorted(min(cut, len(joined)) for cut in cuts), len(joined)]
    parts = [span for a, b in pairwise(at) for span in clip(spans, a, b)]
    assert "".join(span.text for span in parts) == joined
    trusted = [span.trusted for span in spans for _ in span.text]
    assert [span.trusted for span in parts for _ in span.text] == trusted


def write(path: Path, tokenizer: Published, **changes: Any) -> Path:
    spec = json.loads(tokenizer.to_str()) | changes
    (path / "tokenizer.json").write_text(json.dumps(spec))
    return path


def tiny(ignore_merges: bool = False) -> Published:
    vocab = {char: i for i, char in enumerate("abcdefgh<>|Ġ")} | {"<a": 12, "<a>": 13, "ab": 14}
    merges = [("<", "a"), ("<a", ">"), ("a", "b")]
    tokenizer = Published(models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@pytest.mark.parametrize("ignore_merges", [False, True])
def test_a_control_token_that_the_vocabulary_spells_is_taken_out(
    tmp_path: Path, ignore_merges: bool
) -> None:
    made = tiny(ignore_merges)
    made.add_special_tokens(["<a>"])
    tokenizer = Tokenizer(write(tmp_path, made))
    assert made.encode("<a>").ids == [13]
    assert tokenizer.encode_text("<a>") == [12, 9]
    assert tokenizer.encode_text("ab <a> ab") == [14, 11, 12, 9, 11, 14]
    assert tokenizer.encode([Span("<a>", True), Span("ab")]) == [13, 14]


def test_added_words_that_are_no_markup_are_vocabulary(tmp_path: Path) -> None:
    made = tiny()
    made.add_tokens(["abba", AddedToken("gh", normalized=True)])
    tokenizer = Tokenizer(write(tmp_path, made))
    assert tokenizer.encode_text("cabbagh") == made.encode("cabbagh").ids == [2, 15, 16]
    assert tokenizer.seam("cab bagh", 0, 8) is None


def test_a_token_sought_in_normalised_text_is_refused_when_a_template_uses_it(
    tmp_path: Path,
) -> None:
    made = tiny()
    made.normalizer = normalizers.Prepend("▁")
    made.add_special_tokens([AddedToken("<b>", normalized=True)])
    tokenizer = Tokenizer(write(tmp_path, made))
    assert tokenizer.encode_text("ab")
    with pytest.raises(UnsupportedModel, match="normalised"):
        tokenizer.encode([Span("a<b>", True)])


def test_limits_of_the_file_do_not_cut_or_pad(tmp_path: Path) -> None:
    made = tiny()
    made.enable_truncation(2)
    made.enable_padding(length=50)
    assert Tokenizer(write(tmp_path, made)).encode_text("abcdefgh") == [14, 2, 3, 4, 5, 6, 7]


def test_what_is_not_exact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"tokenizer\.json"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "added_')
    with pytest.raises(BadCheckpoint, match="damaged"):
        Tokenizer(tmp_path)
    words = Published(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    with pytest.raises(UnsupportedModel, match="WordLevel"):
        Tokenizer(write(tmp_path, words))
    with pytest.raises(UnsupportedModel, match="WordPiece"):
        made = tiny()
        made.decoder = decoders.WordPiece()
        Tokenizer(write(tmp_path, made))
    with pytest.raises(UnsupportedModel, match="exactly"):
        Tokenizer(write(tmp_path, tiny(), decoder=None))
