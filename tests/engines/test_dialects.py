"""What each dialect says and reads."""

import json
from dataclasses import fields

import pytest

from pabench.engines import DIALECTS, dialect
from pabench.engines.base import CAPABILITIES, GenerationRequest
from pabench.engines.dialects import recognise
from pabench.engines.wording import worded
from pabench.errors import EngineProtocol, UsageError
from pabench.telemetry.exposition import parse_exposition
from pabench.telemetry.vocabulary import KVFacts, KVSample

IDS = (0, 16, 300, 301, 300)

# From vLLM 0.32, cut to what matters and the lines around it that must not.
VLLM_PAGE = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 2.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 1.0
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 1.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.0625
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 100.0
# TYPE vllm:prefix_cache_queries_created gauge
vllm:prefix_cache_queries_created{engine="0",model_name="m"} 1.79e+09
# TYPE vllm:external_prefix_cache_hits_total counter
vllm:external_prefix_cache_hits_total{engine="0",model_name="m"} 9.0
# TYPE vllm:prefix_cache_hits_total counter
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 64.0
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{engine="0",model_name="m"} 1.0
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",enable_prefix_caching="True",engine="0",num_gpu_blocks="4096"} 1.0
"""

OLD_VLLM_PAGE = """\
vllm:gpu_cache_usage_perc{model_name="m"} 0.5
vllm:num_requests_running{model_name="m"} 1.0
vllm:gpu_prefix_cache_queries_total{model_name="m"} 10.0
vllm:gpu_prefix_cache_hits_total{model_name="m"} 4.0
vllm:cache_config_info{block_size="32",enable_prefix_caching="False",num_gpu_blocks="161"} 1.0
"""

REFERENCE_PAGE = """\
pabench_ref:num_requests_running 3
pabench_ref:num_requests_waiting 4
pabench_ref:kv_cache_usage 0.75
pabench_ref:kv_cache_idle 0.125
pabench_ref:swapped_blocks 6
pabench_ref:num_preemptions_total 0
pabench_ref:kv_token_state_slots 100
pabench_ref:kv_reserved_slots 20
pabench_ref:kv_internal_waste_slots 5
pabench_ref:kv_external_waste_slots 0
pabench_ref:prefix_cache_queries_total 8
pabench_ref:prefix_cache_hits_total 2
pabench_ref:spec_decode_num_draft_tokens_total 40
pabench_ref:spec_decode_num_accepted_tokens_total 30
pabench_ref:cache_config_info{block_size="16",num_blocks="64",kv_mode="paged",enable_prefix_caching="False"} 1
"""

# One of each kind of what the others render: labels, what must not be read, what is not there.
SGLANG_PAGE = """\
sglang:num_running_reqs{engine_type="unified",model_name="m",tp_rank="0"} 2.0
sglang:num_queue_reqs{engine_type="unified",model_name="m",tp_rank="0"} 1.0
sglang:token_usage{engine_type="unified",model_name="m",tp_rank="0"} 0.06
sglang:full_token_usage{engine_type="unified",model_name="m",tp_rank="0"} 0.0625
sglang:fwd_occupancy{engine_type="unified",model_name="m"} NaN
sglang:page_size{engine_type="unified",model_name="m",tp_rank="0"} 16.0
sglang:num_pages{engine_type="unified",model_name="m",tp_rank="0"} 1024.0
sglang:cache_hit_rate{engine_type="unified",model_name="m"} 0.5
sglang:prompt_tokens_total{engine_type="unified",is_streaming="true",model_name="m"} 100.0
sglang:cached_tokens_total{cache_source="device",engine_type="unified",model_name="m"} 60.0
sglang:cached_tokens_total{cache_source="host",engine_type="unified",model_name="m"} 4.0
"""

TRTLLM_PAGE = """\
trtllm_kv_cache_utilization{engine_type="pytorch",model_name="m",pid="4711"} 0.25
trtllm_kv_cache_max_blocks{engine_type="pytorch",model_name="m",pid="4711"} 512.0
trtllm_kv_cache_tokens_per_block{engine_type="pytorch",model_name="m",pid="4711"} 32.0
trtllm_num_requests_running{engine_type="pytorch",model_name="m",pid="4711"} 2.0
trtllm_num_requests_waiting{engine_type="pytorch",model_name="m",pid="4711"} 1.0
trtllm_kv_cache_reused_blocks_total{engine_type="pytorch",model_name="m"} 2.0
"""

LMDEPLOY_PAGE = """\
lmdeploy:backend_config_info 1.0
lmdeploy:num_requests_running{engine="0",model_name="m"} 2.0
lmdeploy:num_requests_waiting{engine="0",model_name="m"} 1.0
lmdeploy:gpu_cache_usage_perc{engine="0",model_name="m"} 0.25
lmdeploy:prefix_cache_hit_rate{engine="0",model_name="m"} 0.5
lmdeploy:prompt_tokens_total{engine="0",model_name="m"} 100.0
lmdeploy:cached_tokens_total{engine="0",model_name="m"} 64.0
"""

TGI_PAGE = """\
tgi_request_count 4
tgi_queue_size 1
tgi_batch_current_size 2
tgi_batch_current_max_tokens 520
tgi_batch_max_total_tokens 16384
# TYPE tgi_request_skipped_tokens summary
tgi_request_skipped_tokens{quantile="0.5"} 0
"""

OVMS_PAGE = """\
ovms_requests_accepted{api="V3",interface="REST",method="Stream",name="m"} 3
ovms_current_graphs{name="m"} 1
"""

MISTRALRS_PAGE = """\
mistralrs_kv_cache_blocks_used 128
mistralrs_kv_cache_blocks_total 512
mistralrs_sequences_running 2
mistralrs_sequences_waiting 1
mistralrs_paged_preemptions_total 1
mistralrs_prefix_cache_hits_total 1
"""

PAGES = {
    "sglang": (SGLANG_PAGE, KVSample(2.0, kv_usage=0.0625, running=2, waiting=1, preemptions=0, prefix_queries=100,
                                     prefix_hits=64), KVFacts(16, 1024, None, "paged")),
    "tensorrt-llm": (TRTLLM_PAGE, KVSample(2.0, kv_usage=0.25, running=2, waiting=1), KVFacts(32, 512, None, "paged")),
    "lmdeploy": (LMDEPLOY_PAGE, KVSample(2.0, running=2, waiting=1, prefix_queries=100, prefix_hits=64), KVFacts()),
    "tgi": (TGI_PAGE, KVSample(2.0, running=2, waiting=1), KVFacts()),
    "openvino": (OVMS_PAGE, KVSample(2.0, running=1), KVFacts()),
    "mistralrs": (MISTRALRS_PAGE, KVSample(2.0, kv_usage=0.25, running=2, waiting=1, preemptions=1), KVFacts()),
}

LLAMACPP_PAGE = """\
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 36
llamacpp:prompt_tokens_cached_total 64
# TYPE llamacpp:n_tokens_max counter
llamacpp:n_tokens_max 120
llamacpp:spec_decode_num_draft_tokens_total 8
llamacpp:spec_decode_num_accepted_tokens_total 5
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 3
llamacpp:requests_deferred 1
"""

MODELS = {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "someone"}]}


def body_of(name, **changes):
    prompt = IDS if "token_ids" in dialect(name).capabilities else "<sep> t16"
    path, body = dialect(name).build(GenerationRequest(**({"prompt": prompt, "max_tokens": 7} | changes)), "m")
    own = {"sglang-generate": "/generate", "triton": "/v2/models/m/generate" + "_stream" * changes.get("stream", True)}
    assert path == ("/v1/chat/completions" if changes.get("chat") else own.get(name, "/v1/completions"))
    json.dumps(body)
    return body


@pytest.mark.parametrize("name", ["vllm", "reference"])
def test_what_goes_beyond_openai(name):
    body = body_of(name, beam_width=3, n=3, cache_salt="s", prompt_logprobs=True, stop_token_ids=(300, 301))
    assert (body["use_beam_search"], body["n"], body["cache_salt"]) == (True, 3, "s")
    assert (body["prompt_logprobs"], body["stop_token_ids"]) == (0, [300, 301])
    chat = body_of(name, prompt="t300 t301", chat=True, logprobs=True)
    assert chat["messages"] == [{"role": "user", "content": "t300 t301"}]
    assert (chat["logprobs"], "prompt" in chat) == (True, False)


def test_a_lower_priority_goes_first_whatever_the_engines_sign():
    for priority in (-2, 0, 3):
        assert body_of("vllm", priority=priority)["priority"] == priority
        assert body_of("reference", priority=priority)["priority"] == priority
        assert body_of("sglang", priority=priority)["priority"] == -priority
    assert "priority" not in body_of("vllm")
    assert "priority" not in body_of("sglang")


@pytest.mark.parametrize("name", ["openai", "sglang-generate", "tensorrt-llm", "triton", "lmdeploy", "tgi", "llamacpp"])
@pytest.mark.parametrize("priority", [0, -1])
def test_a_priority_is_never_left_out_silently(name, priority):
    with pytest.raises(UsageError, match=f"dialect '{name}' has no priority, got priority={priority}"):
        body_of(name, priority=priority)


@pytest.mark.parametrize("name", ["openai", "transformers", "llamacpp"])
@pytest.mark.parametrize("field", [{"beam_width": 2}, {"cache_salt": "s"}, {"prompt_logprobs": True},
                                   {"stop_token_ids": (300,)}])
def test_dialects_without_words_for_it_say_so(name, field):
    with pytest.raises(UsageError, match=f"dialect '{name}' has no {next(iter(field))}"):
        body_of(name, **field)


@pytest.mark.parametrize("name", DIALECTS)
def test_each_dialect_says_model_prompt_and_stream(name):
    body = body_of(name)
    assert body["stream"] is True
    in_body = name not in ("sglang-generate", "triton")  # the one's route serves one model, the other's names it
    assert body.get("model") == ("m" if in_body else None)
    assert body_of(name, stream=False)["stream"] is False
    assert "stream_options" not in body_of(name, stream=False)
    assert dialect(name).name == name
    assert dialect(name).capabilities <= CAPABILITIES


@pytest.mark.parametrize("name", ["vllm", "reference"])
def test_extended_dialects_ask_for_ids_and_exact_length(name):
    body = body_of(name, n=2, temperature=0.5, top_p=0.9, top_k=5, seed=3, logprobs=True, request_id="r1")
    assert body == {
        "model": "m", "prompt": list(IDS), "max_tokens": 7, "temperature": 0.5, "stream": True, "n": 2, "top_p": 0.9,
        "top_k": 5, "seed": 3, "logprobs": 2, "stream_options": {"include_usage": True}, "return_token_ids": True,
        "ignore_eos": True, "request_id": "r1"}
    assert "ignore_eos" not in body_of(name, ignore_eos=False)


def test_openai_says_only_what_every_server_knows():
    allowed = {"model", "prompt", "max_tokens", "temperature", "stream", "stream_options", "n", "seed", "logprobs"}
    assert set(body_of("openai", n=2, seed=1, logprobs=True, request_id="r")) == allowed


def test_transformers_says_only_what_its_strict_server_takes():
    body = body_of("transformers", seed=4, request_id="r")
    assert set(body) == {"model", "prompt", "stream", "seed", "generation_config"}
    assert json.loads(body["generation_config"]) == {"max_new_tokens": 7, "do_sample": False, "eos_token_id": -1}
    sampled = json.loads(body_of("transformers", temperature=0.5, top_p=0.9, ignore_eos=False)["generation_config"])
    assert sampled == {"max_new_tokens": 7, "do_sample": True, "temperature": 0.5, "top_p": 0.9, "top_k": 0}


@pytest.mark.parametrize(("name", "changes"), [
    ("transformers", {"n": 2}), ("transformers", {"logprobs": True}), ("transformers", {"prompt": IDS}),
    ("openai", {"prompt": IDS}), ("openai", {"top_k": 3}), ("openai", {"cache_salt": "a"}),
    ("openai", {"prompt_logprobs": True}), ("transformers", {"cache_salt": "a"}),
])
def test_what_a_dialect_cannot_say_is_refused_before_sending(name, changes):
    with pytest.raises(UsageError, match=name):
        body_of(name, **changes)


def test_ids_become_words_only_where_they_must():
    request = GenerationRequest(IDS, 7)
    assert worded(request, dialect("vllm")) is request
    assert worded(request, dialect("transformers")).prompt == "<sep> t16 t300 t301 t300"
    text = GenerationRequest("hello", 7)
    assert worded(text, dialect("openai")) is text


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


@pytest.mark.parametrize(("page", "preemptions"), [
    ("sglang:num_running_reqs 1\nsglang:total_retracted_reqs 7\n", 7), ("sglang:num_running_reqs 1\n", None)])
def test_an_older_sglang_is_not_taken_to_have_preempted_nothing(page, preemptions):
    assert dialect("sglang").kv_sample(parse_exposition(page), 2.0).preemptions == preemptions


def test_what_the_others_are_asked():
    common = {"model", "prompt", "max_tokens", "temperature", "stream", "stream_options"}
    assert set(body_of("tensorrt-llm")) == common | {"ignore_eos"}  # one field more, and it answers 400
    assert body_of("tensorrt-llm", beam_width=2, n=2)["use_beam_search"] is True
    assert set(body_of("mistralrs", seed=3)) == common - {"stream_options"} | {"ignore_eos"}
    assert set(body_of("tgi", seed=3)) == common | {"seed"}
    assert body_of("openvino")["stream_options"] == {"include_usage": True}  # one key more, and it answers 400
    assert body_of("openvino", logprobs=True, stream=False)["logprobs"] == 1
    sglang = body_of("sglang", request_id="r1", cache_salt="s", stop_token_ids=(300,))
    assert (sglang["rid"], sglang["cache_salt"], sglang["stop_token_ids"]) == ("r1", "s", [300])
    assert "request_id" not in sglang


@pytest.mark.parametrize(("name", "changes"), [
    ("sglang", {"beam_width": 2}), ("sglang", {"prompt_logprobs": True}), ("tensorrt-llm", {"cache_salt": "s"}),
    ("tensorrt-llm", {"prompt": IDS}), ("lmdeploy", {"n": 2}), ("tgi", {"n": 2}), ("tgi", {"top_k": 3}),
    ("openvino", {"n": 2}), ("openvino", {"logprobs": True}), ("mistralrs", {"stop_token_ids": (3,)}),
])
def test_what_the_others_cannot_say(name, changes):
    with pytest.raises(UsageError, match=name):
        body_of(name, **changes)


def test_llamacpp_metrics():
    sample = dialect("llamacpp").kv_sample(parse_exposition(LLAMACPP_PAGE), 2.0)
    assert sample == KVSample(2.0, running=3, waiting=1, prefix_hits=64, drafted=8, accepted=5)


def test_llamacpp_switches_off_samplers_that_the_protocol_has_not():
    assert body_of("llamacpp") == {
        "model": "m", "prompt": "<sep> t16", "max_tokens": 7, "temperature": 0.0, "stream": True,
        "stream_options": {"include_usage": True}, "ignore_eos": True}
    sampled = body_of("llamacpp", temperature=0.5, n=2)
    assert (sampled["top_k"], sampled["min_p"], sampled["n"]) == (0, 0.0, 2)
    assert body_of("llamacpp", top_k=5)["top_k"] == 5


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


def test_an_unknown_dialect_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"reference, vllm, sglang, .*, transformers, openai"):
        dialect("acme")
