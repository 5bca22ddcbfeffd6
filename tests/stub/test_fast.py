"""The fast stub: the same words on the wire, and its own lateness told."""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pabench.engines import EngineProcess
from pabench.errors import UsageError
from pabench.stub import main


@contextmanager
def started(folder: Path, *options: str) -> Iterator[str]:
    command = [sys.executable, "-m", "pabench", "stub", "--fast", "--ttft-ms", "20", "--itl-ms", "5", "--port",
               "{port}", *options]
    with EngineProcess(command, url="http://127.0.0.1:{port}", log=folder / "log") as process:
        yield process.url


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with started(tmp_path_factory.mktemp("stub")) as where:
        yield where


def post(url: str, body: dict[str, object]) -> list[dict[str, object]]:
    """The events of a stream, as JSON; `[DONE]` left out."""
    asked = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=5) as answer:
        lines = answer.read().decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


@pytest.mark.parametrize(("path", "length"), [("completions", "max_tokens"), ("chat/completions", "max_tokens"),
                                              ("chat/completions", "max_completion_tokens")])
def test_a_stream_is_whole_on_time_and_stamped(url: str, path: str, length: str) -> None:
    events = post(f"{url}/v1/{path}", {"model": "stub", "prompt": "x", "stream": True, length: 5})
    *chunks, usage = events
    choices = [event["choices"][0] for event in chunks]  # type: ignore[index]
    said = [choice["delta"]["content"] if "chat" in path else choice["text"] for choice in choices]
    assert said == [" word"] * 5
    assert [choice["finish_reason"] for choice in choices] == [None] * 4 + ["length"]
    assert usage["usage"] == {"prompt_tokens": 1, "completion_tokens": 5, "total_tokens": 6}
    stamps = [event["pabench_sent_ns"] for event in chunks]
    assert (stamps[4] - stamps[0]) / 1e6 == pytest.approx(20, abs=5)  # type: ignore[operator]


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_without_stamps_all_chunks_but_the_last_are_alike(tmp_path: Path, path: str) -> None:
    with started(tmp_path, "--no-stamps") as where:
        *chunks, usage = post(f"{where}/v1/{path}", {"stream": True, "max_tokens": 5})
    assert chunks[0] == chunks[3] != chunks[4]
    assert all("pabench_sent_ns" not in chunk for chunk in chunks)
    assert usage["usage"]["completion_tokens"] == 5  # type: ignore[index]


def test_a_chunk_of_several_tokens_takes_their_time(tmp_path: Path) -> None:
    with started(tmp_path, "--tokens-per-chunk", "4") as where:
        *chunks, usage = post(f"{where}/v1/completions", {"stream": True, "max_tokens": 10})
    choices = [event["choices"][0] for event in chunks]  # type: ignore[index]
    assert [choice["text"].count("word") for choice in choices] == [4, 4, 2]
    assert [choice["finish_reason"] for choice in choices] == [None, None, "length"]
    assert usage["usage"]["completion_tokens"] == 10  # type: ignore[index]
    stamps = [event["pabench_sent_ns"] for event in chunks]
    assert (stamps[2] - stamps[0]) / 1e6 == pytest.approx(40, abs=5)  # type: ignore[operator]


def test_it_tells_how_late_it_was(url: str) -> None:
    post(f"{url}/v1/completions", {"stream": True, "max_tokens": 3})
    with urllib.request.urlopen(f"{url}/stats", timeout=5) as answer:
        told = json.load(answer)
    assert told["chunks"] >= 3
    assert 0 <= told["late_p50_ms"] <= told["late_p99_ms"] <= told["late_max_ms"]


def test_it_tells_when_requests_came(url: str) -> None:
    before_ns = time.monotonic_ns()
    for _ in range(2):
        post(f"{url}/v1/completions", {"stream": True, "max_tokens": 1})
    with urllib.request.urlopen(f"{url}/arrivals", timeout=5) as answer:
        first_ns, second_ns = json.load(answer)[-2:]
    assert before_ns < first_ns < second_ns < time.monotonic_ns()


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"max_tokens": 3}', b'{"stream": true, "max_tokens": "x"}',
                                  b'{"stream": true, "max_tokens": -1}'])
def test_what_it_cannot_answer_is_refused(url: str, body: bytes) -> None:
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(urllib.request.Request(f"{url}/v1/completions", body), timeout=5)


def test_it_has_no_faults() -> None:
    with pytest.raises(UsageError, match=r"--fast knows host, .* alone, got error_rate as well"):
        main(["--fast", "--error-rate", "0.5"])
    with pytest.raises(UsageError, match="--no-stamps is of the fast stub"):
        main(["--no-stamps"])
