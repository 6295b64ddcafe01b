from __future__ import annotations

from preread.server.prometheus import exposition


def test_contexts_are_labels_and_all_of_a_name_stand_together() -> None:
    """A name may hold dots, and names that differ in a mark must not become one."""
    counters = {
        "context.a-b.hit_tokens.disk": 3,
        "context.a.b.miss.never_stored": 1,
        "context.a.b.rows": 7,
        "context.a_b.hit_tokens.redis-cluster": 4,
        "store.load_ms": 0.5,
    }
    assert exposition(counters, {"server.under_way": 2}) == (
        "# TYPE preread_context_hit_tokens_total counter\n"
        'preread_context_hit_tokens_total{context="a-b",tier="disk"} 3.0\n'
        'preread_context_hit_tokens_total{context="a_b",tier="redis-cluster"} 4.0\n'
        "# TYPE preread_context_miss_total counter\n"
        'preread_context_miss_total{context="a.b",reason="never_stored"} 1.0\n'
        "# TYPE preread_context_rows_total counter\n"
        'preread_context_rows_total{context="a.b"} 7.0\n'
        "# TYPE preread_store_load_ms_total counter\n"
        "preread_store_load_ms_total 0.5\n"
        "# TYPE preread_server_under_way gauge\n"
        "preread_server_under_way 2.0\n"
    )
