"""What arrives when: lengths only. A Sequence of the engine is made when its request arrives, not before."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import cast

import numpy as np
import numpy.typing as npt

from pabench.errors import UsageError
from pabench.traces import Trace
from pabench.traces.trace import Prefixes
from reference_engine.scheduling.sequence import Request, SamplingParams, Sequence

LARGEST_DRAW = 2**31 - 1
LATEST_ARRIVAL_S = 1e12  # beyond it, the clock could not tell steps of a millisecond apart


@dataclass(frozen=True, slots=True)
class Workload:
    """n requests in order of arrival; `dropped`: reason -> rows that were left out as they made no sense.

    arrival_s [n] float64, prompt_tokens [n] int32, output_tokens [n] int32
    """

    name: str
    arrival_s: npt.NDArray[np.float64]
    prompt_tokens: npt.NDArray[np.int32]
    output_tokens: npt.NDArray[np.int32]
    prefixes: Prefixes | None = None
    dropped: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.arrival_s)

    def request(self, i: int, block_size: int) -> Request:
        """Request i with its one sequence. Its token ids are its own, but for prefixes that the trace tells."""
        prompt, output = int(self.prompt_tokens[i]), int(self.output_tokens[i])
        tokens = range(i << 32, (i << 32) + prompt + output)
        request = Request(tokens[:prompt], SamplingParams(output, ignore_eos=True), 0, float(self.arrival_s[i]), id=i)
        keys = [] if self.prefixes is None else prefix_keys(
            self.prefixes.of(i), self.prefixes.block_tokens, prompt, block_size)
        request.sequences.append(
            Sequence(request, 0, cast("list[int]", tokens), 0, num_tokens=prompt, keys=keys, id=i))
        return request


def prefix_keys(ids: tuple[int, ...], hash_block_tokens: int, prompt_tokens: int, block_size: int) -> list[bytes]:
    """Prefix-cache keys of a prompt's full blocks, as far as `ids` name its contents.

    Two prompts have the same key for a block when all ids up to it are the same.
    """
    keys: list[bytes] = []
    parts = [at.to_bytes(2, "little") for at in range(hash_block_tokens // block_size)]
    digest = blake2b(digest_size=14)
    for block_id in ids:
        digest.update(block_id.to_bytes(8, "little", signed=True))
        chain = digest.digest()  # update() goes on from here: the digest of all ids so far
        keys += [chain + part for part in parts]
    return keys[: prompt_tokens // block_size]


def from_trace(trace: Trace, *, rate_scale: float = 1.0, saturated: bool = False, limit: int | None = None) -> Workload:
    """A trace's requests, `rate_scale` times as fast, or all there from the start."""
    if not rate_scale > 0:
        raise UsageError(f"the rate scale is {rate_scale}, expected a number above 0")
    if limit is not None and limit < 1:
        raise UsageError(f"the limit is {limit}, expected at least 1 request")
    trace = trace if limit is None else trace.head(limit)
    with np.errstate(over="ignore"):  # told below
        arrival = np.zeros(len(trace)) if saturated else trace.arrival_s / rate_scale
    _check_arrivals(arrival, f"the rate scale is {rate_scale}")
    return Workload(trace.format, arrival, trace.prompt_tokens, trace.output_tokens, trace.prefixes,
                    dict(trace.dropped))


def synthetic(
    prompt: str, output: str, num_requests: int, max_model_len: int, *, seed: int = 0, rate: float | None = None
) -> Workload:
    """Requests with lengths drawn from `gamma:SHAPE,MEAN`, `exp:MEAN` or `fixed:N`, at least 1 token each.

    Prompts are cut to max_model_len - 1 tokens, and outputs to what is left of it. They arrive as a Poisson process of
    `rate` requests a second; without one all are there from the start.
    """
    if num_requests < 1:
        raise UsageError(f"the number of requests is {num_requests}, expected at least 1")
    if max_model_len < 2:
        raise UsageError(f"max_model_len is {max_model_len}, expected at least 2: one token in, one token out")
    if rate is not None and not rate > 0:
        raise UsageError(f"the rate is {rate} requests a second, expected a number above 0")
    if seed < 0:
        raise UsageError(f"the seed is {seed}, expected a whole number from 0 up")
    rng = np.random.default_rng(seed)
    prompts = np.clip(_draw(prompt, num_requests, rng), 1, max_model_len - 1)
    outputs = np.minimum(np.clip(_draw(output, num_requests, rng), 1, None), max_model_len - prompts)
    arrival = np.zeros(num_requests)
    if rate is not None:
        arrival[1:] = np.cumsum(rng.exponential(1 / rate, num_requests - 1))
        _check_arrivals(arrival, f"the rate is {rate} requests a second")
    return Workload(f"prompts {prompt}, outputs {output}", arrival, prompts.astype(np.int32), outputs.astype(np.int32))


def _check_arrivals(arrival_s: npt.NDArray[np.float64], cause: str) -> None:
    if not arrival_s.max() <= LATEST_ARRIVAL_S:
        raise UsageError(f"{cause}: the last request would come after {LATEST_ARRIVAL_S:g} s, which no clock can hold")


def _draw(text: str, n: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """[n] float64 whole numbers drawn from a named distribution."""
    name, _, arguments = text.partition(":")
    try:
        values = [float(part) for part in arguments.split(",")]
    except ValueError:
        values = []
    if not all(0 < value <= LARGEST_DRAW for value in values):
        values = []
    match name, values:
        case "gamma", [shape, mean]:
            drawn = rng.gamma(shape, mean / shape, n)
        case "exp", [mean]:
            drawn = rng.exponential(mean, n)
        case "fixed", [length]:
            drawn = np.full(n, length)
        case _:
            raise UsageError(f"{text!r} is no distribution of lengths, expected gamma:SHAPE,MEAN, exp:MEAN or fixed:N")
    return np.rint(np.minimum(drawn, LARGEST_DRAW))
