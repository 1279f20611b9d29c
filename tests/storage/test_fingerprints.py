"""Fingerprints move when their content moves, and by nothing else."""

import os

import numpy as np
from etils import epath

from jaxtune.storage import fingerprints
from jaxtune.storage.fingerprints import array_fingerprint, json_fingerprint


def test_array_fingerprints_see_values_types_and_shapes():
    array = np.arange(6, dtype=np.int32)
    different = [array[::-1], array.astype(np.int64), array.reshape(2, 3), array[:5]]
    assert len({array_fingerprint(a) for a in [array, *different]}) == 5
    assert array_fingerprint(array.reshape(2, 3).T) == array_fingerprint(array.reshape(2, 3).T.copy())
    assert array_fingerprint(array, array) != array_fingerprint(array)
    assert array_fingerprint(np.zeros(())) != array_fingerprint(np.zeros(0)) != array_fingerprint(np.ones(()))


def test_json_fingerprints_do_not_depend_on_the_order_of_keys():
    assert json_fingerprint({"a": 1, "b": [2]}) == json_fingerprint({"b": [2], "a": 1})
    assert json_fingerprint({"a": 1}) != json_fingerprint({"a": 1.5})


def test_texts_are_told_apart_by_where_they_end():
    assert fingerprints.texts_fingerprint(["ab", "c"]) != fingerprints.texts_fingerprint(["a", "bc"])


def test_files_are_known_by_content_and_a_folder_by_its_names(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder / "inner").mkdir(parents=True)
        (tmp_path / folder / "inner" / "x.json").write_text("pieces")
        (tmp_path / folder / "left-out").write_text(folder)
    names = fingerprints.files_below(epath.Path(tmp_path / "a"), {"left-out"})
    assert names == ["inner/x.json"]
    first, second = (fingerprints.file_digests(epath.Path(tmp_path / folder), names) for folder in ("a", "b"))
    assert first == second == [(6, fingerprints.text_fingerprint("pieces"))]
    assert fingerprints.file_fingerprint(tmp_path / "a" / "inner" / "x.json") == first[0][1]


def test_pipes_devices_and_links_in_a_circle_are_no_files_and_are_not_read(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "x").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    (tmp_path / "nowhere").symlink_to(tmp_path / "none")
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    (tmp_path / "inner" / "up").symlink_to(tmp_path)
    (tmp_path / "other").symlink_to(tmp_path / "inner")
    assert fingerprints.files_below(epath.Path(tmp_path)) == ["inner/x", "other/x"]


def test_hash64_is_the_same_on_every_machine():
    assert fingerprints.hash64(b"") == 13020603013274838756
    assert fingerprints.hash64(b"a") != fingerprints.hash64(b"b")
