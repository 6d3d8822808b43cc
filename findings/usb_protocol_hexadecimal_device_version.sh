#!/bin/bash
# usb-protocol 0.9.2 cannot read a device descriptor whose bcdDevice has a hexadecimal digit.
#
# Expected: bcdDevice is two bytes that vendors fill as they like (Linux prints them nibble by nibble), so 0x010a is
#           read as some version, or as the number.
# Seen:     the whole descriptor is refused.
#             0x0109: 1.09
#             0x010a: ValueError: could not convert string to float: '01.0a'
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
python3 -m venv "$directory/venv"
"$directory/venv/bin/pip" --quiet --disable-pip-version-check install usb-protocol==0.9.2
"$directory/venv/bin/python" - <<'PYTHON'
import struct
from usb_protocol.types.descriptors.standard import DeviceDescriptor

def read(version):
    raw = struct.pack("<BBHBBBBHHHBBBB", 18, 1, 0x0200, 0, 0, 0, 64, 0x1209, 0x0001, version, 0, 0, 0, 1)
    try:
        return str(DeviceDescriptor.parse(raw).bcdDevice)
    except ValueError as error:
        return f"ValueError: {error}"

seen = {version: read(version) for version in (0x0109, 0x010A)}
for version, answer in seen.items():
    print(f"{version:#06x}: {answer}")
assert seen[0x0109] == "1.09"
assert seen[0x010A].startswith("ValueError")
PYTHON
