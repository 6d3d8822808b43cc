"""A guest's sleep: system suspend from outside, runtime suspend of its devices from inside."""

from __future__ import annotations

import time

from tests.vm.guest import Guest
from usbvfiod_core.testing.limits import scaled

# q35's firmware resumes from S3 without enabling the ACPI registers again (PMBASE and ACPI_CNTL of the LPC bridge),
# so that the next S3 would be over at once without QEMU being asked. Written back here, as it found them.
ENABLE_ACPI = r"""
printf '\001\006\000\000\200' | dd of=/sys/bus/pci/devices/0000:00:1f.0/config bs=1 seek=64 conv=notrunc 2>/dev/null
"""


def sleep(guest: Guest, state: str, awake: float = 0.5, timeout: float = 120.0) -> None:
    """Suspend the guest once to `state` (of /sys/power/state: "freeze" or "mem") and wake it; it has slept for sure.

    It goes to sleep after it was `awake` seconds. Raises CommandError with the kernel's words if it refuses to sleep.
    """
    fail = "{ dmesg | tail -n 20; exit 1; }"
    if state == "mem":
        running = guest.start(f"sleep {awake}; echo mem > /sys/power/state || {fail}; {ENABLE_ACPI}")
        guest.qmp_event("SUSPEND", timeout)
        guest.qmp("system_wakeup")
        guest.qmp_event("WAKEUP", timeout)
        guest.wait(running, timeout)
        return
    success = "$(cat /sys/power/suspend_stats/success)"
    # The serial line that brings commands wakes it. If one comes too early it does not sleep, and tries anew.
    running = guest.start(f"""
echo enabled > /sys/class/tty/ttyS1/power/wakeup
sleep {awake}
before={success}
for attempt in 1 2 3 4 5; do
    echo {state} > /sys/power/state
    [ {success} = $before ] || exit 0
    sleep 1
done
dmesg | tail -n 20
exit 1
""")
    deadline = time.monotonic() + scaled(timeout)
    while not guest.ended(running, awake + 1.0) and time.monotonic() < deadline:
        guest.start("true")
    guest.wait(running, timeout)


def autosuspend(guest: Guest, usb: str, disk: str = "", delay_ms: int = 20) -> None:
    """Let a USB device ("2-1") suspend when it has been idle for so long; a drive's block device, too."""
    script = f"cd /sys/bus/usb/devices/{usb}/power; echo {delay_ms} > autosuspend_delay_ms; echo auto > control\n"
    if disk:
        name = disk.removeprefix("/dev/")
        script += f"cd /sys/block/{name}/device/power; echo {delay_ms} > autosuspend_delay_ms; echo auto > control\n"
    guest.run(script)


def wait_suspended(guest: Guest, usb: str, timeout: float = 30.0) -> None:
    """Wait until a USB device is suspended."""
    guest.wait_until(f"grep suspended /sys/bus/usb/devices/{usb}/power/runtime_status", timeout)
