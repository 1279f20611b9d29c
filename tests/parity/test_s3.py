"""Checkpoints and run folders in S3, against a server of its interface."""

import dataclasses
import shutil

import pytest
from helpers import tiny_config, tiny_model
from toy_states import make_state, same

from jaxtune import cli
from jaxtune.errors import UserError
from jaxtune.runs.bucket import Bucket
from jaxtune.runs.checkpoints import Checkpoints, abstract
from jaxtune.runs.retention import DOCUMENT, CheckpointConfig
from jaxtune.storage import lease
from jaxtune.storage.lease import Lease
from jaxtune.storage.locks import FolderInUse
from jaxtune.storage.stores import Store, StoreError
from jaxtune.train import run as train

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]  # the server's own warnings are not ours


@pytest.fixture(scope="module")
def bucket():
    """Name of an empty bucket on a server that credentials and endpoint in the environment point to."""
    moto_server = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    server = moto_server.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3").create_bucket(Bucket="runs")
    yield "runs"
    monkeypatch.undo()
    server.stop()


def test_checkpoints_come_back_from_s3_bit_for_bit(tmp_path, bucket):
    config = CheckpointConfig(directory=f"s3://{bucket}/mine", keep_latest=1, keep_best=1)
    with Checkpoints(config.folder(tmp_path), config) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(step, make_state(step), {"step": step}, {"loss": abs(step - 10.0)})
    shutil.rmtree(tmp_path / "checkpoints")
    assert config.can_resume(tmp_path)
    with Checkpoints(config.folder(tmp_path), config) as checkpoints:
        assert Bucket(config.directory, DOCUMENT).steps() == ["00000010", "00000030"]
        checkpoints.fetch()
        assert (checkpoints.best(), checkpoints.problems(10), checkpoints.problems(30)) == (10, [], [])
        assert same(checkpoints.restore(30, abstract(make_state())), make_state(30))


def test_a_bucket_that_is_not_there_is_named(tmp_path, bucket):
    config = CheckpointConfig(directory="s3://other/mine")
    with pytest.raises(UserError, match="s3://other/mine: FileNotFoundError: The specified bucket does not exist"):
        Checkpoints(config.folder(tmp_path), config)


def test_a_run_folder_in_s3_outlives_the_disk_and_is_read_from_elsewhere(tmp_path, bucket, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXTUNE_CACHE", str(tmp_path / "cache"))
    tiny_model(tmp_path / "base")
    config = tiny_config(tmp_path)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, cache_dir=None))
    url = f"s3://{bucket}/runs/whole"
    train.train(config, url)
    names = set(Store(url).names())
    assert {"config.json", "metrics.jsonl", "model/model.safetensors", "report.html", "seal.json"} <= names
    assert "checkpoints/00000006/checkpoint.json" in names and ".writer" not in names
    shutil.rmtree(tmp_path / "cache")
    assert train.train(config, url, resume=True).summary["status"] == "finished"
    with pytest.raises(UserError, match=f"{url} is not empty"):
        train.train(config, url)
    assert cli.main(["report", url]) == 0
    assert capsys.readouterr().out.strip() == f"{url}/report.html"
    assert set(Store(url).names()) == names


def test_of_two_writers_of_a_folder_in_s3_one_has_the_lease(bucket, monkeypatch):
    monkeypatch.setattr(lease, "STALE", 2.0)
    monkeypatch.setattr(lease, "BEAT", 0.2)
    store = Store(f"s3://{bucket}/runs/leased")
    with Lease(store) as held:
        with pytest.raises(StoreError, match="FileExistsError|PreconditionFailed"):
            store.create(".writer", b"of another")
        with pytest.raises(FolderInUse, match="is being written by process"), Lease(Store(store.url)):
            raise AssertionError("two writers")
        held.confirm()
    assert store.names() == {}
