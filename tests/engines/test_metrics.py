"""What each dialect reads of an engine's metrics, and knows it by."""

from dataclasses import fields

import pytest

from pabench.engines import DIALECTS, dialect
from pabench.engines.dialects import recognise
from pabench.errors import EngineProtocol
from pabench.telemetry.exposition import parse_exposition
from pabench.telemetry.vocabulary import KVFacts, KVSample
from tests.engines.pages import (
    LLAMACPP_PAGE,
    LMDEPLOY_PAGE,
    MISTRALRS_PAGE,
    OLD_VLLM_PAGE,
    OVMS_PAGE,
    REFERENCE_PAGE,
    SGLANG_PAGE,
    TGI_PAGE,
    TRTLLM_PAGE,
    VLLM_PAGE,
)

PAGES = {
    "sglang": (SGLANG_PAGE, KVSample(2.0, kv_usage=0.0625, kv_cached=0.083984375, running=2, waiting=1, preemptions=0,
                                     prefix_queries=100, prefix_hits=64), KVFacts(16, 1024, None, "paged")),
    "tensorrt-llm": (TRTLLM_PAGE, KVSample(2.0, kv_usage=0.25, running=2, waiting=1, prefix_queries=160,
                                           prefix_hits=64, drafted=9, accepted=7), KVFacts(32, 512, None, "paged")),
    "lmdeploy": (LMDEPLOY_PAGE, KVSample(2.0, running=2, waiting=1, prefix_queries=100, prefix_hits=64), KVFacts()),
    "tgi": (TGI_PAGE, KVSample(2.0, running=2, waiting=1), KVFacts()),
    "openvino": (OVMS_PAGE, KVSample(2.0, running=1), KVFacts()),
    "mistralrs": (MISTRALRS_PAGE, KVSample(2.0, kv_usage=0.25, running=2, waiting=1, preemptions=1), KVFacts()),
}

MODELS = {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "someone"}]}


def test_vllm_metrics():
    metrics = parse_exposition(VLLM_PAGE)
    assert dialect("vllm").kv_sample(metrics, 3.0) == KVSample(
        3.0, kv_usage=0.0625, running=2, waiting=1, preemptions=1, prefix_queries=100, prefix_hits=64)
    # One block is the null block.
    assert dialect("vllm").kv_facts(metrics) == KVFacts(16, 4095, True, "paged")


def test_vllm_metrics_under_openmetrics_names():
    page = "\n".join(line if line.startswith("#") else line.replace(":", "_", 1) for line in VLLM_PAGE.splitlines())
    assert "vllm_kv_cache_usage_perc" in page
    assert dialect("vllm").kv_sample(parse_exposition(page), 3.0).kv_usage == 0.0625


def test_old_vllm_names():
    metrics = parse_exposition(OLD_VLLM_PAGE)
    sample = dialect("vllm").kv_sample(metrics, 0.0)
    assert (sample.kv_usage, sample.prefix_queries, sample.prefix_hits, sample.waiting) == (0.5, 10, 4, None)
    assert dialect("vllm").kv_facts(metrics) == KVFacts(32, 160, False, "paged")


def test_a_name_without_a_number_hides_no_older_one():
    page = "vllm:kv_cache_usage_perc NaN\nvllm:gpu_cache_usage_perc 0.3\n"
    assert dialect("vllm").kv_sample(parse_exposition(page), 0.0).kv_usage == 0.3


def test_vllm_with_data_parallelism_has_a_null_block_a_pool():
    page = VLLM_PAGE + 'vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.1875\n'
    metrics = parse_exposition(page)
    assert dialect("vllm").kv_facts(metrics).num_blocks == 4094
    assert dialect("vllm").kv_sample(metrics, 0.0).kv_usage == 0.125


def test_vllm_before_its_blocks_are_counted():
    page = 'vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1\n'
    assert dialect("vllm").kv_facts(parse_exposition(page)) == KVFacts(16, None, None, "paged")


@pytest.mark.parametrize("name", PAGES)
def test_what_the_others_tell(name):
    page, sample, facts = PAGES[name]
    metrics = parse_exposition(page)
    assert dialect(name).kv_sample(metrics, 2.0) == sample
    assert dialect(name).kv_facts(metrics) == facts
    needed = parse_exposition(page, dialect(name).metric_names)
    assert dialect(name).kv_sample(needed, 2.0) == sample
    assert dialect(name).kv_facts(needed) == facts
    assert recognise(MODELS, metrics, {"server": "uvicorn"}).name == name


@pytest.mark.parametrize(("owner", "name"), [("sglang", "sglang"), ("tensorrt_llm", "tensorrt-llm"),
                                             ("lmdeploy", "lmdeploy"), ("OVMS", "openvino")])
def test_those_that_are_known_without_metrics(owner, name):
    assert recognise({"data": [{"id": "m", "owned_by": owner}]}, {}, {"server": "uvicorn"}).name == name


def test_sglang_with_priorities_counts_each_request_once():
    """It tells each level, and all under an empty one."""
    page = "".join(f'sglang:num_running_reqs{{priority="{level}"}} {count}\n'
                   for level, count in (("", 4), ("0", 3), ("1", 1)))
    page += 'sglang:num_queue_reqs{priority=""} 2\nsglang:num_queue_reqs{priority="5"} 2\n'
    sample = dialect("sglang").kv_sample(parse_exposition(page), 2.0)
    assert (sample.running, sample.waiting) == (4, 2)


def test_sglang_counts_an_engine_once_whatever_its_ranks_tell():
    page = "".join(
        f'sglang:{name}{{dp_rank="{dp}",moe_ep_rank="0",pp_rank="{pp}",tp_rank="{tp}"}} {value}\n'
        for dp in (0, 1) for pp in (0, 1) for tp in (0, 1)
        for name, value in (("num_running_reqs", 8), ("page_size", 16), ("num_pages", 100 + dp), ("token_usage", 0.5)))
    metrics = parse_exposition(page)
    assert dialect("sglang").kv_sample(metrics, 2.0).running == 16
    assert dialect("sglang").kv_facts(metrics) == KVFacts(16, 201, None, "paged")


def test_counters_that_are_not_there_yet_are_zero():
    page = "sglang:full_token_usage 0.5\nsglang:num_running_reqs 1\n"
    sample = dialect("sglang").kv_sample(parse_exposition(page), 2.0)
    assert (sample.preemptions, sample.prefix_queries, sample.prefix_hits) == (0, 0, 0)
    page = "mistralrs_kv_cache_blocks_total 512\nmistralrs_kv_cache_blocks_used 1\n"
    assert dialect("mistralrs").kv_sample(parse_exposition(page), 2.0).preemptions == 0


@pytest.mark.parametrize(("page", "preemptions"), [
    ("sglang:num_running_reqs 1\nsglang:total_retracted_reqs 7\n", 7), ("sglang:num_running_reqs 1\n", None)])
def test_an_older_sglang_is_not_taken_to_have_preempted_nothing(page, preemptions):
    assert dialect("sglang").kv_sample(parse_exposition(page), 2.0).preemptions == preemptions


def test_llamacpp_metrics():
    sample = dialect("llamacpp").kv_sample(parse_exposition(LLAMACPP_PAGE), 2.0)
    assert sample == KVSample(2.0, running=3, waiting=1, prefix_queries=100, prefix_hits=64, drafted=8, accepted=5)


def test_reference_metrics_fill_the_whole_split():
    metrics = parse_exposition(REFERENCE_PAGE)
    sample = dialect("reference").kv_sample(metrics, 1.0)
    unknown = {field.name for field in fields(sample) if getattr(sample, field.name) is None}
    assert not unknown
    assert (sample.kv_cached, sample.swapped) == (0.125, 6)
    assert (sample.token_states_tokens, sample.reserved_tokens, sample.internal_waste_tokens) == (100, 20, 5)
    assert dialect("reference").kv_facts(metrics) == KVFacts(16, 64, False, "paged")


@pytest.mark.parametrize(("name", "page"), [
    ("vllm", VLLM_PAGE), ("vllm", OLD_VLLM_PAGE), ("reference", REFERENCE_PAGE), ("llamacpp", LLAMACPP_PAGE),
])
def test_metric_names_are_all_that_is_read(name, page):
    whole, needed = parse_exposition(page), parse_exposition(page, dialect(name).metric_names)
    assert dialect(name).kv_sample(needed, 0.0) == dialect(name).kv_sample(whole, 0.0)
    assert dialect(name).kv_facts(needed) == dialect(name).kv_facts(whole)


@pytest.mark.parametrize("name", DIALECTS)
def test_no_metrics_mean_nothing_is_known(name):
    assert dialect(name).kv_sample({}, 4.0) == KVSample(4.0)
    assert dialect(name).kv_facts({}) == KVFacts()


@pytest.mark.parametrize(("expected", "page", "owner", "headers"), [
    ("reference", REFERENCE_PAGE, "pabench", {"Server": "x"}),
    ("vllm", VLLM_PAGE, "vllm", {"server": "uvicorn"}),
    ("llamacpp", LLAMACPP_PAGE, "x", {}),
    ("llamacpp", "", "llamacpp", {"server": "llama.cpp"}),  # started without --metrics
    ("vllm", "", "vllm", {}),  # started with --disable-log-stats
    ("transformers", "", "x", {"Server": "uvicorn", "X-Request-Id": "1"}),
    ("openai", "", "x", {"server": "uvicorn"}),
    ("openai", "acme_num_requests_running 1\n", "x", {"server": "uvicorn", "x-request-id": "1"}),
])
def test_recognition(expected, page, owner, headers):
    models = {"data": [{"id": "m", "owned_by": owner}]}
    assert recognise(models, parse_exposition(page), headers).name == expected


def test_what_is_no_engine_is_not_recognised():
    with pytest.raises(EngineProtocol, match="no list of models"):
        recognise({"hello": 1}, {}, {})
