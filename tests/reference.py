"""NYX once more, written from the equations alone and in float64: what every other precision is measured against.

It knows nothing of `nyx`: weights come as a dict of tensors, the shape as a dict of plain settings. Each position, head and
pair of channels is worked out by itself; nothing is fused, cached or moved.
"""

import math

import torch
from torch import Tensor


def turned(x: Tensor, position: int, sign: int, settings: dict) -> Tensor:
    """One vector (d,) turned for its position (RoPE, arXiv 2104.09864), and stretched (XPOS, arXiv 2212.10554): by
    ζ^(position / base) for a query, whose `sign` is 1, and its inverse for a key, whose sign is -1."""
    pairs = len(x) // 2
    out = [torch.zeros(()) for _ in x]
    for i in range(pairs):
        angle = position * settings["rotary_base"] ** (-i / pairs)
        scale = 1.0
        if settings["xpos_scale_base"] is not None:
            scale = ((i / pairs + 0.4) / 1.4) ** (sign * position / settings["xpos_scale_base"])
        out[i] = scale * (math.cos(angle) * x[i] - math.sin(angle) * x[i + pairs])
        out[i + pairs] = scale * (math.sin(angle) * x[i] + math.cos(angle) * x[i + pairs])
    return torch.stack(out)


def head(q: Tensor, k: Tensor, v: Tensor, settings: dict) -> Tensor:
    """Causal attention of one head, (n, d) each (arXiv 1706.03762, equation 1)."""
    n, d = q.shape
    q = torch.stack([turned(q[t], t, 1, settings) for t in range(n)])
    k = torch.stack([turned(k[t], t, -1, settings) for t in range(n)])
    rows = []
    for t in range(n):
        grown = torch.exp(k[: t + 1] @ q[t] / math.sqrt(d) - (k[: t + 1] @ q[t] / math.sqrt(d)).max())
        rows.append(grown / grown.sum() @ v[: t + 1])
    return torch.stack(rows)


def norm(x: Tensor, gain: Tensor) -> Tensor:
    """LayerNorm of each row, without a bias (arXiv 1607.06450)."""
    apart = x - x.mean(1, keepdim=True)
    return gain * apart / torch.sqrt((apart**2).mean(1, keepdim=True) + 1e-5)


def block(x: Tensor, weights: dict[str, Tensor], settings: dict) -> Tensor:
    """x + attention + feed-forward, side by side (arXiv 2204.02311), with SwiGLU (arXiv 2002.05202)."""
    heads, kv_heads, d = settings["num_attention_heads"], settings["num_kv_heads"], settings["head_dim"]
    wide = settings["ff_mult"] * settings["model_dim"]
    rows = weights["in_proj.weight"].split([heads * d, kv_heads * d, kv_heads * d, wide, wide])
    y = norm(x, weights["norm.weight"])
    q, k, v, a, gate = (y @ part.T for part in rows)
    shared = [h * kv_heads // heads for h in range(heads)]  # whose key and value a query head uses
    each = [
        head(q[:, h * d : h * d + d], k[:, g * d : g * d + d], v[:, g * d : g * d + d], settings)
        for h, g in enumerate(shared)
    ]
    attended = torch.cat(each, dim=1) @ weights["attn_out.weight"].T
    return x + attended + (a * gate / (1 + torch.exp(-gate))) @ weights["ff_out.weight"].T


def logits(weights: dict[str, Tensor], tokens: Tensor, settings: dict) -> Tensor:
    """The logits (n, vocab_size), float64, of one row of tokens (n,)."""
    exact = {name: tensor.double() for name, tensor in weights.items()}
    x = exact["embedding.weight"][tokens]
    for i in range(settings["layer_depth"]):
        start = f"blocks.{i}."
        x = block(x, {n.removeprefix(start): w for n, w in exact.items() if n.startswith(start)}, settings)
    return norm(x, exact["norm.weight"]) @ exact["embedding.weight"].T


def loss(weights: dict[str, Tensor], tokens: Tensor, settings: dict) -> Tensor:
    """Mean cross-entropy, in nats, of each token but the first given those before it."""
    scores = logits(weights, tokens[:-1], settings)
    right = scores[torch.arange(len(scores)), tokens[1:]]
    return (torch.logsumexp(scores, dim=1) - right).mean()
