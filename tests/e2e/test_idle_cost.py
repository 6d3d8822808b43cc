"""What makes upgrades and crashes survivable has no part in a transfer: no function of it is called while a guest works
and nobody replaces the server."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path

from tests.e2e.process import ServerProcess
from usbvfiod_core.testing.limits import wait_until
from usbvfiod_core.testing.mass_storage import MassStorage

ROUNDS = 12
MEANS = {
    f"usbvfiod_core/{name}.py"
    for name in (
        *(f"daemon/{each}" for each in ("channel", "handing_over", "taking_over", "succession", "successor", "steps")),
        *(
            f"daemon/{each}"
            for each in ("replacement", "witness", "server_state", "attachment_state", "capture_handover")
        ),
        *(f"daemon/{each}" for each in ("recovery", "recovered", "descriptor_store")),
        *("state", "state_file", "keeping", "memory_state", "files", "pci/state", "xhci/state", "xhci/quiescence"),
        *("xhci/recovery", "vfio_user/kept_input", "vfio_user/listener", "usb/handover"),
    )
}
COUNTING = """
import collections, json, os, signal, sys
import usbvfiod_core

ROOT = os.path.dirname(os.path.dirname(usbvfiod_core.__file__)) + "/"
calls = collections.Counter()


def count(frame, event, argument):
    if event == "call":
        calls[frame.f_code.co_filename] += 1


def tell(number, frame):
    found = {name.removeprefix(ROOT): count for name, count in calls.items() if name.startswith(ROOT)}
    calls.clear()
    with open({report!r} + ".new", "w") as file:
        json.dump(found, file)
    os.rename({report!r} + ".new", {report!r})


signal.signal(signal.SIGRTMIN, tell)
sys.setprofile(count)
from usbvfiod_core.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_no_transfer_pays_for_it(tmp_path: Path) -> None:
    image, report = tmp_path / "image", tmp_path / "report"
    image.write_bytes(bytes(1 << 20))
    words = ["--sandbox", "off", "--no-control", "--device", f"virtual:flash?image={image}&transport=bot"]
    command = (sys.executable, "-c", COUNTING.replace("{report!r}", repr(str(report))))
    with ServerProcess(tmp_path, words, command=command) as server:
        server.wait_ready()

        def calls() -> dict[str, int]:
            report.unlink(missing_ok=True)
            os.kill(server.process.pid, signal.SIGRTMIN)
            wait_until(report.exists, "the server does not tell")
            told: dict[str, int] = json.loads(report.read_text())
            return told

        with server.guest() as driver:
            drive = MassStorage(driver.enumerate())
            drive.write(0, bytes(4096))
            assert MEANS & calls().keys(), "nothing of it has a part in a start"
            data = random.Random(1).randbytes(4096)
            for number in range(ROUNDS):
                drive.write(8 * number, data)
                assert bytes(drive.read(8 * number, 8)) == data
            called = calls()
    assert called["usbvfiod_core/xhci/engine.py"] > 6 * ROUNDS
    assert {name: called[name] for name in MEANS & called.keys()} == {}
