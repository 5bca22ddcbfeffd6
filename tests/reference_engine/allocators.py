"""Allocators as tests make them, and the model that they are held to: block -> the tokens written in it."""

from __future__ import annotations

import copy

from reference_engine.memory.contiguous import ContiguousAllocator
from reference_engine.memory.paged import PagedAllocator
from reference_engine.memory.prefix_cache import extend_keys, root_key

BLOCK = 4
FINAL = 14  # tokens of a sequence in the end, at most


def paged(num_blocks=9):
    return PagedAllocator(num_blocks, BLOCK)


def caching(num_blocks=9):
    return PagedAllocator(num_blocks, BLOCK, prefix_caching=True)


def contiguous(num_blocks=9):
    return ContiguousAllocator(num_blocks, BLOCK, FINAL)


class World:
    """The pool as the allocator's user sees it: each slot holds a whole prefix, and each sequence reads back its own.

    Few streams of tokens, which differ from block to block, so that sequences often begin alike.
    """

    def __init__(self, allocator):
        self.allocator = allocator
        self.slots = {}      # (block, offset) -> the prefix up to and including that token
        self.tokens = {}     # sequence -> its tokens
        self.stream = {}
        self.final = {}
        self.published = {}  # sequence -> its published tokens: these are never cut off
        self.slid = {}       # sequence -> positions below are not read any more
        self.num_hits = 0
        self.next_id = 0

    def books(self):
        books = copy.deepcopy(vars(self.allocator))
        return books | ({"_cache": vars(books["_cache"])} if books.get("_cache") else {})

    def write(self, seq, count):
        start = len(self.tokens[seq])
        self.allocator.check_writable(seq, start, start + count)
        table = self.allocator.block_table(seq)
        for position in range(start, start + count):
            self.tokens[seq].append(self.token(seq, position))
            self.slots[table[position // BLOCK], position % BLOCK] = tuple(self.tokens[seq])

    def token(self, seq, position):
        return self.stream[seq] >> (position // BLOCK) & 1

    def keys(self, seq, count):
        keys = []
        extend_keys(keys, root_key(""), [self.token(seq, p) for p in range(count)], count, BLOCK)
        return keys

    def copy_blocks(self, copies):
        before = dict(self.slots)
        for source, target in copies:
            for offset in range(BLOCK):
                self.slots[target, offset] = before.get((source, offset))

    def check_contents(self, seq):
        table = self.allocator.block_table(seq)
        for p in range(self.slid[seq], len(self.tokens[seq])):
            assert self.slots[table[p // BLOCK], p % BLOCK] == tuple(self.tokens[seq][: p + 1])

    def pick(self, number):
        return sorted(self.tokens)[number % len(self.tokens)]

    def allocate(self, count, extra, stream):
        seq, self.next_id = self.next_id, self.next_id + 1
        final = min(count + extra, FINAL)
        self.stream[seq] = stream
        found = self.allocator.allocate(seq, count, final, self.keys(seq, count))
        if found is None:
            return False
        assert found < count
        self.num_hits += found
        self.final[seq], self.published[seq], self.slid[seq] = final, found, 0
        self.tokens[seq] = [self.token(seq, p) for p in range(found)]
        self.check_contents(seq)  # what was found is the very prefix
        self.write(seq, count - found)
        return True

    def append(self, number, count):
        seq = self.pick(number)
        if len(self.tokens[seq]) + count > self.final[seq]:
            return None
        copies = self.allocator.append(seq, count)
        if copies is None:
            return False
        self.copy_blocks(copies)
        self.write(seq, count)
        return True

    def truncate(self, number, count):
        seq = self.pick(number)
        count = max(count, self.published[seq], self.slid[seq])
        if 1 <= count <= len(self.tokens[seq]):
            self.allocator.truncate(seq, count)
            del self.tokens[seq][count:]

    def publish(self, number):
        seq = self.pick(number)
        full = len(self.tokens[seq]) // BLOCK
        self.allocator.publish(seq, self.keys(seq, full * BLOCK))
        self.published[seq] = full * BLOCK

    def slide(self, number, position):
        seq = self.pick(number)
        self.slid[seq] = max(self.slid[seq], min(position, len(self.tokens[seq])))
        self.allocator.slide(seq, self.slid[seq])

    def fork(self, number):
        parent, child = self.pick(number), self.next_id
        self.next_id += 1
        copies = self.allocator.fork(parent, child)
        if copies is None:
            return False
        self.copy_blocks(copies)
        self.tokens[child] = list(self.tokens[parent])
        for book in (self.stream, self.final, self.published, self.slid):
            book[child] = book[parent]
        return True

    def free(self, number):
        seq = self.pick(number)
        self.allocator.free(seq)
        del self.tokens[seq]

    def reset(self):
        self.allocator.reset_prefix_cache()

    def check(self):
        self.allocator.check_integrity()
        for seq in self.tokens:
            self.check_contents(seq)
        split = self.allocator.split({seq: len(tokens) for seq, tokens in self.tokens.items()})
        total = self.allocator.num_blocks * BLOCK
        assert split.token_states + split.reserved + split.internal_waste + split.free == total
        assert split.free == self.allocator.num_free_blocks * BLOCK
        assert 0 <= split.external_waste <= split.free
        assert min(split.token_states, split.reserved, split.internal_waste) >= 0
