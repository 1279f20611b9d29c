"""Manifests: fingerprints move when their content moves, and differences are told in words."""

import getpass
import json
import socket
import subprocess

from jaxtune.runs import manifest
from jaxtune.storage.fingerprints import text_fingerprint


def build(**changes):
    parts = {
        "data": {"qa": text_fingerprint("rows"), "math": text_fingerprint("sums")},
        "tokenizer": {"tokenizer.json": text_fingerprint("pieces")},
        "template": "{{ messages }}",
        "plan": {"hash": "p1", "temperature": 2.0},
        "config": {"optim": {"peak_lr": 2e-5}, "tasks": ["qa", "math"]},
        "seeds": {"seed": 0},
        "base_model": {"model.safetensors": text_fingerprint("weights")},
    }
    return manifest.build_manifest(manifest.Material(**{**parts, **changes}))


def test_equal_runs_have_equal_manifests():
    assert manifest.compare_manifests(build(), build()) == []


def test_every_difference_is_told_in_words():
    then = build()
    now = build(
        data={"qa": text_fingerprint("rows"), "math": text_fingerprint("other"), "code": "x"},
        template="{{ other }}",
        plan={"hash": "p2", "temperature": 2.0},
        config={"optim": {"peak_lr": 1e-5}, "tasks": ["qa", "math"]},
        base_model={},
    )
    now["environment"] = json.loads(json.dumps(now["environment"]))
    now["environment"]["packages"]["jax"] = "9.9"
    lines = manifest.compare_manifests(then, now)
    versions = then["environment"]["packages"]["jax"]
    sums, other = text_fingerprint("sums")[:12], text_fingerprint("other")[:12]
    assert f"data math: content changed (SHA-256 {sums} then, {other} now)" in lines
    assert 'data code: was absent, is "x"' in lines
    assert 'plan hash: was "p1", is "p2"' in lines
    assert "config optim.peak_lr: was 2e-05, is 1e-05" in lines
    assert f'environment packages.jax: was "{versions}", is "9.9"' in lines
    assert any(line.startswith("template: content changed") for line in lines)
    assert any(line.startswith("base_model model.safetensors: was") for line in lines)
    assert len(lines) == 8  # the empty base model counts too


def test_the_code_fingerprint_covers_every_source_file_and_follows_an_edit(tmp_path, monkeypatch):
    package = tmp_path / "package"
    (package / "tasks").mkdir(parents=True)
    for name in ("manifest.py", "tasks/base.py"):
        (package / name).write_text("x = 1\n")
    monkeypatch.setattr(manifest, "_PACKAGE", package)
    before = manifest.code()
    assert set(before["files"]) == {"manifest.py", "tasks/base.py"}
    assert before["commit"] is None and before["dirty"] is None, "no repository holds these files"
    (package / "tasks" / "base.py").write_text("x = 2\n")
    after = manifest.code()
    assert after["sha256"] != before["sha256"]
    assert after["files"]["manifest.py"] == before["files"]["manifest.py"]


def test_commit_and_dirty_state_come_from_the_repository_that_tracks_the_code(tmp_path, monkeypatch):
    package = tmp_path / "package"
    (package / "runs").mkdir(parents=True)
    (package / "runs" / "manifest.py").write_text("x = 1\n")

    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True)

    git("init")
    git("commit", "--allow-empty", "-m", "before")
    monkeypatch.setattr(manifest, "_PACKAGE", package)
    assert manifest.code()["commit"] is None, "untracked files belong to no commit"
    git("add", ".")
    git("commit", "-m", "first")
    clean = manifest.code()
    assert len(clean["commit"]) == 40 and clean["dirty"] is False
    (package / "runs" / "manifest.py").write_text("x = 2\n")
    assert manifest.code()["dirty"] is True


def test_the_environment_names_versions_devices_and_variables_but_no_host(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_test=1")
    facts = manifest.environment()
    assert facts["devices"]["platform"] == "cpu" and facts["devices"]["count"] == 8
    assert facts["packages"]["jax"] and facts["packages"]["orbax-checkpoint"]
    assert facts["variables"]["XLA_FLAGS"] == "--xla_test=1"
    text = json.dumps(facts).lower()
    assert socket.gethostname().lower() not in text
    assert f'"{getpass.getuser()}"' not in text
