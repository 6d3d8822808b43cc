"""`virtual:network` on taps of a network namespace, used by a guest's stock driver at high and SuperSpeed."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.namespace import Namespace
from tests.vm import guest_usb
from tests.vm.guest import Guest, GuestError, GuestFactory
from tests.vm.server import UsbvfiodServer

pytestmark = pytest.mark.vm

MIB = 1 << 20
PORT = 7000


@dataclass(frozen=True)
class Adapter:
    """One of the guest's: the tap at its other end, both addresses, and what the guest's driver says of its speed."""

    tap: str
    speed: str
    megabits: int
    host: str
    own: str
    mac: str

    @property
    def spec(self) -> str:
        return f"virtual:network?tap={self.tap}&speed={self.speed}&mac={self.mac}&name={self.tap}"


HIGH = Adapter("tap-high", "high", 480, "10.78.0.1", "10.78.0.2", "02:00:00:00:78:02")
SUPER = Adapter("tap-super", "super", 4000, "10.79.0.1", "10.79.0.2", "02:00:00:00:79:02")
ADAPTERS = (HIGH, SUPER)


@dataclass
class Network:
    """The server, the guest on it, and the host at the other end of its adapters."""

    server: UsbvfiodServer
    station: subprocess.Popen[str]
    guest: Guest
    names: dict[str, str] = field(default_factory=dict)
    """The guest's interfaces by the taps at their other ends."""

    def tell_station(self, word: str, tap: str) -> None:
        """Have an interface of the host "up" or "down"."""
        assert self.station.stdin is not None
        assert self.station.stdout is not None
        print(word, tap, file=self.station.stdin, flush=True)
        assert self.station.stdout.readline() == f"{word}\n"

    def find(self, adapter: Adapter) -> str:
        """Wait until the guest's driver has it and its carrier is on; configure it. Its name."""
        find = f"grep -l {adapter.mac} /sys/class/net/*/address"
        self.guest.wait_until(find)
        name = self.guest.run(find).split("/")[4]
        self.guest.run(f"ip addr add {adapter.own}/24 dev {name}; ip link set {name} up")
        self.names[adapter.tap] = name
        self.wait_carrier(adapter, True)
        return name

    def wait_carrier(self, adapter: Adapter, is_on: bool) -> None:
        """Wait until the guest knows whether it is connected."""
        try:
            self.guest.wait_until(f"[ $(cat /sys/class/net/{self.names[adapter.tap]}/carrier) = {int(is_on)} ]")
        except GuestError as error:
            error.add_note(f"{self.note(adapter)}; the server: {self.server.request('status')}")
            raise

    def ping(self, adapter: Adapter) -> None:
        """The host answers all of three."""
        assert "3 packets received" in self.guest.run(f"ping -c 3 -i 0.2 -W 10 {adapter.host}")

    def note(self, adapter: Adapter) -> str:
        """What `usbvfiod list` shows."""
        attachments = self.server.request("list")["attachments"]
        return next(str(each["note"]) for each in attachments if each["name"] == adapter.tap)


@pytest.fixture(scope="module")
def network(module_guest_factory: GuestFactory) -> Iterator[Network]:
    with Namespace() as namespace:
        ends = [f"{adapter.tap}={adapter.host}" for adapter in ADAPTERS]
        with UsbvfiodServer([adapter.spec for adapter in ADAPTERS], prefix=namespace.prefix) as server:
            command = [*namespace.prefix, sys.executable, "-m", "tests.vm.station", str(PORT), *ends]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as station:
                assert station.stdout is not None
                assert station.stdout.readline() == "ready\n"
                guest = module_guest_factory(server.arguments)
                guest.run("modprobe cdc_ncm")
                network = Network(server, station, guest)
                for adapter in ADAPTERS:
                    network.find(adapter)
                yield network
                station.communicate()


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.speed)
def test_the_stock_driver_has_it(network: Network, adapter: Adapter) -> None:
    name = network.names[adapter.tap]
    assert network.guest.run(f"basename $(readlink /sys/class/net/{name}/device/driver)") == "cdc_ncm\n"
    assert network.guest.run(f"cat /sys/class/net/{name}/speed") == f"{adapter.megabits}\n"
    network.ping(adapter)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.speed)
def test_tcp_both_ways(network: Network, adapter: Adapter) -> None:
    """2 MiB there, and the same back with the checksum of what arrived there."""
    size = 2 * MIB
    sums = network.guest.run(
        f"""head -c {size} /dev/urandom > /tmp/said
(echo {size}; cat /tmp/said) | nc {adapter.host} {PORT} > /tmp/heard
sha256sum < /tmp/said
head -c {size} /tmp/heard | sha256sum
tail -c 64 /tmp/heard
rm /tmp/said /tmp/heard
""",
        timeout=120,
    ).split()
    assert sums[0] == sums[2] == sums[4]
    assert network.note(adapter) == f"the other end is {adapter.tap}"


def test_the_carrier_follows_the_interface_and_the_user(network: Network) -> None:
    adapter = SUPER
    network.tell_station("down", adapter.tap)
    network.wait_carrier(adapter, False)
    network.tell_station("up", adapter.tap)
    network.wait_carrier(adapter, True)
    network.server.send(adapter.tap, "link", "down")
    network.wait_carrier(adapter, False)
    assert network.note(adapter) == f"the other end is {adapter.tap}; the link is down"
    network.server.send(adapter.tap, "link", "up")
    network.wait_carrier(adapter, True)
    network.ping(adapter)


def test_unplugged_in_the_middle(network: Network) -> None:
    """The guest's driver lets go of it, the other adapter goes on, and plugged in again it works."""
    adapter, other = HIGH, SUPER
    guest = network.guest
    name = network.names[adapter.tap]
    statistics = f"/sys/class/net/{name}/statistics"
    before = int(guest.run(f"cat {statistics}/tx_bytes"))
    sending = guest.start(f"(echo 0; cat /dev/zero) | nc {adapter.host} {PORT} || true")
    guest.wait_until(f"[ $(cat {statistics}/tx_bytes) -gt {before + MIB} ]")
    network.server.request("detach", attachment=adapter.tap)
    guest.wait_until(f"[ ! -e /sys/class/net/{name} ]")
    network.ping(other)
    guest.run("killall nc")
    guest.wait(sending)
    network.server.request("attach", device=adapter.spec)
    network.tell_station("up", adapter.tap)
    network.find(adapter)
    network.ping(adapter)
    complaints = [line for line in guest_usb.usb_complaints(guest) if not re.search(r"cdc_ncm|USB disconnect", line)]
    assert complaints == []
