"""The eyes of a LLaVA: what its vision tower and projector make of an image, in place of token embeddings.

They are transformers' own, with the model folder's weights and its image processor; only the language model is ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pabench.errors import UsageError
from reference_engine.model.config import read_json
from reference_engine.model.families import sees

if TYPE_CHECKING:
    from PIL.Image import Image


class Vision:
    """Images to embeddings. Without state of its own, so any thread may call it."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        # Heavy, and for models that see alone.
        from transformers import AutoImageProcessor, LlavaConfig, LlavaForConditionalGeneration
        from transformers.utils import logging

        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # that it leaves those weights out is meant
        logging.disable_progress_bar()
        try:
            config = LlavaConfig.from_pretrained(folder)
            config.text_config.num_hidden_layers = 0  # the language model is ours
            self._model = LlavaForConditionalGeneration.from_pretrained(folder, config=config, dtype=dtype).to(device)
            self._processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        except Exception as error:  # of files that are not what they should be: whatever they make it stumble over
            raise UsageError(f"the vision part of {folder} cannot be loaded: {error}") from error
        finally:
            logging.set_verbosity(verbosity)
            logging.enable_progress_bar()
        self._model.eval()
        self.image_token_id: int = config.image_token_id
        self.image_token = _image_token(folder)

    @torch.inference_mode()
    def embed(self, image: Image) -> torch.Tensor:
        """[num_tokens, hidden_size] What stands for the image in a prompt."""
        pixels = self._processor(image, return_tensors="pt")["pixel_values"]
        seen = self._model.get_image_features(
            pixel_values=pixels.to(device=self._model.device, dtype=self._model.dtype), return_dict=True)
        return torch.cat([*seen.pooler_output]).flatten(0, -2)


def read_vision(folder: Path, dtype: torch.dtype, device: torch.device) -> Vision | None:
    """The eyes of the model in a folder; None if it has none."""
    return Vision(folder, dtype, device) if sees(folder) else None


def _image_token(folder: Path) -> str:
    path = folder / "processor_config.json"
    config = read_json(path, "the processor's config cannot be read") if path.is_file() else {}
    return str(config.get("image_token", "<image>"))
