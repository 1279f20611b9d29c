"""Checkpoints copied to S3, against a server of its interface."""

import shutil

import pytest
from toy_states import make_state, same

from jaxtune.errors import UserError
from jaxtune.runs.bucket import Bucket
from jaxtune.runs.checkpoints import Checkpoints, abstract
from jaxtune.runs.retention import DOCUMENT, CheckpointConfig

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
