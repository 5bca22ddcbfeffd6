"""The published matrix: each engine, block manager and kernel that runs here, asked everything. A benchmark.

    python -m tests.real.matrix [--profile ci] [--out results/published/conformance] [--llama-server PATH] [NAME ...]

Needs the environments of `make install-real`; llama.cpp is asked only where its server is, SGLang where its
environment is (`python tests/real/install.py sglang .envs/sglang`; patched with stubs, see there). A NAME
(a folder below --out) is asked anew; without any, all whose results are not there. Then matrix.md and matrix.html.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from pabench.probe import build_checkpoint, build_gguf, preset
from tests.real.engines import (
    ENVS,
    LLAMA_CPP,
    REFERENCE,
    ROOT,
    SGLANG,
    SGLANG_ENV,
    TRANSFORMERS,
    TRANSFORMERS_ENV,
    VLLM,
    VLLM_160,
    VLLM_320,
    VLLM_ENV,
    VLLM_PILLOW_ENV,
    launch_line,
)

PABENCH = [sys.executable, "-m", "pabench"]
_REFERENCE = (*REFERENCE, "--served-model-name", "probe", "--num-blocks", "256", "--max-model-len", "2048")


@dataclass(frozen=True)
class Subject:
    """What is asked: a folder's name, its column, and how to reach it: a command that starts it with the probe
    `preset`, or an adapter.
    """

    name: str
    column: str
    launch: tuple[str, ...] = ()
    impl: str = ""
    env: dict[str, str] = field(default_factory=dict)
    preset: str = "gqa"


LLAMA_VERSION = "0c1e570"  # its commit: the server does not tell it over HTTP
SUBJECTS = (
    Subject("vllm", "vLLM 0.32", VLLM, env=VLLM_ENV),
    Subject("vllm-160", "vLLM 0.32, 160 blocks", VLLM_160, env=VLLM_ENV),
    Subject("vllm-window", "vLLM 0.32, 160 blocks, preset window", VLLM_160, env=VLLM_ENV, preset="window"),
    Subject("vllm-mixed", "vLLM 0.32, 320 blocks, preset mixed", VLLM_320, env=VLLM_ENV, preset="mixed"),
    Subject("vllm-vision", "vLLM 0.32, 160 blocks, preset vision", VLLM_160, env=VLLM_PILLOW_ENV, preset="vision"),
    Subject("transformers", "transformers 5.23", TRANSFORMERS, env=TRANSFORMERS_ENV),
    Subject("sglang", "SGLang 0.5.23, patched", SGLANG, env=SGLANG_ENV),
    Subject("llamacpp", f"llama.cpp {LLAMA_VERSION}", LLAMA_CPP),
    Subject("reference-paged", "reference, paged", _REFERENCE),
    Subject("reference-window", "reference, paged, preset window", _REFERENCE, preset="window"),
    Subject("reference-mixed", "reference, paged, preset mixed", _REFERENCE, preset="mixed"),
    Subject("reference-vision", "reference, paged, preset vision", _REFERENCE, preset="vision"),
    Subject("reference-contiguous", "reference, contiguous", (*_REFERENCE, "--kv", "contiguous")),
    Subject("alloc-vllm", "vLLM 0.32", impl="vllm-blocks",
            env={"PABENCH_VLLM_PYTHON": str(ENVS / "vllm/bin/python")}),
    Subject("alloc-transformers", "transformers 5.23", impl="transformers-blocks",
            env={"PABENCH_TRANSFORMERS_PYTHON": str(ENVS / "transformers/bin/python")}),
    Subject("alloc-reference-paged", "reference, paged", impl="reference-paged"),
    Subject("alloc-reference-contiguous", "reference, contiguous", impl="reference-contiguous"),
    Subject("kernel-paged-torch", "paged_kernels, torch", impl="paged-torch"),
    Subject("kernel-paged-numba", "paged_kernels, numba", impl="paged-numba"),
    Subject("kernel-paged-triton", "paged_kernels, Triton interpreter", impl="paged-triton",
            env={"TRITON_INTERPRET": "1"}),
    Subject("kernel-flex-attention", "flex_attention, eager", impl="flex-attention"),
)


def ask(subject: Subject, words: dict[str, str], profile: str, out: Path) -> None:
    """Run the suite on one subject; its results take the place of earlier ones when they are whole."""
    target = ["--impl", subject.impl]
    if subject.launch:
        target = ["--launch", launch_line(subject.launch, words), "--ready-timeout-s", "400"]
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        found = Path(folder) / "found"
        code = subprocess.run([*PABENCH, "conform", *target, "--profile", profile, "--out", str(found)], cwd=ROOT,
                              env=os.environ | {name: value.format(**words) for name, value in subject.env.items()},
                              check=False).returncode
        print(f"{subject.name}: exit {code} after {time.monotonic() - began:.0f} s", flush=True)
        if code not in (0, 1):
            sys.exit(f"{subject.name} could not be asked")
        (out / subject.name).mkdir(parents=True, exist_ok=True)
        told = (found / "verdicts.jsonl").read_text()
        for path, name in ((str(found), f"results/{subject.name}"), *_names(words)):
            told = told.replace(path, name)
        (out / subject.name / "verdicts.jsonl").write_text(told)


def _names(words: dict[str, str]) -> list[tuple[str, str]]:
    """What is published in place of this machine's paths: the longest first."""
    names = [(words["gguf"], "probe/probe.gguf"), (words["model"], "probe"), (sys.executable, "python"),
             (f"{ROOT}/", "")]
    return [(words["llama_server"], "llama-server"), *names] if "llama_server" in words else names


def main() -> None:
    """Ask, and set side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--profile", default="ci")
    parser.add_argument("--out", type=Path, default=ROOT / "results/published/conformance")
    parser.add_argument("--llama-server", default=shutil.which("llama-server"))
    args = parser.parse_args()
    if args.llama_server and (found := _version(args.llama_server)) != LLAMA_VERSION:
        parser.error(f"{args.llama_server} is of commit {found}, the column of {LLAMA_VERSION}: set LLAMA_VERSION")
    if unknown := set(args.names) - {subject.name for subject in SUBJECTS}:
        parser.error(f"got {', '.join(sorted(unknown))}, expected some of {', '.join(s.name for s in SUBJECTS)}")
    with tempfile.TemporaryDirectory() as folder:
        words = {"gguf": f"{folder}/gqa/probe.gguf"}
        for name in {subject.preset for subject in SUBJECTS}:
            build_checkpoint(preset(name), Path(folder, name))
        if args.llama_server:
            build_gguf(preset("gqa"), Path(words["gguf"]))
            words["llama_server"] = args.llama_server
        for subject in SUBJECTS:
            there = (args.out / subject.name / "verdicts.jsonl").exists()
            can = {"llamacpp": bool(args.llama_server), "sglang": (ENVS / "sglang").exists()}.get(subject.name, True)
            if can and (subject.name in args.names or not (args.names or there)):
                ask(subject, words | {"model": f"{folder}/{subject.preset}"}, args.profile, args.out)
    columns = [f"{subject.column}={args.out / subject.name}" for subject in SUBJECTS
               if (args.out / subject.name).exists()]
    subprocess.run([*PABENCH, "matrix", *columns, "--out", str(args.out / "matrix.html"), "--markdown",
                    str(args.out / "matrix.md")], cwd=ROOT, check=True)


def _version(server: str) -> str:
    """The commit that `llama-server --version` names: "version: 0.5.0-dev (build 1, commit 0c1e570)"."""
    told = subprocess.run([server, "--version"], capture_output=True, text=True, check=True)
    first = next(line for line in (told.stderr + told.stdout).splitlines() if line.startswith("version:"))
    return first.split()[-1].strip("()")


if __name__ == "__main__":
    main()
