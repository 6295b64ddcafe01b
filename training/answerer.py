"""What the evaluation asks: anything that answers chats. Here through transformers; other engines
fit the same shape.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from training.chat_format import END, render
from training.documents import Message


class Answerer(Protocol):
    """Answers chats greedily."""

    def answer(self, chats: Sequence[Sequence[Message]], max_tokens: int) -> list[str]:
        """One answer for each chat (system, user, assistant, ... , user)."""
        ...


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
