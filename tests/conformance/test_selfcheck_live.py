"""Self-consistency on engines: sound ones pass, and mutants are found, without the KV probe."""

from __future__ import annotations

from pathlib import Path

import pytest

from pabench.conformance import Outcome, load_results
from pabench.conformance.runner import replay_case, run_suite
from reference_engine.benchmarks.random_llama import SIZES, build_random_llama
from tests.conformance import mutant_hosts

pytestmark = pytest.mark.mutants


@pytest.fixture(scope="module")
def random_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that no probe is, and whose text hangs on all before it."""
    folder = tmp_path_factory.mktemp("random")
    build_random_llama(SIZES["2M"], folder, "bfloat16")
    return folder


def test_a_sound_engine_passes_in_bfloat16(random_llama: Path, tmp_path: Path) -> None:
    ids = ["http/ring-exact", "http/cold-equals-warm", "http/shared-prefix-divergence", "http/n-samples-isolated",
           "http/preemption-exact", "http/usage-exact"]
    options = ("--dtype", "bfloat16", "--num-blocks", "28", "--preemption-mode", "swap", "--num-swap-blocks", "40",
               "--speculation", "ngram")
    with mutant_hosts.engine(None, random_llama, tmp_path / "log", *options) as url:
        assert run_suite(url, out=tmp_path / "out", profile="smoke", ids=ids, quiet=True) == 0
    # One case of preemption-exact needs a token that ends an answer, which is known of the probe alone.
    rows = [row for row in load_results(tmp_path / "out").rows if row.case != "samples-of-unequal-length"]
    assert {row.outcome for row in rows} == {Outcome.PASS}
    assert all("self-consistency, noise 0." in row.reason for row in rows)


def test_a_sound_engine_passes_in_bfloat16_where_words_are_all_it_tells(random_llama: Path, tmp_path: Path) -> None:
    """One or two words in a hundred depart. Which cases are UNSUPPORTED depends on what a dialect can ask for."""
    ids = ["http/ring-exact", "http/concurrent-isolation", "http/bad-input-then-healthy"]
    with mutant_hosts.engine(None, random_llama, tmp_path / "log", "--dtype", "bfloat16") as url:
        assert run_suite(url, dialect="openai", out=tmp_path / "out", profile="smoke", ids=ids, seed=2, quiet=True) == 0
    passed = [row.reason for row in load_results(tmp_path / "out").rows if row.outcome is Outcome.PASS]
    assert len(passed) >= 5
    assert any("by words alone" in reason and "near ties" in reason for reason in passed)


@pytest.mark.parametrize(("name", "requirement"), [
    ("atlas_partial_tail_two_writers", "http/shared-prefix-divergence"),
    ("nanovllm_stale_hash_map", "http/same-block-behind-another-prefix"),
    ("vllm_abort_frees_wrong_group", "http/abort-frees"),
    ("xllm_beam_cow_missing", "http/n-samples-isolated"),
])
def test_what_an_ordinary_model_shows_is_found(
    name: str, requirement: str, random_llama: Path, tmp_path: Path
) -> None:
    mutant = mutant_hosts.host().load(name)
    options = ("--dtype", "bfloat16", *mutant.ENGINE_ARGS)
    with mutant_hosts.engine(name, random_llama, tmp_path / "log", *options) as url:
        assert run_suite(url, out=tmp_path / "out", profile="smoke", ids=[requirement], quiet=True) == 1
        failed = [row for row in load_results(tmp_path / "out").rows if row.outcome is Outcome.FAIL]
        assert failed
        # Or the fault has left its mark before, and an engine alone does not repeat itself.
        assert any(found in failed[0].text for found in ("by self-consistency, without the KV probe: noise 0.",
                                                         "expected  one prompt, alone and cold, has one answer"))
        # Whether an abort falls where it does harm is chance.
        assert any(replay_case(tmp_path / "out" / failed[0].replay, url=url) == 1 for _ in range(5))
