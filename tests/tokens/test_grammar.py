from __future__ import annotations

import json

import numpy as np
import pytest

from preread.errors import RequestError
from preread.testing.models import write_byte_tokenizer
from preread.tokens.grammar import JsonGrammars


@pytest.fixture(scope="module")
def grammars(tmp_path_factory: pytest.TempPathFactory) -> JsonGrammars:
    folder = tmp_path_factory.mktemp("bytes")
    write_byte_tokenizer(folder)
    return JsonGrammars(lambda: (folder / "tokenizer.json").read_text(), 320, [258])


SCHEMAS = [
    {"properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False},
    {"type": "array", "items": {"enum": ["x", "yy"]}, "minItems": 1, "maxItems": 3},
    {"enum": ["yes", "no"]},
]


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_chosen_is_valid(grammars, schema, seed):
    make, matcher, out = np.random.default_rng(seed), grammars.compile(schema).start(), b""
    for _ in range(400):
        mask = matcher.mask()
        assert mask.shape == (320,) and mask.dtype == bool
        allowed = np.flatnonzero(mask)
        token = int(make.choice(allowed))
        if token == 258:
            break
        out += bytes([token])
        if matcher.accept(token):
            break
    else:
        pytest.fail("never ended")
    assert matcher.error == ""
    json.loads(out)


def test_rows_do_not_share_a_state(grammars):
    grammar = grammars.compile({"enum": ["yes", "no"]})
    one, other = grammar.start(), grammar.start()
    one.accept(ord('"'))
    one.accept(ord("y"))
    assert not one.mask()[ord("n")]
    assert other.mask()[ord('"')]


def test_a_forbidden_token_is_an_error_not_a_crash(grammars):
    matcher = grammars.compile({"enum": ["yes"]}).start()
    assert matcher.accept(ord("z"))
    assert matcher.error


@pytest.mark.parametrize("schema", [{"type": "nothing"}, {"type": "string", "format": "zip"}, 5])
def test_bad_schemas_are_refused_by_reason(grammars, schema):
    with pytest.raises(RequestError, match="schema: "):
        grammars.compile(schema)
