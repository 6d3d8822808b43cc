#!/bin/bash
# dpkt 1.9.8 counts the time stamps of every interface of a pcapng file in the unit of the first.
#
# Expected: if_tsresol belongs to an interface, so a file may have one in microseconds (usbmon's clock) and one in
#           nanoseconds, and two packets of the same second are read with the same second.
# Seen:     the packet of the second interface is a thousand times as old.
#             [1700000000.0, 1700000000000.0]
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
python3 -m venv "$directory/venv"
"$directory/venv/bin/pip" --quiet --disable-pip-version-check install dpkt==1.9.8
"$directory/venv/bin/python" - <<'PYTHON'
import io
import struct
import dpkt

def block(kind, body):
    size = 12 + len(body)
    return struct.pack("<II", kind, size) + body + struct.pack("<I", size)

def packet(interface, ticks):
    head = struct.pack("<IIIII", interface, ticks >> 32, ticks & 0xFFFF_FFFF, 64, 64)
    return block(6, head + bytes(64))  # a usbmon header of zeros

SECOND = 1_700_000_000
interface = struct.pack("<HHI", 220, 0, 0)  # LINKTYPE_USB_LINUX_MMAPPED
nanoseconds = struct.pack("<HHB3x", 9, 1, 9) + bytes(4)
capture = (
    block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
    + block(1, interface)
    + block(1, interface + nanoseconds)
    + packet(0, SECOND * 10**6)
    + packet(1, SECOND * 10**9)
)
seen = [time for time, _ in dpkt.pcapng.Reader(io.BytesIO(capture))]
print(seen)
assert seen == [SECOND, SECOND * 1000]
PYTHON
