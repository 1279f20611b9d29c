"""The folder of compiled programs: where it may be, and how it is given to JAX."""

import importlib.util

import jax
import pytest
from helpers import tiny_config

from jaxtune.errors import UserError
from jaxtune.step.programs import check_programs_folder, keep_programs


def test_of_stores_only_gs_is_given_to_jax(tmp_path, monkeypatch):
    for url in ("s3://bucket/programs", "memory://bucket/programs"):
        with pytest.raises(UserError, match=f"compilation_cache {url}: JAX keeps compiled programs on a disk or at gs"):
            tiny_config(tmp_path, compilation_cache=url)
    found: dict[str, object] = {"gcsfs": None}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found[name])
    with pytest.raises(UserError, match="needs the package gcsfs: pip install gcsfs"):
        tiny_config(tmp_path, compilation_cache="gs://bucket/programs")
    found["gcsfs"] = object()
    check_programs_folder("gs://bucket/programs")


def test_a_url_reaches_jax_as_it_is_and_a_path_as_an_absolute_one(tmp_path, monkeypatch):
    names = ("dir", "min_compile_time_secs", "min_entry_size_bytes")
    options = ["jax_compilation_cache_dir", *(f"jax_persistent_cache_{name}" for name in names[1:])]
    before = {name: jax.config.values[name] for name in options}
    monkeypatch.chdir(tmp_path)
    try:
        for given, kept in (("gs://bucket/programs", "gs://bucket/programs"), ("here", str(tmp_path / "here"))):
            jax.config.update("jax_compilation_cache_dir", None)
            keep_programs(given)
            assert jax.config.values["jax_compilation_cache_dir"] == kept
        keep_programs("elsewhere")
        assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "here"), "JAX was told where"
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    assert list(tmp_path.iterdir()) == []
