"""Who waits for a prefix stops waiting, whenever it is told to."""

from __future__ import annotations

import pytest

from preread.engine.caller import Caller


@pytest.mark.parametrize("how", ["leave", "hurry"])
@pytest.mark.parametrize("first", ["listens", "is told"])
def test_a_load_is_stopped_whichever_comes_first(how, first):
    caller, stopped = Caller(), []
    fresh = caller.fresh()
    for one in (caller, fresh) if first == "listens" else ():
        one.listen(lambda: stopped.append(1))
    getattr(caller, how)()
    for one in (caller, fresh, caller.fresh()) if first == "is told" else ():
        one.listen(lambda: stopped.append(1))
    assert len(stopped) == (2 if first == "listens" else 3)
    assert caller.left == fresh.left == (how == "leave")
