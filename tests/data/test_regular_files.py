"""Opening regular files: whatever has the name of a file, nothing waits."""

import os
import socket
import stat

import pytest

from data.regular_files import NotRegularFileError, kind_of_file, open_regular


def test_a_regular_file_is_opened(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    with open_regular(tmp_path / "a") as file:
        assert file.read() == b"content"


def test_other_files_are_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for name, kind in (
            ("pipe", "a named pipe"),
            ("socket", "a socket"),
            (".", "a folder"),
            ("/dev/null", "a device"),
        ):
            with pytest.raises(NotRegularFileError, match=f"must be a regular file, got {kind}"):
                open_regular(tmp_path / name)
    assert kind_of_file(stat.S_IFBLK) == "a device"


def test_the_opened_file_counts_not_its_name(tmp_path, monkeypatch):
    """Another file may take the name between a check and the opening."""
    os.mkfifo(tmp_path / "a")
    monkeypatch.setattr(os, "stat", lambda *arguments, **options: os.stat_result([0o100644] + 9 * [0]))
    with pytest.raises(OSError, match="named pipe"):
        open_regular(tmp_path / "a")
