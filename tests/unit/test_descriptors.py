"""Descriptors by purpose: what each peer can make a server hold, all of it together, is less than a server may have."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest
from usbvfiod_usbredir.pool import MOST_WAITING

from usbvfiod_core.daemon import captures, control, control_client, control_requests, hotplug_socket, metrics_socket
from usbvfiod_core.descriptors import DESCRIPTORS
from usbvfiod_core.memory import MAX_FILES
from usbvfiod_core.pci.interrupts import Mechanism
from usbvfiod_core.serving import VECTORS
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.vfio_user import expendable, session

OWN = 64
"""Sockets that it listens at, its log, its loop, hotplug events, the lock of its directory."""
OF_DEVICE = control_client.MAX_FDS + 4
"""What a device was given, and what it opens itself: a node, an eventfd, a timer, an image."""
OF_LISTENER = 2 + 2 * MOST_WAITING
"""One that listens for its other end: those who wait, those who have said something, its own, and the socket."""

BOUNDS = {
    "the server itself": OWN,
    "files of guest memory": MAX_FILES,
    "what comes with a message of the client": session.MAX_PENDING_FDS,
    "interrupts": len(Mechanism) * VECTORS + 3,
    "what cannot be closed": expendable.MAX_UNCLOSED + session.MAX_PENDING_FDS,
    "clients of the control socket": control.MAX_CLIENTS * (1 + control_client.MAX_FDS),
    "their requests": control.MAX_CLIENTS * control_client.MAX_PENDING * control_client.MAX_FDS,
    "clients of the hotplug socket": hotplug_socket.MAX_CLIENTS * (1 + 2),
    "who reads metrics": metrics_socket.MAX_CLIENTS,
    "captures": captures.MAX_CAPTURES * 4,
    "devices": control_requests.MAX_ATTACHMENTS * max(OF_DEVICE, OF_LISTENER),
}


def test_there_are_enough_for_all_together() -> None:
    assert sum(BOUNDS.values()) <= DESCRIPTORS, BOUNDS


PROGRAM = """
import logging, resource
logging.basicConfig(format="%(message)s")
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
from usbvfiod_core.descriptors import DESCRIPTORS, allow
allow(DESCRIPTORS, logging.warning)
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "after", "said"),
    [
        (256, 20000, f"{DESCRIPTORS} 20000", ""),
        (256, 1024, "1024 1024", "may have 1024 file descriptors (RLIMIT_NOFILE)"),
        (9000, 20000, "9000 20000", ""),
    ],
)
def test_a_server_has_them_whatever_it_was_started_with(soft: int, hard: int, after: str, said: str) -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most != resource.RLIM_INFINITY and most < hard and os.geteuid():
        pytest.skip(f"this user may have {most} descriptors")
    words = [sys.executable, "-c", PROGRAM.format(soft=soft, hard=hard)]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert ended.stdout.split() == after.split()
    assert (said in ended.stderr) if said else not ended.stderr
