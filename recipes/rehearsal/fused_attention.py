"""The attention kernels that torch chooses on a card; without one it takes that which makes the whole N x N map."""

import torch

_WIDEST = 256  # channels of a head that flash attention takes
_HALF = (torch.float16, torch.bfloat16)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """torch's scaled_dot_product_attention of q (B, heads, N, d), k and v (B, heads, M, d), mask (.., N, M).

    Flash attention where it can be, else memory-efficient attention, as sdp_utils.cpp ranks them for CUDA.
    """
    if attn_mask is None and query.shape[-1] <= _WIDEST and query.dtype in _HALF:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(query, key, value, dropout_p, is_causal, scale=scale)[0]
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, float("-inf"))
        attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    efficient, keeps = torch.ops.aten._scaled_dot_product_efficient_attention, query.requires_grad
    return efficient(query, key, value, attn_mask, keeps, dropout_p, is_causal, scale=scale)[0]
