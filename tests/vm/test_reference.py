"""The guest itself, on QEMU's own xHCI controller: what the tests of usbvfiod rely on, and what they compare with.

One guest for all of it: a keyboard, a drive which is only read and a drive which is written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.vm import guest_usb, usbtest
from tests.vm.guest import CommandError, Guest, GuestError, GuestFactory, GuestTimeout, qemu_xhci_arguments
from tests.vm.qmp import QmpError

pytestmark = pytest.mark.vm

KEY_A, KEY_ENTER = 30, 28  # linux/input-event-codes.h


@dataclass
class Reference:
    """The shared guest and the images behind its drives: the smaller one is never written."""

    guest: Guest
    constant: Path
    scratch: Path

    def disk(self, image: Path) -> guest_usb.Disk:
        disks = guest_usb.wait_disks(self.guest, 2)
        return next(disk for disk in disks if disk.size == image.stat().st_size)


@pytest.fixture(scope="module")
def reference(module_guest_factory: GuestFactory, random_image: Callable[[int], Path]) -> Reference:
    constant, scratch = random_image(16), random_image(32)
    guest = module_guest_factory(qemu_xhci_arguments([constant, scratch], keyboard=True))
    return Reference(guest, constant, scratch)


def test_a_script_returns_what_it_prints(reference: Reference) -> None:
    assert reference.guest.run("echo out; echo error >&2") == "out\nerror\n"
    assert reference.guest.run("true") == ""


def test_a_failing_script_raises_with_its_output(reference: Reference) -> None:
    with pytest.raises(CommandError, match="no such thing") as caught:
        reference.guest.run("echo no such thing; exit 3")
    assert caught.value.status == 3


def test_long_scripts_and_long_outputs_arrive_whole(reference: Reference) -> None:
    text = "".join(f"line {number} with 'quotes' and $dollars\n" for number in range(400))
    assert reference.guest.run(f"cat <<'END'\n{text}END") == text
    assert len(reference.guest.run("seq 20000")) == 108894
    with pytest.raises(ValueError, match="too long"):
        reference.guest.run("#" * 30_000)


def test_kernel_messages_do_not_disturb_a_script(reference: Reference) -> None:
    script = "for number in $(seq 200); do echo noise > /dev/kmsg; echo $number; done"
    assert reference.guest.run(script).split() == [str(number) for number in range(1, 201)]
    assert reference.guest.dmesg().count("noise") == 200


def test_a_script_that_hangs_does_not_stop_the_next(reference: Reference) -> None:
    with pytest.raises(GuestTimeout, match="sysrq: Show Blocked State"):
        reference.guest.run("sleep 1000", timeout=0.5)
    assert reference.guest.run("pkill -x sleep 2>/dev/null || killall sleep; echo alive") == "alive\n"


def test_scripts_run_beside_each_other(reference: Reference) -> None:
    waiting = reference.guest.start("until [ -e /tmp/flag ]; do sleep 0.05; done; echo seen")
    reference.guest.run("touch /tmp/flag")
    assert reference.guest.wait(waiting) == "seen\n"


def test_waiting_for_something_that_never_is(reference: Reference) -> None:
    with pytest.raises(CommandError, match="last words"):
        reference.guest.wait_until("echo last words; false", timeout=0.5)


def test_qemu_refuses_an_unknown_monitor_command(reference: Reference) -> None:
    with pytest.raises(QmpError, match="no-such-command"):
        reference.guest.qmp("no-such-command")


def test_the_drive_is_a_superspeed_device(reference: Reference) -> None:
    assert reference.disk(reference.constant).speed == 5000
    tree = reference.guest.run("lsusb -t")
    assert tree.count("Class=Mass Storage, Driver=usb-storage, 5000M") == 2
    assert tree.count("Class=Human Interface Device, Driver=usbhid, 480M") == 1


def test_the_guest_leaves_autosuspend_as_the_kernel_has_it(reference: Reference) -> None:
    assert reference.guest.run("cat /sys/module/usbcore/parameters/autosuspend") == "2\n"
    assert reference.guest.run("cat /sys/bus/usb/devices/usb*/power/control").split() == ["auto", "auto"]


def test_the_drive_holds_the_image(reference: Reference) -> None:
    disk = reference.disk(reference.constant)
    assert guest_usb.sha256(reference.guest, disk.path) == guest_usb.image_sha256(reference.constant)


def test_an_ext4_made_in_the_guest_is_in_the_image(reference: Reference) -> None:
    checksum = guest_usb.write_ext4(reference.guest, reference.disk(reference.scratch), "from the guest")
    assert guest_usb.read_ext4(reference.scratch, "text") == b"from the guest\n"
    random = guest_usb.read_ext4(reference.scratch, "random")
    (reference.scratch.parent / "random").write_bytes(random)
    assert guest_usb.image_sha256(reference.scratch.parent / "random") == checksum


def test_keys_arrive(reference: Reference) -> None:
    reading = guest_usb.start_reading_keys(reference.guest, 4)
    for key in ("a", "ret"):
        reference.guest.qmp("send-key", keys=[{"type": "qcode", "data": key}])
    pressed = guest_usb.finish_reading_keys(reference.guest, reading)
    assert pressed == [(KEY_A, 1), (KEY_A, 0), (KEY_ENTER, 1), (KEY_ENTER, 0)]


def test_direct_transfers_are_timed(reference: Reference) -> None:
    disk = reference.disk(reference.scratch)
    assert guest_usb.direct_io(reference.guest, disk, block=1 << 20, count=8) > 0
    assert guest_usb.direct_io(reference.guest, disk, block=4096, count=100, write=True) > 0
    assert reference.scratch.read_bytes()[: 100 * 4096] == bytes(100 * 4096)


def test_usbtest_passes_on_the_kernels_own_gadget_zero(reference: Reference) -> None:
    """The runner and its parameters are right: the same tests are run on usbvfiod's loopback device."""
    script = """set -e
modprobe dummy_hcd is_super_speed=1
modprobe usb_f_ss_lb
mount -t configfs configfs /sys/kernel/config
mkdir /sys/kernel/config/usb_gadget/zero
cd /sys/kernel/config/usb_gadget/zero
echo 0x0525 > idVendor
echo 0xa4a0 > idProduct
mkdir configs/c.3 functions/SourceSink.0
ln -s functions/SourceSink.0 configs/c.3/
echo dummy_udc.0 > UDC
"""
    reference.guest.run(script)
    node = usbtest.find(reference.guest)
    for case in usbtest.BULK_AND_CONTROL:
        assert usbtest.run(reference.guest, node, case) >= 0, case
    with pytest.raises(CommandError, match="Operation not supported"):  # this gadget has no interrupt endpoints
        usbtest.run(reference.guest, node, usbtest.INTERRUPT[0])


def test_no_driver_complains(reference: Reference) -> None:
    guest_usb.wait_disks(reference.guest, 2)
    assert guest_usb.usb_complaints(reference.guest) == []


def test_complaints_are_noticed(reference: Reference) -> None:
    """The test above can fail: a warning in a driver's words is found, and so is a reset that is only mentioned."""
    reference.guest.run("echo '<4>xhci_hcd 0000:00:01.0: made up' > /dev/kmsg")
    reference.guest.run("echo '<6>usb 2-1: reset SuperSpeed USB device number 2 using xhci_hcd' > /dev/kmsg")
    assert len(guest_usb.usb_complaints(reference.guest)) == 2
    reference.guest.run("dmesg -c > /dev/null")


def test_the_drive_is_back_after_a_reboot(reference: Reference) -> None:
    unfinished = reference.guest.start("sleep 1000")
    reference.guest.reboot()
    assert reference.guest.boots == 2
    with pytest.raises(GuestError, match="was reset"):
        reference.guest.wait(unfinished)
    disk = reference.disk(reference.constant)
    assert guest_usb.sha256(reference.guest, disk.path) == guest_usb.image_sha256(reference.constant)
    assert guest_usb.usb_complaints(reference.guest) == []


def test_the_end_of_qemu_is_noticed(reference: Reference) -> None:
    """Last in this file: it kills the guest the others use."""
    waiting = reference.guest.start("sleep 1000")
    reference.guest.process.kill()
    with pytest.raises(GuestError, match="QEMU has ended \\(SIGKILL\\)"):
        reference.guest.wait(waiting)
