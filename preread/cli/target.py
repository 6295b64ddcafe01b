"""Which context and which model a command means. The catalog is asked, no model is loaded."""

from __future__ import annotations

import glob
import os
from typing import TYPE_CHECKING

from preread.config import load_config, local_model
from preread.contexts.names import derived_name, joined_names

if TYPE_CHECKING:
    from preread.contexts.catalog.base import Catalog


def resolve(
    catalog: Catalog, target: str, cwd: str, model: str, configured: str
) -> tuple[str, str]:
    """A target and the model that answers it. A known name stays a name, a place becomes absolute.
    The model is the one asked for, else the one that built the context (the first, where several
    are joined), else the configured one."""
    place = os.path.abspath(os.path.join(cwd, os.path.expanduser(target)))
    record = catalog.get(target)
    if record is None and not os.path.lexists(place) and (names := joined_names(target)):
        record = catalog.get(names[0])
    elif record is None and target != "-":
        record = catalog.get(derived_name(place))
        if record or os.path.lexists(place) or "/" in target or glob.has_magic(target):
            target = place
    return target, local_model(model or (record.model if record else configured))


def model_of(target: str, model: str) -> str:
    """The model to open for a context of this home."""
    from preread.home import open_catalog

    config = load_config()
    return resolve(open_catalog(config), target, os.getcwd(), model, config.model.model)[1]
