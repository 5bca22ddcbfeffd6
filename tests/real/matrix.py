"""The published matrix: each engine, block manager and kernel that runs here, asked everything. A benchmark.

    python tests/real/matrix.py [--profile ci] [--out results/published/conformance] [--llama-server PATH] [NAME ...]

Needs the environments of `make install-real`; llama.cpp's column needs its server, and is left out without one. A NAME
(a folder below --out) is asked anew; without any, all whose results are not there. Then matrix.md and matrix.html.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from pabench.probe import build_checkpoint, build_gguf, preset

ROOT = Path(__file__).resolve().parents[2]
PABENCH = [sys.executable, "-m", "pabench"]
ENVS = ROOT / ".envs"
_OFFLINE = {"HF_HUB_OFFLINE": "1"}
_VLLM_ENV = _OFFLINE | {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_NUM_OF_RESERVED_CPU": "1",
                        "VLLM_NO_USAGE_STATS": "1"}
_VLLM = (str(ENVS / "vllm/bin/python"), "-m", "vllm.entrypoints.openai.api_server", "--model", "{model}",
         "--served-model-name", "probe", "--host", "127.0.0.1", "--port", "{port}", "--dtype", "bfloat16",
         "--max-model-len", "4096", "--block-size", "32", "--enable-prompt-tokens-details")
_TRANSFORMERS = (str(ENVS / "transformers/bin/transformers"), "serve", "{model}", "--continuous-batching", "--device",
                 "cpu", "--dtype", "float32", "--attn-implementation", "sdpa", "--cb-block-size", "16",
                 "--cb-num-blocks", "256", "--cb-max-batch-tokens", "512", "--host", "127.0.0.1", "--port", "{port}")
_REFERENCE = (sys.executable, "-m", "reference_engine", "--model", "{model}", "--served-model-name", "probe",
              "--num-blocks", "256", "--max-model-len", "2048", "--port", "{port}")
_LLAMA = ("{llama_server}", "-m", "{gguf}", "-c", "16384", "-np", "4", "--metrics", "--host", "127.0.0.1", "--port",
          "{port}")


@dataclass(frozen=True)
class Subject:
    """What is asked: a folder's name, its column, and how to reach it: a command that starts it, or an adapter."""

    name: str
    column: str
    launch: tuple[str, ...] = ()
    impl: str = ""
    env: dict[str, str] = field(default_factory=dict)


SUBJECTS = (
    Subject("vllm", "vLLM 0.32", _VLLM, env=_VLLM_ENV),
    Subject("vllm-160", "vLLM 0.32, 160 blocks", (*_VLLM, "--num-gpu-blocks-override", "160"), env=_VLLM_ENV),
    Subject("transformers", "transformers 5.23", _TRANSFORMERS,
            env=_OFFLINE | {"OMP_NUM_THREADS": "1", "HF_HUB_CACHE": "{model}"}),  # which has to be there
    Subject("llamacpp", "llama.cpp {llama_version}", _LLAMA),
    Subject("reference-paged", "reference, paged", _REFERENCE, env={"OMP_NUM_THREADS": "1"}),
    Subject("reference-contiguous", "reference, contiguous", (*_REFERENCE, "--kv", "contiguous"),
            env={"OMP_NUM_THREADS": "1"}),
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
        line = shlex.join(word if word == "{port}" else word.format(**words) for word in subject.launch)
        target = ["--launch", line.replace("'{port}'", "{port}"), "--ready-timeout-s", "400"]
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
    if unknown := set(args.names) - {subject.name for subject in SUBJECTS}:
        parser.error(f"got {', '.join(sorted(unknown))}, expected some of {', '.join(s.name for s in SUBJECTS)}")
    with tempfile.TemporaryDirectory() as folder:
        words = {"model": f"{folder}/probe", "gguf": f"{folder}/probe.gguf"}
        build_checkpoint(preset("gqa"), Path(words["model"]))
        if args.llama_server:
            build_gguf(preset("gqa"), Path(words["gguf"]))
            words |= {"llama_server": args.llama_server, "llama_version": _version(args.llama_server)}
        wanted = [subject for subject in SUBJECTS if args.llama_server or subject.name != "llamacpp"]
        for subject in wanted:
            there = (args.out / subject.name / "verdicts.jsonl").exists()
            if subject.name in args.names or not (args.names or there):
                ask(subject, words, args.profile, args.out)
    columns = [f"{subject.column.format(**words)}={args.out / subject.name}" for subject in wanted
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
