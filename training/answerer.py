"""What the evaluation asks: anything that answers chats. preread itself, as its users run it, or
transformers as the second opinion.
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from training.chat_format import END, render
from training.documents import Message


class Answerer(Protocol):
    """Answers chats greedily."""

    def answer(self, chats: Sequence[Sequence[Message]], max_tokens: int) -> list[str]:
        """One answer for each chat (system, user, assistant, ... , user)."""
        ...


class PrereadAnswerer:
    """Greedy decoding by preread's own engine, through the public facade. Questions about one
    document are asked as one batch."""

    def __init__(self, folder: Path) -> None:
        import preread

        self._home = TemporaryDirectory()
        self.engine = preread.open(str(folder), home=self._home.name)

    def answer(self, chats: Sequence[Sequence[Message]], max_tokens: int) -> list[str]:
        """See Answerer. A chat without a system message has an empty one."""
        from preread.backend import Generate, RequestBatch
        from preread.contexts.rows import collect
        from preread.types import Message as Turn
        from preread.types import Prefix

        work, backend = Generate(max_tokens=max_tokens), self.engine.backend
        groups: dict[Prefix, list[int]] = {}
        for i, chat in enumerate(chats):
            system = chat[0].content if chat[0].role == "system" else ""
            turns = chat[bool(system) : -1]
            history = tuple(
                Turn("user" if t.role == "user" else "assistant", t.content) for t in turns
            )
            groups.setdefault(Prefix(system, history), []).append(i)
        out = [""] * len(chats)
        for prefix, rows in groups.items():
            batch = RequestBatch(
                work, [chats[i][-1].content for i in rows], (prefix,), reuse=len(rows) > 1
            )
            for i, row in zip(rows, self.engine.run(collect(backend, batch)), strict=True):
                if row.error:
                    raise RuntimeError(row.error)
                out[i] = row.text
        return out


class TransformersAnswerer:
    """Greedy decoding with transformers: batches of similar length, padded on the left."""

    def __init__(self, folder: Path, batch_tokens: int = 0) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.torch = torch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self.model: Any = model.to(self.device).eval()
        self.batch_tokens = batch_tokens or (150_000 if self.device == "cuda" else 6_000)

    def answer(self, chats: Sequence[Sequence[Message]], max_tokens: int) -> list[str]:
        """See Answerer."""
        ids = [
            self.tokenizer(render(chat, True), add_special_tokens=False)["input_ids"]
            for chat in chats
        ]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        out = [""] * len(ids)
        while order:
            longest = len(ids[order[-1]])
            batch: list[int] = []
            while order and (len(batch) + 1) * longest <= max(self.batch_tokens, longest):
                batch.append(order.pop())
            for index, text in zip(
                batch, self._generate([ids[i] for i in batch], max_tokens), strict=True
            ):
                out[index] = text
        return out

    def _generate(self, rows: list[list[int]], max_tokens: int) -> list[str]:
        torch, width = self.torch, max(map(len, rows))
        tokens = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        for row, ids in enumerate(rows):
            tokens[row, width - len(ids) :] = torch.tensor(ids)
            mask[row, width - len(ids) :] = 1
        end = self.tokenizer.convert_tokens_to_ids(END)
        with torch.inference_mode():
            made = self.model.generate(
                input_ids=tokens.to(self.device),
                attention_mask=mask.to(self.device),
                max_new_tokens=max_tokens,
                do_sample=False,
                eos_token_id=end,
                pad_token_id=0,
            )
        return [
            str(text)
            for text in self.tokenizer.batch_decode(made[:, width:], skip_special_tokens=True)
        ]
