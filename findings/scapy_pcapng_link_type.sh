#!/bin/bash
# scapy 2.8.0 writes packets that it has read from a USB capture as Ethernet frames when it writes pcapng.
#
# Expected: packets of link type 220 (LINKTYPE_USB_LINUX_MMAPPED) keep it, or writing them is refused; `wrpcapng` has
#           no argument to name one.
# Seen:     the new file says link type 1, so every reader takes usbmon's headers for Ethernet addresses.
#             read as Raw, written with link type 1
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
python3 -m venv "$directory/venv"
"$directory/venv/bin/pip" --quiet --disable-pip-version-check install scapy==2.8.0
"$directory/venv/bin/python" - "$directory" <<'PYTHON'
import logging
import struct
import sys
from pathlib import Path

logging.getLogger("scapy").setLevel(logging.ERROR)
from scapy.utils import rdpcap, wrpcapng

directory = Path(sys.argv[1])
capture, copy = directory / "capture.pcap", directory / "copy.pcapng"
header = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 220)
capture.write_bytes(header + struct.pack("<IIII", 1, 0, 64, 64) + bytes(64))
packets = rdpcap(str(capture))
wrpcapng(str(copy), packets)

written, offset = copy.read_bytes(), 0
types = []
while offset < len(written):
    kind, size = struct.unpack_from("<II", written, offset)
    if kind == 1:
        types.append(struct.unpack_from("<H", written, offset + 8)[0])
    offset += size
print(f"read as {type(packets[0]).__name__}, written with link type {types[0]}")
assert types == [1]
PYTHON
