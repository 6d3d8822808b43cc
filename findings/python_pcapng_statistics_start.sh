#!/bin/bash
# python-pcapng 2.1.1 reads isb_starttime of an Interface Statistics Block with its halves swapped.
#
# Expected: the option is a time stamp as the block's own: the upper 32 bits first, then the lower (pcapng draft,
#           section 4.6). A capture of a bus that states when it began is read with that time.
# Seen:     the option's eight bytes are read as one little-endian number, so that the lower half comes out on top.
#             written 1700000000000000, read 1737896874956163620
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
python3 -m venv "$directory/venv"
"$directory/venv/bin/pip" --quiet --disable-pip-version-check install python-pcapng==2.1.1
"$directory/venv/bin/python" - <<'PYTHON'
import io
import struct
from pcapng import FileScanner
from pcapng.blocks import InterfaceStatistics

def block(kind, body):
    size = 12 + len(body)
    return struct.pack("<II", kind, size) + body + struct.pack("<I", size)

MICROSECONDS = 1_700_000_000_000_000
halves = struct.pack("<II", MICROSECONDS >> 32, MICROSECONDS & 0xFFFF_FFFF)
capture = (
    block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
    + block(1, struct.pack("<HHI", 220, 0, 0))  # LINKTYPE_USB_LINUX_MMAPPED
    + block(5, struct.pack("<I", 0) + halves + struct.pack("<HH", 2, 8) + halves + bytes(4))
)
[statistics] = [each for each in FileScanner(io.BytesIO(capture)) if isinstance(each, InterfaceStatistics)]
seen = statistics.options["isb_starttime"]
print(f"written {MICROSECONDS}, read {seen}")
assert seen == (MICROSECONDS & 0xFFFF_FFFF) << 32 | MICROSECONDS >> 32
PYTHON
