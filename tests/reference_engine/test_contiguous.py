"""The contiguous allocator: reservations, waste recomputed from block tables, and the vLLM paper's numbers."""

from __future__ import annotations

import copy

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pabench.errors import UsageError
from reference_engine.memory.allocator import IntegrityError
from reference_engine.memory.contiguous import RESERVATIONS, ContiguousAllocator

LONGEST = 22  # max_model_len

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("allocate"), st.integers(1, LONGEST), st.integers(0, LONGEST)),
        st.tuples(st.just("append"), st.integers(0, 9), st.integers(1, 5)),
        st.tuples(st.just("truncate"), st.integers(0, 9), st.integers(1, LONGEST)),
        st.tuples(st.just("fork"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("free"), st.integers(0, 9), st.just(0)),
    ),
    max_size=30,
)


def power_of_two(least):
    return next(2**k for k in range(20) if 2**k >= least)


def reserved_slots(reservation, num_tokens, final_tokens, longest):
    """The definition once more, slot by slot."""
    to_come = final_tokens - num_tokens + 1  # outputs; the last one needs no slot
    slots = {"max": LONGEST, "pow2": num_tokens + power_of_two(to_come), "oracle": final_tokens}
    return min(slots[reservation], longest)


class Model:
    """What a user of the allocator may rely on, counted block by block."""

    def __init__(self, num_blocks, block_size, reservation):
        self.allocator = ContiguousAllocator(num_blocks, block_size, LONGEST, reservation)
        self.num_blocks, self.block_size, self.reservation = num_blocks, block_size, reservation
        self.longest = min(LONGEST, block_size * max(2**k for k in range(20) if 2**k <= num_blocks))
        self.seqs = {}  # id -> [tokens, final tokens, blocks of its run]
        self.next_id = 0

    def windows(self, size):
        """First blocks of aligned windows of `size` blocks outside all chunks."""
        chunks = {block for seq, (_, _, run) in self.seqs.items()
                  for block in range(self.first(seq), self.first(seq) + power_of_two(run))}
        return [first for first in range(0, self.num_blocks - size + 1, size)
                if not chunks.intersection(range(first, first + size))]

    def first(self, seq):
        return self.allocator.block_table(seq)[0]

    def take(self, ask, num_tokens, final, run):
        """`ask` for a new sequence; it must be refused when and only when there is no chunk."""
        before, seq = copy.deepcopy(vars(self.allocator)), self.next_id
        room = bool(self.windows(power_of_two(run)))
        self.next_id += 1
        answer = ask(seq)
        assert (answer is not None) == room
        if room:
            self.seqs[seq] = [num_tokens, final, run]
        else:
            assert vars(self.allocator) == before
        return answer

    def allocate(self, num_tokens, more):
        num_tokens = min(num_tokens, self.longest)
        final = min(num_tokens + more, self.longest)
        run = -(-reserved_slots(self.reservation, num_tokens, final, self.longest) // self.block_size)
        answer = self.take(lambda seq: self.allocator.allocate(seq, num_tokens, final), num_tokens, final, run)
        assert answer in (0, None)

    def append(self, seq, more):
        held = self.seqs[seq]
        more = min(more, held[1] - held[0])
        if more:
            assert self.allocator.append(seq, more) == []
            held[0] += more
            self.allocator.check_writable(seq, held[0] - more, held[0])

    def truncate(self, seq, num_tokens):
        self.seqs[seq][0] = min(num_tokens, self.seqs[seq][0])
        self.allocator.truncate(seq, self.seqs[seq][0])

    def fork(self, parent, _):
        copies = self.take(lambda seq: self.allocator.fork(parent, seq), *self.seqs[parent])
        if copies is not None:
            child = max(self.seqs)
            live = -(-self.seqs[parent][0] // self.block_size)
            assert copies == [(self.first(parent) + i, self.first(child) + i) for i in range(live)]

    def free(self, seq, _):
        self.allocator.free(seq)
        del self.seqs[seq]

    def check(self):
        self.allocator.check_integrity()
        owned = []
        for seq, (num_tokens, final, run) in self.seqs.items():
            table = list(self.allocator.block_table(seq))
            assert table == list(range(table[0], table[0] + run))
            assert table[0] % power_of_two(run) == 0
            assert num_tokens <= final <= run * self.block_size
            owned += table
        assert len(set(owned)) == len(owned)
        assert set(owned) <= set(range(self.num_blocks))
        self.check_split(len(owned))

    def check_split(self, owned):
        """Written: all but one token of each sequence."""
        split = self.allocator.split({seq: held[0] - 1 for seq, held in self.seqs.items()})
        assert split.token_states == sum(held[0] - 1 for held in self.seqs.values())
        assert split.reserved == sum(held[1] - held[0] + 1 for held in self.seqs.values())
        assert split.internal_waste == sum(run * self.block_size - final for _, final, run in self.seqs.values())
        assert split.free == (self.num_blocks - owned) * self.block_size
        counted = split.token_states + split.reserved + split.internal_waste + split.free
        assert counted == self.num_blocks * self.block_size
        if self.reservation == "max":
            run = -(-LONGEST // self.block_size)
            usable = len(self.windows(power_of_two(run))) * run
        else:
            usable = len(self.windows(1))
        assert split.external_waste == split.free - usable * self.block_size
        assert self.allocator.num_free_blocks == self.num_blocks - owned


@pytest.mark.parametrize("reservation", RESERVATIONS)
@given(num_blocks=st.integers(32, 90), block_size=st.integers(1, 5), operations=OPERATIONS)
def test_against_the_model(reservation, num_blocks, block_size, operations):
    model = Model(num_blocks, block_size, reservation)
    model.check()
    for name, a, b in operations:
        if name == "allocate":
            model.allocate(a, b)
        elif model.seqs:
            getattr(model, name)(sorted(model.seqs)[a % len(model.seqs)], b)
        model.check()
    for seq in list(model.seqs):
        model.free(seq, None)
    model.check()
    fresh = ContiguousAllocator(num_blocks, block_size, LONGEST, reservation)
    assert vars(model.allocator) == vars(fresh)


@pytest.mark.parametrize("reservation", RESERVATIONS)
@given(num_blocks=st.integers(8, 40), prompt=st.integers(1, 30), more=st.integers(0, 30), n=st.integers(1, 5))
def test_prediction_equals_consumption(reservation, num_blocks, prompt, more, n):
    allocator, final = ContiguousAllocator(num_blocks, 4, 32, reservation), prompt + more
    predicted = allocator.can_ever_hold(prompt, final, n)
    if final > min(32, 4 * max(2**k for k in range(10) if 2**k <= num_blocks)):
        assert not predicted
        with pytest.raises(ValueError, match=f"announces {final} tokens"):
            allocator.allocate(0, prompt, final)
        return
    fits = allocator.allocate(0, prompt, final) is not None
    assert predicted == (fits and all(allocator.fork(0, child) is not None for child in range(1, n)))


@given(num_blocks=st.integers(1, 40), prompt=st.integers(1, 60), more=st.integers(0, 60), done=st.integers(0, 60))
@example(num_blocks=8, prompt=4, more=3, done=1)
def test_a_preempted_sequence_fits_into_the_empty_pool_again(num_blocks, prompt, more, done):
    """A shorter output to come may end further: 4 behind 4 tokens reserve 8 slots, 3 behind 5 would reserve 9."""
    allocator, final = ContiguousAllocator(num_blocks, 1, 60, "pow2"), prompt + more
    if allocator.can_ever_hold(prompt, final, 1):
        assert allocator.allocate(0, min(prompt + done, final), final) == 0


@pytest.mark.parametrize(("reservation", "slots"), [("max", 2048), ("pow2", 100 + 32), ("oracle", 100 + 25 - 1)])
def test_reservations_of_100_prompt_tokens_and_25_output_tokens(reservation, slots):
    """The paper: an output of 25 reserves 32 positions under Pow2. The last token is never fed back."""
    allocator = ContiguousAllocator(4096, 1, 2048, reservation)
    allocator.allocate(0, 100, 100 + 25 - 1)
    assert len(allocator.block_table(0)) == slots
    split = allocator.split({0: 100})
    assert (split.token_states, split.reserved, split.internal_waste) == (100, 24, slots - 124)
    assert split.external_waste == {"max": 0, "pow2": 256 - 132, "oracle": 128 - 124}[reservation]


def test_pow2_reserves_no_more_than_the_maximum_length():
    allocator = ContiguousAllocator(4096, 1, 2048, "pow2")
    allocator.allocate(0, 100, 1900)
    assert len(allocator.block_table(0)) == 2048


def test_the_paper_has_seven_reservations_of_2048_and_loses_8_85_percent():
    """OPT-13B on 40 GB: 15 728 slots."""
    allocator = ContiguousAllocator(15_728, 1, 2048)
    assert allocator.split({}).external_waste == 1392
    assert [allocator.allocate(i, 10, 100) for i in range(8)] == [0] * 7 + [None]
    split = allocator.split(dict.fromkeys(range(7), 10))
    assert split.external_waste == split.free == 1392
    assert round(100 * split.external_waste / 15_728, 2) == 8.85


@pytest.mark.parametrize(("lengths", "longest", "waste"), [
    ((800, 2300, 3900), 4096, 5288),
    ((600, 900, 1300, 1700), 2048, 3692),
    ((800, 300, 600), 2048, 4444),  # 72.3 % of 6144
])
def test_waste_of_full_length_reservations(lengths, longest, waste):
    allocator = ContiguousAllocator(len(lengths) * longest, 1, longest)
    for seq, length in enumerate(lengths):
        assert allocator.allocate(seq, length, length) == 0
    split = allocator.split(dict(enumerate(lengths)))
    assert (split.token_states, split.reserved, split.internal_waste) == (sum(lengths), 0, waste)
    assert (split.external_waste, split.free) == (0, 0)


def test_no_prefix_cache_no_window():
    allocator = ContiguousAllocator(16, 4, 30)
    assert allocator.allocate(0, 20, 30, keys=[b"a"] * 5) == 0
    before = copy.deepcopy(vars(allocator))
    allocator.publish(0, [b"a"] * 5)
    allocator.slide(0, 16)
    allocator.reset_prefix_cache()
    assert vars(allocator) == before
    assert allocator.allocate(1, 20, 30, keys=[b"a"] * 5) == 0


def test_broken_promises_raise_and_change_nothing():
    allocator = ContiguousAllocator(16, 4, 30)
    allocator.allocate(0, 6, 10)
    before = copy.deepcopy(vars(allocator))
    for ask, text in [
        (lambda: allocator.allocate(0, 1, 1), "already has blocks"),
        (lambda: allocator.fork(0, 0), "already has blocks"),
        (lambda: allocator.allocate(1, 9, 4), "asks for 9 tokens now and 4"),
        (lambda: allocator.allocate(1, 9, 31), "announces 31 tokens, a run holds 30"),
        (lambda: allocator.append(0, 5), "asks for 5 more"),
        (lambda: allocator.truncate(0, 7), "cannot be cut to 7"),
        (lambda: allocator.truncate(0, 0), "cannot be cut to 0"),
    ]:
        with pytest.raises(ValueError, match=text):
            ask()
    for ask in (allocator.free, allocator.append, allocator.block_table, lambda seq: allocator.fork(seq, 8)):
        with pytest.raises(KeyError):
            ask(7)
    with pytest.raises(IntegrityError, match=r"\[6, 7\) of its 6"):
        allocator.check_writable(0, 6, 7)
    assert vars(allocator) == before


def test_bad_settings_are_refused():
    with pytest.raises(UsageError, match="reservation is 'half', expected one of max, pow2, oracle"):
        ContiguousAllocator(16, 4, 30, "half")
    with pytest.raises(UsageError, match="12 blocks of 4 hold no reservation of max_model_len 36 tokens, a chunk"):
        ContiguousAllocator(12, 4, 36)
    assert ContiguousAllocator(12, 4, 36, "oracle").can_ever_hold(5, 32, 1)


@pytest.mark.parametrize(("change", "text"), [
    (lambda a: setattr(a, "_num_owned", 5), r"6 owned \(booked: 5\) \+ 2 rounded up \+ 8 free blocks of 16"),
    (lambda a: a._seqs.pop(0), r"3 owned \(booked: 6\) \+ 5 rounded up \+ 8 free blocks of 16; 2 chunks of 1 seq"),
    (lambda a: a._seqs[0].blocks.reverse(), "expected a run from the start"),
    (lambda a: a._seqs[0].blocks.extend(range(3, 5)), "expected a run from the start"),
    (lambda a: setattr(a._seqs[1], "blocks", [1, 2, 3]), "expected a run from the start of its chunk of 0 blocks"),
    (lambda a: setattr(a._seqs[0], "num_tokens", 13), "has 13 tokens in blocks"),
    (lambda a: setattr(a._space, "num_free_blocks", 7), "booked: 7"),
])
def test_integrity_names_what_does_not_add_up(change, text):
    allocator = ContiguousAllocator(16, 4, 12)  # runs of three blocks in chunks of four
    allocator.allocate(0, 6, 10)
    allocator.allocate(1, 6, 10)
    allocator.check_integrity()
    change(allocator)
    with pytest.raises(IntegrityError, match=text):
        allocator.check_integrity()
