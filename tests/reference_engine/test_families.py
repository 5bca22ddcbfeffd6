"""Every family's logits equal transformers', on small random checkpoints made from transformers' own configs.

Prompts go through in chunks and single tokens, over permuted block tables, in a pool whose other slots all hold NaN.
Blocks behind a window that all layers have are taken out of the table and poisoned, as the scheduler does it.
"""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from paged_kernels import plan_attention

from pabench.errors import UsageError
from reference_engine.memory.pool import KVPool
from reference_engine.model.families import FAMILIES, read_model_config
from reference_engine.model.loader import load_model
from reference_engine.model.transformer import StepInput

BLOCK_SIZE, NUM_BLOCKS, MAX_LEN, VOCAB = 8, 64, 128, 199
SIZES = {"vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2,
         "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1 + i / 8 for i in range(8)],
            "long_factor": [4.0] * 8, "original_max_position_embeddings": 128}
GEMMA = {"head_dim": 24, "query_pre_attn_scalar": 40}

CASES = {
    "llama-mha": ("Llama", {"num_key_value_heads": 4}),
    "llama-gqa": ("Llama", {}),
    "llama-mqa": ("Llama", {"num_key_value_heads": 1}),
    "llama-group-of-three": ("Llama", {"hidden_size": 96, "num_attention_heads": 6, "head_dim": 32}),
    "llama-head-dim": ("Llama", {"head_dim": 40}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
    "llama-theta": ("Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "llama-yarn": ("Llama", {"rope_parameters": YARN}),
    "llama-yarn-details": ("Llama", {"rope_parameters": YARN | {
        "beta_fast": 8, "beta_slow": 2, "truncate": False, "mscale": 0.7, "mscale_all_dim": 1.3}}),
    "llama-gelu": ("Llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 5}),
    "smollm3-named-layers": ("SmolLM3", {"no_rope_layers": [0, 1, 1], "attention_bias": True, "mlp_bias": True,
                                         "tie_word_embeddings": False}),
    "smollm3-window": ("SmolLM3", {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 11}),
    "mistral-no-window": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 19, "head_dim": 24}),
    "mistral-window-of-a-block": ("Mistral", {"sliding_window": 8, "num_key_value_heads": 1}),
    "mistral-window-of-one": ("Mistral", {"sliding_window": 1}),
    "qwen2": ("Qwen2", {}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    "qwen2-window-everywhere": ("Qwen2", {"use_sliding_window": True, "sliding_window": 17, "max_window_layers": 0,
                                          "tie_word_embeddings": True}),
    "qwen2-yarn": ("Qwen2", {"rope_parameters": YARN}),
    "qwen3": ("Qwen3", {"head_dim": 24}),
    "qwen3-mqa-bias-window": ("Qwen3", {"head_dim": 16, "num_key_value_heads": 1, "attention_bias": True,
                                        "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}),
    "gemma2": ("Gemma2", GEMMA | {"sliding_window": 13}),
    "gemma2-strong-caps": ("Gemma2", GEMMA | {"sliding_window": 20, "num_key_value_heads": 4,
                                              "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma2-no-caps": ("Gemma2", GEMMA | {"sliding_window": 7, "num_key_value_heads": 1, "attention_bias": True,
                                          "attn_logit_softcapping": None, "final_logit_softcapping": None,
                                          "layer_types": ["full_attention"] * 2 + ["sliding_attention"]}),
    "gemma3": ("Gemma3", GEMMA | {"sliding_window": 13, "num_hidden_layers": 7}),
    "gemma3-scaled": ("Gemma3", GEMMA | {
        "sliding_window": 30, "final_logit_softcapping": 5.0, "num_key_value_heads": 1,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0}}}),
    "phi3": ("Phi3", {"num_key_value_heads": 4}),
    "phi3-window-gqa": ("Phi3", {"sliding_window": 21}),
    "phi3-partial-tied": ("Phi3", {"tie_word_embeddings": True, "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}),
    "phi3-longrope": ("Phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 128}),
}


def random_model(folder, family, changes, dtype=torch.float32):
    """A checkpoint of the family in `folder` with random weights, norms and biases too; and transformers' model of it."""
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


CHUNKS = [16, 1, 1, 1, 7, 1, 1, 1, 1, 1, 21, 1, 1, 100]


def test_every_family_has_a_case():
    assert {f"{family}ForCausalLM" for family, _ in CASES.values()} == set(FAMILIES)


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(tmp_path, case):
    theirs = random_model(tmp_path, *CASES[case])
    prompts = prompts_of(70, 33, 16, 1)
    feeder = Feeder(load_model(tmp_path, torch.float32, torch.device("cpu"), MAX_LEN), prompts)
    with torch.inference_mode():
        reference = [theirs(torch.tensor([prompt])).logits[0] for prompt in prompts]
    for size in CHUNKS:
        for i, (position, row) in feeder.step(size).items():
            torch.testing.assert_close(row, reference[i][position], rtol=1e-4, atol=2e-4)
        if feeder.done == [len(prompt) for prompt in prompts]:
            break


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["llama-gqa", "mistral-window", "qwen3", "gemma2", "gemma3", "phi3"])
def test_low_precision_is_as_near_to_float32_as_transformers(tmp_path, case, dtype):
    """Both serve the same rounded weights; the reference is transformers in float32 on those weights."""
    theirs = random_model(tmp_path, *CASES[case], dtype=dtype)
    (prompt,) = prompts_of(60)
    ours = Feeder(load_model(tmp_path, dtype, torch.device("cpu"), MAX_LEN), [prompt]).step(100)[0][1]
    with torch.inference_mode():
        low = theirs(torch.tensor([prompt])).logits[0, -1].float()
        exact = theirs.float()(torch.tensor([prompt])).logits[0, -1]
    assert (ours - exact).abs().max() <= 2 * (low - exact).abs().max() + 1e-3
