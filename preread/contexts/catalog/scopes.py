"""Whose KV is erased at once: the names of epochs in a catalog.

tenant:NAME  shared:NAME      all of one tenant, of one shared namespace
model:FINGERPRINT@OWNER       of these (one of the two above), what one model has read
model:FINGERPRINT             what one model has read for anybody
"""

from __future__ import annotations

from preread.config import StoreSection


def owner_scope(kept: StoreSection) -> str:
    """Of whoever this configuration stores for."""
    return f"shared:{kept.shared}" if kept.shared else f"tenant:{kept.tenant}"


def model_scope(fingerprint: str, owner: str = "") -> str:
    """owner: "" for what it has read for anybody."""
    return f"model:{fingerprint}@{owner}" if owner else f"model:{fingerprint}"


def model_owner(scope: str) -> str:
    """Whose it is, of a model's scope; "" of any other. A fingerprint has no "@", so what a tenant
    is called makes its scope nobody else's."""
    return scope.partition("@")[2] if scope.startswith("model:") else ""


def scopes_of(kept: StoreSection, fingerprint: str) -> tuple[str, str, str]:
    """Whose epochs void what is kept: the owner's, its model's, the model's."""
    owner = owner_scope(kept)
    return owner, model_scope(fingerprint, owner), model_scope(fingerprint)
