"""What keeps a key out of what is shown and kept."""

import pytest

from pabench.engines.cleaning import masked, without_key

KEY = "sk-proj-0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(("text", "told"), [
    (f"key {KEY}!", "key ***!"),
    (f"key {'*' * len(KEY)}!", "key ***!"),
    (f"first {KEY[:30]}", "first ***"),                             # cut off, as a quotation is
    (f"b'{KEY[:20]}' and {KEY} and {KEY[:13]}…", "b'***' and *** and ***…"),
    ("sk-proj-01 is a word of many keys", "sk-proj-01 is a word of many keys"),
])
def test_a_key_is_left_out_where_its_end_is_cut_off_too(text, told):
    assert without_key(text, KEY) == told


def test_a_short_key_is_left_out_whole():
    assert without_key("s3cret, s3c", "s3cret") == "***, s3c"
    assert without_key("s3cret", None) == "s3cret"


@pytest.mark.parametrize(("key", "spelt"), [
    ("sk-abc/def/ghij0123456789", "sk-abc\\/def\\/ghij0123456789"),
    ("sk-abcdefghij0123456789", "\\u0073k\\u002Dabcdefghij012345678\\u0039"),
    ('a"b\\c', 'a\\"b\\\\c'), ("s3cret", "s3cret"),
])
def test_a_key_is_masked_however_json_spells_it(key, spelt):
    """Pieces are cut out of a masked body at the places where they were in the other."""
    body = f'{{"error": "bad key {spelt}, and caf\\u00e9 stays"}}'.encode()
    told = masked(body, 401, key)
    assert told == body.replace(spelt.encode(), b"*" * len(spelt))
    assert len(told) == len(body)
