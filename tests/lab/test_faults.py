"""Devices that fail, through each backend: the guest gets the right completion code, and only for what failed."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.lab import gadgets, usbip_devices
from tests.lab.gadgets import Gadget
from tests.lab.guest_classes import bulk_pair
from tests.lab.passing import Pass
from tests.lab.prepared import PreparedServer
from tests.lab.usbip import attach
from tests.lab.usbip_devices import BULK_IN, BULK_OUT, Fault, SourceSink
from usbvfiod_core.testing.driver import DriverError, GuestDriver
from usbvfiod_core.xhci import spec

pytestmark = pytest.mark.long_with("libusb")  # its own part is in the plugin's tests

NEIGHBOUR = 3  # its port
QUICK = ("zero length", "total too large", "64 KiB of junk")  # a server for each takes its time; the others: long
CODES = {"stall": spec.CC_STALL, "error": spec.CC_TRANSACTION_ERROR, "overflow": spec.CC_BABBLE}


@pytest.mark.parametrize("speed", ["high", "super"])
def test_each_fault_has_its_completion_code(passed: Pass, speed: str) -> None:
    source = SourceSink(speed)
    with attach(source) as attachment:
        guest = passed(attachment.wait()).device
        for address in (BULK_IN, BULK_OUT):
            for kind, code in CODES.items():
                source.faults[address].append(Fault(kind))
                with pytest.raises(DriverError) as failed:
                    guest.bulk_in(address, 1024) if address & 0x80 else guest.bulk_out(address, bytes(1024))
                assert failed.value.completion_code == code, kind
                assert guest.pipe(address).state == spec.EP_HALTED
                guest.pipe(address).recover()
                assert not source.halted
                if address & 0x80:
                    assert len(guest.bulk_in(address, 1024)) == 1024
                else:
                    guest.bulk_out(address, bytes(1024))
        source.faults[BULK_IN].append(Fault("short"))
        td = guest.submit_in(BULK_IN, 1024)
        assert len(td.result()) == 512
        assert td.completion_code == spec.CC_SHORT_PACKET
        source.faults[0].append(Fault("stall"))
        with pytest.raises(DriverError) as failed:
            guest.control_in(0xC0, 1, 0, 0, 16)
        assert failed.value.completion_code == spec.CC_STALL
        assert len(guest.get_descriptor(1, 0, 18)) == 18


def test_what_is_never_answered_is_taken_back_and_the_rest_goes_on(passed: Pass) -> None:
    source = SourceSink()
    with attach(source) as attachment:
        guest = passed(attachment.wait()).device
        for _ in range(5):
            source.faults[BULK_IN].append(Fault("drop"))
            td = guest.submit_in(BULK_IN, 512)
            guest.bulk_out(BULK_OUT, bytes(512))
            assert not td.done
            guest.pipe(BULK_IN).cancel(td)
            assert len(guest.bulk_in(BULK_IN, 512)) == 512
        source.faults[BULK_IN].append(Fault("delay", 1.0))
        td = guest.submit_in(BULK_IN, 512)
        assert len(guest.get_descriptor(1, 0, 18)) == 18
        assert not td.done
        assert len(td.result()) == 512


def test_it_vanishes_with_transfers_in_flight(passed: Pass) -> None:
    source = SourceSink()
    with attach(source) as attachment:
        given = passed(attachment.wait())
        guest = given.device
        source.faults[BULK_IN].append(Fault("drop"))
        td = guest.submit_in(BULK_IN, 512)
        attachment.server.disconnect()
        given.driver.poll_until(lambda: not guest.port.connected, "the port does not disconnect")
        assert td.completion_code in (0, spec.CC_TRANSACTION_ERROR)
        guest.disable()
        assert given.server.process.poll() is None


@pytest.mark.parametrize(
    "kind",
    [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.long) for kind in usbip_devices.malformed()],
)
def test_broken_descriptors_hurt_nobody_else(backend: str, tmp_path: Path, kind: str) -> None:
    """The device is refused or works; its neighbour works; the server lives and says no more than a line about it."""
    with Gadget([gadgets.source_sink()], identity="0525:a4a0") as gadget:
        options = ["--device", f"{gadget.bind().node}?port={NEIGHBOUR}", "--device", "1209:0002"]
        with (
            PreparedServer(tmp_path / "s.sock", ("--backend", backend, *options)) as server,
            attach(usbip_devices.broken(usbip_devices.malformed()[kind])) as attachment,
        ):
            attachment.wait()
            with contextlib.closing(server.connect()) as bus:
                driver = GuestDriver(bus).start()
                driver.port(NEIGHBOUR).wait_connected()
                for port in driver.connected_ports():
                    if port.port_id != NEIGHBOUR:
                        with contextlib.suppress(DriverError):
                            driver.enumerate(port.port_id)
                guest = driver.enumerate(NEIGHBOUR)
                assert guest.configuration is not None
                assert guest.bulk_in(bulk_pair(guest.configuration.interfaces[0])[0], 4096) == bytes(4096)
            assert server.stop() == 0
        assert "Traceback" not in server.output


def test_a_device_that_refuses_everything(passed: Pass) -> None:
    source = usbip_devices.Refusing()
    with attach(source) as attachment:
        guest = passed(attachment.wait()).device
        source.refuse = True
        for _ in range(3):
            with pytest.raises(DriverError) as refused:
                guest.get_descriptor(1, 0, 18)
            assert refused.value.completion_code == spec.CC_STALL
            with pytest.raises(DriverError) as refused:
                guest.bulk_in(BULK_IN, 512)
            assert refused.value.completion_code == spec.CC_STALL
            with pytest.raises(DriverError):
                guest.pipe(BULK_IN).recover()  # CLEAR_FEATURE is refused as well
        source.refuse = False
