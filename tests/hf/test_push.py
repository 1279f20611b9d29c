"""Uploads to the hub, against a hub that is none."""

import sys

import pytest

from jaxtune.cli import main
from jaxtune.errors import UserError
from jaxtune.hf.push import check_push, push

hub = pytest.importorskip("huggingface_hub")


class Hub:
    """Takes what `push` sends, as `HfApi` would."""

    def __init__(self, failure=None):
        self.sent, self.failure = [], failure

    def create_repo(self, name, **options):
        self.sent.append(("create", name, options))
        return hub.RepoUrl(f"https://huggingface.co/{name}")

    def upload_folder(self, **options):
        if self.failure is not None:
            raise self.failure
        self.sent.append(("upload", options["repo_id"], options))


def taking(monkeypatch, failure=None):
    api = Hub(failure)
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    monkeypatch.setattr(hub, "get_token", lambda: "hf_x")
    return api


def test_a_folder_becomes_a_model_of_that_name(monkeypatch, tmp_path):
    api = taking(monkeypatch)
    check_push("ada/tuned")
    assert (
        push(tmp_path, "ada/tuned", private=True, message="run, checkpoint best") == "https://huggingface.co/ada/tuned"
    )
    (_, name, made), (_, repo, options) = api.sent
    assert name == repo == "ada/tuned" and made["private"] and made["exist_ok"] and made["repo_type"] == "model"
    assert options["folder_path"] == str(tmp_path) and options["commit_message"] == "run, checkpoint best"


def test_what_the_hub_refuses_is_one_message_that_says_how_to_try_again(monkeypatch, tmp_path):
    taking(monkeypatch, OSError("403 Forbidden: no write access\nRequest ID: 7"))
    with pytest.raises(UserError, match="did not take it as ada/tuned: 403 Forbidden: no write access. `hf upload"):
        push(tmp_path, "ada/tuned")


def test_a_bad_name_and_a_missing_login_are_said_before_anything_is_exported(monkeypatch, tmp_path, capsys):
    taking(monkeypatch)
    with pytest.raises(UserError, match="--push a/b/c: .* Write owner/model"):
        check_push("a/b/c")
    monkeypatch.setattr(hub, "get_token", lambda: None)
    assert main(["export-hf", str(tmp_path / "run"), str(tmp_path / "out"), "--push", "ada/tuned"]) == 1
    assert "hf auth login" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main(["export-hf", str(tmp_path / "run"), str(tmp_path / "out"), "--private"]) == 1
    assert "--private goes with --push" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install jaxtune\[hub\]"):
        check_push("ada/tuned")


def test_the_command_exports_and_then_uploads_what_it_wrote(monkeypatch, tmp_path, capsys):
    api = taking(monkeypatch)
    from jaxtune.train import export

    monkeypatch.setattr(export, "export_checkpoint", lambda place, out, *rest, **options: out.mkdir())
    out = tmp_path / "out"
    assert main(["export-hf", str(tmp_path / "run"), str(out), "--push", "ada/tuned", "--step", "40"]) == 0
    assert capsys.readouterr().out.split() == [str(out), "https://huggingface.co/ada/tuned"]
    assert api.sent[1][2]["commit_message"].startswith("run, checkpoint 40, by jaxtune")
