"""A station on an Ethernet: the little of ARP, IP, ICMP and UDP that shows that a guest's adapter works."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

from tests.lab.guest_classes import NetworkAdapter

MAC = bytes.fromhex("02 00 00 00 00 01")
BROADCAST = b"\xff" * 6
ARP, IP = b"\x08\x06", b"\x08\x00"
ICMP, UDP = 1, 17
REQUEST, REPLY = 1, 2

_ARP = struct.Struct(">HHBBH6s4s6s4s")
_IP = struct.Struct(">BBHHHBBH4s4s")


class Station:
    """Has an address and talks to one peer. It answers ARP whenever it waits for something else."""

    def __init__(self, adapter: NetworkAdapter, address: str, peer: str) -> None:
        self._adapter = adapter
        self._address = socket.inet_aton(address)
        self._peer = socket.inet_aton(peer)
        self._peer_mac = BROADCAST
        self._identification = 0
        self._send_arp(REQUEST, BROADCAST)
        while self._peer_mac == BROADCAST:
            self._frame()

    def ping(self, number: int) -> None:
        """Send an echo request with this sequence number and wait for the equal reply."""
        body = struct.pack(">BBHHH", 8, 0, 0, 77, number) + bytes(range(56))
        body = body[:2] + _checksum(body).to_bytes(2, "big") + body[4:]
        self._send(ICMP, body)
        while (answer := self._receive(ICMP))[4:] != body[4:] or answer[0] != 0:
            pass

    def send_datagrams(self, port: int, peer_port: int, payloads: Sequence[bytes]) -> None:
        """Send UDP datagrams in one go; without checksums, which IPv4 allows."""
        headers = (struct.pack(">HHHH", port, peer_port, 8 + len(payload), 0) for payload in payloads)
        self._send(UDP, *(header + payload for header, payload in zip(headers, payloads, strict=True)))

    def receive_datagram(self, port: int) -> bytes:
        """The payload of the next datagram to this port."""
        while True:
            datagram = self._receive(UDP)
            if int.from_bytes(datagram[2:4], "big") == port:
                return datagram[8:]

    def _send(self, protocol: int, *bodies: bytes) -> None:
        frames = []
        for body in bodies:
            self._identification = self._identification + 1 & 0xFFFF
            size = _IP.size + len(body)
            fields = (0x45, 0, size, self._identification, 0, 64, protocol, 0, self._address, self._peer)
            header = _IP.pack(*fields)
            header = header[:10] + _checksum(header).to_bytes(2, "big") + header[12:]
            frames.append(self._peer_mac + MAC + IP + header + body)
        self._adapter.send(frames)

    def _receive(self, protocol: int) -> bytes:
        while True:
            kind, packet = self._frame()
            if kind == IP and packet[9] == protocol and packet[16:20] == self._address:
                return packet[_IP.size : int.from_bytes(packet[2:4], "big")]

    def _frame(self) -> tuple[bytes, bytes]:
        """The next frame's type and body; ARP has been dealt with."""
        frame = self._adapter.receive()
        kind, body = frame[12:14], frame[14:]
        if kind == ARP:
            _, _, _, _, operation, mac, sender, _, target = _ARP.unpack_from(body)
            if sender == self._peer and target == self._address:
                self._peer_mac = mac
                if operation == REQUEST:
                    self._send_arp(REPLY, mac)
        return kind, body

    def _send_arp(self, operation: int, target: bytes) -> None:
        body = _ARP.pack(1, 0x0800, 6, 4, operation, MAC, self._address, target, self._peer)
        self._adapter.send([target + MAC + ARP + body])


def _checksum(data: bytes) -> int:
    total = sum(int(word) for word in struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF
