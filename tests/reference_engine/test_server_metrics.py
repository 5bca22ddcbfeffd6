"""What the server tells of itself: models, version, health, metrics."""

from __future__ import annotations


def test_models_health_and_metrics(with_server):
    async def scenario(client):
        async with client.session.get(client.url + "/v1/models") as response:
            (model,) = (await response.json())["data"]
        assert (model["id"], model["max_model_len"], model["root"]) == ("probe", 512, "/models/probe")
        async with client.session.get(client.url + "/health") as response:
            assert response.status == 200
        async with client.session.get(client.url + "/metrics") as response:
            text = await response.text()
        assert "_created" not in text
        assert "# TYPE pabench_ref:num_preemptions_total counter" in text
        info = next(line for line in text.splitlines() if line.startswith("pabench_ref:cache_config_info{"))
        for label in ('block_size="16"', 'num_blocks="256"', 'kv_mode="paged"', 'max_model_len="512"',
                      'enable_prefix_caching="True"'):
            assert label in info

    with_server(scenario)
