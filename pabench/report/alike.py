"""Whether what the report sets side by side is alike: one engine under each label, one load under each name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pabench.analysis.sides import Measured, differences
from pabench.load.manifest import KVGeometry, like_pools
from pabench.report.groups import Engine, RunData
from pabench.report.text import count, fingerprint


def cautions(engines: Sequence[Engine]) -> Iterator[str]:
    """Each reason to doubt a comparison, in a sentence. May quote what an engine supplied."""
    for engine in engines:
        yield from _mixed(engine)
    runs = [run for engine in engines for run in engine.runs]
    yield from _measured_unlike(runs)
    lengths = {run.summary.path: _lengths(run) for run in runs}  # an engine may be sent text where another takes ids
    yield from differences([Measured(run.summary, run.manifest) for run in runs], lambda run: lengths[run.summary.path])


def _measured_unlike(runs: Sequence[RunData]) -> Iterator[str]:
    """Where the client that measured was not the same."""
    clients = sorted({_client(run) for run in runs})
    if len(clients) > 1:
        yield (f"the runs were measured by different versions of pabench ({'; '.join(clients)}), which may not measure "
               "alike: run all with one")
    stamped = {run.manifest.client.kernel_stamps: run.summary.label for run in reversed(runs)}
    if len(stamped) > 1:
        yield (f"arrivals are the kernel's in some runs (as of {stamped[True]}) and the client's own in others (as of "
               f"{stamped[False]}), which are later by what the client was busy")


def _client(run: RunData) -> str:
    version = f"pabench {run.manifest.versions.get('pabench', 'of unknown version')}"
    commit = run.manifest.git_commit
    return f"{version}, commit {fingerprint(commit)}" if commit else version


def _lengths(run: RunData) -> bytes:
    """Of prompts and answers, in the order of the schedule."""
    return bytes(run.requests.sort_values("index")[["prompt_tokens", "max_tokens"]].to_numpy("int64").tobytes())


def _mixed(engine: Engine) -> Iterator[str]:
    """A label is taken for an engine, and by default it is only the dialect."""
    told: dict[str, set[str]] = {"version": set(), "model": set(), "KV cache": set()}
    for run in engine.runs:
        record, kv = run.manifest.engine, run.manifest.engine.kv
        told["version"].add(record.version or "not told")
        told["model"].add(record.model)
        told["KV cache"].add("not told" if kv is None else _kv_text(kv))
    unlike = [f"{what} {' / '.join(sorted(values))}" for what, values in told.items() if len(values) > 1]
    pools = [run.capacity_tokens for run in engine.runs if run.capacity_tokens]
    if not like_pools(pools):
        unlike.append(f"pools of {count(min(pools))} to {count(max(pools))} tokens")
    if unlike:
        yield (f"the label {engine.name!r} covers runs of more than one engine ({'; '.join(unlike)}), which are shown "
               "as one: give each a --label of its own, or report them apart")


def _kv_text(kv: KVGeometry) -> str:
    caching = {None: "", True: ", prefix caching", False: ", no prefix caching"}[kv.prefix_caching]
    return f"{kv.kv_mode or 'unknown'}, blocks of {count(kv.block_size)}{caching}"
