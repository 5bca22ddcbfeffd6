"""The allocator level: a block manager in process, driven by traces of operations.

    adapter      the protocol of its adapters, the vocabulary of their capabilities
    model        what every block holds: the oracle
    play         a trace, played on the manager and on the model
    schedule     the same for a scheduler: its protocol, and a trace of steps
    traces       traces as Hypothesis draws them
    search       looking for a trace that breaks a property, and making it short
    under_test   `allocator`, what a test holds
    process      an adapter for a block manager in a process of its own, in any language

The package brings what `levels` asks of every level in process.
"""

from pabench.conformance.alloc.adapter import CAPABILITIES, AllocatorAdapter, Copies, Pool
from pabench.conformance.alloc.play import Play, Step
from pabench.conformance.alloc.under_test import AllocatorUnderTest

Adapter = AllocatorAdapter
UnderTest = AllocatorUnderTest

__all__ = [
    "CAPABILITIES", "Adapter", "AllocatorAdapter", "AllocatorUnderTest", "Copies", "Play", "Pool", "Step", "UnderTest",
]
