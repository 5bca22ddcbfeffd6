"""The outcome as a user sees it in the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.markup import escape
from rich.table import Table

from reference_engine.config import EngineConfig
from reference_engine.simulation.outcome import Outcome

NONE = "–"


def outcome_table(outcome: Outcome, config: EngineConfig) -> Iterator[Table]:
    """Three tables: what happened, where the slots were, how long requests took."""
    yield _counts(outcome, config)
    yield _memory(outcome)
    yield _latencies(outcome)


def _counts(outcome: Outcome, config: EngineConfig) -> Table:
    kv = config.kv if config.kv == "paged" else f"contiguous, {config.reservation}"
    title = f"{outcome.workload.name}: {kv}, {config.num_blocks:,} blocks of {config.block_size} tokens"
    table = Table(title=escape(title) + (" [red](interrupted)[/red]" if outcome.interrupted else ""),
                  title_justify="left", show_header=False)
    refused = sum(outcome.refused.values())
    unfinished = len(outcome.workload) - outcome.num_finished - refused
    rows = {
        "requests finished": f"{outcome.num_finished:,} of {len(outcome.workload):,}",
        **({"unfinished": f"{unfinished:,}"} if unfinished else {}),
        **{f"refused: {reason}": f"{count:,}" for reason, count in outcome.refused.items()},
        **{f"row left out: {reason}": f"{count:,}" for reason, count in outcome.workload.dropped.items()},
        "generated tokens": f"{outcome.generated_tokens:,}",
        "virtual time": f"{outcome.virtual_s:,.1f} s, idle {outcome.tally.idle_s:,.1f} s",
        "tokens a virtual second": f"{outcome.generated_tokens / max(outcome.virtual_s, 1e-9):,.1f}",
        "steps": f"{outcome.tally.steps:,}",
        "preemptions": f"{outcome.preemptions:,}",
        "recomputed tokens": f"{outcome.recomputed_tokens:,}",
        "blocks swapped out, in": f"{outcome.swapped_out_blocks:,}, {outcome.swapped_in_blocks:,}",
        "prefix hits": f"{outcome.prefix_hits:,} of {outcome.prefix_queries:,} tokens",
        "simulated in": f"{outcome.wall_s:,.2f} s, {outcome.generated_tokens / outcome.wall_s:,.0f} tokens a second",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _memory(outcome: Outcome) -> Table:
    table = Table(title="Mean batch, and KV slots in % of the pool (free has external in it)", title_justify="left")
    for name in ("while", "batch", "tokens", "reserved", "internal", "free", "external"):
        table.add_column(name, justify="left" if name == "while" else "right", no_wrap=True)
    for name, means in (("busy", outcome.tally.means()), ("some wait", outcome.tally.means(only_waiting=True))):
        if means is None:
            table.add_row(name, *[NONE] * 6)
            continue
        table.add_row(name, f"{means['batch']:.2f}", *(
            f"{means[part]:.1f}" for part in ("token_states", "reserved", "internal_waste", "free", "external_waste")))
    return table


def _latencies(outcome: Outcome) -> Table:
    table = Table(title="Virtual seconds of finished requests", title_justify="left")
    for name in ("", "mean", "p50", "p90", "p99", "max"):
        table.add_column(name, justify="right" if name else "left")
    for name, values in outcome.latencies().items():
        cells = [NONE] * 5 if values is None else [f"{value:,.3f}" for value in values.values()]
        table.add_row(name.removesuffix("_s").upper(), *cells)
    return table
