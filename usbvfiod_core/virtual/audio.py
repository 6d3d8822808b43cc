"""`virtual:audio`: a sound card of the USB Audio Class 1.0, whose loudspeaker and microphone are WAV files.

Stereo, 48 kHz, 16 bits in both directions. What the driver plays is written to a file, sample by sample in the order in
which it came: volume and mute can be set and are remembered, but the recording is what was sent. What the driver
records is a file's contents, from its beginning each time recording starts (an alternate setting with an endpoint is
chosen), then silence.

The loudspeaker's endpoint is adaptive and the microphone's synchronous: both go with the frames of the bus, so neither
needs feedback (USB 2.0 5.12.4.1).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsbvfiodError
from ..options import SettingError, blaming, option
from ..state import U64, pack, unpack
from ..usb.class_descriptors import (
    LEFT_FRONT,
    RIGHT_FRONT,
    audio_endpoint,
    audio_format_type_i,
    audio_header,
    audio_input_terminal,
    audio_output_terminal,
    audio_stream,
)
from ..usb.descriptors import Configuration, Endpoint, Interface
from ..usb.device import DeviceEvents, Loop
from ..usb.handover import CannotHandOver, Handover
from ..usb.requests import SetupPacket
from ..usb.speed import Speed
from ..usb.transfer import Transfer, TransferType
from .device import VirtualDevice
from .endpoint import VirtualEndpoint
from .feature_unit import FeatureState, FeatureUnit
from .isochronous import IsochronousSchedule, ScheduleState, contents, fill, finish
from .kept import descriptor
from .options import SPEEDS, SlowOptions
from .wav import ReaderState, WavReader, WavWriter, WriterState

_log = logging.getLogger(__name__)

PRODUCT_ID = 0x0004
PRODUCT = "Audio"

RATE = 48_000
CHANNELS = 2
FRAME_SIZE = 2 * CHANNELS
"""Bytes of one sample of every channel (an audio frame)."""
PACKET = RATE // 1000 * FRAME_SIZE
"""Bytes of a packet, one a millisecond."""
PLAYBACK_PACKET_MAX = PACKET + FRAME_SIZE
"""A driver may send one audio frame more when its clock runs ahead (Audio Data Formats 2.2.1)."""

CONTROL, PLAYBACK, CAPTURE = range(3)
"""The interfaces."""
OUT, IN = 0x01, 0x82

# Entities of the audio function (Audio 1.0 4.3.2)
PLAYBACK_STREAM, PLAYBACK_FEATURES, LOUDSPEAKER, MICROPHONE, CAPTURE_FEATURES, CAPTURE_STREAM = range(1, 7)

# Audio 1.0 appendix A
_AUDIO, _AUDIO_CONTROL, _AUDIO_STREAMING = 0x01, 0x01, 0x02
# Terminal types (Terminal Types 1.0 2.1 to 2.3)
_USB_STREAMING, _MICROPHONE, _SPEAKER = 0x0101, 0x0201, 0x0301
_LAYOUT = LEFT_FRONT | RIGHT_FRONT
# bmAttributes of an isochronous endpoint: bits 3:2 are the synchronization type (USB 2.0 9.6.6)
_ADAPTIVE, _SYNCHRONOUS = TransferType.ISOCHRONOUS | 2 << 2, TransferType.ISOCHRONOUS | 3 << 2


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioOptions(SlowOptions):
    """The options of `virtual:audio`."""

    playback: Path | None = option(
        None,
        "A WAV file that gets what is played: a new one, or one of this device, which grows.",
        opens=lambda options: os.O_RDWR | os.O_CREAT,
    )
    """Without one, what is played is counted only."""
    capture: Path | None = option(
        None, "A WAV file that is recorded: stereo, 48 kHz, 16 bits.", opens=lambda options: os.O_RDONLY
    )
    """Without one, silence is."""

    def __post_init__(self) -> None:
        if self.playback and self.capture and os.path.realpath(self.playback) == os.path.realpath(self.capture):
            raise SettingError("capture", f"virtual:audio cannot write and read the same file, {self.playback}")


@dataclass
class _AudioState:
    """What a sound card hands over."""

    features: dict[str, FeatureState]
    """By the number of the feature unit."""
    played: U64
    recorded: U64
    schedule: ScheduleState
    playback: WriterState | None
    capture: ReaderState | None


class Audio(VirtualDevice):
    """A sound card on two WAV files, which it closes; see the module.

    `played` and `recorded` count audio frames since the device was made.
    """

    product_id = PRODUCT_ID
    product = PRODUCT

    def __init__(
        self,
        loop: Loop,
        *,
        playback: WavWriter | None = None,
        capture: WavReader | None = None,
        speed: Speed = Speed.FULL,
        serial: str = "",
    ) -> None:
        self.serial = serial
        self.features = {PLAYBACK_FEATURES: FeatureUnit(CHANNELS), CAPTURE_FEATURES: FeatureUnit(CHANNELS)}
        """Volume and mute of the loudspeaker and the microphone."""
        self.playback = playback
        self.capture = capture
        self.schedule = IsochronousSchedule(speed, loop, self._interval_over)
        self.played = 0
        self.recorded = 0
        super().__init__(speed)

    # -- counters ------------------------------------------------------------------------------------------------------

    @property
    def missed(self) -> int:
        """Service intervals in which nothing was moved: the driver's packet was too late for its frame, or this process
        did not run. What waited then was moved later, or ended with MISSED."""
        return self.schedule.missed + self.schedule.skipped

    @property
    def lost(self) -> int:
        """Audio frames that were played but could not be written to the file."""
        return self.playback.lost // FRAME_SIZE if self.playback is not None else 0

    # -- descriptors (Audio 1.0 4) -------------------------------------------------------------------------------------

    def describe(self, speed: Speed) -> list[Configuration]:
        interval = 4 if speed == Speed.HIGH else 1  # a millisecond
        playback = Endpoint(OUT, _ADAPTIVE, PLAYBACK_PACKET_MAX, interval, tail=bytes(2), extra=audio_endpoint())
        capture = Endpoint(IN, _SYNCHRONOUS, PACKET, interval, tail=bytes(2), extra=audio_endpoint())
        streams = [(PLAYBACK, PLAYBACK_STREAM, playback), (CAPTURE, CAPTURE_STREAM, capture)]
        interfaces = [Interface(CONTROL, _AUDIO, _AUDIO_CONTROL, extra=self._topology())]
        for number, terminal, endpoint in streams:
            # Without an endpoint, it takes no bandwidth while nothing is played.
            interfaces.append(Interface(number, _AUDIO, _AUDIO_STREAMING))
            extra = audio_stream(terminal) + audio_format_type_i([RATE], channels=CHANNELS, sample_size=2, bits=16)
            interfaces.append(
                Interface(number, _AUDIO, _AUDIO_STREAMING, endpoints=(endpoint,), alternate=1, extra=extra)
            )
        return [Configuration(tuple(interfaces))]

    def _topology(self) -> bytes:
        """Stream, features, loudspeaker; microphone, features, stream (Audio 1.0 4.3.2)."""
        entities = (
            audio_input_terminal(PLAYBACK_STREAM, _USB_STREAMING, channels=CHANNELS, layout=_LAYOUT)
            + self.features[PLAYBACK_FEATURES].descriptor(PLAYBACK_FEATURES, PLAYBACK_STREAM)
            + audio_output_terminal(LOUDSPEAKER, _SPEAKER, PLAYBACK_FEATURES)
            + audio_input_terminal(MICROPHONE, _MICROPHONE, channels=CHANNELS, layout=_LAYOUT)
            + self.features[CAPTURE_FEATURES].descriptor(CAPTURE_FEATURES, MICROPHONE)
            + audio_output_terminal(CAPTURE_STREAM, _USB_STREAMING, CAPTURE_FEATURES)
        )
        return audio_header(entities, (PLAYBACK, CAPTURE))

    # -- requests ------------------------------------------------------------------------------------------------------

    def control_request(self, setup: SetupPacket, data: bytes) -> bytes | None:
        unit = self.features.get(setup.index >> 8)
        if unit is None or setup.index & 0xFF != CONTROL:
            return None
        return unit.control_request(setup, data)

    # -- streams -------------------------------------------------------------------------------------------------------

    def attach(self, events: DeviceEvents) -> None:
        super().attach(events)
        self.schedule.attach(events)

    def restart(self, endpoints: Sequence[VirtualEndpoint]) -> None:
        # Choosing a setting of one interface leaves the stream of the other alone.
        self.schedule.forget(each for each in (OUT, IN) if each not in self.endpoints)
        for endpoint in endpoints:
            self.schedule.forget((endpoint.address,))
            if endpoint.address == IN and self.capture is not None:
                self.capture.rewind()
        if OUT not in self.endpoints and self.playback is not None:
            self.playback.flush()

    def controller_reset(self) -> None:
        for unit in self.features.values():
            unit.power_on()

    def process(self, endpoint: VirtualEndpoint) -> None:
        self.schedule.process(endpoint)

    def _interval_over(self, endpoint: VirtualEndpoint, transfer: Transfer) -> None:
        if endpoint.address == OUT:
            playback = self.playback
            for packet in transfer.packets:
                packet.actual = packet.length
                if playback is not None:
                    playback.write(contents(transfer, packet))
                self.played += packet.length // FRAME_SIZE
        else:
            capture = self.capture
            for packet in transfer.packets:
                fill(transfer, packet, capture.read(PACKET) if capture is not None else bytes(PACKET))
                self.recorded += PACKET // FRAME_SIZE
        finish(transfer)

    # -- going on in another process -----------------------------------------------------------------------------------

    def own_state(self) -> dict[str, Any]:
        features = {str(number): FeatureState(unit.muted, list(unit.volume)) for number, unit in self.features.items()}
        state = _AudioState(
            features,
            self.played,
            self.recorded,
            self.schedule.state(),
            None if self.playback is None else self.playback.state(),
            None if self.capture is None else self.capture.state(),
        )
        return pack(state)

    def own_descriptors(self) -> dict[str, int]:
        files = {"playback": self.playback, "capture": self.capture}
        return {name: file.fd for name, file in files.items() if file is not None}

    def take_own_state(self, state: dict[str, Any]) -> None:
        given = unpack(_AudioState, state)
        for number, unit in self.features.items():
            kept = given.features.get(str(number))
            if kept is None or len(kept.volume) != len(unit.volume):
                raise CannotHandOver(f"{self.name} has other channels here")
            unit.muted, unit.volume[:] = kept.muted, kept.volume
        self.played, self.recorded = given.played, given.recorded
        self.schedule.take_state(given.schedule)
        if self.capture is not None and given.capture is not None:
            self.capture.rewind(given.capture.at)

    def forgotten(self) -> None:
        self.schedule.close()
        if self.playback is not None:
            self.playback.forget()
        if self.capture is not None:
            self.capture.close()

    def closed(self) -> None:
        self.schedule.close()
        if self.playback is not None:
            self.playback.close()
        if self.capture is not None:
            self.capture.close()
        level = logging.WARNING if self.missed or self.lost else logging.INFO
        _log.log(
            level,
            "%s: %d audio frames were played and %d recorded; %d intervals were missed, %d frames could not be written",
            self.name,
            self.played,
            self.recorded,
            self.missed,
            self.lost,
        )


def take_audio_over(options: AudioOptions, loop: Loop, handover: Handover) -> Audio:
    """A sound card on the files that another process has handed over."""
    state = unpack(_AudioState, handover.state.get("own"))
    if (state.playback is None) is not (options.playback is None):
        raise CannotHandOver("virtual:audio has another file for playback here")
    if (state.capture is None) is not (options.capture is None):
        raise CannotHandOver("virtual:audio has another file to record here")
    playback = capture = None
    if state.playback is not None:
        fd = descriptor(handover, "playback")
        playback = WavWriter.take_over(str(options.playback), fd, state.playback, rate=RATE, channels=CHANNELS)
    if state.capture is not None:
        capture = WavReader.take_over(str(options.capture), descriptor(handover, "capture"), state.capture)
    return Audio(loop, playback=playback, capture=capture, speed=SPEEDS[options.speed], serial=options.serial)


def check_audio(options: AudioOptions) -> None:
    """What would be wrong with the files of `options`. Raises SettingError."""
    if options.playback is not None:
        with blaming("playback"):
            WavWriter.check(str(options.playback), rate=RATE, channels=CHANNELS)
    if options.capture is not None:
        with blaming("capture"):
            WavReader(str(options.capture), rate=RATE, channels=CHANNELS, locked=False).close()


def open_audio(options: AudioOptions, loop: Loop) -> Audio:
    """Open `virtual:audio`. Raises ConfigError, DeviceError."""
    capture = WavReader(str(options.capture), rate=RATE, channels=CHANNELS) if options.capture else None
    try:
        playback = WavWriter(str(options.playback), rate=RATE, channels=CHANNELS) if options.playback else None
    except UsbvfiodError:
        if capture is not None:
            capture.close()
        raise
    return Audio(loop, playback=playback, capture=capture, speed=SPEEDS[options.speed], serial=options.serial)
