"""Small random checkpoints of every family, and a way to run them that poisons all memory they must not read."""

from __future__ import annotations

import torch
import transformers
from paged_kernels import plan_attention

from reference_engine.memory.pool import KVPool
from reference_engine.model.transformer import StepInput

BLOCK_SIZE, NUM_BLOCKS, MAX_LEN, VOCAB = 8, 64, 128, 199
SIZES = {"vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2,
         "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def random_model(folder, family, changes, dtype=torch.float32):
    """A checkpoint in `folder` with random weights, norms and biases too; and transformers' model of it."""
    torch.manual_seed(0)
    name = "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config"
    config = getattr(transformers, name)(**SIZES | changes, attn_implementation="eager")
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for name, tensor in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(tensor, mean=float("norm" in name and "Gemma" not in family), std=0.3)
    model = model.to(dtype)
    model.save_pretrained(folder)
    return model


class Feeder:
    """Runs one batch of sequences through our model, chunk by chunk, on a poisoned pool."""

    def __init__(self, model, prompts, kv_dtype=None):
        self.model, self.prompts, self.done = model, prompts, [0] * len(prompts)
        self.pool = KVPool(model.config, NUM_BLOCKS, BLOCK_SIZE, kv_dtype or model.dtype, torch.device("cpu"))
        for tensor in (self.pool.tensor, self.pool.scales):
            if tensor is not None and tensor.dtype != torch.int8:
                tensor.fill_(torch.nan)
        free = torch.randperm(NUM_BLOCKS, generator=torch.Generator().manual_seed(5)).tolist()
        self.tables = torch.full((len(prompts), MAX_LEN // BLOCK_SIZE), -1)
        for table, prompt in zip(self.tables, prompts, strict=True):
            for block in range(-(-len(prompt) // BLOCK_SIZE)):
                table[block] = free.pop()

    def slot(self, seq, position):
        return int(self.tables[seq, position // BLOCK_SIZE]) * BLOCK_SIZE + position % BLOCK_SIZE

    def step(self, size):
        """Feed up to `size` tokens of each prompt: {prompt: (position of its last token fed, its logits)}."""
        seqs = [i for i, prompt in enumerate(self.prompts) if self.done[i] < len(prompt)]
        rows, context, starts = [], [], [0]
        for i in seqs:
            self.slide(i)
            stop = min(self.done[i] + size, len(self.prompts[i]))
            rows += [(self.prompts[i][p], p, self.slot(i, p)) for p in range(self.done[i], stop)]
            context.append(stop)
            starts.append(len(rows))
            self.done[i] = stop
        tokens, positions, slots = torch.tensor(rows).unbind(1)
        starts = torch.tensor(starts)
        plan = plan_attention(self.tables[seqs], torch.tensor(context), starts, BLOCK_SIZE)
        logits = self.model.forward(StepInput(tokens, positions, slots, starts[1:] - 1, plan), self.pool.layers)
        return {i: (self.done[i] - 1, row) for i, row in zip(seqs, logits, strict=True)}

    def slide(self, seq):
        """Drop and poison the blocks that no later position can see."""
        window = self.model.config.uniform_window
        for block in range(0 if window is None else max(0, self.done[seq] - window + 1) // BLOCK_SIZE):
            if (dead := int(self.tables[seq, block])) >= 0:
                assert self.pool.tensor.dtype != torch.int8
                self.pool.tensor[:, :, dead] = torch.nan
                self.tables[seq, block] = -1


def prompts_of(*lengths):
    rng = torch.Generator().manual_seed(1)
    return [torch.randint(3, VOCAB, (n,), generator=rng).tolist() for n in lengths]
