"""Debian's own tshark, run from the VM tests' tree."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.vm import tree
from usbvfiod_core.testing.limits import scaled

FIELDS = (
    "frame.interface_name",
    "_ws.col.protocol",
    "_ws.col.info",
    "_ws.malformed",
    "usb.urb_type",
    "usb.transfer_type",
    "usb.endpoint_address",
    "usb.urb_status",
    "usb.bInterfaceClass",
    "usb.iso.iso_len",
    "usbhid.data",
)


def packets(path: Path, *arguments: str) -> list[dict[str, str]]:
    """Each packet's FIELDS as tshark tells them; those that it does not have are empty."""
    options = [word for field in FIELDS for word in ("-e", field)]
    output = tshark("-r", str(path), "-T", "json", *options, *arguments)
    found: list[dict[str, Any]] = json.loads(output or "[]")
    layers = [packet["_source"]["layers"] for packet in found]
    return [{field: ", ".join(each.get(field, [])) for field in FIELDS} for each in layers]


def tshark(*arguments: str) -> str:
    """What it prints. Raises CalledProcessError."""
    command = [*tree.program_argv(tree.tree_directory(), "usr/bin/tshark"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=scaled(60))
    return result.stdout


def installed(directory: Path) -> list[str]:
    """How to start a tshark that captures. It looks for dumpcap and its extcap folder beside the program that runs,
    which is the dynamic linker of the tree: so there is one of its own in `directory`, with both beside it."""
    linker, *options, name, _ = tree.program_argv(tree.tree_directory(), "usr/bin/tshark")
    here = directory / "linker"
    shutil.copyfile(linker, here)
    here.chmod(0o755)
    programs = tree.tree_directory() / "usr/bin"
    dumpcap = directory / "dumpcap"
    command = shlex.join([str(here), *options, "dumpcap", str(programs / "dumpcap")])
    dumpcap.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    dumpcap.chmod(0o755)
    (directory / "extcap/wireshark").mkdir(parents=True)  # without it no other extcap folder is looked into
    return [str(here), *options, name, str(programs / "tshark")]
