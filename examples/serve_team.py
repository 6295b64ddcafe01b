"""A team asks one handbook through any OpenAI client: the handbook is a model by its name.

`preread serve` does the same as a process of its own: docs/server.md.
"""

from pathlib import Path

import openai

import preread

HANDBOOK = Path(__file__).parent / "handbook"

with preread.open() as engine:
    engine.build("example-handbook", HANDBOOK)
    with (
        preread.serve(engine, port=0) as url,
        openai.OpenAI(base_url=url, api_key="none is needed here") as client,
    ):
        print("models:", ", ".join(model.id for model in client.models.list()))
        for question in ("Who started the workshop?", "How long does the van take to charge?"):
            said = client.chat.completions.create(
                model="example-handbook",
                messages=[{"role": "user", "content": question}],
                max_completion_tokens=40,
            )
            cached = said.usage.prompt_tokens_details.cached_tokens
            print(f"{said.choices[0].message.content} ({cached} tokens cached)")
