"""Train the byte-level BPE tokenizer on generated text.

    python -m training.make_tokenizer preread/assets/reader

A word gets the same pieces with and without a space before it: pieces are learnt from bare words,
and the merges of a space with a first piece come last. So what the model copies out of the middle
of a sentence to the start of an answer differs in one token at most. Digits are single tokens.
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from training.bank import Bank, load_bank, pooled_options
from training.chat_format import CHAT_TEMPLATE, END, PAD, SPECIAL, START, render
from training.documents import Plan, make_conversation
from training.likeness import alike
from training.notes import load_notes, load_pages
from training.skills.rename import stems
from training.templates import make_synonyms
from training.world import World

VOCABULARY = 5120
SPACED = 1700
"""How many pieces also exist with a space before them."""
BARE_WORDS = r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+|\s+"
WORDS = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SPACE = "Ġ"


def world_types() -> frozenset[str]:
    """Every type that a world can draw."""
    return World(random.Random(0), Bank((), (), (), (), make_synonyms([]))).types()


def open_bank(strict: bool = False) -> Bank:
    """The bank and the notes, checked against the types that a world can draw."""
    types = world_types()
    bank = load_bank(types, strict)
    notes = load_notes(types, strict)
    pages = load_pages(types, strict)
    told = (*bank.policies, *notes)
    written = (*told, *(block for page in pages for block in page.notes))
    words = set().union(*(stems(t.source) for block in written for t in block.statements))
    return replace(
        bank,
        notes=notes,
        pages=pages,
        rivals=alike(told),
        options=pooled_options(written),
        words=tuple(sorted(words)),
    )


def corpus(bank: Bank, documents: int, seed: int) -> Iterator[str]:
    """Generated conversations without chat markers."""
    rng = random.Random(seed)
    for _ in range(documents):
        made = make_conversation(rng, bank, Plan(rng.randrange(500, 6000), 6))
        if made:
            text = render(made.messages)
            for marker in SPECIAL:
                text = text.replace(marker, "\n")
            yield text


def pieces(pattern: str) -> pre_tokenizers.PreTokenizer:
    """Split by a pattern, then map bytes to letters."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def train(bank: Bank, documents: int, seed: int) -> Tokenizer:
    """Bare pieces first, then the spaced ones that save most tokens."""
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pieces(BARE_WORDS)
    texts = list(corpus(bank, documents, seed))
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL) - SPACED,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bare.train_from_iterator(texts, trainer)
    follows: Counter[str] = Counter()
    for start in range(0, len(texts), 200):
        for encoding in bare.encode_batch(texts[start : start + 200]):
            follows.update(
                second
                for first, second in pairwise(encoding.tokens)
                if first == SPACE and second[0] != SPACE and not second.isdigit()
            )
    model = json.loads(bare.to_str())["model"]
    return assemble(model, [piece for piece, _ in follows.most_common()])


def assemble(model: dict[str, object], spaced: list[str]) -> Tokenizer:
    """A tokenizer of the special tokens, the bare pieces and the spaced pieces."""
    vocab: dict[str, int] = {token: index for index, token in enumerate(SPECIAL)}
    for token in sorted(model["vocab"], key=model["vocab"].get):  # type: ignore[call-overload,attr-defined]
        vocab.setdefault(token, len(vocab))
    merges = [tuple(pair) for pair in model["merges"]]  # type: ignore[attr-defined]
    for piece in spaced:
        if len(vocab) >= VOCABULARY:
            break
        if SPACE + piece not in vocab:
            vocab[SPACE + piece] = len(vocab)
            merges.append((SPACE, piece))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pieces(WORDS)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    )
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 16384,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "pad_token": PAD,
        "bos_token": None,
        "unk_token": None,
        "additional_special_tokens": [START],
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config, indent=2) + "\n", encoding="utf-8"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    tokenizer = train(open_bank(), options.documents, options.seed)
    save(tokenizer, options.folder)
    sample = list(corpus(open_bank(), 100, options.seed + 1))
    tokens = sum(len(e.ids) for e in tokenizer.encode_batch(sample))
    words = sum(len(text.split()) for text in sample)
    print(
        json.dumps(
            {
                "vocabulary": tokenizer.get_vocab_size(),
                "tokens_per_word": round(tokens / words, 3),
                "characters_per_token": round(sum(map(len, sample)) / tokens, 3),
            }
        )
    )


if __name__ == "__main__":
    main()
