"""Words and stems, the same for questions, answers and documents. Crude on purpose: it only has to
tell which lines speak of the same thing."""

from __future__ import annotations

import re

WORD = re.compile(r"[^\W_]+(?:(?:[.,:'’-]|_+)[^\W_]+)*")  # "_" around a word is emphasis
STOP_WORDS = frozenset(
    "a about after all also an and any are as at be been before but by can could did do does for "
    "from had has have he her his how i if in into is it its may more must no not of on one only "
    "or our she should so such than that the their them then there these they this to under until "
    "up was we were what when where which who whom why will with would you your "
    # Pairs of characters, as search takes scripts without spaces (see contexts/route.py).
    "です ます すか した して する いる ある ない から まで とは では には どう どこ いつ なに "
    "什么 多少 怎么 哪里 是否 니다 니까 습니 입니 나요".split()
)


def content(text: str) -> list[str]:
    """Words that carry meaning, in order, folded; all of them when none does."""
    words = WORD.findall(text.casefold())
    return [word for word in words if word not in STOP_WORDS] or words


def content_stems(text: str) -> set[str]:
    """Stems of the words that carry meaning."""
    return {stem(word) for word in content(text)}


def stems(text: str) -> set[str]:
    """Stems of all words."""
    return {stem(word) for word in WORD.findall(text.casefold())}


def stem(word: str) -> str:
    """A folded word without plural and tense ("files", "filing" and "file" are one)."""
    word = word.replace("’", "'").removesuffix("'s")
    if not word.isalpha():
        return word
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            break
    if len(word) > 3:
        word = word.removesuffix("e")
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word
