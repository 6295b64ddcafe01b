"""Attention that also returns the log-sum-exp, so that partial results can be merged exactly.

Shapes: M query rows, H query heads, G key/value heads (G divides H; query head h reads key head
h // (H // G)), P keys, D head size. All log-sum-exps are natural logarithms in float32 (float64 for
float64 inputs); a row without keys has output 0 and log-sum-exp -inf. Inputs may be strided views
as long as the last dimension is contiguous; outputs are of the inputs' type or wider.

The dense pass is the shared-prefix idea of Hydragen (arXiv 2402.05099): all rows of all sequences
on one run of keys, and the query heads that share a key head, form one long row axis.
"""

from __future__ import annotations

from functools import cache

import torch

PLAIN_SCORES = 1 << 26  # most scores held at once by the plain path: 256 MiB in float32

Partial = tuple[torch.Tensor, torch.Tensor]  # (output, log-sum-exp)


def attend_dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> Partial:
    """Every row sees every key. q [M, H, D]; k, v [G, P, D] -> ([M, H, D], [M, H])."""
    rows, heads, size = q.shape
    groups, keys, _ = k.shape
    if rows == 0 or keys == 0:
        return _empty(q)
    fold = heads // groups
    folded = q.view(rows, groups, fold, size).permute(1, 0, 2, 3).reshape(groups, rows * fold, size)
    out, lse = _attend(folded[None], k[None], v[None], scale, causal=False)
    out = out[0].view(groups, rows, fold, size).permute(1, 0, 2, 3).reshape(rows, heads, size)
    return out, lse[0].view(groups, rows, fold).permute(1, 0, 2).reshape(rows, heads)


def attend_causal(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None = None,
) -> Partial:
    """B stretches of L new tokens, each token sees itself and the earlier ones of its stretch.

    q [B, L, H, D]; k, v [B, L, G, D] -> ([B, L, H, D], [B, L, H]). A shorter stretch is padded at
    its end with anything finite. mask [B, L, L], True where row i may see key j, replaces the
    causal rule (branches of a tree); every row must see at least one key.
    """
    batch, length, heads, _ = q.shape
    if batch == 0 or length == 0:
        return _empty(q)
    if length == 1 and mask is None:  # a token that sees only itself
        fold = heads // k.shape[2]
        keys, values = (x.repeat_interleave(fold, dim=2) for x in (k, v))
        return values, (q.to(_wide(q)) * keys.to(_wide(q))).sum(-1) * scale
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    bias = None if mask is None else _bias(mask[:, None], q.dtype)
    out, lse = _attend(q, k, v, scale, causal=mask is None, bias=bias)
    return out.transpose(1, 2), lse.transpose(1, 2)


def attend_decode(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: torch.Tensor, scale: float
) -> Partial:
    """One row per sequence over its own gathered keys. q [B, H, D]; k, v [B, G, L, D], finite
    everywhere; row b sees the first lengths[b] keys -> ([B, H, D], [B, H])."""
    batch, heads, size = q.shape
    groups, keys = k.shape[1], k.shape[2]
    if batch == 0 or keys == 0:
        return _empty(q)
    seen = torch.arange(keys, device=q.device) < lengths[:, None]
    bias = _bias(seen[:, None, None], q.dtype)
    out, lse = _attend(q.view(batch, groups, heads // groups, size), k, v, scale, False, bias)
    none = (lengths == 0)[:, None]
    out = out.reshape(batch, heads, size).masked_fill(none[..., None], 0)
    return out, lse.reshape(batch, heads).masked_fill(none, -torch.inf)


def attend_at(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, places: torch.Tensor, scale: float
) -> Partial:
    """Rows at any places of one sequence: row i sees its keys up to places[i], which is one of
    them. q [M, H, D]; k, v [G, P, D]; places int64 [M] -> ([M, H, D], [M, H])."""
    if len(q) == 0:
        return _empty(q)
    seen = torch.arange(k.shape[1], device=q.device) <= places[:, None]
    bias = _bias(seen[None, None], q.dtype)
    out, lse = _attend(q.transpose(0, 1)[None], k[None], v[None], scale, causal=False, bias=bias)
    return out[0].transpose(0, 1), lse[0].transpose(0, 1)


def attend_reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, mask: torch.Tensor
) -> Partial:
    """The slow obvious twin of all of the above, in float64. q [M, H, D]; k, v [G, P, D]; mask
    [M, P], True where a row may see a key."""
    fold = q.shape[1] // k.shape[0]
    outs, lses = [], []
    for head in range(q.shape[1]):
        keys, values = k[head // fold].double(), v[head // fold].double()
        scores = (q[:, head].double() @ keys.T * scale).masked_fill(~mask, -torch.inf)
        lse = scores.logsumexp(-1)
        outs.append((scores - lse[:, None]).exp().nan_to_num(0.0) @ values)
        lses.append(lse)
    return torch.stack(outs, 1), torch.stack(lses, 1)


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    causal: bool,
    bias: torch.Tensor | None = None,
) -> Partial:
    """[B, H, M, D] x [B, G, P, D] with the fastest road that is known to be right here."""
    if q.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, attn_mask=bias, scale=scale
        )
        return out, lse
    if bias is None and _flash_works(q.device.type, q.dtype, q.shape[-1]):
        return _flash(q, k, v, scale, causal)
    return _plain(q, k, v, scale, causal, bias)


def _flash(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, causal: bool
) -> Partial:
    if (fold := q.shape[1] // k.shape[1]) > 1:
        k, v = k.repeat_interleave(fold, dim=1), v.repeat_interleave(fold, dim=1)
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
        q, k, v, 0.0, causal, scale=scale
    )
    return out, lse[..., : q.shape[2]]


@cache
def _flash_works(device: str, dtype: torch.dtype, size: int) -> bool:
    """Whether the fused op exists on this device, takes this dtype and head size, and agrees with
    the plain path on a small case. Asked once per process."""
    if dtype not in (torch.bfloat16, torch.float16):
        return False
    try:
        make = torch.Generator(device=device).manual_seed(1)
        q, k, v = torch.randn(3, 1, 2, 40, size, dtype=dtype, device=device, generator=make)
        for causal in (False, True):
            out, lse = _flash(q, k, v, size**-0.5, causal)
            ref, ref_lse = _plain(q, k, v, size**-0.5, causal, None)
            torch.testing.assert_close(out.float(), ref.float(), atol=2e-2, rtol=2e-2)
            torch.testing.assert_close(lse, ref_lse, atol=2e-2, rtol=2e-2)
    except (RuntimeError, NotImplementedError, AttributeError, AssertionError):
        return False
    return True


def _plain(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    causal: bool,
    bias: torch.Tensor | None,
) -> Partial:
    """Two matrix products in float32 (scores of half precision would be rounded before the
    softmax), in blocks of rows that bound the memory."""
    batch, heads, rows, _ = q.shape
    groups, keys = k.shape[1], k.shape[2]
    q, k, v = (x.to(_wide(x)) for x in (q, k, v))
    if heads != groups:
        k, v = (x.repeat_interleave(heads // groups, dim=1) for x in (k, v))
    step = max(1, PLAIN_SCORES // (batch * heads * keys))
    outs, lses = [], []
    for lo in range(0, rows, step):
        scores = torch.matmul(q[:, :, lo : lo + step], k.transpose(-1, -2)) * scale
        if causal:
            past = torch.ones(scores.shape[-2], keys, dtype=torch.bool, device=q.device).tril(lo)
            scores = scores.masked_fill(~past, -torch.inf)
        if bias is not None:
            scores = scores + (bias if bias.shape[-2] == 1 else bias[:, :, lo : lo + step])
        lse = scores.logsumexp(-1)
        weights = (scores - lse[..., None]).exp().nan_to_num(0.0)
        outs.append(torch.matmul(weights, v))
        lses.append(lse)
    return torch.cat(outs, 2), torch.cat(lses, 2)


def _wide(q: torch.Tensor) -> torch.dtype:
    return torch.promote_types(q.dtype, torch.float32)


def _bias(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, -torch.inf)


def _empty(q: torch.Tensor) -> Partial:
    lse = torch.full(q.shape[:-1], -torch.inf, dtype=_wide(q), device=q.device)
    return torch.zeros_like(q), lse
