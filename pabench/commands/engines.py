"""Engines: the probe that they serve, those that ship, and what is at a URL."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pabench.commands.options import AsJson, DialectName, KeyVariable, ModelName, ProbeName, Url, examined, need_engine
from pabench.errors import EXIT_NOT_CONFORMING

app = typer.Typer()
_PRESETS = "tiny, gqa, mqa, mha, d80, d96, d256, long, soft, wide, vision, window or mixed."
probe_app = typer.Typer(help="Build and check the KV probe.", no_args_is_help=True)
app.add_typer(probe_app, name="probe")


@probe_app.command("build")
def probe_build(
    preset: Annotated[str, typer.Option(help=_PRESETS)] = "gqa",
    out: Annotated[Path, typer.Option(help="Folder to write: new, empty, or of a KV probe.")] = Path("probe"),
    dtype: Annotated[str, typer.Option(help="Of the stored weights: float32, float16 or bfloat16.")] = "float32",
    gguf: Annotated[bool, typer.Option("--gguf", help="Also OUT/probe.gguf, for llama.cpp (extra `gguf`).")] = False,
) -> None:
    """Write the KV probe as a Hugging Face Llama folder that any engine can serve.

    Example: pabench probe build --preset gqa --out probe
    """
    from pabench.probe import GGUF_FILE, build_checkpoint, build_gguf, require_room
    from pabench.probe import preset as named

    spec = named(preset)
    require_room(out)
    if gguf:
        build_gguf(spec, out / GGUF_FILE)
    build_checkpoint(spec, out, dtype)
    print(f"{out}: probe {spec.preset!r}, {spec.num_layers} layers, {spec.num_q_heads} query heads, "
          f"{spec.num_kv_heads} KV heads, head_dim {spec.head_dim}, vocabulary {spec.vocab_size}, {dtype}")


@probe_app.command("check")
def probe_check(folder: Annotated[Path, typer.Argument(help="Folder of a probe.")]) -> None:
    """Check that a folder holds exactly the probe it says it is: exit 0 if so, 1 if not.

    Example: pabench probe check probe
    """
    from pabench.probe import check_checkpoint, load_spec

    spec = load_spec(folder)
    problems = check_checkpoint(folder)
    for problem in problems:
        print(f"{folder}: {problem}")
    if problems:
        raise SystemExit(EXIT_NOT_CONFORMING)
    print(f"{folder}: probe {spec.preset!r}, as built")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def serve(context: typer.Context) -> None:
    """Serve a Hugging Face Llama-family folder with the reference engine (needs the extra `engine`).

    Example: pabench serve --model probe --kv paged --block-size 16 --num-blocks 256 --max-num-seqs 64 --port 8000
    """
    _become_engine("reference_engine", context.args)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def simulate(context: typer.Context) -> None:
    """Simulate the reference engine's scheduler and KV memory on a request trace (needs the extra `engine`).

    Example: pabench simulate --trace AzureLLMInferenceTrace_conv.csv --kv paged --num-slots 62912
    """
    _become_engine("reference_engine.simulation", context.args)


def _become_engine(module: str, arguments: list[str]) -> NoReturn:
    """The tool never imports the engine: it becomes it."""
    need_engine()
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def stub(context: typer.Context) -> None:
    """Serve an engine of known timing that stamps each chunk, for calibration and tests.

    Example: pabench stub --ttft-ms 50 --itl-ms 10 --port 8001
    """
    from pabench.stub import main as stub_main

    stub_main(context.args)


@app.command()
def doctor(
    url: Url, dialect: DialectName = None, model: ModelName = None, probe: ProbeName = None,
    api_key_env: KeyVariable = None,
    timeout_s: Annotated[float, typer.Option(help="Longest wait for one answer, seconds.")] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Tell what is at a URL: dialect, model, block size, capacity, prefix caching, metrics, is it the probe.

    Example: pabench doctor --url http://127.0.0.1:8000
    """
    from pabench.terminal.engines import show_examination

    examination = examined(url, dialect, probe, api_key_env, timeout_s, model)
    if as_json:
        print(json.dumps(examination.to_json(), indent=2))
    else:
        show_examination(examination, url)
