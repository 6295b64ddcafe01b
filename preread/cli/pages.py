"""HTML pages: one file each, no script, nothing fetched; foreign text is escaped."""

from __future__ import annotations

import os
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

from preread.cli.output import note
from preread.cli.plots import BOTTOM, LEFT, RIGHT, TOP
from preread.errors import RequestError


def check_place(html: Path | None) -> None:
    """Before anything is computed. Raises RequestError when the page could not be written."""
    folder = html.parent if html else Path()
    if not os.access(folder, os.W_OK | os.X_OK) or (html and html.is_dir()):
        raise RequestError(f"{html or folder.absolute()} cannot be written.", hint="Give --html.")


def page(template: str, /, *, when: datetime, **values: Any) -> str:
    """The page of a template `assets/TEMPLATE.html.jinja`."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    assets = resources.files("preread").joinpath("assets")
    loader = FunctionLoader(lambda file: assets.joinpath(file).read_text("utf-8"))
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template(
        f"{template}.html.jinja"
    )
    return made.render(
        date=when.strftime("%Y-%m-%d %H:%M"),
        frame={"left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
        **values,
    )


def write_page(path: Path, text: str) -> str | None:
    """Its absolute path, None and a note where it could not be written: results are not lost with
    the page."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as exc:
        note(f"{path} could not be written: {exc.strerror}")
        return None
    return str(path.absolute())
