"""The shared prefix is attended to without ALiBi."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "vllm-cascade-with-alibi"
MUST_FAIL = ("kernel/shared-prefix",)
ENGINE_ARGS: tuple[str, ...] = ()
IMPL = {"kernel": "paged-triton"}


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "triton_backend/plan.py",
        (
            "            launch_attend(launch.tile, geometry, scoring, query,",
            "            of_prefix = self._batch.shared_prefix_len and launch is loaded.launches[0]\n"
            "            how = scoring._replace(alibi_slopes=None) if of_prefix else scoring\n"
            "            launch_attend(launch.tile, geometry, how, query,",
        ),
    )
