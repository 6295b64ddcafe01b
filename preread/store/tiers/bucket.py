"""A place in an object store, through obstore: get, put, copy, delete, list, each with a deadline.

S3, GCS, Azure, a folder and obstore's memory look alike from here on. What the stores say goes into
no message: their errors quote requests, and those name keys and signatures.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import obstore
from obstore import exceptions
from obstore.store import AzureStore, GCSStore, LocalStore, S3Store

from preread.errors import ConfigError, TierError
from preread.store.tiers.base import Room, fresh
from preread.store.tiers.urls import TierUrl

if TYPE_CHECKING:
    from obstore import PutMode
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

PAGE = 1000  # objects per request of a listing
_CHANGED = (exceptions.AlreadyExistsError, exceptions.PreconditionError)


class Changed(Exception):
    """A conditional put came too late: somebody else wrote the object."""


class Found(NamedTuple):
    """An object: its bytes, and the tag that a conditional put names."""

    data: memoryview
    tag: str


class Listed(NamedTuple):
    """path within the bucket; modified: seconds since the epoch by the store's clock."""

    path: str
    nbytes: int
    modified: float


@dataclass(frozen=True, slots=True)
class Bucket:
    """store: an obstore store whose client keeps the deadline; place: the URL for messages, without
    credentials. Thread-safe. Every method raises TierError when the store cannot be used."""

    store: ObjectStore
    place: str

    def get(self, path: str, room: Room = fresh) -> Found | None:
        """The whole object in a buffer of `room`; None if there is none."""
        with self._border("read"):
            try:
                reply = obstore.get(self.store, path)
                size = reply.meta["size"]
                view = room(size)
                data = memoryview(reply.bytes())  # one copy more than a stream, ten times faster
            except FileNotFoundError:
                return None
        if data.nbytes != size:
            raise TierError(f"{self.place}: a reply ended after {data.nbytes} of {size} bytes.")
        view[:] = data
        return Found(view, reply.meta["e_tag"] or "")

    def size(self, path: str) -> int | None:
        """Bytes of an object; None if there is none."""
        with self._border("look into"):
            try:
                return int(obstore.head(self.store, path)["size"])
            except FileNotFoundError:
                return None

    def part(self, path: str, where: slice) -> bytes:
        """Some bytes of an object; none where there is none or it is shorter."""
        with self._border("look into"):
            try:
                found = obstore.get_range(self.store, path, start=where.start, end=where.stop)
            except (FileNotFoundError, exceptions.GenericError):
                return b""  # S3 refuses a range beyond the end
            return bytes(found)

    def put(self, path: str, parts: Iterable[bytes | memoryview]) -> None:
        """Write an object whole, over what is there."""
        with self._border("write to"):
            obstore.put(self.store, path, iter(parts), use_multipart=False)

    def swap(self, path: str, data: bytes, tag: str | None) -> None:
        """Write an object if nobody has since it had this tag (None: since there was none). Raises
        Changed. The data must be like no other's: a put whose reply was lost is known by it."""
        mode: PutMode = "create" if tag is None else {"e_tag": tag}
        with self._border("write to"):
            try:
                obstore.put(self.store, path, data, mode=mode, use_multipart=False)
                return
            except _CHANGED:  # anywhere else such a reply is a failure like any other
                pass
        there = self.get(path)
        if there is None or there.data != data:
            raise Changed

    def copy(self, path: str, to: str) -> bool:
        """False if there is nothing to copy."""
        with self._border("write to"):
            try:
                obstore.copy(self.store, path, to)
            except FileNotFoundError:
                return False
            return True

    def delete(self, paths: Sequence[str]) -> None:
        """What is not there is no error."""
        with self._border("remove from"):
            try:
                if paths:
                    obstore.delete(self.store, list(paths))
            except FileNotFoundError:  # a folder says so, and stops there
                for path in paths:
                    with contextlib.suppress(FileNotFoundError):
                        obstore.delete(self.store, path)

    def list(self, folder: str) -> Iterator[Listed]:
        """All objects below a folder, in no order, a page at a time."""
        pages = iter(obstore.list(self.store, folder, chunk_size=PAGE))
        while True:
            with self._border("list"):
                page = next(pages, None)
            if page is None:
                return
            for meta in page:
                yield Listed(meta["path"], meta["size"], meta["last_modified"].timestamp())

    @contextlib.contextmanager
    def _border(self, what: str) -> Iterator[None]:
        """Foreign errors become TierError, without their text."""
        try:
            yield
        except (exceptions.BaseError, OSError) as exc:
            why, hint = _explained(exc)
            raise TierError(f"Cannot {what} {self.place}: {why}.", hint=hint) from None
        except BaseException as exc:
            if type(exc).__name__ != "PanicException":  # of the client's Rust; it has no other name
                raise
            raise TierError(
                f"Cannot {what} {self.place}: the client gave up.",
                hint="Check bucket and endpoint in store.tiers and store.catalog.",
            ) from None


def open_bucket(url: TierUrl, deadline_s: float, *, folder: str = "") -> Bucket:
    """The place of an `s3://`, `gs://`, `az://` or `file://` URL, or a folder in it. Credentials
    come from the URL or else from the environment, as the stores' own tools find them. Nothing is
    asked of the store yet. deadline_s: for one operation, one retry included. Raises ConfigError.
    """
    endpoint = url.text("endpoint")
    if endpoint and not re.fullmatch(r"https?://[^/?#@\s]+(/\S*)?", endpoint):
        raise ConfigError(
            f"{url.place}: its endpoint is no URL.", hint="Write endpoint=https://host:port."
        )
    prefix = "/".join(filter(None, (url.path, folder))) or None
    try:
        if url.scheme == "file":
            path = Path(url.path).expanduser().absolute() / folder
            store: ObjectStore = LocalStore(path, mkdir=True)
        elif url.scheme == "s3":
            store = _s3(url, prefix, *_patience(url, deadline_s))
        elif url.scheme == "gs":
            store = _gcs(url, prefix, *_patience(url, deadline_s))
        else:
            store = _azure(url, prefix, *_patience(url, deadline_s))
    except (exceptions.BaseError, OSError, ValueError) as exc:
        raise ConfigError(
            f"{url.place}: cannot be opened ({type(exc).__name__}).",
            hint="Check its options and the credentials in the environment; see docs/store.md.",
        ) from None
    return Bucket(store, url.place)


def _patience(url: TierUrl, deadline_s: float) -> tuple[ClientConfig, RetryConfig]:
    """One retry, of what failed in the first quarter; both tries within the deadline."""
    one, early = timedelta(seconds=0.75 * deadline_s), timedelta(seconds=0.25 * deadline_s)
    plain = url.flag("http") or url.text("endpoint").startswith("http://")
    soon = timedelta(milliseconds=50)
    return (
        {"timeout": one, "connect_timeout": min(one, timedelta(seconds=1)), "allow_http": plain},
        {
            "max_retries": 1,
            "retry_timeout": early,
            "backoff": {"init_backoff": soon, "max_backoff": soon, "base": 2},
        },
    )


def _s3(url: TierUrl, prefix: str | None, client: ClientConfig, retry: RetryConfig) -> S3Store:
    config = _given(
        endpoint=url.text("endpoint"),
        region=url.text("region"),
        access_key_id=url.user,
        secret_access_key=url.password,
        skip_signature="true" * url.flag("anonymous"),
        # Servers of one's own rarely answer for bucket.host.
        virtual_hosted_style_request="true" * (not url.text("endpoint")),
    )
    bucket = url.hosts[0].name
    return S3Store(bucket, prefix=prefix, config=config, client_options=client, retry_config=retry)


def _gcs(url: TierUrl, prefix: str | None, client: ClientConfig, retry: RetryConfig) -> GCSStore:
    config = _given(base_url=url.text("endpoint"), skip_signature="true" * url.flag("anonymous"))
    bucket = url.hosts[0].name
    return GCSStore(bucket, prefix=prefix, config=config, client_options=client, retry_config=retry)


def _azure(
    url: TierUrl, prefix: str | None, client: ClientConfig, retry: RetryConfig
) -> AzureStore:
    config = _given(
        account_name=url.text("account") or url.user,
        account_key=url.password,
        endpoint=url.text("endpoint"),
        skip_signature="true" * url.flag("anonymous"),
    )
    place = url.hosts[0].name
    return AzureStore(
        place, prefix=prefix, config=config, client_options=client, retry_config=retry
    )


def _given(**options: str) -> Any:
    """What was said; the rest comes from the environment."""
    return {key: value for key, value in options.items() if value}


def _explained(exc: Exception) -> tuple[str, str]:
    """(what happened, what to do)."""
    said = str(exc)
    if isinstance(exc, exceptions.UnauthenticatedError) or "status: 401" in said:
        return "the credentials were refused", "Check them in the URL or the environment."
    denied = (exceptions.PermissionDeniedError, PermissionError)
    if isinstance(exc, denied) or "status: 403" in said:
        return "access was denied", (
            "Allow reading, writing, deleting and listing there (without listing, S3 denies what "
            "is merely absent)."
        )
    if isinstance(exc, exceptions.NotSupportedError):
        return "the store does not support it", "Use another store."
    if "NoSuchBucket" in said:
        return "there is no such bucket", "Create it, or mend the URL."
    hint = "Answers stay right; what is stored there is computed again."
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror, hint
    return "no answer within the deadline" if "TimedOut" in said else "it failed or is gone", hint
