"""`usbvfiod replay`: what a recording is good for, before a device is made of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import click

from ..capture.recorded_device import RecordedDevice
from ..capture.recording import Recording, read_recording
from ..errors import CaptureError
from .groups import SectionedGroup
from .output import print_object, print_table, say

UNKNOWN = "?"


@click.group(cls=SectionedGroup, invoke_without_command=True)
@click.pass_context
def replay(context: click.Context) -> None:
    """Look at recordings of which devices are made (virtual:replay)."""
    if context.invoked_subcommand is None:
        raise click.UsageError("say what to do with a recording: check", context)


@replay.command()
@click.argument("file", type=click.Path(path_type=Path, readable=False))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(file: Path, as_json: bool) -> None:
    """Say what a recording is good for, and what it lacks.

    FILE is in pcapng or pcap. Ends with exit code 1 if no device in it can be replayed.
    """
    try:
        with file.open("rb") as opened:
            recording = read_recording(opened)
    except (OSError, ValueError) as error:
        raise CaptureError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except CaptureError as error:
        raise CaptureError(f"{file} cannot be used: {error}") from None
    found = [_verdict(RecordedDevice(traffic)) for traffic in recording.devices if traffic.device]
    if as_json:
        _print_json(recording, found)
    else:
        _print(file, recording, found)
    if not any(verdict.usable for verdict in found):
        raise CaptureError(f"no device in {file} can be replayed")


@dataclass(frozen=True, slots=True)
class _Verdict:
    """One device, and whether it can be replayed."""

    device: RecordedDevice
    problems: list[str]
    remarks: list[str]

    @property
    def usable(self) -> bool:
        return not self.problems

    @property
    def traffic(self) -> list[tuple[str, str, int, int]]:
        """Endpoint, type, transfers, and bytes that were moved."""
        transfers: Counter[tuple[int, str]] = Counter()
        moved: Counter[tuple[int, str]] = Counter()
        for exchange in self.device.traffic.exchanges:
            record = exchange.first
            key = (record.endpoint & 0x7F if record.setup or record.type == 0 else record.endpoint, record.type.name)
            transfers[key] += 1
            moved[key] += exchange.moved
        return [(f"{key[0]:02x}", key[1].lower(), transfers[key], moved[key]) for key in sorted(transfers)]


def _verdict(device: RecordedDevice) -> _Verdict:
    problems = ["a hub is not replayed"] if device.is_hub else device.problems
    return _Verdict(device, problems, device.remarks if not problems else [])


def _speed(device: RecordedDevice) -> str:
    return device.known_speed.word if device.known_speed is not None else UNKNOWN


def _print(file: Path, recording: Recording, found: list[_Verdict]) -> None:
    by = f", written by {recording.application}" if recording.application else ""
    say(f"{file}: {recording.records} records{by}")
    for remark in recording.remarks:
        say(f"  {remark}")
    say()
    print_table(
        ("DEVICE", "IDENTITY", "NAME", "SPEED", "REPLAY"),
        [
            (
                each.device.traffic.where,
                each.device.identity or UNKNOWN,
                each.device.name,
                _speed(each.device),
                "yes" if each.usable else "no",
            )
            for each in found
        ],
    )
    for each in found:
        told = [*each.problems, *each.remarks]
        if each.usable:
            moved = (f"{address} {kind} {count} ({size} bytes)" for address, kind, count, size in each.traffic)
            told.insert(0, f"transfers by endpoint: {', '.join(moved)}")
        for text in told:
            say(f"{each.device.traffic.where}: {text}")


def _print_json(recording: Recording, found: list[_Verdict]) -> None:
    print_object(
        {
            "application": recording.application,
            "records": recording.records,
            "dropped": recording.dropped,
            "remarks": recording.remarks,
            "devices": [
                {
                    "device": each.device.traffic.where,
                    "interface": each.device.traffic.interface.name,
                    "identity": each.device.identity,
                    "name": each.device.name,
                    "speed": _speed(each.device) if each.device.known_speed is not None else "",
                    "usable": each.usable,
                    "problems": each.problems,
                    "remarks": each.remarks,
                    "endpoints": [
                        {"endpoint": address, "type": kind, "transfers": count, "bytes": size}
                        for address, kind, count, size in each.traffic
                    ],
                }
                for each in found
            ],
        }
    )
