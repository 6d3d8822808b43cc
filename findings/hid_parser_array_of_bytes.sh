#!/bin/bash
# hid-parser 0.1.0 takes a report of 64 bytes that share one usage for a report of one byte.
#
# Expected: Report Count 64 and Report Size 8 make 64 bytes, however few usages are named: HID 1.11 6.2.2.8 gives the
#           last usage to the fields that are left. FIDO security keys describe their reports so (CTAP 2.1, 11.2).
# Seen:     a warning that 64 usages were expected, and a size of one byte in either direction.
#             input: 1 byte, output: 1 byte
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
python3 -m venv "$directory/venv"
"$directory/venv/bin/pip" --quiet --disable-pip-version-check install hid-parser==0.1.0
"$directory/venv/bin/python" -W ignore - <<'PYTHON'
import hid_parser

ITEMS = (
    "06 d0 f1  09 01  a1 01"  # usage page FIDO, usage CTAPHID, application
    "15 00  26 ff 00  75 08  95 40"  # 0 to 255, 8 bits, 64 of them
    "09 20  81 02  09 21  91 02  c0"  # data in, data out
)
report = hid_parser.ReportDescriptor(list(bytes.fromhex(ITEMS)))
sizes = int(report.get_input_report_size().byte), int(report.get_output_report_size().byte)
print("input: {} byte, output: {} byte".format(*sizes))
assert sizes == (1, 1)
PYTHON
