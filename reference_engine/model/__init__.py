"""From a Hugging Face folder to logits."""
