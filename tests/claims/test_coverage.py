"""Every published figure that we know of has a row, and every row is of one: none is left out without a word."""

from __future__ import annotations

from pabench.claims import load_claims

# Source -> what it says, in short -> the claims that show it or say why not.
KNOWN: dict[str, dict[str, tuple[str, ...]]] = {
    "vLLM paper": {
        "OPT-13B: 800 KB a token, 15,728 slots": ("opt-bytes",),
        "OPT-66B: 9.7K slots": ("opt-66b-slots",),
        "OPT-175B: 60.1K slots": ("opt-175b-slots",),
        "seven chunks of 2048, 8.9 % external": ("buddy-chunks",),
        "Fig. 2, 13a: Orca (Max)": ("fig2-max",),
        "Fig. 2, 13a: Orca (Pow2)": ("fig2-pow2",),
        "Fig. 2, 13a: Orca (Oracle)": ("fig2-oracle",),
        "Fig. 2, 13a: vLLM": ("fig2-vllm",),
        "Fig. 13b: batches on Alpaca": ("fig13-alpaca",),
        "Fig. 11: mean lengths": ("fig11-lengths",),
        "E[o^2] / E[o] about 598, sd about 296": ("fig11-moment",),
        "throughput 1.7-2.7x Orca (Oracle)": ("throughput-oracle",),
        "throughput 2.7-8x Orca (Max)": ("throughput-max",),
        "up to 22x FasterTransformer": ("throughput-static",),
        "Fig. 15a: parallel sampling": ("fig15-samples",),
        "Fig. 15b: beams": ("fig15-beams",),
        "shared prefix of 80 and of 341": ("prefix-80", "prefix-341"),
        "Fig. 18a: attention 20-26 % slower": ("look-up-gpu",),
        "Fig. 18b: ShareGPT best at 16-128": ("fig18b-sharegpt",),
        "Fig. 18b: Alpaca good at 16 and 32, worse above": ("fig18b-alpaca",),
        "Fig. 19: recompute constant": ("fig19-constant",),
        "Fig. 19: never above 20 % of swap latency": ("fig19-bound",),
        "Fig. 19: 16-64 comparable": ("fig19-comparable", "fig19-whole"),
    },
    "the five notes": {
        "800, 2300, 3900 of 4096": ("three-requests",),
        "600, 900, 1300, 1700 of 2048": ("four-requests",),
        "800, 300, 600 of 2048": ("unused-share",),
        "3001 tokens, block 128": ("tail-bound",),
        "KV bytes of LLaMA-13B": ("kv-bytes",),
        "utilisation, 60-80 % waste against 5-20 %": ("utilisation",),
        "or below 4 %": ("utilisation-4",),
        "2-4x more sequences": ("more-sequences", "more-sequences-pow2", "more-sequences-oracle"),
        "2-4x throughput": ("more-throughput",),
        "look-up below 5 %": ("look-up",),
        "100 users of 200; 80 of 100 share a prompt": ("many-users", "system-prompt"),
        "static against continuous": ("static-batching",),
        "GQA and MQA, exact and measured": ("kv-heads", "kv-heads-speed"),
        "prefix sharing saves memory and prompt work": ("shared-memory", "system-prompt"),
        "speculative decoding": ("speculation",),
        "preempt, swap, recompute, wait": ("out-of-blocks",),
        "each knob of quantisation alone": ("two-knobs",),
        "larger blocks, smaller blocks: the curve": ("block-size-kernel", "block-size-tails"),
        "memory-bound, compute-bound": ("roofs",),
    },
    "others": {
        "Mooncake, ratio 40 / 59 / 66 %": ("mooncake-ratio", "mooncake-others"),
        "Mooncake, LRU by capacity": ("mooncake-lru",),
        "RadixAttention's tree": ("radix-tree",),
        "Sarathi-Serve, chunks": ("chunk-cost",),
        "Sarathi-Serve, capacity": ("sarathi-capacity",),
        "DistServe": ("distserve",),
        "Etalon": ("etalon",),
        "Hydragen, FlashInfer cascade, ChunkAttention": ("cascade",),
        "Thinking Machines": ("one-text",),
        "Vidur": ("vidur",),
        "Jenga": ("jenga",),
    },
}


def test_every_known_figure_has_its_rows_and_every_row_a_figure() -> None:
    named = {name for source in KNOWN.values() for names in source.values() for name in names}
    assert named == {claim.id for claim in load_claims()}


def test_what_is_not_shown_says_what_it_would_take() -> None:
    assert all(len(claim.why) > 20 for claim in load_claims() if claim.how == "none")
