import numpy as np
import pytest
import torch

from preread.engine.kv import KVShape
from preread.engine.pages import Pages

SHAPE = KVShape(1, 2, 8, torch.float32, torch.device("cpu"))


def test_take_give_and_check():
    pages = Pages(SHAPE, 10, 4)
    one, two = pages.take(3), pages.take(4)
    assert not set(one.tolist()) & set(two.tolist())
    pages.check([one, two])
    pages.give(one)
    assert pages.free == 6
    assert set(pages.take(3).tolist()) == set(one.tolist())  # the warm ones first
    with pytest.raises(AssertionError):
        pages.check([two])


def test_fresh_pages_are_finite_and_scrubbed_ones_too():
    pages = Pages(SHAPE, 10, 4)
    pages.kv.values.fill_(torch.nan)
    ids = pages.take(5)
    assert pages.read(ids).eq(0).all()
    pages.kv.values[:, :, :, pages.index(ids)] = torch.nan
    pages.give(ids, scrub=True)
    assert pages.read(pages.take(5)).eq(0).all()


def test_read_is_in_order():
    pages = Pages(SHAPE, 10, 4)
    pages.kv.values.copy_(torch.arange(pages.kv.values.numel()).view_as(pages.kv.values))
    ids = np.array([7, 2], np.int32)
    got = pages.read(ids)
    assert got.shape == (1, 2, 2, 8, 8)
    assert got[:, :, :, :4].equal(pages.kv.values[:, :, :, 7])
    assert got[:, :, :, 4:].equal(pages.kv.values[:, :, :, 2])
