"""The kernel's tests of host controllers, a thousand rounds of each, at high and at SuperSpeed.

What an ordinary run does of it is in test_usbvfiod, test_newer_kernel and test_isochronous.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from tests.vm import guest_usb, usbtest
from tests.vm.guest import Guest, GuestFactory
from tests.vm.server import UsbvfiodServer

pytestmark = [pytest.mark.vm, pytest.mark.long, pytest.mark.timeout(1000)]

ITERATIONS = 1000
BULKY = {27: 100, 28: 100}
"""Iterations of the cases that move half a MiB in each."""
CASES = [
    replace(case, iterations=BULKY.get(case.number, ITERATIONS))
    for case in (*usbtest.BULK_AND_CONTROL, *usbtest.INTERRUPT)
]
GROWTH_KIB = 1024


@dataclass
class Bench:
    server: UsbvfiodServer
    guest: Guest
    node: str


@pytest.fixture(scope="module", params=["high", "super"])
def bench(request: pytest.FixtureRequest, module_guest_factory: GuestFactory) -> Iterator[Bench]:
    with UsbvfiodServer([f"virtual:loopback?speed={request.param}"]) as server:
        guest = module_guest_factory(server.arguments)
        node = usbtest.find(guest)
        for case in usbtest.BULK_AND_CONTROL:
            usbtest.run(guest, node, case)
        memory = server.status("RssAnon")
        yield Bench(server, guest, node)
        assert server.status("RssAnon") <= memory + GROWTH_KIB
        log = server.log()
        assert not [line for line in log.splitlines() if "error" in line or "Traceback" in line]
        guest.kill()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.number}-{case.title.replace(' ', '-')}")
def test_a_thousand_rounds(bench: Bench, case: usbtest.Case) -> None:
    bench.guest.run("dmesg -c > /dev/null")
    usbtest.run(bench.guest, bench.node, case, timeout=900.0)
    complaints = guest_usb.usb_complaints(bench.guest)
    assert [line for line in complaints if not re.search(r"usbtest \S+: unlink retry$", line)] == []
