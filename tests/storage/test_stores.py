"""Stores by URL: whatever fsspec knows by name is reached or refused in one message, before anything is done."""

import socket

import fsspec
import pytest

from jaxtune.errors import UserError, first_line
from jaxtune.storage.stores import Store


@pytest.mark.parametrize("scheme", sorted(fsspec.available_protocols()))
@pytest.mark.filterwarnings("ignore")  # of drivers
def test_every_scheme_that_fsspec_knows_is_reached_or_refused_in_one_line(scheme, monkeypatch):
    def refused(*_):
        raise ConnectionRefusedError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refused)
    try:
        assert Store(f"{scheme}://127.0.0.1:9/x").url
    except UserError as error:
        assert f"cannot be kept at {scheme}://127.0.0.1:9/x: " in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("error", "line"),
    [(ValueError("a\nb"), "a"), (ValueError(), "ValueError"), (OSError("\n \n"), "OSError"), (KeyError("k"), "'k'")],
)
def test_the_first_line_of_an_exception_is_never_missing(error, line):
    assert first_line(error) == line
