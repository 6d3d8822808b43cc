"""Interrupt data of replayed devices, which wait for the bulk data of their function."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.unit.virtual.test_replay import BULK, BULK_IN, BULK_OUT, INTERRUPT, INTERRUPT_IN, Stage
from usbvfiod_core.testing.device_bench import WatchedTransfer
from usbvfiod_core.usb.descriptors import Configuration, Endpoint, Interface
from usbvfiod_core.usb.transfer import TransferType

KEY = 0x84
COMMUNICATIONS = Configuration(
    (
        Interface(0, 0x02, endpoints=(Endpoint(INTERRUPT_IN, 3, 16, 9),)),
        Interface(1, 0x0A, endpoints=(Endpoint(BULK_IN, 2, 512), Endpoint(BULK_OUT, 2, 512))),
        Interface(2, 0x03, endpoints=(Endpoint(KEY, 3, 8, 4),)),
    )
)
ONE_INTERFACE = Configuration(
    (
        Interface(
            0, 0xFF, endpoints=(Endpoint(INTERRUPT_IN, 3, 16, 9), Endpoint(BULK_IN, 2, 512), Endpoint(BULK_OUT, 2, 512))
        ),
        Interface(1, 0x03, endpoints=(Endpoint(KEY, 3, 8, 4),)),
    )
)


def hung_up(stage: Stage) -> None:
    """A serial port is opened, greets, and hangs up; and a key of the same device is pressed in the end."""
    stage.talk.read(INTERRUPT_IN, b"carrier", asked=16, interval=9)
    stage.talk.write(BULK_OUT, b"\n")
    stage.talk.read(BULK_IN, b"login: ", asked=512)
    stage.talk.read(INTERRUPT_IN, b"no carrier", asked=16, interval=9)
    stage.talk.read(KEY, b"key", asked=8, interval=4)


@pytest.mark.parametrize("configuration", [COMMUNICATIONS, ONE_INTERFACE], ids=["communications", "one interface"])
@pytest.mark.parametrize("timing", ["order", "real"])
def test_a_serial_port_does_not_hang_up_before_all_is_read(
    tmp_path: Path, configuration: Configuration, timing: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    stage = Stage(tmp_path, configuration)
    hung_up(stage)
    stage.play(timing=timing)

    def read(endpoint: int, length: int, type: TransferType) -> WatchedTransfer:
        transfer = stage.read(endpoint, length, type)
        stage.loop.advance(5.0)
        return transfer

    assert read(KEY, 8, INTERRUPT).data == b"key", "of another function"
    assert read(INTERRUPT_IN, 16, INTERRUPT).data == b"carrier"
    last = read(INTERRUPT_IN, 16, INTERRUPT)
    assert "endpoint 81 answers when 8 more bytes have been moved, as the recorded driver did" in caplog.text
    stage.write(BULK_OUT, b"\n")
    stage.loop.advance(5.0)
    assert last.status is None
    assert read(BULK_IN, 3, BULK).data == b"log"
    assert last.status is None
    assert read(BULK_IN, 512, BULK).data == b"in: "
    assert last.data == b"no carrier"
    assert stage.bench is not None
    stage.bench.close()
