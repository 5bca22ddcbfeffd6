"""What is masked gets a large negative score before the soft cap, which makes a small one of it."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "flashinfer-softcap-after-mask"
MUST_FAIL = ("kernel/soft-cap",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "torch_backend.py",
        (
            "scores = scores.mul_(scoring.scale / scoring.soft_cap).tanh_().mul_(scoring.soft_cap)",
            "scores = scores.mul_(scoring.scale).masked_fill_(~mask, "
            "-5e4).div_(scoring.soft_cap).tanh_().mul_(scoring.soft_cap)",
        ),
        (
            "scores = scores.masked_fill_(~mask, -torch.inf)",
            "scores = scores.masked_fill_(~mask, -torch.inf) if scoring.soft_cap is None else scores",
        ),
    )
