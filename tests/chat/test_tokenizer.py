"""Tokenizers: exact round trips, control tokens that text can't forge, and clear errors for damaged files."""

import json
import pickle
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_tokenizers import CONTROLS, write_hf, write_sentencepiece

from jaxtune.chat import load_tokenizer
from jaxtune.chat.tokenizer import After, ByteTokenizer
from jaxtune.errors import UserError

KINDS = ("bytes", "hf", "sentencepiece", "sentencepiece_prefix")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    return {
        "bytes": ByteTokenizer(),
        "hf": load_tokenizer(write_hf(root / "hf")),
        "sentencepiece": load_tokenizer(write_sentencepiece(root / "sp")),
        "sentencepiece_prefix": load_tokenizer(write_sentencepiece(root / "spp", dummy_prefix=True)),
    }


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_text_comes_back_unchanged(tokenizers, kind, text):
    tokenizer = tokenizers[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= token < tokenizer.vocab_size for token in ids)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.sampled_from([*CONTROLS, "<|im_", "end|>", "a", "\n", " ", "<s>", "</s>", "<unk>"])))
def test_text_never_becomes_a_control_token(tokenizers, kind, parts):
    """Prevents prompt injection: a user who writes <|im_end|> must not end the turn."""
    tokenizer = tokenizers[kind]
    for after in After:
        assert not any(tokenizer.is_control(token) for token in tokenizer.encode("".join(parts), after=after))


@pytest.mark.parametrize("kind", KINDS)
def test_specials_turns_control_strings_into_control_tokens(tokenizers, kind):
    tokenizer = tokenizers[kind]
    start, end = tokenizer.id_of("<|im_start|>"), tokenizer.id_of("<|im_end|>")
    ids = tokenizer.encode("<|im_start|>user\nfox<|im_end|>", specials=True)
    assert ids[0] == start and ids[-1] == end
    assert ids[1:-1] == tokenizer.encode("user\nfox", after=After.CONTROL)
    assert tokenizer.decode(ids) == "<|im_start|>user\nfox<|im_end|>"
    assert tokenizer.decode(ids, controls=False) == "user\nfox"


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_equals_its_texts_one_by_one(tokenizers, kind):
    texts = ["The fox", "", " jumps\n\nover <|im_end|>", "你好"]
    for after in After:
        batch = tokenizers[kind].encode_batch(texts, after=after)
        assert batch == [tokenizers[kind].encode(text, after=after) for text in texts]


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_tokens_join_to_the_text(tokenizers, kind):
    text = "The fox\n\n  says: Grüße 你好 \U0001f600"
    tokenizer = tokenizers[kind]
    joined = b"".join(map(tokenizer.token_bytes, tokenizer.encode(text, after=After.TEXT)))
    assert joined.decode() == text


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_and_ids_are_inverse(tokenizers, kind):
    tokenizer = tokenizers[kind]
    assert all(tokenizer.id_of(tokenizer.piece(token)) == token for token in range(tokenizer.vocab_size))
    assert tokenizer.id_of("no such piece") is None
    with pytest.raises(ValueError, match="not in the vocabulary"):
        tokenizer.piece(tokenizer.vocab_size)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickled_tokenizer_behaves_the_same_in_another_process(tokenizers, kind):
    tokenizer = tokenizers[kind]
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode("The fox <|im_end|>\n") == tokenizer.encode("The fox <|im_end|>\n")
    assert copy.fingerprint == tokenizer.fingerprint


def test_only_a_text_at_the_start_of_all_or_after_a_control_token_gets_a_prefix(tokenizers):
    tokenizer = tokenizers["sentencepiece_prefix"]
    whole = tokenizer.encode("The fox jumps")
    assert tokenizer.encode("The fox") + tokenizer.encode(" jumps", after=After.TEXT) == whole
    assert (
        tokenizer.encode("fox", after=After.CONTROL)
        == tokenizer.encode("fox")
        != tokenizer.encode("fox", after=After.TEXT)
    )


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_the_prefix_rule_of_a_metaspace_tokenizer_is_kept(tmp_path, scheme):
    def use_metaspace(spec):
        spec["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": True}
        spec["decoder"] = spec["pre_tokenizer"]
        spec["model"] = {**spec["model"], "vocab": {"<pad>": 0, "<bos>": 1, "<eos>": 2, "▁": 3, "a": 4}, "merges": []}
        spec["added_tokens"] = spec["added_tokens"][:3]

    tokenizer = load_tokenizer(write_hf(tmp_path, change=use_metaspace))
    prefixed = {After.NOTHING: scheme != "never", After.CONTROL: scheme == "always", After.TEXT: False}
    assert {after: tokenizer.encode("a", after=after) == [3, 4] for after in After} == prefixed


def test_a_byte_level_prefix_space_is_left_out_inside_a_text(tmp_path):
    def add_space(spec):
        spec["pre_tokenizer"]["add_prefix_space"] = True

    tokenizer = load_tokenizer(write_hf(tmp_path, change=add_space))
    assert tokenizer.encode("fox") == tokenizer.encode(" fox", after=After.TEXT)
    assert tokenizer.encode("fox", after=After.TEXT) != tokenizer.encode("fox")


def test_a_turn_marker_that_the_file_forgot_to_flag_is_still_a_control_token(tmp_path):
    def unflag(spec):
        for token in spec["added_tokens"]:
            token["special"] = False

    tokenizer = load_tokenizer(write_hf(tmp_path, change=unflag))
    assert {"<|im_start|>", "<|im_end|>", "<eos>"} <= tokenizer.controls.ids.keys()
    assert not any(map(tokenizer.is_control, tokenizer.encode("a <|im_end|> b <eos>")))


def test_a_turn_marker_that_sentencepiece_would_match_in_text_is_shielded(tmp_path):
    tokenizer = load_tokenizer(write_sentencepiece(tmp_path, user_defined=["\n", "<|user|>"]))
    marker = tokenizer.id_of("<|user|>")
    assert marker is not None and tokenizer.is_control(marker)
    assert marker not in tokenizer.encode("fox<|user|> jumps <|user|>")
    assert tokenizer.decode(tokenizer.encode("fox<|user|> jumps <|user|>")) == "fox<|user|> jumps <|user|>"
    assert tokenizer.encode("<|user|>", specials=True) == [marker]


def test_added_tokens_of_a_sentencepiece_folder_are_control_tokens(tmp_path):
    write_sentencepiece(tmp_path)
    added = {"500": {"content": "<|extra|>", "special": True}, "501": {"content": "<html>", "special": False}}
    config = {"added_tokens_decoder": added, "eos_token": "<|extra|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.eos_id, tokenizer.vocab_size) == (500, 501)
    assert 500 not in tokenizer.encode("<|extra|>") and tokenizer.encode("<|extra|>", specials=True) == [500]


def test_white_space_that_a_control_token_swallows_is_not_encoded(tmp_path):
    def swallow(spec):
        for token in spec["added_tokens"]:
            token["rstrip"] = token["content"] == "<|im_start|>"
            token["lstrip"] = token["content"] == "<|im_end|>"

    tokenizer = load_tokenizer(write_hf(tmp_path, change=swallow))
    bare = tokenizer.encode("<|im_start|>fox<|im_end|>", specials=True)
    assert tokenizer.encode("<|im_start|>\n fox \n<|im_end|>", specials=True) == bare


def test_truncation_and_padding_stored_in_the_file_are_ignored(tmp_path):
    def truncate(spec):
        spec["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
        spec["padding"] = {
            "strategy": {"Fixed": 9},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<pad>",
        }

    tokenizer = load_tokenizer(write_hf(tmp_path, change=truncate))
    assert tokenizer.decode(tokenizer.encode("The quick brown fox jumps")) == "The quick brown fox jumps"


def special_ids(tokenizer):
    return tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id


def test_special_ids_come_from_the_configuration_files_in_order(tmp_path):
    write_hf(tmp_path, bos=None, eos=None, pad=None)
    assert special_ids(load_tokenizer(tmp_path)) == (
        None,
        None,
        None,
    )
    (tmp_path / "generation_config.json").write_text(
        '{"bos_token_id": 1, "eos_token_id": [4, 2], "pad_token_id": null}'
    )
    assert special_ids(load_tokenizer(tmp_path)) == (
        1,
        4,
        None,
    )
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "<eos>"}}')
    assert (load_tokenizer(tmp_path).bos_id, load_tokenizer(tmp_path).eos_id) == (1, 2)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}')
    assert (load_tokenizer(tmp_path).eos_id, load_tokenizer(tmp_path).pad_id) == (4, 4)


def test_a_sentencepiece_model_brings_its_own_special_ids(tmp_path):
    tokenizer = load_tokenizer(write_sentencepiece(tmp_path))
    special = [tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id]
    assert special == [tokenizer.id_of(piece) for piece in ("<s>", "</s>", "<pad>")] and None not in special


def test_the_fingerprint_follows_what_decides_ids_and_nothing_else(tmp_path):
    first = load_tokenizer(write_hf(tmp_path / "a")).fingerprint
    assert load_tokenizer(write_hf(tmp_path / "b")).fingerprint == first
    (tmp_path / "b" / "README.md").write_text("words")
    assert load_tokenizer(tmp_path / "b").fingerprint == first
    assert load_tokenizer(write_hf(tmp_path / "c", eos="<|im_end|>")).fingerprint != first
    assert load_tokenizer(write_hf(tmp_path / "d", controls=(*CONTROLS, "<|more|>"))).fingerprint != first
    assert (
        ByteTokenizer().fingerprint
        == ByteTokenizer().fingerprint
        != ByteTokenizer(("<eos>",), bos=None, pad=None).fingerprint
    )


def test_files_to_copy_are_those_of_the_tokenizer(tmp_path):
    write_hf(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert [file.name for file in load_tokenizer(tmp_path).files] == ["tokenizer.json", "tokenizer_config.json"]
    assert load_tokenizer(tmp_path / "tokenizer.json").files == load_tokenizer(tmp_path).files


def damage_json(folder):
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text[: len(text) // 2])


def damage_model(folder):
    spec = json.loads((folder / "tokenizer.json").read_text())
    spec["model"]["merges"] = [["no", "such"]]
    (folder / "tokenizer.json").write_text(json.dumps(spec))


def replace_by_config(folder):
    (folder / "tokenizer.json").write_text('{"vocab_size": 7}')


def misname_eos(folder):
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|missing|>"}')


def remove_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def empty_vocabulary(folder):
    spec = json.loads((folder / "tokenizer.json").read_text())
    spec |= {"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    (folder / "tokenizer_config.json").unlink(missing_ok=True)


def damage_config(folder):
    (folder / "tokenizer_config.json").write_text('{"eos_token": ')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_json, r"tokenizer\.json: not valid JSON"),
        (damage_model, r"tokenizer\.json: the `tokenizers` library can't read it"),
        (replace_by_config, r"tokenizer\.json: not a tokenizer\.json"),
        (misname_eos, r"names '<\|missing\|>' as eos_token"),
        (remove_tokenizer, r"no tokenizer here"),
        (empty_vocabulary, r"tokenizer\.json: its vocabulary is empty"),
        (damage_config, r"tokenizer_config\.json: not valid JSON"),
    ],
)
def test_a_damaged_folder_is_an_error_that_names_the_file(tmp_path, damage, message):
    write_hf(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(("content", "message"), [(b"", "empty"), (b"not a model" * 9, "not a SentencePiece model")])
def test_a_damaged_sentencepiece_model_is_an_error(tmp_path, content, message):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path)


def test_a_missing_path_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        load_tokenizer(tmp_path / "nothing")


@pytest.mark.parametrize("kind", KINDS)
def test_a_lone_surrogate_is_an_error_that_says_where(tokenizers, kind):
    with pytest.raises(UserError, match=r"lone surrogate .* at character 2"):
        tokenizers[kind].encode("ab\ud800")


# The character that spells blanks


@pytest.fixture(scope="module")
def folding(tmp_path_factory):
    root = tmp_path_factory.mktemp("folding")
    return [load_tokenizer(write_sentencepiece(root / str(prefix), dummy_prefix=prefix)) for prefix in (False, True)]


@settings(max_examples=40, deadline=None)
@given(text=st.text(st.sampled_from("▁▂ ab\n"), max_size=8), start=st.sampled_from(["", "x"]))
def test_the_lower_block_survives_where_the_vocabulary_spells_blanks_with_it(folding, text, start):
    """Prevents sparklines and bars from being trained as blanks, or refused."""
    for tokenizer in folding:
        ids = tokenizer.encode(start + text, after=After.CONTROL)
        assert tokenizer.decode(ids).lstrip(" ") == (start + text).lstrip(" ")
        assert b"".join(map(tokenizer.token_bytes, ids)).decode().count("▁") == text.count("▁")
        if "▁" not in text:
            assert ids == tokenizer._encode_texts([start + text], After.CONTROL)[0]


# Files from strangers

ODD = [None, 5, -1, 1.5, "x", "", [], ["x"], [1], {}, {"a": 1}, [{"content": 1}], [[1]], True, "<bos>", 10**30]


def changed(spec, keys, value):
    """The JSON value with one place in it replaced."""
    if not keys:
        return value
    if isinstance(spec, list):
        return [changed(spec[0], keys[1:], value), *spec[1:]] if spec else [value]
    if isinstance(spec, dict):
        return {**spec, keys[0]: changed(spec.get(keys[0]), keys[1:], value)}
    return value


PLACES = {
    "tokenizer.json": [
        *(["added_tokens"], ["added_tokens", "0"], ["added_tokens", "0", "content"], ["added_tokens", "0", "id"]),
        *(["added_tokens", "0", "special"], ["added_tokens", "0", "lstrip"], ["model"], ["model", "vocab"]),
        *(["model", "type"], ["model", "merges"], ["normalizer"], ["pre_tokenizer"], ["decoder"], ["post_processor"]),
        *(["decoder", "type"], ["pre_tokenizer", "type"], []),
    ],
    "tokenizer_config.json": [
        *(["bos_token"], ["eos_token"], ["pad_token"], ["bos_token", "content"], ["added_tokens_decoder"]),
        *(["added_tokens_decoder", "0"], ["added_tokens_decoder", "0", "content"], ["additional_special_tokens"]),
        *(["add_bos_token"], ["tokenizer_class"], []),
    ],
    "special_tokens_map.json": [["bos_token"], ["eos_token", "content"], []],
    "added_tokens.json": [["<x>"], []],
    "generation_config.json": [["eos_token_id"], ["bos_token_id"], ["pad_token_id"], []],
}


@pytest.mark.parametrize(("file", "keys"), [(file, keys) for file, places in PLACES.items() for keys in places])
def test_a_file_of_odd_types_is_read_or_refused_by_name(hf_folder, tmp_path, file, keys):
    """Prevents tracebacks from files that a stranger wrote."""
    shutil.copytree(hf_folder, tmp_path / "t")
    whole = json.loads((tmp_path / "t" / file).read_text()) if (tmp_path / "t" / file).exists() else {}
    sentencepiece = write_sentencepiece(tmp_path / "sp")
    for value in ODD:
        text = json.dumps(changed(whole, keys, value))
        for folder in (tmp_path / "t", sentencepiece):
            (folder / file).write_text(text)
            if file == "tokenizer.json" and folder == sentencepiece:
                (folder / file).unlink()
                continue
            try:
                load_tokenizer(folder).encode("a b")
            except UserError as error:
                assert str(folder) in str(error), (value, str(error))


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory):
    return write_hf(tmp_path_factory.mktemp("odd") / "hf")


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_deep_nesting_is_refused_by_name(hf_folder, tmp_path, file):
    shutil.copytree(hf_folder, tmp_path / "t")
    (tmp_path / "t" / file).write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(UserError, match=file):
        load_tokenizer(tmp_path / "t")
