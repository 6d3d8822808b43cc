"""In the guest: Video4Linux takes pictures of every size of tests/classes/camera.py. `... COUNT` of each."""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import struct
import sys
from pathlib import Path

from tests.classes.camera import BRIGHTNESSES, GET_MAX, PICTURES, Picture, picture
from usbvfiod_core.testing.limits import scaled

PATIENCE = scaled(60.0)
MOST = 40
"""Pictures that a slow guest may get in parts, for each size."""
CAPTURE, MMAP, YUYV, ERROR_FLAG = 1, 1, 0x56595559, 0x40
BRIGHTNESS = 0x00980900
BUFFERS = 4
BUFFER = struct.Struct("<IIIIIxxxxqq16sIIQIIi4x")


def _request(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | ord("V") << 8 | number


S_FMT, REQBUFS, QUERYBUF = _request(3, 5, 208), _request(3, 8, 20), _request(3, 9, BUFFER.size)
QBUF, DQBUF = _request(3, 15, BUFFER.size), _request(3, 17, BUFFER.size)
STREAMON, STREAMOFF = _request(1, 18, 4), _request(1, 19, 4)
G_CTRL, S_CTRL = _request(3, 27, 8), _request(3, 28, 8)


def _buffer(index: int) -> bytearray:
    return bytearray(BUFFER.pack(index, CAPTURE, 0, 0, 0, 0, 0, bytes(16), 0, MMAP, 0, 0, 0, 0))


class Stream:
    """A device that sends pictures of a size."""

    def __init__(self, node: int, size: Picture) -> None:
        self._node = node
        wanted = bytearray(208)
        struct.pack_into("<IxxxxIIII", wanted, 0, CAPTURE, size.width, size.height, YUYV, 1)
        fcntl.ioctl(node, S_FMT, wanted)
        assert struct.unpack_from("<II", wanted, 8) == (size.width, size.height)
        fcntl.ioctl(node, REQBUFS, bytearray(struct.pack("<IIIII", BUFFERS, CAPTURE, MMAP, 0, 0)))
        self._maps = []
        for index in range(BUFFERS):
            given = _buffer(index)
            fcntl.ioctl(node, QUERYBUF, given)
            fields = BUFFER.unpack(given)
            self._maps.append(mmap.mmap(node, fields[11], offset=fields[10]))
            fcntl.ioctl(node, QBUF, _buffer(index))
        fcntl.ioctl(node, STREAMON, struct.pack("<I", CAPTURE))

    def next(self) -> bytes:
        """The next picture, empty if it has come in parts."""
        assert select.select([self._node], [], [], PATIENCE)[0], "no picture"
        given = _buffer(0)
        fcntl.ioctl(self._node, DQBUF, given)
        index, _, used, flags, *_ = BUFFER.unpack(given)
        data = self._maps[index][:used]
        fcntl.ioctl(self._node, QBUF, _buffer(index))
        return b"" if flags & ERROR_FLAG else data

    def close(self) -> None:
        """Stop."""
        fcntl.ioctl(self._node, STREAMOFF, struct.pack("<I", CAPTURE))
        for each in self._maps:
            each.close()
        fcntl.ioctl(self._node, REQBUFS, bytearray(struct.pack("<IIIII", 0, CAPTURE, MMAP, 0, 0)))


def main(count: int) -> None:
    """So many whole pictures of each size, by the alternate setting that is for it; and a control."""
    device = Path("/sys/class/video4linux/video0/device").resolve()
    setting = Path(f"{str(device)[:-1]}1/bAlternateSetting")  # of interface 1 beside interface 0
    node = os.open("/dev/video0", os.O_RDWR | os.O_CLOEXEC)
    brightest = BRIGHTNESSES[GET_MAX]
    fcntl.ioctl(node, S_CTRL, bytearray(struct.pack("<Ii", BRIGHTNESS, brightest)))
    value = bytearray(struct.pack("<Ii", BRIGHTNESS, 0))
    fcntl.ioctl(node, G_CTRL, value)
    assert struct.unpack("<Ii", value)[1] == brightest
    for alternate, size in enumerate(PICTURES, start=1):
        stream = Stream(node, size)
        assert int(setting.read_text()) == alternate
        whole = 0
        for _ in range(MOST):
            data = stream.next()
            whole += bool(data)
            assert not data or data == picture(data[0], size.size)
            if whole == count:
                break
        assert whole == count, f"{whole} whole pictures of {MOST} with setting {alternate}"
        stream.close()
        assert int(setting.read_text()) == 0


if __name__ == "__main__":
    main(int(sys.argv[1]))
