"""Which context, model and codec a command means. The catalog is asked, no model is loaded."""

from __future__ import annotations

import glob
import os
from typing import TYPE_CHECKING, NamedTuple

from preread.config import load_config, local_model
from preread.contexts.names import derived_name, joined_names

if TYPE_CHECKING:
    from preread.contexts.catalog.base import Catalog


class Meant(NamedTuple):
    """model, codec: with which an engine answers the target."""

    target: str
    model: str
    codec: str


def resolve(
    catalog: Catalog, target: str, cwd: str, model: str, configured: tuple[str, str]
) -> Meant:
    """A target and what answers it. A known name stays a name, a place becomes absolute. The model
    is the one asked for, else the one that built the context (the first, where several are joined),
    else the configured one; the codec is the one that the context is kept in, else the configured
    one. configured: model and codec."""
    place = os.path.abspath(os.path.join(cwd, os.path.expanduser(target)))
    record = catalog.get(target)
    if record is None and not os.path.lexists(place) and (names := joined_names(target)):
        record = catalog.get(names[0])
    elif record is None and target != "-":
        record = catalog.get(derived_name(place))
        if record or os.path.lexists(place) or "/" in target or glob.has_magic(target):
            target = place
    model = model or (record.model if record else configured[0])
    return Meant(target, local_model(model), record.codec if record else configured[1])


def meant(target: str, model: str, cwd: str = "") -> Meant:
    """What a context of this home is to be opened with."""
    from preread.home import open_catalog

    config = load_config()
    configured = config.model.model, config.store.codec
    return resolve(open_catalog(config), target, cwd or os.getcwd(), model, configured)
