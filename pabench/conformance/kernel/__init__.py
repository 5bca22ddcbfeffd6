"""The kernel level: paged attention in process, over one canonical layout of the cache.

    cases           what is asked, as data: sizes, options, seed
    adapter         the protocol of adapters, and the canonical layout
    drawing         tensors from cases, with needles in the queries
    layouts         where a cache lies in memory, with NaN where nothing may be read
    dense           the oracle: dense attention in float64
    tolerance       how far from it a result may be
    checks          what tests ask of attention
    memory_checks   what tests ask of cache write, block copy and merge
    diagnosis       which simple fault explains a wrong row
    strategies      cases as Hypothesis draws them
    under_test      `kernel`, what a test holds

The package brings what `levels` asks of every level in process, without torch.
"""

from pabench.conformance.kernel.adapter import CAPABILITIES, Adapter
from pabench.conformance.kernel.under_test import KernelUnderTest

UnderTest = KernelUnderTest

__all__ = ["CAPABILITIES", "Adapter", "KernelUnderTest", "UnderTest"]
