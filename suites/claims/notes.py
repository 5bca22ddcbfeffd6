"""The worked examples, exactly: what the reference allocators hold, and arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from pabench.claims import Bench, Shown
from reference_engine.memory.contiguous import ContiguousAllocator
from reference_engine.memory.paged import PagedAllocator

OPT_13B_BYTES_A_TOKEN = 2 * 40 * 5120 * 2        # K and V, layers, hidden size, float16
OPT_13B_SLOTS = 12 * 2**30 // OPT_13B_BYTES_A_TOKEN


def contiguous_waste(lengths: Sequence[int], reserved: int) -> int:
    """Slots reserved and not used by finished requests of these lengths, as the contiguous allocator counts them."""
    allocator = ContiguousAllocator(len(lengths) * reserved, 1, reserved, "max")
    for at, length in enumerate(lengths):
        assert allocator.allocate(at, length, length) is not None, "the pool is made for them"
    split = allocator.split(dict(enumerate(lengths)))
    return split.reserved + split.internal_waste


def paged_waste(lengths: Sequence[int], block_size: int) -> list[int]:
    """Empty slots behind each request of these lengths, from its block table."""
    allocator = PagedAllocator(sum(-(-length // block_size) for length in lengths), block_size)
    for at, length in enumerate(lengths):
        assert allocator.allocate(at, length, length) is not None, "the pool is made for them"
    return [len(allocator.block_table(at)) * block_size - length for at, length in enumerate(lengths)]


def _both(lengths: Sequence[int], reserved: int, block_size: int, published: tuple[int, list[int]]) -> Shown:
    found = (contiguous_waste(lengths, reserved), paged_waste(lengths, block_size))
    return Shown(f"{found[0]:,}; {' + '.join(map(str, found[1]))} = {sum(found[1])}", found == published)


def three_requests(bench: Bench) -> Shown:
    """800, 2300 and 3900 tokens."""
    return _both((800, 2300, 3900), 4096, 256, (5288, [224, 4, 196]))


def four_requests(bench: Bench) -> Shown:
    """600, 900, 1300 and 1700 tokens."""
    return _both((600, 900, 1300, 1700), 2048, 256, (3692, [168, 124, 236, 92]))


def unused_share(bench: Bench) -> Shown:
    """800, 300 and 600 of 2048."""
    share = contiguous_waste((800, 300, 600), 2048) / (3 * 2048)
    return Shown(f"{share:.1%}", round(share, 2) == 0.72)


def tail_bound(bench: Bench) -> Shown:
    """Every length up to 8192, blocks of 128."""
    waste = [paged_waste([length], 128)[0] for length in range(1, 8193)]
    return Shown(f"at 3001: {waste[3000]}; at most {max(waste)} over all lengths to 8192", max(waste) < 128)


def bytes_of_llama(bench: Bench) -> Shown:
    """2 N L H d."""
    elements = 2 * 2048 * 40 * 40 * 128
    holds = {size: abs(size * elements / 800e6 - 1) < 0.1 for size in (1, 2)}  # bytes an element
    return Shown(f"{2 * elements / 1e9:.2f} GB in float16, {elements / 1e6:.0f} MB at one byte an element", holds[2],
                 "the published figure does not hold under its own formula in float16"
                 + ("; it does at one byte an element" if holds[1] else ""))


def bytes_of_opt(bench: Bench) -> Shown:
    """A token of OPT-13B."""
    return Shown(f"{OPT_13B_BYTES_A_TOKEN / 1024:.0f} KiB; 12 GiB are {OPT_13B_SLOTS:,} slots",
                 OPT_13B_BYTES_A_TOKEN == 800 * 1024 and OPT_13B_SLOTS == 15_728)


def _slots(published: int, layers: int, hidden: int, gpus_gb: int, weights_gb: int) -> Shown:
    """What published slots come to in bytes, and the most there could be: all that the weights leave. How much of that
    activations took is not published there, so the slots do not follow.
    """
    a_token, left = 2 * layers * hidden * 2, (gpus_gb - weights_gb) * 10**9
    if published * a_token > left:
        return Shown(f"at most {left // a_token:,}", False, "more than the weights leave")
    return Shown(f"at most {left // a_token:,}: {a_token / 2**20:.2f} MiB a token, {gpus_gb} GB less {weights_gb} GB "
                 "of weights", None,
                 f"the published slots fit, in {published * a_token / left:.0%} of what the weights leave; how much of "
                 "it activations took is known on the paper's GPUs alone")


def slots_of_opt_66b(bench: Bench) -> Shown:
    """64 layers of 9216; 66 G parameters in float16 on four GPUs, taken to be of 40 GB as OPT-13B's is."""
    return _slots(9_700, 64, 9216, 4 * 40, 2 * 66)


def slots_of_opt_175b(bench: Bench) -> Shown:
    """96 layers of 12288; 175 G parameters in float16 on eight of 80 GB."""
    return _slots(60_100, 96, 12288, 8 * 80, 2 * 175)


def second_moment(bench: Bench) -> Shown:
    """Orca (Max), saturated, a token a step: at a random moment a request of o tokens has half of them to come, and
    is met as often as it is long, so reserved slots a request are E[o^2] / E[o] / 2. Fig. 2 gives them: 13.3 % of the
    slots, 7 requests; Fig. 11 gives E[o].
    """
    mean = 337.99
    ratio = 2 * 0.133 * OPT_13B_SLOTS / 7.00
    sd = (ratio * mean - mean**2) ** 0.5
    return Shown(f"{ratio:.0f}, sd {sd:.0f}", (round(ratio), round(sd)) == (598, 296),
                 f"an exponential law of that mean, which the simulated rows draw, has {2 * mean:.0f}, sd {mean:.0f} "
                 "before it is cut to 2048 tokens")


def buddy_chunks(bench: Bench) -> Shown:
    """How many reservations of 2048 a buddy allocator holds in those slots, and what remains outside."""
    allocator = ContiguousAllocator(OPT_13B_SLOTS, 1, 2048, "max")
    held = 0
    while allocator.allocate(held, 1, 2048) is not None:
        held += 1
    outside = allocator.split(dict.fromkeys(range(held), 1)).external_waste / OPT_13B_SLOTS
    return Shown(f"{held} requests, {outside:.2%} external", held == 7 and round(outside, 3) in (0.088, 0.089))


def users(bench: Bench) -> Shown:
    """How many users of 200 tokens fit where 100 reserve 2048 each."""
    slots, held = 100 * 2048, 0
    allocator = PagedAllocator(slots // 16, 16)
    while allocator.allocate(held, 200, 200) is not None:
        held += 1
    return Shown(f"{held / 100:.2f}x ({held} users in blocks of 16)", held >= 950,
                 "10.24x less the tails: 200 tokens take 13 blocks of 16, 208 slots")
