"""Attachments: the gates on the way in, and the way out. Coming and going is in `test_reconcile`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.unit.daemon.toys import TOYS, Rig, Toy, ToyBackend, ToyOptions, close_and_raise, rig_of
from usbvfiod_core import ConfigError, DeviceError, DeviceInfo, PluginError, Speed, UsbvfiodError
from usbvfiod_core.daemon.config import DeviceSpec, parse_device
from usbvfiod_core.daemon.intents import State
from usbvfiod_core.daemon.opening import AttachmentRefused


@pytest.fixture
def rig() -> Iterator[Rig]:
    yield from rig_of(ToyBackend())


def test_a_device_is_opened_and_plugged(rig: Rig) -> None:
    attachment = rig.attach("toys:ball?size=3&port=4")
    assert rig.backend.opened == [("ball", ToyOptions(size=3))]
    assert (attachment.state, attachment.port_id, attachment.name) == (State.PLUGGED, 4, "ball")
    assert list(rig.hub.ports) == [4]
    assert rig.seen == [("Ball", 4, "plugged")]
    assert tuple(rig.attachments) == (attachment,)


def test_the_backend_gets_the_address_of_the_device_that_was_meant(rig: Rig) -> None:
    rig.attach("1234:0002:D")
    assert rig.backend.opened == [("doll", ToyOptions())]


def test_an_address_that_is_not_listed_is_the_backends_to_judge(rig: Rig) -> None:
    asked: list[DeviceInfo] = []
    rig.plugin("asks", usbvfiod_admit_device=lambda info: asked.append(info))
    rig.attach("toys:recording.pcap")
    assert rig.backend.opened == [("recording.pcap", ToyOptions())]
    assert asked == [DeviceInfo("toys", "recording.pcap", 0, 0, "recording.pcap")]


def test_an_ambiguous_address(rig: Rig) -> None:
    rig.backend.devices.append(DeviceInfo("toys", "doll2", 0x1234, 0x0002, "Doll", serial="E"))
    error = rig.refused("1234:0002")
    assert isinstance(error, ConfigError)
    assert "serial E" in str(error)
    assert rig.backend.opened == []


def test_an_unknown_backend(rig: Rig) -> None:
    results: list[object] = []
    rig.attachments.attach(DeviceSpec("games:x", "games", "x"), results.append)
    rig.loop.run_ready()
    assert "there is no backend 'games'" in str(results[0])


@pytest.mark.parametrize("failure", [None, DeviceError("it is broken")])
def test_the_loop_of_a_device_that_is_closed_is_retired(
    rig: Rig, failure: DeviceError | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    retired: list[object] = []
    monkeypatch.setattr(rig.loop, "retire", lambda: retired.append(1))
    rig.backend.failure = failure
    if failure is None:
        attachment = rig.attach("toys:ball")
        assert attachment.loop is not None
        assert not retired
        rig.attachments.unplug(attachment, "it is broken")
        rig.hub.finish()
        assert len(retired) == 1
        rig.loop.run_until(lambda: attachment.state is State.PLUGGED, 10.0)
        rig.attachments.detach(attachment, why="asked")
        rig.hub.finish()
        assert len(retired) == 2
    else:
        rig.refused("toys:ball")
        assert len(retired) == 1


@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        (DeviceError("it is broken"), DeviceError, "device toys:ball: it is broken"),
        (ConfigError("no such option"), ConfigError, "device toys:ball: no such option"),
        (RuntimeError("oops"), DeviceError, "device toys:ball: backend toys failed: RuntimeError: oops"),
    ],
)
def test_a_device_that_cannot_be_opened(
    rig: Rig, failure: BaseException, kind: type[UsbvfiodError], message: str
) -> None:
    rig.backend.failure = failure
    error = rig.refused("toys:ball")
    assert isinstance(error, kind)
    assert str(error) == message
    assert rig.seen == []


def test_a_refused_device_is_not_opened(rig: Rig) -> None:
    rig.plugin("guard", usbvfiod_admit_device=lambda info: "no balls" if info.name == "Ball" else None)
    error = rig.refused("toys:ball")
    assert isinstance(error, AttachmentRefused)
    assert str(error) == "device toys:ball: no balls (plugin guard)"
    assert rig.backend.opened == []
    rig.attach("toys:doll")


@pytest.mark.faults("plugin wraps: usbvfiod_wrap_device failed: ZeroDivisionError")
def test_a_device_whose_wrapper_fails_is_closed(rig: Rig) -> None:
    rig.plugin("wraps", usbvfiod_wrap_device=lambda device: 1 / 0)
    assert isinstance(rig.refused("toys:ball"), PluginError)
    assert rig.backend.toys[0].closed == 1
    assert rig.hub.ports == {}


def test_a_port_that_is_reserved(rig: Rig) -> None:
    first = rig.attach("toys:ball?port=2")
    result = rig.try_to_attach("toys:doll?port=2")
    assert str(result) == "device toys:doll?port=2: port 2 is reserved for toys:ball?port=2"
    assert len(rig.backend.toys) == 1
    assert tuple(rig.attachments) == (first,)


def test_a_device_that_the_controller_does_not_take_is_closed(rig: Rig) -> None:
    rig.hub.ports[1] = Toy("squatter", Speed.HIGH)
    assert str(rig.refused("toys:ball")) == "device toys:ball: port 1 cannot be used"
    assert rig.backend.toys[0].closed == 1


def test_a_port_of_the_wrong_kind(rig: Rig) -> None:
    error = rig.refused("toys:ball?port=9")
    assert isinstance(error, ConfigError)
    assert str(error).endswith("ball needs a USB 2 port, and port 9 is not one; use 1 to 8")
    assert rig.backend.toys[0].closed == 1


def test_the_device_itself_is_plugged_in(rig: Rig) -> None:
    rig.attach("toys:ball")
    assert rig.hub.ports[1] is rig.backend.toys[0]


def test_a_detached_device_is_held_when_the_controller_has_closed_it(rig: Rig) -> None:
    ball = rig.attach("toys:ball")
    results: list[object] = []
    rig.attachments.detach(ball, results.append)
    rig.attachments.detach(ball, results.append)
    assert ball.state is State.LEAVING
    rig.loop.run_ready()
    assert results == []
    rig.hub.finish()
    assert results == [ball, ball]
    assert ball.state.value == "held"
    rig.loop.advance(1000)
    assert rig.hub.ports == {}
    assert rig.plug(ball) is ball
    assert (ball.state, ball.port_id) == (State.PLUGGED, 1)


def test_whoever_detaches_a_device_is_told_what_could_not_be_kept(rig: Rig) -> None:
    for turn, forget in enumerate((False, True)):
        ball = rig.attach("toys:ball")
        rig.backend.toys[turn].lost = "flushing ball.img failed: Input/output error"
        results: list[object] = []
        rig.attachments.detach(ball, results.append, forget=forget)
        rig.hub.finish()
        [error] = results
        assert isinstance(error, DeviceError)
        assert str(error) == "device toys:ball is detached, but flushing ball.img failed: Input/output error"
        assert ball.state is (State.GONE if forget else State.HELD)
        rig.attachments.detach(ball, forget=True)
        rig.loop.run_ready()


def _breaks() -> str:
    raise RuntimeError("oops")


@pytest.mark.faults("ball: (why_gone|loss) raised")
@pytest.mark.parametrize("method", ["why_gone", "loss"])
@pytest.mark.parametrize("answer", [_breaks, lambda: 12], ids=["raises", "no text"])
@pytest.mark.parametrize("wanted", [True, False])
def test_a_device_that_cannot_say_what_it_is_asked_at_the_end(
    rig: Rig, method: str, answer: Callable[[], str], wanted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It leaves all the same, and comes back if it is wanted."""
    ball = rig.attach("toys:ball")
    toy = rig.backend.toys[0]
    setattr(toy, method, answer)
    results: list[object] = []
    if wanted:
        rig.backend.disconnect("ball")
    else:
        rig.attachments.detach(ball, results.append)
    rig.hub.finish()
    expected = State.PLUGGED if wanted else State.HELD
    assert rig.loop.run_until(lambda: ball.state is expected, 10.0)
    assert results == ([] if wanted else [ball])
    told = caplog.text.count(f"ball: {method} raised (plugin tests)")
    assert told == (method == "loss" or wanted), "once, if it was asked"


@pytest.mark.faults("plugin wraps: usbvfiod_wrap_device failed", "ball: close raised")
@pytest.mark.parametrize("where", ["wrapped", "plugged in"])
def test_a_device_that_cannot_be_closed_hides_nothing(
    rig: Rig, where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever attaches it is told why it is not, and not what went wrong behind that."""
    monkeypatch.setattr(Toy, "close", close_and_raise)
    if where == "wrapped":
        rig.plugin("wraps", usbvfiod_wrap_device=lambda device: 1 / 0)
        message = "device toys:ball: plugin wraps cannot wrap the device: ZeroDivisionError: division by zero"
    else:
        rig.hub.ports[1] = Toy("other", Speed.HIGH)
        message = "device toys:ball: port 1 cannot be used"
    assert str(rig.refused("toys:ball")) == message
    rig.hub.ports.clear()
    assert "ball: close raised (plugin tests)" in caplog.text


def test_a_detached_device_can_be_forgotten(rig: Rig) -> None:
    ball = rig.attach("toys:ball")
    rig.attachments.detach(ball, forget=True)
    rig.hub.finish()
    assert ball.state is State.GONE
    assert tuple(rig.attachments) == ()
    assert rig.attach("toys:doll").port_id == 1


def test_closing_waits_for_every_device(rig: Rig) -> None:
    rig.attach("toys:ball")
    rig.attach("toys:doll")
    done: list[int] = []
    rig.attachments.close(lambda: done.append(1))
    rig.loop.run_ready()
    assert done == []
    rig.hub.finish()
    rig.loop.run_ready()
    assert done == [1]
    assert [toy.closed for toy in rig.backend.toys] == [1, 1]


def test_closing_without_devices(rig: Rig) -> None:
    done: list[int] = []
    rig.attachments.close(lambda: done.append(1))
    rig.loop.run_ready()
    assert done == [1]


def test_a_device_that_opens_while_the_server_closes_is_closed(rig: Rig) -> None:
    results: list[object] = []
    done: list[int] = []
    rig.attachments.attach(parse_device("toys:ball", TOYS), results.append)
    rig.attachments.close(lambda: done.append(1))
    assert done == []
    rig.loop.run_ready()
    assert done == [1]
    assert str(results[0]) == "device toys:ball: the server is ending"
    assert rig.backend.toys == []


def test_a_device_that_is_being_opened_when_the_server_closes_is_closed(rig: Rig) -> None:
    results: list[object] = []
    done: list[int] = []
    calls: list[Callable[[], object]] = []
    rig.loop.run_blocking = lambda call, then: calls.append(lambda: then(call()))  # type: ignore[method-assign]
    rig.attachments.attach(parse_device("toys:ball", TOYS), results.append)
    calls.pop()()  # it was listed, and is being opened
    rig.attachments.close(lambda: done.append(1))
    rig.loop.run_ready()
    assert (done, len(calls)) == ([], 1)
    calls.pop()()
    rig.loop.run_ready()
    assert done == [1]
    assert str(results[0]) == "device toys:ball: the server is ending"
    assert rig.backend.toys[0].closed == 1
    assert rig.hub.ports == {}
