"""A kernel of one's own under the suite: `pabench conform --impl docs/examples/kernel_adapter.py:MyAdapter`."""

import torch


def my_attention(query, keys, values, table, context_len, scale):
    """The kernel: one sequence's query [rows, heads, dim] over blocks [num_blocks, block_size, kv_heads, dim]."""
    blocks = table[: -(-context_len // keys.shape[1])].long()
    group = query.shape[1] // keys.shape[2]
    k, v = (x[blocks].flatten(0, 1)[:context_len].repeat_interleave(group, 1) for x in (keys, values))
    scores = torch.einsum("mhd,nhd->hmn", query.float(), k.float()) * scale
    future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(context_len - len(query) + 1)
    weights = scores.masked_fill(future, -torch.inf).softmax(-1)
    return torch.einsum("hmn,nhd->mhd", weights, v.float()).to(query.dtype)


class MyAdapter:
    """Attention alone: no log-sum-exp, no cache write. See pabench.conformance.kernel.adapter."""

    capabilities = frozenset()
    device = "cpu"

    def describe(self):
        return "my_attention 0.1"

    def unsupported(self, case):
        asked = {"a window": case.window, "a soft cap": case.soft_cap, "ALiBi": case.alibi,
                 "scaled storage": case.form.scales, "an empty context": 0 in case.context_lens}
        return [f"{name} is not implemented" for name, wanted in asked.items() if wanted]

    def attend(self, batch):
        starts, out = batch.query_start_loc.tolist(), []
        for seq, context_len in enumerate(batch.context_lens.tolist()):
            rows = batch.query[starts[seq] : starts[seq + 1]]
            out.append(my_attention(rows, *batch.cache[:2], batch.block_tables[seq], context_len, batch.scale))
        return torch.cat(out), None
