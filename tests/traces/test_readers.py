import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pabench.errors import UsageError
from pabench.traces import FORMATS, Trace, read_trace

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:04.0319600,3180,8
2023-11-16 18:17:03.9799600,4808,10
"""
BURST = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45.5,GPT-4,1087,230,1317,API log
"""
MOONCAKE = """{"timestamp": 1500, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]}
{"timestamp": 4000, "input_length": 513, "output_length": 7, "hash_ids": [0, 9]}
"""
BAILIAN = """{"chat_id": 1, "parent_chat_id": -1, "timestamp": 2.5, "input_length": 33, "output_length": 4, \
"type": "text", "turn": 1, "hash_ids": [7, 8, 9]}
{"chat_id": 2, "parent_chat_id": -1, "timestamp": 3.0, "input_length": 16, "output_length": 2, \
"type": "text", "turn": 1, "hash_ids": [7]}
"""
LENGTHS_CSV = """num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio
74,918,992,0.08
290,905,1195,0.32
"""
LENGTHS_TIMED_CSV = """arrived_at,num_prefill_tokens,num_decode_tokens
1.5,74,918
4.0,290,905
"""
LENGTHS_JSONL = """{"prompt_tokens": 12, "output_tokens": 3}
{"prompt_tokens": 7, "output_tokens": 9}
"""
PROMPTS_JSONL = """{"prompt": [5, 6, 7], "output_length": 3}
{"prompt": 4, "output_length": 9}
"""


TIMED_JSONL = ('{"timestamp": 0, "input_length": 10, "output_length": 5}\n'
               '{"timestamp": 1500, "input_length": 11, "output_length": 6}\n')


def write(tmp_path, text):
    path = tmp_path / "trace"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(("text", "name", "arrival", "prompt", "output"), [
    pytest.param(AZURE, "azure", [0, 0.052], [4808, 3180], [10, 8], id="azure, put in order"),
    pytest.param(BURST, "burstgpt", [0, 40.5], [472, 1087], [18, 230], id="burstgpt"),
    pytest.param(MOONCAKE, "mooncake", [0, 2.5], [1100, 513], [5, 7], id="mooncake"),
    pytest.param(BAILIAN, "bailian", [0, 0.5], [33, 16], [4, 2], id="bailian"),
    pytest.param(TIMED_JSONL, "timed-jsonl", [0, 1.5], [10, 11], [5, 6], id="mooncake without hashes"),
    pytest.param(LENGTHS_CSV, "lengths-csv", [0, 0], [74, 290], [918, 905], id="lengths-csv"),
    pytest.param(LENGTHS_TIMED_CSV, "lengths-csv", [0, 2.5], [74, 290], [918, 905], id="lengths-csv with times"),
    pytest.param("\ufeff" + LENGTHS_CSV, "lengths-csv", [0, 0], [74, 290], [918, 905], id="byte order mark"),
    pytest.param(LENGTHS_JSONL, "lengths-jsonl", [0, 0], [12, 7], [3, 9], id="lengths-jsonl"),
    pytest.param(PROMPTS_JSONL, "lengths-jsonl", [0, 0], [3, 4], [3, 9], id="token ids as prompt"),
])
def test_each_format_is_known_by_its_first_line(tmp_path, text, name, arrival, prompt, output):
    for format in ("auto", name):
        trace = read_trace(write(tmp_path, text), format)
        assert trace.format == name
        assert trace.arrival_s == pytest.approx(arrival)
        assert (trace.prompt_tokens.tolist(), trace.output_tokens.tolist()) == (prompt, output)
        assert (trace.arrival_s.dtype, trace.prompt_tokens.dtype, trace.output_tokens.dtype) == (
            np.float64, np.int32, np.int32)
        assert trace.num_dropped == 0


def test_hash_ids_follow_their_request(tmp_path):
    trace = read_trace(write(tmp_path, MOONCAKE))
    assert trace.prefixes.block_tokens == 512
    assert [trace.prefixes.of(i) for i in range(2)] == [(0, 1, 2), (0, 9)]
    assert trace.head(1).prefixes.of(0) == (0, 1, 2)
    later_first = "\n".join(reversed(MOONCAKE.splitlines()))
    assert [read_trace(write(tmp_path, later_first)).prefixes.of(i) for i in range(2)] == [(0, 1, 2), (0, 9)]


def test_rows_without_sense_are_counted_by_reason(tmp_path):
    rows = "1,5,9\n2,,9\n3,5,0\n4,5,nan\nsoon,5,9\n6,5.5,9\n7,-1,9\n8,6,9\n9,5,99999999999\n"
    trace = read_trace(write(tmp_path, "Timestamp,Request tokens,Response tokens\n" + rows))
    assert trace.prompt_tokens.tolist() == [5, 6]
    assert trace.arrival_s.tolist() == [0, 7]
    assert [(reason.split(" is ")[0], n) for reason, n in trace.dropped.items()] == [
        ("the time", 1), ("the prompt's length", 3), ("the output's length", 3)]
    assert len(trace) + trace.num_dropped == 9


def test_a_dropped_row_takes_its_hash_ids_with_it(tmp_path):
    text = '{"timestamp": 0, "input_length": 1, "output_length": 0, "hash_ids": [3]}\n' + MOONCAKE
    trace = read_trace(write(tmp_path, text))
    assert trace.num_dropped == 1
    assert [trace.prefixes.of(i) for i in range(2)] == [(0, 1, 2), (0, 9)]


@pytest.mark.parametrize(("text", "said"), [
    ("", "is empty"),
    ("a,b\n1,2\n", "Known: azure (CSV with ContextTokens, GeneratedTokens, TIMESTAMP); burstgpt"),
    ('{"text": "hello"}\n', "keys are text"),
    ('{"prompt_tokens": 1, "output_tokens"\n', "no JSON object"),
    (LENGTHS_JSONL + "[1]\n", "line 3, is list, expected an object"),
    (LENGTHS_JSONL + '{"prompt_tokens": 1, "out', "line 3, is no JSON"),
    ('{"prompt": "hello there", "output_length": 3}\n', "request 1, gives text ('hello there')"),
    (TIMED_JSONL + '{"timestamp": 9, "input_length": 9, "output_length": 1, "hash_ids": [1]}\n',
     "request 3, has hash_ids, and the first one has not"),
    ('[{"id": "a", "conversations": [{"from": "human", "value": "hi"}]}]', "as ShareGPT's conversations come"),
    ("prompt_tokens,output_tokens\n0,1\n1,0\n", "none makes sense"),
    ("prompt_tokens,output_tokens\n", "it is empty"),
    ('{"timestamp": 0, "input_length": 9, "output_length": 1, "hash_ids": [1, 2]}', "2 hash_ids of 512 tokens"),
    ('{"timestamp": 0, "input_length": 9, "output_length": 1, "hash_ids": ["a"]}', "expected a list of whole numbers"),
    ('prompt_tokens,output_tokens\n1,2\n"1,2,3', "cannot be read as CSV"),
    ("prompt_tokens,output_tokens,timestamp\n1,2,3\n", "'timestamp', which the format lengths-csv does not read"),
    ('{"prompt_tokens": 1, "output_tokens": 2, "Timestamp": 3}', "which the format lengths-jsonl does not read"),
    (LENGTHS_JSONL.replace("arrival", "sent") + '{"prompt_tokens": 1, "output_tokens": 2, "arrival_s": 9}',
     "has 'arrival_s', and the first one has no time"),
])
def test_a_file_that_is_no_trace_is_refused(tmp_path, text, said):
    with pytest.raises(UsageError) as refusal:
        read_trace(write(tmp_path, text))
    assert said in str(refusal.value)


def test_a_comma_at_the_end_of_each_row_shifts_nothing(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0.0,100,20,\n0.5,200,30,\n")
    trace = read_trace(path)
    assert trace.prompt_tokens.tolist() == [100, 200]
    assert trace.output_tokens.tolist() == [20, 30]


def test_other_refusals(tmp_path):
    with pytest.raises(UsageError, match="cannot read the trace"):
        read_trace(tmp_path / "none")
    with pytest.raises(UsageError, match="is no format of a trace"):
        read_trace(write(tmp_path, AZURE), "azur")
    with pytest.raises(UsageError, match="is not of the format mooncake"):
        read_trace(write(tmp_path, AZURE), "mooncake")
    (tmp_path / "packed").write_bytes(b"\x1f\x8b\x08\x00\xff\xfe")
    with pytest.raises(UsageError, match="unpack it first"):
        read_trace(tmp_path / "packed")


def test_every_format_says_what_it_looks_like():
    assert all(("CSV" in f.tell()) != ("JSON" in f.tell()) for f in FORMATS.values())


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 5000), st.integers(0, 5000)), min_size=1))
def test_rows_are_kept_or_counted_and_in_order(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("t") / "t.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{a},{p},{o}\n" for a, p, o in rows))
    good = [row for row in rows if row[1] and row[2]]
    if not good:
        with pytest.raises(UsageError):
            read_trace(path)
        return
    trace: Trace = read_trace(path)
    good.sort(key=lambda row: row[0])
    assert trace.prompt_tokens.tolist() == [row[1] for row in good]
    assert trace.arrival_s.tolist() == [row[0] - good[0][0] for row in good]
    assert len(trace) + trace.num_dropped == len(rows)
