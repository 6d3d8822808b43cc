"""The kernel's own tests of a host controller, run in a guest on a device like gadget zero (0525:a4a0).

The module usbtest binds to the device and runs its tests when asked by an ioctl through usbfs; see drivers/usb/misc/
usbtest.c and tools/usb/testusb.c in Linux for what each number does.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.vm.guest import Guest

# struct usbtest_param_64 inside struct usbdevfs_ioctl; 0xC0285564 is USBTEST_REQUEST_64, 0xC0105512 USBDEVFS_IOCTL.
SCRIPT = r"""
my ($node, $test, $iterations, $length, $vary, $lists) = @ARGV;
open(my $device, '+<', $node) or die "$node: $!\n";
my $parameters = pack('L5 x4 q2', $test, $iterations, $length, $vary, $lists, 0, 0);
my $call = pack('L L P40', 0, 0xC0285564, $parameters);
ioctl($device, 0xC0105512, $call) or die "usbtest $test: $!\n";
my ($seconds, $microseconds) = (unpack('L5 x4 q2', $parameters))[5, 6];
printf "%d.%06d\n", $seconds, $microseconds;
"""


@dataclass(frozen=True, slots=True)
class Case:
    """One test: `length` in bytes, `vary` the steps in which it changes, `lists` the depth of the queue."""

    number: int
    title: str
    iterations: int = 50
    length: int = 4096
    vary: int = 0
    lists: int = 8


# What a device with bulk source and sink can do. Reads must ask for whole packets, hence the multiples of 1024.
BULK_AND_CONTROL = (
    Case(0, "no operation", 1),
    Case(1, "bulk write"),
    Case(2, "bulk read"),
    Case(3, "bulk write of varying length", vary=421),
    Case(4, "bulk read of varying length", vary=1024),
    Case(5, "queued bulk writes"),
    Case(6, "queued bulk reads"),
    Case(7, "queued bulk writes of varying length", vary=1024),
    Case(8, "queued bulk reads of varying length", vary=1024),
    Case(9, "chapter 9 control requests", 20),
    Case(10, "queued control requests", 20),
    Case(11, "unlinked reads", 20),
    Case(12, "unlinked writes", 20),
    Case(13, "set and clear halt", 20),
    Case(14, "control writes and reads", 50, 1024, 61),
    Case(17, "bulk write from an odd address", length=1024),
    Case(18, "bulk read to an odd address", length=1024),
    Case(19, "premapped bulk write from an odd address", length=1024),
    Case(20, "premapped bulk read to an odd address", length=1024),
    Case(21, "control writes from an odd address", 20, 1024, 61),
    Case(24, "unlinked queued writes", 20, 1024),
    Case(27, "bulk write throughput", 2, 65536, 0, 8),
    Case(28, "bulk read throughput", 2, 65536, 0, 8),
    Case(29, "toggle after clear halt", 20, 1024),
)
# On alternate setting 1, which usbtest takes when it is told to (`find`).
ISOCHRONOUS = (
    Case(15, "isochronous write", 20, 4096),
    Case(16, "isochronous read", 20, 4096),
    Case(22, "isochronous write from an odd address", 20, 4096),
    Case(23, "isochronous read to an odd address", 20, 4096),
)
INTERRUPT = (Case(25, "interrupt write", 20, 64), Case(26, "interrupt read", 20, 64))


def find(guest: Guest, timeout: float = 60.0) -> str:
    """Wait for the device to be bound to usbtest and return its usbfs node in the guest."""
    (node,) = find_all(guest, 1, timeout)
    return node


def find_all(guest: Guest, count: int, timeout: float = 60.0, *, alternate: int | None = None) -> list[str]:
    """Wait for so many devices to be bound to usbtest, and return their usbfs nodes in the order of bus and port.

    With `alternate` they are bound anew to that setting, else they stay with the first one that has a bulk pair.
    """
    guest.wait_until(f"cd /sys/bus/usb/drivers/usbtest; set -- *:*; [ -e $1 ] && [ $# = {count} ]", timeout)
    if alternate is not None:
        guest.run(
            f"cd /sys/bus/usb/drivers/usbtest; echo {alternate} > /sys/module/usbtest/parameters/alt; "
            "for interface in *:*; do echo $interface > unbind; echo $interface > bind; done"
        )
    guest.run(f"cat > /tmp/usbtest.pl <<'END'\n{SCRIPT}END\n")
    script = (
        "for interface in /sys/bus/usb/drivers/usbtest/*:*; do cd $(readlink -f $interface)/..; "
        "printf '/dev/bus/usb/%03d/%03d\\n' $(cat busnum) $(cat devnum); done"
    )
    return guest.run(script).split()


def run(guest: Guest, node: str, case: Case, timeout: float = 60.0) -> float:
    """Run one test; returns the seconds it took, raises guest.CommandError with the kernel's words if it fails."""
    arguments = f"{case.number} {case.iterations} {case.length} {case.vary} {case.lists}"
    script = f"perl /tmp/usbtest.pl {node} {arguments} || {{ dmesg | tail -n 4; exit 1; }}"
    return float(guest.run(script, timeout))
