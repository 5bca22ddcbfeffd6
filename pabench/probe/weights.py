"""Hand-set weights of the probe. No training: every matrix below is written out, in numpy.

The residual stream (hidden_size = num_q_heads * head_dim) holds, side by side:

    token   code of this token, a unit sign vector (zero for SEP)
    prev    code of the previous token, written by layer 0
    source  code of a salt, in salt tokens only
    salt    code of the salt that this prefix carries, written by layer 0
    bits    the token id's bits as +-1/sqrt(bits)
    answer  the answer's bits, written by layers 1 … L-1
    const   16.0: it dominates the RMS norm, so that norms stay constant whatever attention wrote
    is_salt, is_sep   flags

Layer 0 finds the previous token by position (query heads of the first half) and the salt by its flag (second half).
Layers 1 … L-1 look up the position whose previous token is the current token and whose salt is the current salt,
and each query head copies one bit of the token that stands there. MLPs are zero, norms are one.

A windowed probe has no salt and no sink: all heads of layer 0 find the previous token, and lookups match tokens alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import cos, exp, log1p, sin, sqrt

import numpy as np
from numpy.typing import NDArray

from pabench.probe.spec import FIRST_SALT, SEP, ProbeSpec
from pabench.probe.tensors import Array

CONST = 16.0
MATCH_NATS = 120.0    # score of a full match in a lookup
SINK_SHARE = 0.83     # SEP's score, as a share of a full match: above any half match, below a full one
TOKEN_SHARE = 0.6     # share of a full match that the token contributes; the salt contributes the rest
LAYER0_NATS = 60.0    # gap between the right position and any other in layer 0
MAX_TOKEN_CORRELATION = 0.71   # so that a wrong token under the right salt scores below the sink
MAX_SALT_CORRELATION = 0.42    # so that the right token under a wrong salt scores below the sink
CODE_SEED = 20230912


@dataclass(frozen=True, slots=True)
class Residual:
    """Which dims of the residual stream hold what."""

    token: slice
    prev: slice
    source: slice
    salt: slice
    bits: slice
    answer: slice
    const: int
    is_salt: int
    is_sep: int

    @classmethod
    def of(cls, spec: ProbeSpec) -> Residual:
        """Lay the fields out one after another."""
        edges = [0]
        for width in (spec.token_code_dims, spec.token_code_dims, spec.salt_code_dims, spec.salt_code_dims,
                      spec.bits, spec.bits):
            edges.append(edges[-1] + width)
        token, prev, source, salt, bits, answer = (slice(a, b) for a, b in pairwise(edges))
        end = edges[-1]
        assert end + 3 <= spec.hidden_size, (end, spec.hidden_size)
        return cls(token, prev, source, salt, bits, answer, const=end, is_salt=end + 1, is_sep=end + 2)


def sign_codes(rng: np.random.Generator, count: int, dims: int, max_correlation: float) -> Array:
    """`count` unit sign vectors [count, dims] no two of which correlate above `max_correlation`."""
    codes = np.empty((count, dims), np.float32)
    done = 0
    while done < count:
        signs = rng.choice(np.array([-1, 1], np.float32), size=(min(1024, 4 * (count - done)), dims))
        batch = signs / np.float32(sqrt(dims))
        far = (batch @ codes[:done].T <= max_correlation + 1e-4).all(axis=1) if done else np.ones(len(batch), bool)
        batch = batch[far]
        near = np.triu(batch @ batch.T > max_correlation + 1e-4, k=1)
        keep = batch[~near.any(axis=0)][: count - done]  # drop whatever is near an earlier one of its batch
        codes[done: done + len(keep)] = keep
        done += len(keep)
    return codes


def id_bits(ids: NDArray[np.int64], bits: int) -> Array:
    """Bits of each id as +-1, lowest first; [len(ids), bits]."""
    return np.where((ids[:, None] >> np.arange(bits)) & 1, 1.0, -1.0).astype(np.float32)


def build_weights(spec: ProbeSpec) -> dict[str, Array]:
    """All tensors of the checkpoint by their Hugging Face Llama names, float32, linear weights as [out, in]."""
    field = Residual.of(spec)
    tensors = {
        "model.embed_tokens.weight": embedding(spec),
        "lm_head.weight": _head(spec, field),
        "model.norm.weight": np.ones(spec.hidden_size, np.float32),
    }
    for layer in range(spec.num_layers):
        attention = _prepare(spec, field) if layer == 0 else _lookup(spec, field, layer)
        prefix = f"model.layers.{layer}."
        tensors |= {f"{prefix}self_attn.{name}_proj.weight": weight for name, weight in attention.items()}
        tensors |= {
            f"{prefix}mlp.gate_proj.weight": np.zeros((spec.mlp_size, spec.hidden_size), np.float32),
            f"{prefix}mlp.up_proj.weight": np.zeros((spec.mlp_size, spec.hidden_size), np.float32),
            f"{prefix}mlp.down_proj.weight": np.zeros((spec.hidden_size, spec.mlp_size), np.float32),
            f"{prefix}input_layernorm.weight": np.ones(spec.hidden_size, np.float32),
            f"{prefix}post_attention_layernorm.weight": np.ones(spec.hidden_size, np.float32),
        }
    return tensors


def _rms(spec: ProbeSpec) -> float:
    """What the RMS norm divides by: the constant and about three unit codes. Weights multiply by it again."""
    return sqrt((CONST**2 + 3) / spec.hidden_size)


def exact_logprob(spec: ProbeSpec) -> float:
    """Log-probability (nats) of each token of a ring, when every key and value is exact.

    -bits * ln(1 + e^(-2 beta)), were it not for the norms: weights multiply by one constant, while the residual
    stream holds a little more in each layer.
    """
    assumed = CONST**2 + 3
    held = CONST**2 + 2                       # in front of layer 0: the constant, this token's code, its bits
    salted = 0.0 if spec.window is not None else assumed / (held + 2)
    held += assumed / held + salted  # it copies two codes: of the token before, of a salt where there are such
    amplitudes = []                                # of one answer bit, as each lookup layer writes it; 1.0 is meant
    for _ in range(1, spec.num_layers):
        amplitudes.append(sqrt(assumed / held))
        held += amplitudes[-1] ** 2 / (spec.num_layers - 1)
    per_bit = [spec.beta * amplitude * sqrt(assumed / held) for amplitude in amplitudes]
    return -spec.num_q_heads * sum(log1p(exp(-2 * logit)) for logit in per_bit)


@lru_cache(maxsize=4)
def embedding(spec: ProbeSpec) -> Array:
    """What a token brings into the residual stream, [vocab_size, hidden_size]."""
    field = Residual.of(spec)
    rng = np.random.default_rng(CODE_SEED)
    salts = sign_codes(rng, spec.num_salts if spec.salt_code_dims else 0, spec.salt_code_dims, MAX_SALT_CORRELATION)
    tokens = sign_codes(rng, spec.vocab_size, spec.token_code_dims, MAX_TOKEN_CORRELATION)
    table = np.zeros((spec.vocab_size, spec.hidden_size), np.float32)
    table[:, field.token] = tokens
    table[SEP, field.token] = 0.0  # else SEP, its own previous token, would add to the sink's score
    if spec.window is None:
        table[FIRST_SALT: FIRST_SALT + spec.num_salts, field.source] = salts
        table[FIRST_SALT: FIRST_SALT + spec.num_salts, field.is_salt] = 1.0
    table[:, field.bits] = id_bits(np.arange(spec.vocab_size), spec.bits) / sqrt(spec.bits)
    table[:, field.const] = CONST
    table[SEP, field.is_sep] = 1.0
    table.flags.writeable = False  # it is kept
    return table


def two_valued(spec: ProbeSpec) -> list[int]:
    """Dims of the embedding in which a ring's tokens are x or -x; in all others they are alike."""
    field = Residual.of(spec)
    return [*range(field.token.start, field.token.stop), *range(field.bits.start, field.bits.stop)]


def _head(spec: ProbeSpec, field: Residual) -> Array:
    """logits[t] = beta * sum over bits of answer_bit * bit(t)."""
    head = np.zeros((spec.vocab_size, spec.hidden_size), np.float32)
    bits = id_bits(np.arange(spec.vocab_size), spec.bits)
    head[:, field.answer] = bits * (spec.beta * sqrt(spec.bits) * _rms(spec))
    return head


def _empty(spec: ProbeSpec) -> tuple[Array, Array, Array, Array]:
    """q [heads, head_dim, hidden], k and v [kv_heads, head_dim, hidden], o [hidden, heads, head_dim], all zero."""
    q = np.zeros((spec.num_q_heads, spec.head_dim, spec.hidden_size), np.float32)
    k = np.zeros((spec.num_kv_heads, spec.head_dim, spec.hidden_size), np.float32)
    o = np.zeros((spec.hidden_size, spec.num_q_heads, spec.head_dim), np.float32)
    return q, k, np.zeros_like(k), o


def _flat(spec: ProbeSpec, q: Array, k: Array, v: Array, o: Array) -> dict[str, Array]:
    hidden = spec.hidden_size
    return {"q": q.reshape(-1, hidden), "k": k.reshape(-1, hidden), "v": v.reshape(-1, hidden),
            "o": o.reshape(hidden, -1)}


def _share(spec: ProbeSpec, q_head: int) -> range:
    """Lanes of the KV head's value that belong to this query head of its group. Together they use every lane."""
    member = q_head % spec.group_size
    edges = [spec.head_dim * j // spec.group_size for j in range(spec.group_size + 1)]
    return range(edges[member], edges[member + 1])


def _lane_signs(layer: int, spec: ProbeSpec) -> Array:
    """Fixed signs of the value lanes, [num_kv_heads, head_dim]."""
    rng = np.random.default_rng((CODE_SEED, layer))
    return rng.choice(np.array([-1, 1], np.float32), size=(spec.num_kv_heads, spec.head_dim))


def _lane_values(layer: int, spec: ProbeSpec) -> Array:
    """What the value lanes of a lookup layer hold for a set bit, [num_kv_heads, head_dim].

    Signs alone in a hard probe. A soft one has lanes of many magnitudes: equal ones would come through any
    quantisation unharmed, since the scale makes the largest of them exact.
    """
    signs = _lane_signs(layer, spec)
    if not spec.is_soft:
        return signs
    rng = np.random.default_rng((CODE_SEED, layer, 1))
    return signs * rng.uniform(0.25, 1.75, size=signs.shape).astype(np.float32)


def _prepare(spec: ProbeSpec, field: Residual) -> dict[str, Array]:
    """Layer 0: the first half of the query heads copy the previous token's code, the others the salt's code.

    Without salts all of them copy the previous token's.
    """
    q, k, v, o = _empty(spec)
    half, rms = spec.head_dim // 2, _rms(spec)
    # Score at distance d: a^2 * sum_i cos((d - 1) theta_i) / sqrt(head_dim); a sets the gap to d = 0 and d = 2.
    gap = sum(1 - cos(spec.thetas[i]) for i in spec.fast_pairs)
    a = sqrt(LAYER0_NATS * sqrt(spec.head_dim) / gap) * rms / CONST
    flag = sqrt(LAYER0_NATS * sqrt(spec.head_dim)) * rms
    salt_dim = spec.slow_dims[0]
    prev_heads = range(spec.num_q_heads // 2 if spec.window is None else spec.num_q_heads)
    for head in range(spec.num_q_heads):
        kv_head = spec.kv_head_of(head)
        if head in prev_heads:
            for i in spec.fast_pairs:
                q[head, i, field.const] = a
                k[kv_head, i, field.const] = a * cos(spec.thetas[i])
                k[kv_head, i + half, field.const] = a * sin(spec.thetas[i])
        else:
            q[head, salt_dim, field.const] = flag / CONST
            k[kv_head, salt_dim, field.is_salt] = flag
    _copy_code(spec, v, o, prev_heads, field.token, field.prev)
    if spec.window is None:
        _copy_code(spec, v, o, range(len(prev_heads), spec.num_q_heads), field.source, field.salt)
    return _flat(spec, q, k, v, o)


def _copy_code(spec: ProbeSpec, v: Array, o: Array, heads: range, source: slice, target: slice) -> None:
    """Spread a code over all value lanes that `heads` read; each dim of the code is the mean of its lanes."""
    signs, rms = _lane_signs(0, spec), _rms(spec)
    dims = source.stop - source.start
    lanes = [(head, lane) for head in heads for lane in _share(spec, head)]
    copies = np.bincount(np.arange(len(lanes)) % dims, minlength=dims)
    scale = sqrt(dims)  # lanes hold +-1
    for i, (head, lane) in enumerate(lanes):
        kv_head, dim = spec.kv_head_of(head), i % dims
        v[kv_head, lane, source.start + dim] = signs[kv_head, lane] * scale * rms
        o[target.start + dim, head, lane] = signs[kv_head, lane] / (scale * copies[dim])


def _lookup(spec: ProbeSpec, field: Residual, layer: int) -> dict[str, Array]:
    """Layers 1 … L-1: match (token, salt) against (prev, salt), fall into SEP otherwise, copy one bit a head.

    With a window: match the token against the previous one; what else is in the window is far below.
    """
    q, k, v, o = _empty(spec)
    values, rms = _lane_values(layer, spec), _rms(spec)
    match = sqrt(MATCH_NATS * sqrt(spec.head_dim)) * rms
    token_dims = spec.slow_dims[: spec.token_code_dims]
    salt_dims = spec.slow_dims[spec.token_code_dims: spec.token_code_dims + spec.salt_code_dims]
    token_share = TOKEN_SHARE if spec.window is None else 1.0
    for weight, code in ((q, field.token), (k, field.prev)):
        weight[:, token_dims, range(code.start, code.stop)] = match * sqrt(token_share)
        weight[:, salt_dims, range(field.salt.start, field.salt.stop)] = match * sqrt(1 - token_share)
    if spec.window is None:
        sink_dim = spec.slow_dims[spec.token_code_dims + spec.salt_code_dims]
        q[:, sink_dim, field.const] = match * SINK_SHARE / CONST
        k[:, sink_dim, field.is_sep] = match
    for head in range(spec.num_q_heads):
        kv_head, bit = spec.kv_head_of(head), spec.bit_of(layer, head)
        lanes = list(_share(spec, head))
        own = values[kv_head, lanes]
        v[kv_head, lanes, field.bits.start + bit] = own * sqrt(spec.bits) * rms
        o[field.answer.start + bit, head, lanes] = own / (float((own * own).sum()) * sqrt(spec.bits))
    return _flat(spec, q, k, v, o)
