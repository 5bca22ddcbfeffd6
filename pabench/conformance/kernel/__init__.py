"""The kernel level: paged attention in process, over one canonical paged layout.

    adapter   the protocol of its adapters, the vocabulary of their capabilities

The package brings what `levels` asks of every level in process.
"""

from pabench.conformance.implementation import ImplementationUnderTest as UnderTest
from pabench.conformance.kernel.adapter import CAPABILITIES, KernelAdapter

Adapter = KernelAdapter

__all__ = ["CAPABILITIES", "Adapter", "KernelAdapter", "UnderTest"]
