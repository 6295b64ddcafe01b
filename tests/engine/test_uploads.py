"""The way to the device, where there is none: what is copied at once is waited for by nobody."""

from __future__ import annotations

import torch

from preread.engine.uploads import InTurn, Uploads


def test_where_the_host_copies_it_is_done_when_it_returns():
    for uploads in (Uploads(torch.device("cpu")), InTurn()):
        source, there = torch.ones(3), torch.zeros(3)
        assert uploads.waits
        uploads.begin()
        uploads.copy(lambda: there.copy_(source), source)  # noqa: B023
        assert torch.equal(there, source)
        source.zero_()
        uploads.behind()()
        uploads.ease()
        uploads.settle()
        assert there.sum() == 3
