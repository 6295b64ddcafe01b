"""`preread serve`. Declared here, listed with the others in main.py; the work is imported when it
runs."""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from preread.config import ServerSection

commands = typer.Typer()


@commands.command()
def serve(
    model: Annotated[
        str, typer.Option("--model", "-m", help="reader (bundled), a local folder or a hub id.")
    ] = "",
    host: Annotated[str, typer.Option(help="Address to listen at; else as configured.")] = "",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="0: any free one; else as configured.")
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(help="File of keys, one a line, tenant:key; PREREAD_SERVER_KEY.")
    ] = None,
    name: Annotated[str, typer.Option(help="What requests call the model itself.")] = "",
    backend: Annotated[
        str, typer.Option(help="Somebody else's server, openai:URL …; docs/backends.md.")
    ] = "",
    json: Annotated[bool, typer.Option("--json", help="Print exactly one JSON object.")] = False,
) -> None:
    """Answer OpenAI's clients over HTTP: the model by its name, each context by its own. Ctrl-C
    lets requests under way end, a second one does not. See docs/server.md."""
    from preread.config import load_config, local_model

    section = load_config().server
    section = replace(
        section,
        host=host or section.host,
        port=section.port if port is None else port,
        key="" if keys else section.key,
        keys_file=str(keys.absolute()) if keys else section.keys_file,
        name=name or section.name,
    )
    serve_until_stopped(local_model(model), backend, section, json=json)


def serve_until_stopped(model: str, backend: str, section: ServerSection, *, json: bool) -> None:
    """Ends by SIGINT or SIGTERM."""
    from preread.app import open as open_engine
    from preread.app.serving import keys_of
    from preread.app.serving import serve as serving
    from preread.cli.output import emit, note
    from preread.config import load_config

    tenants = keys_of(replace(load_config(), server=section)).tenants
    stop = threading.Event()

    def leave(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    with open_engine(model, backend=backend) as engine, serving(engine, section) as url:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, leave)
        contexts, tenant = len(engine.catalog.summaries()), engine.config.store.tenant
        if tenant not in tenants:
            note(
                f"no key is of tenant {tenant!r}: its contexts ({contexts}) are asked by nobody; "
                f"PREREAD_STORE_TENANT={tenants[0]} preread build NAME PATH… makes one of a key's"
            )
            contexts = 0
        if json:
            emit({"url": url, "model": engine.info.model, "contexts": contexts, "pid": os.getpid()})
        else:
            print(f"{engine.info.model} and its contexts ({contexts}) answer at {url}")
        sys.stdout.flush()
        while not stop.wait(3600):
            pass
        note("ending: requests under way are answered, Ctrl-C cancels them")
