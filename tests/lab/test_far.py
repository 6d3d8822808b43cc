"""The network of tests of remote devices is as slow, as lossy and as far away as it says."""

from __future__ import annotations

import socket
import time

import pytest

from tests.lab.far import Far, wait_listening

pytestmark = pytest.mark.long
"""Tests of remote devices fail, too, where it is not."""

ECHO = """
import socket
with socket.create_server(("", 4000)) as server:
    while True:
        end, _ = server.accept()
        with end:
            while data := end.recv(65536):
                end.sendall(data)
"""


def test_far() -> None:
    with Far() as far:
        process = far.start("python3", "-c", ECHO)
        wait_listening(process, 4000)
        with socket.create_connection((far.address, 4000), 30.0) as end:
            seconds = []
            for parameters in ((), ("delay", "20ms"), ("delay", "100ms")):
                with far.network(*parameters):
                    end.sendall(b"x")
                    end.recv(1)
                    started = time.monotonic()
                    end.sendall(b"x")
                    end.recv(1)
                    seconds.append(time.monotonic() - started)
            assert seconds[1] >= 0.04
            assert seconds[2] >= 0.2
            with far.network("delay", "1ms"):
                end.settimeout(0.5)
                with far.cut():
                    end.sendall(b"lost")
                    with pytest.raises(TimeoutError):
                        end.recv(4)
                end.settimeout(30.0)
                assert end.recv(4) == b"lost"
            end.settimeout(0.5)
            with far.pulled():
                end.sendall(b"pull")
                with pytest.raises(TimeoutError):
                    end.recv(4)
                end.settimeout(30.0)
            assert end.recv(4) == b"pull"
        with far.pulled(), pytest.raises(OSError, match=r"timed out|No route to host"):
            socket.create_connection((far.address, 4000), 10.0)
        with far.network("loss", "50%"):
            process.kill()
        assert far.run("ip", "-br", "address").count("UP") == 1
    with Far() as far:
        assert far.run("hostname")
