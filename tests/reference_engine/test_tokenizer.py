"""Text streams: whole characters only, stop strings over token borders; chat templates in a sandbox."""

from __future__ import annotations

import json
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pabench.errors import UsageError
from reference_engine.scheduling.sequence import TokenLogprobs
from reference_engine.serving.logprobs import Told, completion_logprobs
from reference_engine.serving.tokenizer import TextStream, Tokenizer


def byte_level():
    """A tokenizer with one token a byte, so that characters span tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    hf = HFTokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    hf.decoder = decoders.ByteLevel()
    return hf


HF = byte_level()


def feed(text, stop=(), *, include=False):
    stream = TextStream(HF, tuple(stop), include)
    pieces = []
    for token in HF.encode(text).ids:
        piece, found = stream.push(token)
        pieces.append(piece)
        if found is not None:
            return pieces, found
    return [*pieces, stream.flush()], None


@given(st.text(max_size=20))
def test_pieces_join_to_the_text(text):
    pieces, _ = feed(text)
    assert "".join(pieces) == text


def test_a_character_comes_when_it_is_whole():
    pieces, _ = feed("aé😀")
    assert pieces == ["a", "", "é", "", "", "", "😀", ""]


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_stop_strings_cut_where_they_first_complete(text, stops):
    pieces, found = feed(text, stops)
    ends = [(text.find(s) + len(s), s) for s in stops if s in text]
    if not ends:
        assert found is None
        assert "".join(pieces) == text
        return
    first = min(end for end, _ in ends)  # the token at which a stop string is first whole
    candidates = [(first - len(s), s) for s in stops if text[:first].endswith(s)]
    assert found in [s for _, s in candidates]
    assert "".join(pieces) == text[: min(start for start, _ in candidates)]


def test_nothing_is_shown_that_a_stop_string_takes_back():
    pieces, found = feed("one STOP two", ["STOP"])
    assert found == "STOP"
    assert "".join(pieces) == "one "
    assert feed("one STO two", ["STOP"])[0][4:8] == ["", "", "", "STO "]
    assert "".join(feed("one STOP two", ["STOP"], include=True)[0]) == "one STOP"


def write(folder, template):
    HF.save(str(folder / "tokenizer.json"))
    config = {"bos_token": {"content": "<s>"}, "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer(folder)


def test_chat_template(tmp_path):
    tokenizer = write(tmp_path, "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
                                "{% if add_generation_prompt %}>{% endif %}")
    assert tokenizer.chat_text([{"role": "user", "content": "hé"}]) == "<s>[user] hé>"


def test_templates_have_what_transformers_gives_them(tmp_path):
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{% generation %}{% set said = m.content %}{{ said }}{% endgeneration %}{% break %}{% endfor %}"
        "{{ strftime_now('%Y') | length }}{{ tools is none }}{{ documents is none }}{{ eos_token is defined }}")
    messages = [{"role": role, "content": role[:1]} for role in ("system", "user", "assistant")]
    ours = write(tmp_path, template).chat_text(messages)
    theirs = PreTrainedTokenizerFast(tokenizer_object=HF, bos_token="<s>").apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=True)
    assert ours == theirs == "u4TrueTrueFalse"


@pytest.mark.parametrize("template", [
    "{{ messages.__class__.__mro__ }}", "{{ raise_exception('only users') }}", "{{ messages[0].x.y.z }}", "{% if %}",
    "{{ 1 / 0 }}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{{ '{0}'.format() }}",
])
def test_templates_that_fail_or_break_out_are_refused(tmp_path, template):
    tokenizer = write(tmp_path, template)
    with pytest.raises(UsageError, match="chat template refuses"):
        tokenizer.chat_text([{"role": "user", "content": "x"}])


def test_offsets_say_where_each_token_begins(tmp_path):
    tokenizer = write(tmp_path, None)
    text = "aé b"  # one token a byte
    ids, offsets = tokenizer.encode_with_offsets(text, add_special_tokens=True)
    assert (ids, offsets) == (tokenizer.encode(text), (0, 1, 1, 2, 3))
    assert tokenizer.decode_with_offsets(ids) == (text, (0, 1, 1, 2, 3))
    assert tokenizer.decode(ids) == text
    assert [len(s) for s in tokenizer.token_strings(ids)] == [1] * 5
    assert tokenizer.encode_with_offsets("", add_special_tokens=True) == ((), ())
    assert tokenizer.decode_with_offsets([]) == ("", ())


def test_a_long_text_is_tokenised_while_other_threads_go_on(tmp_path):
    tokenizer, text, others = write(tmp_path, None), "ab c " * 30_000, 0
    thread = threading.Thread(target=tokenizer.encode, args=(text,))
    thread.start()
    while thread.is_alive():
        others += 1
        time.sleep(0.001)
    assert others > 10  # with encode() it is 2, however long it takes
    assert tokenizer.encode(text) == tokenizer.encode("ab c ") * 30_000
    assert tokenizer.encode_with_offsets(text, add_special_tokens=True)[1] == tuple(range(len(text)))


def test_no_template_and_no_tokenizer(tmp_path):
    with pytest.raises(UsageError, match="no chat template"):
        write(tmp_path, None).chat_text([{"role": "user", "content": "x"}])
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UsageError, match="cannot be read as a tokenizer"):
        Tokenizer(tmp_path)


def test_tokens_of_one_text_do_not_hide_one_another(tmp_path):
    tokenizer = write(tmp_path, None)
    a, b, lone, other = *tokenizer.encode("ab"), *tokenizer.encode("é")  # half a character each: both are "\ufffd"
    top = ((lone, -0.5), (a, -1.0), (other, -2.0), (b, -3.0))
    told = [Told(other, TokenLogprobs(-2.0, top), 0), Told(a, TokenLogprobs(-1.0, top), 1)]
    assert completion_logprobs(tokenizer, told)["top_logprobs"] == [
        {"\ufffd": -2.0, "a": -1.0, "b": -3.0}, {"\ufffd": -0.5, "a": -1.0, "b": -3.0}]


def byte_fallback():
    """Pieces for single bytes beside pieces of text, as Llama 2 and Mistral have them."""
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"a": 256, "\u2581b": 257, "<unk>": 258}
    hf = HFTokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    hf.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return hf


@pytest.fixture(scope="module")
def fallback(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fallback")
    byte_fallback().save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


@given(st.lists(st.sampled_from([0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0xC3, 256, 257]), max_size=12))
def test_any_bytes_may_come_and_the_text_goes_on(token_ids):
    stream = TextStream(byte_fallback(), (), False)
    text = "".join(stream.push(token)[0] for token in [*token_ids, 256, 256])
    assert text.endswith("a")
    assert text.count("b") <= token_ids.count(257)


def test_bytes_that_make_no_text_do_not_end_the_stream():
    stream = TextStream(byte_fallback(), (), False)
    text = "".join(stream.push(token)[0] for token in (195, 159, 159, 240, 130, 130, 159, 256, 257))
    assert text.endswith("a b")


@given(st.lists(st.sampled_from([0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0xC3, 256, 257]), max_size=12))
def test_any_bytes_have_offsets_within_their_text(fallback, token_ids):
    text, offsets = fallback.decode_with_offsets([*token_ids, 256, 256])
    assert text.endswith("a")
    assert offsets[0] == 0
    assert list(offsets) == sorted(offsets)
    assert offsets[-1] < len(text)
