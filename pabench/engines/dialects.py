"""All dialects by name, and how one is recognised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pabench.engines.base import Dialect
from pabench.engines.llamacpp import LlamaCppDialect
from pabench.engines.lmdeploy import LMDeployDialect
from pabench.engines.mistralrs import MistralRsDialect
from pabench.engines.openai import OpenAIDialect
from pabench.engines.openvino import OpenVINODialect
from pabench.engines.reference import ReferenceDialect
from pabench.engines.sglang import SGLangDialect
from pabench.engines.sglang_generate import SGLangGenerateDialect
from pabench.engines.tensorrt_llm import TensorRTLLMDialect
from pabench.engines.tgi import TGIDialect
from pabench.engines.transformers import TransformersDialect
from pabench.engines.triton import TritonDialect
from pabench.engines.vllm import VLLMDialect
from pabench.errors import EngineProtocol, UsageError
from pabench.telemetry.vocabulary import MetricFamilies

# In the order in which they are recognised: the plainest last.
DIALECTS: Mapping[str, Dialect] = {
    known.name: known
    for known in (
        ReferenceDialect(), VLLMDialect(), SGLangDialect(), SGLangGenerateDialect(), TensorRTLLMDialect(),
        TritonDialect(), LMDeployDialect(), TGIDialect(), LlamaCppDialect(), OpenVINODialect(), MistralRsDialect(),
        TransformersDialect(), OpenAIDialect(),
    )
}


def dialect(name: str) -> Dialect:
    """The dialect called `name`. Raises UsageError that lists the known ones."""
    if name not in DIALECTS:
        raise UsageError(f"unknown dialect {name!r}: expected one of {', '.join(DIALECTS)}")
    return DIALECTS[name]


def recognise(models: Mapping[str, Any], metrics: MetricFamilies, headers: Mapping[str, str]) -> Dialect:
    """The first dialect that an engine with these answers speaks. Raises EngineProtocol when none fits."""
    for known in DIALECTS.values():
        if known.recognises(models, metrics, headers):
            return known
    raise EngineProtocol(
        f"/v1/models answers with no list of models, got the fields {sorted(map(str, models))[:12]}: "
        "is this an OpenAI-compatible engine?"
    )
