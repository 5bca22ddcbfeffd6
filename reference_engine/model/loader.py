"""Weights from a Hugging Face folder: model.safetensors, or the shards that its index names."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from pabench.errors import UsageError
from reference_engine.model.config import read_json
from reference_engine.model.families import TEXT_PREFIXES, VISION_PREFIXES, read_model_config, sees
from reference_engine.model.transformer import Transformer

_INDEX = "model.safetensors.index.json"
# Tensors that change nothing: a tied lm_head is the embedding, and the frequencies follow from config.json.
_HARMLESS = ("lm_head.weight", ".rotary_emb.inv_freq")


def load_model(
    folder: Path, dtype: torch.dtype, device: torch.device, max_model_len: int, weight_dtype: str = "auto"
) -> Transformer:
    """The model of a folder, its weights converted to `dtype`, those of the layers' products to int8 if asked for.

    Raises UsageError where a tensor is missing, and where one is there that the model would not use: a checkpoint that
    holds more than its config.json says is another model.
    """
    model, has_eyes = Transformer(read_model_config(folder), dtype, device, max_model_len), sees(folder)
    missing, unknown = model.weight_names(), set[str]()
    for shard in _shards(folder):
        try:
            with safe_open(str(shard), framework="pt") as tensors:
                stored = {_language_name(name) if has_eyes else name: name
                          for name in tensors.keys()}  # noqa: SIM118 - it is no dict
                unknown.update(name for name in set(stored) - missing if not name.endswith(_HARMLESS))
                names = sorted(missing.intersection(stored))
                for name in names:
                    model.load_weight(name, tensors.get_tensor(stored[name]))
                missing.difference_update(names)
        except (OSError, SafetensorError) as error:
            raise UsageError(f"{shard} cannot be read as safetensors: {error}") from error
    if missing:
        raise UsageError(f"{folder} lacks {len(missing)} tensors that its config.json asks for, such as "
                         f"{_some(missing)}")
    if has_eyes:
        unknown = {name for name in unknown if not name.startswith(VISION_PREFIXES)}
    if unknown:
        raise UsageError(f"{folder} holds {len(unknown)} tensors that its config.json does not ask for, such as "
                         f"{_some(unknown)}")
    model.finish_loading(weight_dtype)
    return model


def _language_name(name: str) -> str:
    """A tensor's name as a language model alone has it."""
    for prefix, plain in TEXT_PREFIXES.items():
        if name.startswith(prefix):
            return plain + name.removeprefix(prefix)
    return name


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:3])


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
