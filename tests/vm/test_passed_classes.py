"""The whole chain, as in test_passed_devices.py: devices of many classes, each used by the guest's own driver.

They are in tests/classes, or gadgets; the programs that use them in the guest are in tests/vm/inside.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab.offers import ADDRESS, GUEST_ADDRESS, TCP_PORT
from tests.vm import guest_usb
from tests.vm.beside import BesideLab

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600), pytest.mark.usefixtures("no_complaints")]

KIB = 1 << 10
TIMEOUT = 240.0


BOTH = pytest.mark.parametrize("backend", ["usbfs", "libusb"])
EITHER = pytest.mark.parametrize("backend", ["usbfs", pytest.param("libusb", marks=pytest.mark.long)])
"""Where such transfers have been seen with both in other tests."""


@contextmanager
def given(chain: BesideLab, offer: str, backend: str) -> Iterator[None]:
    """Offer devices that the lab's own drivers have before, and after."""
    with chain.made(offer) as ports:

        def drivers() -> str:
            links = " ".join(f"/sys/bus/usb/devices/{port}:*/driver" for port in ports)
            return chain.lab.run(f"for link in {links}; do echo $link $(readlink $link); done")

        before = drivers()
        with chain.attached(ports, backend):
            yield
        assert drivers() == before


def interfaces(chain: BesideLab, count: int) -> list[str]:
    """The drivers of the guest's only device, once all its interfaces have one."""
    links = "/sys/bus/usb/devices/[0-9]*:*/driver"
    chain.guest.wait_until(f"[ $(ls -d {links} | grep -vc -- -0:) -eq {count} ]", TIMEOUT)
    found = chain.guest.run(f"for link in {links}; do echo $link $(basename $(readlink $link)); done").splitlines()
    return [line.split()[1] for line in found if "-0:" not in line]


@BOTH
def test_a_bluetooth_adapter(beside_lab: BesideLab, backend: str) -> None:
    """btusb sets it up, voice is heard over a link, and every voice setting moves packets of its size."""
    guest = beside_lab.guest
    guest.run("modprobe btusb", TIMEOUT)
    with given(beside_lab, "bluetooth", backend):
        guest.wait_until("[ -d /sys/class/bluetooth/hci0 ]", TIMEOUT)
        guest.python("bluetooth")


@EITHER
def test_serial_adapters_with_vendor_requests(beside_lab: BesideLab, backend: str) -> None:
    """FTDI's and Silicon Labs', both at once: data at the right rate, and modem lines."""
    guest = beside_lab.guest
    guest.run("modprobe cp210x", TIMEOUT)
    with given(beside_lab, "serial-adapters", backend):
        for name in ("ftdi_sio", "cp210x"):
            find = f"ls -d /sys/bus/usb-serial/drivers/{name}/ttyUSB*"
            guest.wait_until(find)
            port = guest.run(f"basename $({find})").strip()
            guest.python("serial_adapter", f"/dev/{port}", 4 * KIB)


@EITHER
def test_a_security_key(beside_lab: BesideLab, backend: str) -> None:
    with given(beside_lab, "security-key", backend):
        beside_lab.guest.wait_until("grep -l 000000F1 /sys/class/hidraw/*/device/uevent")
        beside_lab.guest.python("security_key")


@EITHER
def test_a_camera(beside_lab: BesideLab, backend: str, no_complaints: list[str]) -> None:
    """uvcvideo chooses each of the five settings, and pictures come whole."""
    # As it stops, one processor of the guest may drop the endpoint while the other has not yet read the Stopped event
    # of the command before (completion code 27, in the third word of the line that follows).
    no_complaints += ["Transfer event for disabled endpoint slot 1 ep 2", " 1b000000 01038000"]
    beside_lab.guest.run("modprobe uvcvideo", TIMEOUT)
    with given(beside_lab, "camera", backend):
        beside_lab.guest.wait_until("[ -e /dev/video0 ]", TIMEOUT)
        beside_lab.guest.python("camera", 2)


@EITHER
def test_a_headset(beside_lab: BesideLab, backend: str, no_complaints: list[str]) -> None:
    """snd-usb-audio sets the clock, records, and plays as the feedback says, all without a slip."""
    no_complaints += ["active urbs"]  # which it takes back one by one, a register each; it waits a second
    with given(beside_lab, "headset", backend):
        beside_lab.guest.wait_until("grep -l :00d2 /proc/asound/card*/usbid", TIMEOUT)
        beside_lab.guest.python("headset")


@EITHER
def test_a_composite_device(beside_lab: BesideLab, backend: str) -> None:
    """Five interfaces in three functions, each with its driver: all of them work."""
    guest = beside_lab.guest
    with given(beside_lab, "composite", backend):
        assert interfaces(beside_lab, 5) == ["cdc_acm", "cdc_acm", "cdc_ncm", "cdc_ncm", "usbhid"]
        guest.python("serial_echo", "/dev/ttyACM0", 2, 16 * KIB)
        # The press alone: until a slow machine brings the release, the guest repeats the key.
        reading = guest_usb.start_reading_keys(guest, 1, name="gadget")
        for report in ("\\0\\0\\004\\0\\0\\0\\0\\0", "\\0" * 8):
            beside_lab.lab.run(f"printf '{report}' > /dev/hidg0")
        assert guest_usb.finish_reading_keys(guest, reading, 90) == [(30, 1)]
        name = "$(basename $(ls -d /sys/bus/usb/drivers/cdc_ncm/*:*/net/*))"
        guest.run(f"busybox ip addr add {GUEST_ADDRESS}/24 dev {name} && busybox ip link set {name} up")
        guest.python("network_transfer", ADDRESS, TCP_PORT, 64 * KIB)


@EITHER
@pytest.mark.parametrize("program", ["phone", "firmware"])
def test_a_device_that_becomes_another(beside_lab: BesideLab, backend: str, program: str) -> None:
    """It leaves and comes back with another identity, more than once; its attachment follows the port."""
    with beside_lab.offer(program, backend, "follow-port=true"):
        beside_lab.guest.python("changing", program)


@EITHER
def test_a_midi_port(beside_lab: BesideLab, backend: str) -> None:
    with given(beside_lab, "midi", backend):
        beside_lab.guest.wait_until("ls /dev/snd/midiC*D0")
        beside_lab.guest.python("midi")


@EITHER
def test_a_card_reader(beside_lab: BesideLab, backend: str) -> None:
    with given(beside_lab, "card-reader", backend):
        beside_lab.guest.python("card_reader")
