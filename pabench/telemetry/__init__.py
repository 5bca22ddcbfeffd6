"""Metrics pages of engines -> the one KV vocabulary (`vocabulary.py`)."""
