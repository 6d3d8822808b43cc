#!/bin/bash
# facedancer 3.1.3 refuses endpoint descriptors that say what the endpoint is used for.
#
# Expected: bits 3:2 of bmAttributes are the synchronization, bits 5:4 the usage (USB 2.0, table 9-13). 0x11 is the
#           feedback endpoint of asynchronous sound cards, 0x25 implicit feedback, and 0x13 an interrupt endpoint of USB 3
#           for notifications (USB 3.2, 9.6.6).
# Seen:     four bits are taken for the synchronization, so that the usage is read as a part of it.
#             0x11: 4 is not a valid USBSynchronizationType
#             0x13: 4 is not a valid USBSynchronizationType
#             0x25: 9 is not a valid USBSynchronizationType
#             0x05: ASYNC, DATA
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
python3 -m venv "$directory/venv"
"$directory/venv/bin/pip" --quiet --disable-pip-version-check install facedancer==3.1.3
"$directory/venv/bin/python" - <<'PYTHON'
from facedancer.endpoint import USBEndpoint

refused = []
for attributes in (0x11, 0x13, 0x25, 0x05):
    descriptor = bytes([7, 5, 0x81, attributes, 4, 0, 4])
    try:
        endpoint = USBEndpoint.from_binary_descriptor(descriptor)
    except ValueError as error:
        print(f"{attributes:#04x}: {error}")
        refused.append(attributes)
    else:
        print(f"{attributes:#04x}: {endpoint.synchronization_type.name}, {endpoint.usage_type.name}")
assert refused == [0x11, 0x13, 0x25]
PYTHON
