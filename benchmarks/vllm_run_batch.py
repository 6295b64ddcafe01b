"""vLLM's own `run-batch`, its engine replaced by requests to a server. For benchmarks/providers.py:

    VENV/bin/python benchmarks/vllm_run_batch.py URL INPUT.jsonl OUTPUT.jsonl AT_ONCE

run by a Python that has vLLM 0.26 (on a machine without a GPU its wheel and what its import asks
for, no kernels). Reading, validating, submitting, counting and writing are vLLM's; only what its
engine would answer is asked over HTTP. Prints "ready", waits for a line, runs, prints one JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from argparse import Namespace
from typing import Any

import aiohttp
from vllm.entrypoints.openai import run_batch as theirs
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse
from vllm.entrypoints.openai.engine.protocol import ErrorInfo, ErrorResponse


async def main(url: str, source: str, target: str, at_once: int) -> dict[str, Any]:
    connector = aiohttp.TCPConnector(limit=at_once)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def answer(request: Any) -> Any:
            body = request.model_dump(exclude_unset=True)
            async with session.post(f"{url}/v1/chat/completions", json=body) as reply:
                said = await reply.json()
            if reply.status == 200:
                return ChatCompletionResponse.model_validate(said)
            error = ErrorInfo(message=str(said), type="refused", code=reply.status)
            return ErrorResponse(error=error)

        async def registry(**given: Any) -> dict[str, dict[str, Any]]:
            return {
                "completions": {
                    "url_matcher": lambda path: path == "/v1/chat/completions",
                    "handler_getter": lambda: answer,
                    "wrapper_fn": None,
                }
            }

        theirs.build_endpoint_registry = registry
        files = Namespace(input_file=source, output_file=target, output_tmp_dir=None)
        wall, cpu = time.perf_counter(), time.process_time()
        await theirs.run_batch(engine_client=None, args=files)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    with open(target, encoding="utf-8") as lines:
        answered = sum(json.loads(line)["error"] is None for line in lines)
    return {"seconds": wall, "cpu_s": cpu, "answered": answered}


if __name__ == "__main__":
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(asyncio.run(main(*sys.argv[1:4], int(sys.argv[4])))), flush=True)
