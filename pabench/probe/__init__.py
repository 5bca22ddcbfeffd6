"""The KV probe: a Llama checkpoint whose text is an exact function of the KV cache. See docs/kv-probe.md."""

from pabench.probe.checkpoint import GGUF_FILE, build_checkpoint, check_checkpoint, load_spec, require_room
from pabench.probe.diagnosis import Diagnosis, diagnose
from pabench.probe.gguf_file import build_gguf
from pabench.probe.mixed import Parted, draw_parted, longest_parted, shortest_parted
from pabench.probe.oracle import Check, check_answer
from pabench.probe.pictures import Picture, draw_picture, draw_two_shapes
from pabench.probe.prompts import Chain, Fork, ProbePrompt, Ring, complement, draw_braid, draw_fork, draw_rings
from pabench.probe.spec import (
    EOS,
    FIRST_RING,
    FIRST_SALT,
    HARD_BETA,
    PAD,
    PRESETS,
    SEP,
    SOFT_BETA,
    UNK,
    ProbeSpec,
    preset,
)
from pabench.probe.tensors import DTYPES
from pabench.probe.text import Codec
from pabench.probe.weights import exact_logprob
from pabench.probe.windowed import Decoyed, draw_at_the_edge, draw_decoyed, shortest_decoyed

__all__ = [
    "DTYPES", "EOS", "FIRST_RING", "FIRST_SALT", "GGUF_FILE", "HARD_BETA", "PAD", "PRESETS", "SEP", "SOFT_BETA", "UNK",
    "Chain", "Check", "Codec", "Decoyed", "Diagnosis", "Fork", "Parted", "Picture", "ProbePrompt", "ProbeSpec", "Ring",
    "build_checkpoint", "build_gguf", "check_answer", "check_checkpoint", "complement", "diagnose", "draw_at_the_edge",
    "draw_braid", "draw_decoyed", "draw_fork", "draw_parted", "draw_picture", "draw_rings", "draw_two_shapes",
    "exact_logprob", "load_spec", "longest_parted", "preset", "require_room", "shortest_decoyed", "shortest_parted",
]
