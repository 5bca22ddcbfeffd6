"""The command `pabench`: one function a command, each thin over the part that does the work.

Exit codes: 0 done and conforming, 1 done and not conforming, 2 could not run, 130 interrupted.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
import typer.core

from pabench import __version__
from pabench.errors import EXIT_COULD_NOT_RUN, EXIT_INTERRUPTED, EXIT_NOT_CONFORMING, EXIT_OK, PabenchError, UsageError

if TYPE_CHECKING:  # each command imports what it needs, so that `--help` is quick
    from pabench.engines.doctor import Examination


class _Commands(typer.core.TyperGroup):
    """Every expected failure of a command is one line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:  # typer carries its own copy of click, so its types have no public name
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except PabenchError as error:
            _fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            _fail("interrupted; what was measured is kept", EXIT_INTERRUPTED)
        except BrokenPipeError:
            os._exit(EXIT_OK)  # the reader of our output went away: nothing left to tell it
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise
            _fail(f"cannot write {error.filename or 'a file'}: {error.strerror}", EXIT_COULD_NOT_RUN)


def _fail(text: str, code: int) -> NoReturn:
    print(f"pabench: {text}", file=sys.stderr)
    raise SystemExit(code)


app = typer.Typer(
    cls=_Commands,
    help="Benchmark and conformance test suite for paged-attention LLM engines.",
    no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False,
)
probe_app = typer.Typer(help="Build and check the KV probe.", no_args_is_help=True)
app.add_typer(probe_app, name="probe")

Url = Annotated[str, typer.Option("--url", help="Where the engine listens, e.g. http://127.0.0.1:8000")]
OptionalUrl = Annotated[str | None, typer.Option("--url", help="Where an engine listens, e.g. http://127.0.0.1:8000")]
Impl = Annotated[
    str | None,
    typer.Option("--impl", help="Instead of a URL, an implementation in process: reference-paged or another that "
                                "ships, package.module:factory, or path/to/file.py:factory."),
]
DialectName = Annotated[str | None, typer.Option("--dialect", help="Do not detect the dialect; take this one.")]
ProbeName = Annotated[
    str | None,
    typer.Option("--probe", help="Preset or folder of the KV probe that is served (found out by default)."),
]
KeyVariable = Annotated[
    str | None,
    typer.Option("--api-key-env", help="Environment variable that holds the engine's API key."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No live view.")]


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGTERM, _end_as_on_ctrl_c)
    app(prog_name="pabench")


def _end_as_on_ctrl_c(*_: object) -> None:
    """A cancelled CI job sends TERM: engines of ours are to be stopped then, and records written."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it runs in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGINT)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"pabench {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


@probe_app.command("build")
def probe_build(
    preset: Annotated[str, typer.Option(help="tiny, gqa, mqa, mha, d80, d96, d256, long or soft.")] = "gqa",
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("probe"),
    dtype: Annotated[str, typer.Option(help="Of the stored weights: float32, float16 or bfloat16.")] = "float32",
) -> None:
    """Write the KV probe as a Hugging Face Llama folder that any engine can serve.

    Example: pabench probe build --preset gqa --out probe
    """
    from pabench.probe import build_checkpoint
    from pabench.probe import preset as named

    spec = named(preset)
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


def _need_engine() -> None:
    from importlib.util import find_spec

    if find_spec("reference_engine") is None or find_spec("torch") is None:
        raise UsageError("the reference engine needs torch: install it with `pip install 'pabench[engine]'`")


def _become_engine(module: str, arguments: list[str]) -> NoReturn:
    """The tool never imports the engine: it becomes it."""
    _need_engine()
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
    url: Url, dialect: DialectName = None, probe: ProbeName = None, api_key_env: KeyVariable = None,
    timeout_s: Annotated[float, typer.Option(help="Longest wait for one answer, seconds.")] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Tell what is at a URL: dialect, model, block size, capacity, prefix caching, metrics, is it the probe.

    Example: pabench doctor --url http://127.0.0.1:8000
    """
    from pabench.terminal import show_examination

    examination = _examine(url, dialect, probe, api_key_env, timeout_s)
    if as_json:
        print(json.dumps(examination.to_json(), indent=2))
    else:
        show_examination(examination, url)


@app.command()
def conform(
    url: OptionalUrl = None, impl: Impl = None,
    profile: Annotated[str, typer.Option(help="smoke, ci or full.")] = "ci",
    out: Annotated[Path | None, typer.Option(help="New folder for verdicts.jsonl and the failed cases.")] = None,
    requirement: Annotated[list[str] | None, typer.Option("--id", help="Only this requirement (repeatable).")] = None,
    expect: Annotated[Path | None, typer.Option(help="Expected failures and disabled requirements (TOML).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same prompts.")] = 0,
    dialect: DialectName = None, probe: ProbeName = None, api_key_env: KeyVariable = None, quiet: Quiet = False,
) -> None:
    """Ask an engine, an allocator or a kernel every requirement: exit 0 conforming, 1 not conforming, 2 could not run.

    Example: pabench conform --url http://127.0.0.1:8000 --profile ci --out results/conform

    Example: pabench conform --impl acme/adapter.py:allocator
    """
    from pabench.conformance.runner import run_suite

    raise SystemExit(run_suite(
        url, impl=impl, out=out or _new_folder("conform"), profile=profile, dialect=dialect, probe=probe,
        ids=requirement or (), expect=expect, seed=seed, api_key=_api_key(api_key_env), quiet=quiet,
    ))


@app.command()
def replay(
    case: Annotated[Path, typer.Argument(help="File of a failed case, as the failure text names it.")],
    url: OptionalUrl = None, impl: Impl = None, dialect: DialectName = None, probe: ProbeName = None,
    api_key_env: KeyVariable = None,
) -> None:
    """Ask one failed case again: exit 0 when it holds now, 1 when it still fails.

    Example: pabench replay results/conform/case-91c2.json --url http://127.0.0.1:8000
    """
    from pabench.conformance.runner import replay_case

    raise SystemExit(replay_case(case, url=url, impl=impl, dialect=dialect, probe=probe, api_key=_api_key(api_key_env)))


@app.command()
def mutants(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="These alone; all by default.")] = None,
    level: Annotated[list[str] | None, typer.Option(help="kernel, alloc or http (repeatable); all by default.")] = None,
    profile: Annotated[str, typer.Option(help="smoke, ci or full.")] = "ci",
    out: Annotated[Path | None, typer.Option(
        help="Results folder (results/<time>-mutants by default). What it holds is not asked again.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Markdown file to write the table to.")] = None,
) -> None:
    """Ask engines with one known fault each, and show which requirements notice: exit 0 when each is, 1 when not.

    Interrupted, it goes on where it was when it is given the same --out. Needs the extra `engine`.

    Example: pabench mutants --profile smoke --out results/mutants
    """
    _need_engine()
    from pabench.conformance.kills import exit_code, kills_page, questions, run_mutants
    from pabench.terminal import show_kill, show_kills

    asked = questions(names or (), level or (), profile)
    folder = out or _new_folder("mutants")
    kills = run_mutants(asked, folder, profile, show_kill)
    show_kills(kills)
    if markdown is not None:
        words = ["pabench", "mutants", *(names or ()), *(word for each in level or () for word in ("--level", each))]
        markdown.write_text(kills_page(kills, " ".join([*words, "--profile", profile])), encoding="utf-8")
    print(f"results: {folder}")
    raise SystemExit(exit_code(kills))


@app.command()
def run(
    url: Url,
    workload: Annotated[str, typer.Option(help="Name of a workload that ships with pabench, or a TOML file.")],
    out: Annotated[Path | None, typer.Option(help="New run folder (results/<time>-<workload> by default).")] = None,
    label: Annotated[str | None, typer.Option(help="What to call the engine in tables and reports.")] = None,
    users: Annotated[int | None, typer.Option(help="Closed loop with this many users.")] = None,
    rate: Annotated[float | None, typer.Option(help="Open loop at this many requests a second.")] = None,
    num_requests: Annotated[int | None, typer.Option(help="How many requests in all.")] = None,
    duration_s: Annotated[float | None, typer.Option(help="Stop sending after this many seconds.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same prompts and schedule.")] = 0,
    dialect: DialectName = None, probe: ProbeName = None, api_key_env: KeyVariable = None,
    as_json: AsJson = False, quiet: Quiet = False,
) -> None:
    """Put a load on an engine, verify every answer, and write a run folder.

    Exit 0 when every request was answered and, on the probe, every token right; 1 when not.

    Example: pabench run --url http://127.0.0.1:8000 --workload sharegpt-mini --users 16
    """
    from pabench.load import load_workload, run_workload
    from pabench.terminal import live_load, show_run

    plan = load_workload(workload, users=users, rate_per_s=rate, num_requests=num_requests, duration_s=duration_s)
    key = _api_key(api_key_env)
    folder = out or _new_folder(plan.name)
    _require_new(folder)
    examination = _examine(url, dialect, probe, api_key_env)
    name = label or examination.facts.dialect
    try:
        with live_load(plan, name, quiet=quiet or as_json) as progress:
            manifest = asyncio.run(run_workload(
                examination, plan, folder, url=url, label=name, seed=seed, progress=progress, api_key=key,
            ))
    finally:
        if (folder / "requests.parquet").exists():  # an interrupted run has results too
            show_run(folder, as_json=as_json)
    if manifest.failure is not None:
        raise PabenchError(manifest.failure)
    raise SystemExit(EXIT_OK if manifest.flawless else EXIT_NOT_CONFORMING)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold some.")],
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
) -> None:
    """Write one offline HTML file that compares all runs and conformance results below the folders.

    Example: pabench report results/demo --out report.html
    """
    from pabench.report import write_report

    write_report(folders, out)
    print(out)


@app.command()
def matrix(
    results: Annotated[list[str], typer.Argument(
        metavar="[NAME=]PATH...", help="Results of `pabench conform`: folders or files. One NAME, one column.")],
    out: Annotated[Path | None, typer.Option(help="HTML file to write (matrix.html by default).")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Markdown file to write, instead or as well.")] = None,
) -> None:
    """Set conformance results side by side: requirements by implementations, each failure in full.

    Example: pabench matrix results/vllm ours=results/reference --out matrix.html
    """
    from pabench.report.matrix_page import write_matrix

    out = Path("matrix.html") if out is None and markdown is None else out
    write_matrix(results, out=out, markdown=markdown)
    for path in filter(None, (out, markdown)):
        print(path)


@app.command()
def bench(
    suite: Annotated[str, typer.Argument(help="A bench suite: the name of one that ships, or a TOML file.")] = "demo",
    out: Annotated[Path | None, typer.Option(help="New results folder (results/<time>-<suite> by default).")] = None,
    as_json: AsJson = False, quiet: Quiet = False,
) -> None:
    """Compare engines: conformance, loads, verification, and a report.

    Example: pabench bench demo
    """
    from pabench.bench import EngineResult, load_suite, run_bench
    from pabench.terminal import TerminalNarrator, finish_bench

    plan = load_suite(suite)
    folder = out or _new_folder(Path(suite).stem)
    _require_new(folder)
    results: list[EngineResult] = []
    try:
        run_bench(plan, folder, TerminalNarrator(quiet=quiet or as_json), results)
    finally:
        finish_bench(results, folder, as_json=as_json)
    raise SystemExit(max(result.exit_code for result in results))


def _examine(
    url: str, dialect: str | None, probe: str | None, key_variable: str | None, timeout_s: float = 10.0
) -> Examination:
    from pabench.engines.doctor import examine

    key = _api_key(key_variable)
    return asyncio.run(examine(url, dialect=dialect, probe=probe, timeout_s=timeout_s, api_key=key))


def _api_key(variable: str | None) -> str | None:
    """The key itself is never an argument: arguments show in process lists and in manifests."""
    if variable is None:
        return None
    if variable not in os.environ:
        raise UsageError(f"--api-key-env names {variable!r}, which is not set in the environment")
    return os.environ[variable]


def _require_new(folder: Path) -> None:
    """Before any work: results are never overwritten, nor mixed with others."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UsageError(f"{folder} is a file or holds something already: give a new folder with --out")


def _new_folder(name: str) -> Path:
    return Path("results") / f"{datetime.now():%Y%m%d-%H%M%S}-{name}"
