"""Weights from a Hugging Face folder: model.safetensors, or the shards that its index names."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from pabench.errors import UsageError
from reference_engine.model.config import ModelConfig, read_json
from reference_engine.model.transformer import LlamaModel

_INDEX = "model.safetensors.index.json"


def load_model(folder: Path, dtype: torch.dtype, device: torch.device, max_model_len: int) -> LlamaModel:
    """The model of a folder, its weights converted to `dtype`. Raises UsageError where anything is missing."""
    config = ModelConfig.from_folder(folder)
    model = LlamaModel(config, dtype, device, max_model_len)
    missing = model.weight_names()
    for shard in _shards(folder):
        try:
            with safe_open(str(shard), framework="pt") as tensors:
                names = sorted(missing.intersection(tensors.keys()))
                for name in names:
                    model.load_weight(name, tensors.get_tensor(name))
                missing.difference_update(names)
        except (OSError, SafetensorError) as error:
            raise UsageError(f"{shard} cannot be read as safetensors: {error}") from error
    if missing:
        some = ", ".join(sorted(missing)[:3])
        raise UsageError(f"{folder} lacks {len(missing)} tensors that its config.json asks for, such as {some}")
    return model


def _shards(folder: Path) -> list[Path]:
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    if not (folder / _INDEX).is_file():
        raise UsageError(f"{folder} has neither model.safetensors nor {_INDEX}")
    index = read_json(folder / _INDEX, "the index of the shards cannot be read")
    names = sorted(set(index.get("weight_map", {}).values()))
    if any(Path(name).name != name for name in names):
        raise UsageError(f"{folder / _INDEX} names files outside its folder")
    return [folder / name for name in names]
