"""How real engines, and ours, are started to serve the probe: for benchmarks that ask them.

{model} stands for the probe's folder, {port} for the port; llama.cpp takes {llama_server} and {gguf}.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVS = ROOT / ".envs"  # made by `make install-real`

VLLM = (str(ENVS / "vllm/bin/python"), "-m", "vllm.entrypoints.openai.api_server", "--model", "{model}",
        "--served-model-name", "probe", "--host", "127.0.0.1", "--port", "{port}", "--dtype", "bfloat16",
        "--max-model-len", "4096", "--block-size", "32", "--enable-prompt-tokens-details")
VLLM_160 = (*VLLM, "--num-gpu-blocks-override", "160")  # so few blocks that it preempts
VLLM_320 = (*VLLM, "--num-gpu-blocks-override", "320")  # of a cache of two types 160 do not hold its longest sequence
VLLM_ENV = {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_NUM_OF_RESERVED_CPU": "1",
            "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
# With images: see the file in that folder.
VLLM_PILLOW_ENV = VLLM_ENV | {"PYTHONPATH": str(ROOT / "tests/real/stubs/vllm_pillow")}
TRANSFORMERS = (str(ENVS / "transformers/bin/transformers"), "serve", "{model}", "--continuous-batching", "--device",
                "cpu", "--dtype", "float32", "--attn-implementation", "sdpa", "--cb-block-size", "16",
                "--cb-num-blocks", "256", "--cb-max-batch-tokens", "512", "--host", "127.0.0.1", "--port", "{port}")
TRANSFORMERS_ENV = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_CACHE": "{model}"}  # which has to be there
# Not by `make install-real`: `python tests/real/install.py sglang .envs/sglang`. float32 as the probe is stored; left
# to itself it would take float16.
SGLANG = (str(ENVS / "sglang/bin/python"), "-m", "sglang.launch_server", "--model-path", "{model}",
          "--served-model-name", "probe", "--host", "127.0.0.1", "--port", "{port}", "--device", "cpu",
          "--attention-backend", "torch_native", "--dtype", "float32", "--page-size", "16", "--max-total-tokens",
          "8192", "--enable-metrics", "--enable-cache-report", "--load-snapshot-publish-interval", "1")
SGLANG_ENV = {"SGLANG_USE_CPU_ENGINE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
LLAMA_CPP = ("{llama_server}", "-m", "{gguf}", "-c", "16384", "-np", "4", "--metrics", "--host", "127.0.0.1", "--port",
             "{port}")
REFERENCE = (sys.executable, "-m", "reference_engine", "--model", "{model}", "--port", "{port}", "--block-size", "16")


def launch_line(command: Sequence[str], words: Mapping[str, str]) -> str:
    """The command as `pabench conform --launch` takes it, with `words` in their places and {port} left."""
    return shlex.join(word.format(**words, port="{port}") for word in command).replace("'{port}'", "{port}")
