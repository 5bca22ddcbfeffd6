"""What engines show on their metrics pages, cut to what matters and the lines around it that must not."""

# From vLLM 0.32.
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
sglang:kv_evictable_tokens{engine_type="unified",model_name="m",tp_rank="0"} 1376.0
sglang:max_total_num_tokens{engine_type="unified",model_name="m",tp_rank="0"} 16384.0
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
trtllm_prompt_tokens_total{engine_type="pytorch",model_name="m"} 160.0
trtllm_prompt_cached_tokens_total{engine_type="pytorch",model_name="m"} 64.0
trtllm_spec_decode_num_draft_tokens_total{engine_type="pytorch",model_name="m"} 9.0
trtllm_spec_decode_num_accepted_tokens_total{engine_type="pytorch",model_name="m"} 7.0
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
