from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.errors import ConfigError
from preread.store.tiers.urls import (
    EXTRAS,
    Host,
    TierUrl,
    parse_bytes,
    parse_seconds,
    parse_tiers,
)


def one(text: str) -> TierUrl:
    (url,) = parse_tiers(text)
    return url


def test_a_list_nearest_first() -> None:
    tiers = parse_tiers(" ram:512MB, disk ,disk:/mnt/kv?budget=10GB&fsync=0,redis://cache/3,")
    assert [(t.name, t.scheme, t.hosts, t.path) for t in tiers] == [
        ("ram", "ram", (), "512MB"),
        ("disk", "disk", (), ""),
        ("disk-2", "disk", (), "/mnt/kv"),
        ("redis", "redis", (Host("cache"),), "3"),
    ]
    assert tiers[2].nbytes("budget") == 10**10 and tiers[2].flag("fsync", True) is False
    assert parse_tiers("") == parse_tiers(" , ") == []


def test_hosts_logins_and_buckets() -> None:
    url = one("rediss://me:s%2Ce%40c:ret@[::1]:7000;b:7001?deadline=250ms&window=4&ttl=7d")
    assert url.hosts == (Host("[::1]", 7000), Host("b", 7001))
    assert (url.user, url.password) == ("me", "s,e@c:ret")
    assert (url.seconds("deadline"), url.count("window"), url.seconds("ttl")) == (0.25, 4, 604800)
    assert one("redis+cluster://a:1").name == "redis-cluster"
    url = one("s3://bucket/a/b%20c/?endpoint=http%3A//localhost:9000&region=eu")
    assert (url.hosts, url.path) == ((Host("bucket"),), "a/b c")
    assert url.text("endpoint") == "http://localhost:9000"
    assert (one("file:///a/b").path, one("disk:~/kv").path) == ("/a/b", "~/kv")


def test_what_is_not_given_has_the_openers_default() -> None:
    url = one("disk")
    assert (url.nbytes("budget", 7), url.seconds("deadline", 0.5)) == (7, 0.5)
    assert (url.count("window", 4), url.flag("fsync", True), url.text("x", "y")) == (4, True, "y")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tape:/dev/st0", "'tape' is no kind of tier"),
        ("/var/kv", "Tier 1 of the list begins with no kind of tier. Commas between"),
        ("ram:1GB,disk redis://u@x", "Tier 2 of the list begins"),
        ("ram", "ram: needs how much"),
        ("ram:lots", "ram = 'lots'"),
        ("file:", "file: needs a path"),
        ("redis:cache", "`//` must follow"),
        ("redis://", "server 1 of the list"),
        ("redis://a:b:c", "server 1 of the list"),
        ("redis://a:70000", "server 1 of the list"),
        ("redis://a;", "server 2 of the list"),
        ("redis://u:pa?ss@a", "beyond the host"),
        ("disk?bugdet=1GB", "disk: unknown option 'bugdet'"),
        ("disk?budget=1XB", "disk: budget = '1XB'"),
        ("disk?deadline=-1s", "disk: deadline = '-1s'"),
        ("disk?window=four", "window=four is no whole number"),
        ("disk?budget=1GB&share=2GB", "disk: share=2GB of a budget of 1000000000 bytes"),
        ("ram:1MB?share=2MB", "ram: share=2MB"),
        ("disk,disk", "listed twice"),
        ("redis://a,redis://b,redis://a?ttl=1d", "redis://a is listed twice"),
    ],
)
def test_errors_name_the_bad_part(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_tiers(text)
    assert said in str(caught.value) and caught.value.hint


def test_a_flag_is_one_or_nought() -> None:
    assert one("disk?fsync").flag("fsync") is one("disk?fsync=YES").flag("fsync") is True
    with pytest.raises(ConfigError, match="expected 1 or 0"):
        one("disk?fsync=maybe").flag("fsync")


@given(
    st.sampled_from(sorted(scheme for scheme in EXTRAS if scheme != "file")),
    st.sampled_from(["", "/", "?", ",", "@", ";", ":", "=", "&", "[", "%2F", "1/", "?x=1@"]),
    st.sampled_from(["", "?bad=1", "?budget=x", ":1:2", "[", "/x?window=-", ";", ",tape"]),
)
def test_no_secret_is_ever_shown(scheme: str, inside: str, tail: str) -> None:
    """Whatever stands in the password, escaped or not."""
    try:
        tiers = parse_tiers(f"{scheme}://user:hush{inside}hush@a:1{tail}")
        said = [repr(url) + url.place for url in tiers]
    except ConfigError as exc:
        said = [str(exc)]
    assert not [text for text in said if "hush" in text or "user" in text]


def test_amounts() -> None:
    assert [parse_bytes(t) for t in ("7", "1.5kB", "2KiB", "3 MB", "1GiB", "1TB", "4B")] == [
        *(7, 1500, 2048, 3_000_000, 2**30, 10**12, 4)
    ]
    assert [parse_seconds(t) for t in ("7", "250ms", "1.5s", "2m", "1h", "1d")] == [
        *(7, 0.25, 1.5, 120, 3600, 86400)
    ]
    for bad in ("", "GB", "1 2", "1e3", "inf", "10gb", "-1"):
        with pytest.raises(ConfigError, match="Write it like"):
            parse_bytes(bad)
