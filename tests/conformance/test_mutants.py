"""The suite fails what is broken and passes what is not."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from pabench.conformance import Outcome, Results, load_registry, load_results
from pabench.conformance.hosting import preset_for
from pabench.conformance.verdicts import NOT_CONFORMING
from pabench.probe import PRESETS, SOFT_BETA, build_checkpoint
from tests.conformance import mutant_hosts

HOST = mutant_hosts.host()
MUTANTS = {name: HOST.load(name) for name in HOST.names()}


def ids_of(name: str, level: str) -> list[str]:
    """What must notice a mutant at one level."""
    return [each for each in MUTANTS[name].MUST_FAIL if each.startswith(f"{level}/")]


def ask(url: str, out: Path, *ids: str, seed: int = 0, patience: float = 1.0) -> tuple[int, Results]:
    """Exit code and results of the smoke profile."""
    code = mutant_hosts.ask_engine(url, ids, out=out, profile="smoke", log=out.with_suffix(".log"), seed=seed,
                                   patience=patience)
    return code, load_results(out)


def outcomes(results: Results) -> dict[str, Outcome]:
    return {row.requirement: row.outcome for row in results.by_requirement()}


@pytest.mark.mutants
@pytest.mark.parametrize("name", [name for name in MUTANTS if ids_of(name, "http")])
def test_every_mutant_is_failed_by_what_it_names(
    name: str, tiny_probe: Path, window_probe: Path, mixed_probe: Path, vision_probe: Path, tmp_path: Path
) -> None:
    """Within three seeds: some faults need requests to meet in time, which a busy machine may keep apart."""
    ids = ids_of(name, "http")
    probe = {"tiny": tiny_probe, "window": window_probe, "mixed": mixed_probe, "vision": vision_probe}[preset_for(ids)]
    with mutant_hosts.engine(name, probe, tmp_path / "log", *MUTANTS[name].ENGINE_ARGS) as url:
        for seed in range(3):
            out = tmp_path / f"out-{seed}"
            code, results = ask(url, out, *ids, seed=seed)
            found = outcomes(results)
            survived = {each: found[each] for each in ids if found[each] not in NOT_CONFORMING}
            if not survived:
                break
    assert survived == {}
    assert code == 1
    # A fault that no longer fits the engine that it is put into ends it too, and proves nothing.
    misfit = re.findall(r"(?:TypeError|AttributeError|NameError|ImportError): .*", (tmp_path / "log").read_text())
    assert misfit == []
    failed = [row for row in results.rows if row.outcome in NOT_CONFORMING]
    assert all((out / row.replay).is_file() and row.text for row in failed)


# Sound engines: every mechanism on, and pools so small that each is forced. With the requirements that cannot be asked.
TINY = ("--num-blocks", "28", "--max-model-len", "512", "--check-integrity")
# The probe is a hard one, and without a window: tests/conformance/test_windows.py serves such.
HARD = {"http/kv-fidelity", "http/sliding-window-exact", "http/mixed-windows-exact"}
IMAGES = {"http/image-identity", "http/image-name-is-no-key"}
SEEING = {"tiny pool", "wait, draft model, int8 weights, bfloat16"}  # they serve a probe that sees, all others not
PLAIN = HARD | {"http/spec-decode-exact"}   # and no guesses are made
ROOMY = PLAIN | {"http/preemption-exact"}   # a contiguous cache never preempts
SHORT = {"http/max-length-exact"}           # the pool does not hold the longest sequence
CACHE = {"http/two-laps-after-hit", "http/cached-tokens-match-block-model", "http/salt-isolates",
         "http/same-block-behind-another-prefix", "http/shared-block-outlives-first-holder"}
SOUND: dict[str, tuple[tuple[str, ...], set[str]]] = {
    "paged": ((), ROOMY),
    "contiguous, max, eager": (("--kv", "contiguous", "--enforce-eager"), ROOMY | CACHE),
    "tiny pool": (TINY, PLAIN | SHORT),
    "swap, n-gram, priority, small chunks": (
        (*TINY, "--preemption-mode", "swap", "--num-swap-blocks", "40", "--speculation", "ngram",
         "--scheduling-policy", "priority", "--max-num-batched-tokens", "64"), HARD | SHORT),
    "wait, draft model, int8 weights, bfloat16": (
        (*TINY, "--preemption-mode", "wait", "--speculation", "draft", "--draft-model", "{model}",
         "--weight-dtype", "int8", "--dtype", "bfloat16"), HARD | SHORT),
    "no cache, whole prompts, static batches, KV in int8": (
        (*TINY, "--no-enable-prefix-caching", "--no-enable-chunked-prefill", "--batching", "static",
         "--kv-cache-dtype", "int8"), PLAIN | SHORT | CACHE),
    "KV in fp8, blocks of one": (
        ("--kv-cache-dtype", "fp8", "--block-size", "1", "--num-blocks", "448", "--check-integrity"),
        PLAIN | SHORT),
}


# `make test` asks the one with most mechanisms; all others, and those below, go with the mutants.
FIRST = {"swap, n-gram, priority, small chunks"}


@pytest.mark.parametrize("which", [pytest.param(which, marks=[] if which in FIRST else [pytest.mark.mutants])
                                   for which in SOUND])
def test_sound_engines_conform(which: str, tiny_probe: Path, vision_probe: Path, tmp_path: Path) -> None:
    options, unsupported = SOUND[which]
    probe = vision_probe if which in SEEING else tiny_probe
    unsupported = unsupported if which in SEEING else unsupported | IMAGES
    options = tuple(str(probe) if word == "{model}" else word for word in options)
    with mutant_hosts.engine(None, probe, tmp_path / "log", *options) as url:
        code, results = ask(url, tmp_path / "out", patience=4.0)  # other tests keep the cores busy
    texts = [row.text for row in results.rows if row.text and row.level == "MUST"]
    assert texts == []
    assert code == 0
    found = outcomes(results)
    # Bit by bit the same alone and in a batch: none promises it, some are.
    assert found.pop("http/batch-invariant") in (Outcome.PASS, Outcome.FAIL)
    assert {each for each, outcome in found.items() if outcome is not Outcome.PASS} == unsupported
    assert set(outcomes(results)) == {each for each in load_registry() if each.startswith("http/")}


# Engines that rightly refuse so many samples as the profile asks for, or have no room for what is to be aborted.
SMALL = {
    "few sequences": ("--max-num-seqs", "4"),
    "few reservations": ("--kv", "contiguous", "--num-blocks", "96"),
    "powers of two": ("--kv", "contiguous", "--reservation", "pow2", "--num-blocks", "96"),
    "oracle": ("--kv", "contiguous", "--reservation", "oracle", "--num-blocks", "96"),
    "few large blocks": ("--block-size", "128", "--num-blocks", "4"),
}

# Two samples of one block and a bit, as long again, take five blocks.
NO_ROOM = {"http/abort-frees[four-samples]", "http/stream-equals-whole[samples]",
           "http/n-samples-isolated[one-slot]", "http/n-samples-isolated[partial-block]"}


@pytest.mark.mutants
@pytest.mark.parametrize("which", SMALL)
def test_small_engines_fail_nothing(which: str, tiny_probe: Path, tmp_path: Path) -> None:
    ids = ["http/n-samples-isolated", "http/stream-equals-whole", "http/usage-exact", "http/abort-frees"]
    # Eager, for in so small a pool the longest answer of a faster engine is over before an abort can be told.
    with mutant_hosts.engine(None, tiny_probe, tmp_path / "log", "--enforce-eager", *SMALL[which]) as url:
        code, results = ask(url, tmp_path / "out", *ids)
    assert [row.text for row in results.rows if row.text] == []
    assert code == 0
    unsupported = {row.name for row in results.rows if row.outcome is Outcome.UNSUPPORTED}
    assert unsupported == (NO_ROOM if which == "few large blocks" else set())


@pytest.mark.mutants
def test_a_soft_probe_tells_how_exact_the_cache_is(tmp_path: Path) -> None:
    """In float32 next to nothing is lost, in fp8 much more, and every token is right all the same."""
    soft = tmp_path / "soft"
    build_checkpoint(replace(PRESETS["tiny"], preset="tiny, soft", beta=SOFT_BETA), soft)
    drift = {}
    for dtype in ("auto", "fp8"):
        with mutant_hosts.engine(None, soft, tmp_path / "log", "--kv-cache-dtype", dtype) as url:
            code, results = ask(url, tmp_path / dtype, "http/kv-fidelity", "http/n-samples-isolated")
        assert code == 0
        assert {row.outcome for row in results.rows} == {Outcome.PASS}
        (told,) = [row.reason for row in results.rows if row.requirement == "http/kv-fidelity"]
        drift[dtype] = float(told.partition("cold ")[2].split()[0])
    assert drift["auto"] < 1e-4 < 1e-3 < drift["fp8"], drift
