"""Every family's logits equal transformers', on small random checkpoints made from transformers' own configs.

Prompts go through in chunks and single tokens, over permuted block tables, in a pool whose other slots all hold NaN.
Blocks behind a window that all layers have are taken out of the table and poisoned, as the scheduler does it.
"""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from pabench.errors import UsageError
from reference_engine.config import EngineConfig
from reference_engine.engine import Engine
from reference_engine.model.config import LayerConfig
from reference_engine.model.families import FAMILIES, read_model_config
from reference_engine.model.loader import load_model
from reference_engine.serving.tokenizer import Tokenizer
from tests.reference_engine.checkpoints import MAX_LEN, SIZES, Feeder, prompts_of, random_model
from tests.reference_engine.helpers import drain, greedy, ids

CPU = torch.device("cpu")
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
    "llama-yarn-clamped": ("Llama", {"rope_parameters": YARN | {
        "rope_theta": 60.0, "original_max_position_embeddings": 1024}}),
    "llama-gelu": ("Llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 5}),
    "smollm3-named-layers": ("SmolLM3", {"no_rope_layers": [0, 1, 1], "attention_bias": True, "mlp_bias": True,
                                         "tie_word_embeddings": False}),
    "smollm3-window": ("SmolLM3", {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 11}),
    "mistral-no-window": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 19, "head_dim": 24}),
    "mistral-window-of-a-block": ("Mistral", {"sliding_window": 8, "num_key_value_heads": 1}),
    "mistral-window-of-one": ("Mistral", {"sliding_window": 1}),
    "ministral": ("Ministral", {
        "head_dim": 16, "sliding_window": 9,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
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
CHUNKS = [16, 1, 1, 1, 7, 1, 1, 1, 1, 1, 21, 1, 1, 100]


def test_every_family_has_a_case():
    assert {f"{family}ForCausalLM" for family, _ in CASES.values()} == set(FAMILIES)


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(tmp_path, case):
    theirs = random_model(tmp_path, *CASES[case])
    prompts = prompts_of(70, 33, 16, 1)
    feeder = Feeder(load_model(tmp_path, torch.float32, CPU, MAX_LEN), prompts)
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
    ours = Feeder(load_model(tmp_path, dtype, CPU, MAX_LEN), [prompt]).step(100)[0][1]
    with torch.inference_mode():
        low = theirs(torch.tensor([prompt])).logits[0, -1].float()
        exact = theirs.float()(torch.tensor([prompt])).logits[0, -1]
    assert (ours - exact).abs().max() <= 2 * (low - exact).abs().max() + 1e-3


@pytest.mark.parametrize("case", ["llama-gqa", "mistral-window", "qwen2-window-everywhere", "gemma3", "phi3"])
def test_the_engine_says_what_transformers_generates(tmp_path, tiny_probe, case):
    """Through scheduler and allocator, in a pool too small for all at once."""
    theirs = random_model(tmp_path, *CASES[case])
    model = load_model(tmp_path, torch.float32, CPU, MAX_LEN)
    config = EngineConfig(max_model_len=MAX_LEN, block_size=8, num_blocks=20, max_num_batched_tokens=20,
                          max_num_seqs=4, check_integrity=True)
    engine = Engine(model, Tokenizer(tiny_probe), config)
    prompts = prompts_of(50, 7, 16, 33)
    requests = [engine.add(tuple(prompt), greedy(30)) for prompt in prompts]
    made = drain(engine)
    for prompt, request in zip(prompts, requests, strict=True):
        assert_greedy(theirs, prompt, ids(made[request.id][0]))


def assert_greedy(theirs, prompt, answer):
    """Each token is the best under transformers, or within what two float32 programs may differ by."""
    assert len(answer) == 30
    with torch.inference_mode():
        logits = theirs(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    said = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
    assert (said >= logits.max(-1).values - 1e-3).all()


def config_folder(tmp_path, **config):
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


OLD_STYLE = {
    "llama3": ("Llama", {"rope_theta": 5e5, "rope_scaling": {k: v for k, v in LLAMA3.items() if k != "rope_theta"}}),
    "no-rope-keys": ("Llama", {}),
    "mistral": ("Mistral", {"rope_theta": 1e6, "sliding_window": 32, "head_dim": 16}),
    "qwen2": ("Qwen2", {"rope_theta": 1e6, "use_sliding_window": False, "sliding_window": 64, "max_window_layers": 2}),
    "qwen2-yarn": ("Qwen2", {"rope_theta": 1e6, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1,
                             "rope_scaling": {k: v for k, v in YARN.items() if k != "rope_theta"}}),
    "smollm3": ("SmolLM3", {"rope_theta": 5e6}),
    "gemma2": ("Gemma2", GEMMA | {"rope_theta": 1e4, "sliding_window": 16, "attn_logit_softcapping": 50.0,
                                  "final_logit_softcapping": 30.0}),
    "gemma3": ("Gemma3", GEMMA | {"rope_theta": 1e6, "rope_local_base_freq": 2e4, "sliding_window": 16,
                                  "sliding_window_pattern": 2, "final_logit_softcapping": None,
                                  "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    "phi3": ("Phi3", {"rope_theta": 1e4, "partial_rotary_factor": 0.5, "original_max_position_embeddings": 64,
                      "rope_scaling": {"type": "longrope", "short_factor": [1.5] * 4, "long_factor": [4.0] * 4}}),
}


@pytest.mark.parametrize("case", OLD_STYLE)
def test_configs_of_earlier_transformers_are_read_as_transformers_reads_them(tmp_path, case):
    """What transformers makes of an old config.json, written in its new form, comes down to the same model."""
    family, changes = OLD_STYLE[case]
    act = "gelu_pytorch_tanh" if "Gemma" in family else "silu"
    old = SIZES | {"rms_norm_eps": 1e-5, "hidden_act": act, "architectures": [f"{family}ForCausalLM"]} | changes
    name = "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config"
    getattr(transformers, name)(**json.loads(json.dumps(old))).save_pretrained(tmp_path / "new")
    assert read_model_config(config_folder(tmp_path / "old", **old)) == read_model_config(tmp_path / "new")


@pytest.mark.parametrize(("case", "window"), [
    ("llama-gqa", None), ("mistral-window", 19), ("mistral-no-window", None), ("qwen2-window", None),
    ("qwen2-window-everywhere", 17), ("gemma3", None), ("phi3-window-gqa", 21),
])
def test_a_window_is_uniform_where_every_layer_has_it(tmp_path, case, window):
    random_model(tmp_path, *CASES[case])
    assert read_model_config(tmp_path).uniform_window == window


def test_layers_of_smollm3_without_positions(tmp_path):
    random_model(tmp_path, *CASES["smollm3"])
    assert [layer.rope for layer in read_model_config(tmp_path).layers] == [0, 0, 0, None, 0]


def test_layers_of_gemma3_alternate_windows_and_ropes(tmp_path):
    random_model(tmp_path, *CASES["gemma3"])
    config = read_model_config(tmp_path)
    assert config.layers == (*[LayerConfig(13, 1)] * 5, LayerConfig(None, 0), LayerConfig(13, 1))
    assert [rope.theta for rope in config.ropes] == [1e6, 1e4]


BASE = SIZES | {"rms_norm_eps": 1e-6, "hidden_act": "silu"}


@pytest.mark.parametrize(("family", "fields", "message"), [
    ("Llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' is not supported"),
    ("Llama", {"rope_scaling": {"type": "spiral"}}, "'spiral' is not supported"),
    ("Llama", {"rope_scaling": {"type": "linear", "factor": 2.0, "twist": 3}}, "unknown parameters twist"),
    ("Llama", {"rope_parameters": {"full_attention": {}}}, "unknown parameters full_attention"),
    ("Llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("Llama", {"rope_theta": -1.0}, "make no sense"),
    ("Llama", {"head_dim": 15}, "turns 15 of 15"),
    ("Llama", {"hidden_act": "relu2"}, "'relu2'"),
    ("Llama", {"rope_interleaved": True}, "rope_interleaved True"),
    ("Llama", {"max_position_embeddings": None}, "incomplete or malformed"),
    ("Mistral", {}, "incomplete.*sliding_window"),
    ("Mistral", {"sliding_window": None, "num_key_value_heads": ...}, "incomplete.*num_key_value_heads"),
    ("Mistral", {"sliding_window": 0}, "window of layer 0 is 0"),
    ("Mistral", {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
     "expected sliding_attention or full_attention for each layer"),
    ("Qwen2", {"use_sliding_window": True}, "incomplete.*sliding_window"),
    ("Qwen2", {"layer_types": ["sliding_attention"] * 3}, "sets no sliding_window"),
    ("Qwen2", {"layer_types": ["linear_attention"] * 3}, "expected sliding_attention or full_attention"),
    ("Qwen2", {"layer_types": ["full_attention"]}, "for each layer"),
    ("Qwen3", {}, "incomplete.*head_dim"),
    ("Gemma2", GEMMA | {"sliding_window": 8}, "incomplete.*softcapping"),
    ("Gemma3", GEMMA | {"sliding_window": 8, "attn_logit_softcapping": 50.0}, "no soft cap in attention"),
    ("Gemma3", GEMMA | {"sliding_window": 8, "rope_parameters": {"rope_type": "default"}}, "expected full_attention"),
    ("Gemma3", GEMMA | {"sliding_window": 8, "use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("Phi3", {"rope_scaling": {"type": "longrope", "long_factor": [1.0] * 8}}, "incomplete.*short_factor"),
    ("Phi3", {"partial_rotary_factor": 0.1}, "turns 1 of 16"),
])
def test_what_would_change_the_maths_is_refused(tmp_path, family, fields, message):
    config = BASE | {"architectures": [f"{family}ForCausalLM"]} | fields
    folder = config_folder(tmp_path, **{name: value for name, value in config.items() if value is not ...})
    with pytest.raises(UsageError, match=message):
        read_model_config(folder)


@pytest.mark.parametrize("family", ["Llama", "Phi3"])
def test_families_older_than_gqa_have_a_kv_head_for_each_query_head(tmp_path, family):
    fields = {k: v for k, v in BASE.items() if k != "num_key_value_heads"}
    config = read_model_config(config_folder(tmp_path, **fields, architectures=[f"{family}ForCausalLM"]))
    assert config.num_kv_heads == config.num_q_heads == 4


def test_longrope_serves_its_original_context_and_refuses_more(tmp_path):
    random_model(tmp_path, *CASES["phi3-longrope"])
    load_model(tmp_path, torch.float32, CPU, 128)
    with pytest.raises(UsageError, match="original context of 128 tokens, got 129"):
        load_model(tmp_path, torch.float32, CPU, 129)


def test_a_checkpoint_with_more_than_its_config_says_is_refused(tmp_path):
    """Qwen 2's biases under a config.json that says Llama."""
    random_model(tmp_path, *CASES["qwen2"])
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(UsageError, match=r"9 tensors that its config\.json does not ask for, such as .*k_proj\.bias"):
        load_model(tmp_path, torch.float32, CPU, 64)
