"""Commands that carry a context from machine to machine: `export`, `import`. Declared here, listed
with the others in main.py; as there, the work is imported when one runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer()

Name = Annotated[str, typer.Argument(help="Name of a context (see `preread list`).")]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object.")]


@commands.command("export")
def export_(
    name: Name,
    file: Annotated[Path, typer.Argument(help="File to write; an older one is replaced.")],
    json: Json = False,
) -> None:
    """Write a context, its texts and its KV to one file. Texts are in the clear."""
    import preread
    from preread.cli.output import emit, note, size
    from preread.config import load_config
    from preread.contexts.exporting import export_context
    from preread.home import open_catalog, open_tiers

    config = load_config()
    writer = f"preread {preread.__version__}"
    done = export_context(open_catalog(config), open_tiers(config), name, file, writer=writer)
    if json:
        emit({field: getattr(done, field) for field in done.__slots__})
        return
    print(
        f"{done.path}: {name}, version {done.version}, {done.chunks:,} chunks, {size(done.nbytes)}"
    )
    if done.sealed:
        note(f"  {done.sealed:,} chunks are sealed: they need the same key; the texts do not")
    if done.missing:
        note(f"  {done.missing:,} chunks are missing; they are computed where it is imported")
    for error in done.errors:
        note(f"  {error}")


@commands.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="What `preread export` wrote.")],
    name: Annotated[str, typer.Option(help="Another name than it had.")] = "",
    force: Annotated[bool, typer.Option(help="Publish over a context of that name.")] = False,
    texts_only: Annotated[
        bool, typer.Option("--texts-only", help="Leave its KV; it is computed here.")
    ] = False,
    json: Json = False,
) -> None:
    """Take in an exported context, verified whole before it shows. Plain KV is not signed: from
    strangers take the texts only."""
    from preread.cli.output import emit, note
    from preread.config import load_config
    from preread.contexts.importing import import_context
    from preread.home import check_writable, open_catalog, open_keyring, open_tiers

    config = load_config()
    check_writable(config.home)
    keyring, tiers = open_keyring(config), open_tiers(config)
    done = import_context(
        open_catalog(config),
        tiers,
        file,
        name=name,
        force=force,
        chunks=not texts_only,
        kept=config.store,
    )
    record = done.record
    notes = list(done.errors)
    if done.sealed and not keyring:
        notes.append("its KV is sealed and no key is set: set PREREAD_KEY, or it is computed again")
    elif keyring and done.chunks > done.sealed:
        notes.append("its KV is plain and this store seals: it is computed again")
    if done.missing:
        notes.append(f"{done.missing:,} chunks were not taken in; they are computed when asked")
    if json:
        counts = {field: getattr(done, field) for field in done.__slots__ if field != "record"}
        emit({"name": record.name, "version": record.version, **counts, "notes": notes})
        return
    what = "is there already" if done.unchanged else f"{record.tokens:,} tokens"
    print(f"{record.name}, version {record.version}: {what}, {done.chunks:,} chunks taken in")
    for text in notes:
        note(f"  {text}")
