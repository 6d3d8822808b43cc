#!/bin/bash
# QEMU 11.1's vfio-user client refuses the first answer of a region with capabilities if it is given as Linux gives it.
#
# Expected: a client asks for a region without room for capabilities. Linux's VFIO answers with the size that is needed,
#           the flag CAPS and a capability offset of 0, and is asked again with room. vfio-user has the same structure
#           and the same words, and QEMU's client of Linux's VFIO takes that answer.
# Seen:     QEMU ends at the first answer. With an offset of 32, behind the structure, where nothing follows yet, it
#           asks again.
#             offset 0: asked for 32 bytes; QEMU says: failed to get region 0 info: Invalid argument
#             offset 32: asked for 32 bytes, asked for 64 bytes
#
# Needs Debian's apt and some 300 MB; the packages come from the mirror of the system's own configuration.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"

mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | head -n 1)
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
mkdir -p apt/lists/partial apt/archives/partial apt/parts root
touch apt/status
for suite in trixie trixie-backports; do
    echo "deb [signed-by=$keyring] $mirror $suite main"
done >apt/sources.list
apt=(apt-get -qq -o Dir::State="$PWD/apt" -o Dir::State::status="$PWD/apt/status" -o Dir::Cache="$PWD/apt"
    -o Dir::Etc::sourcelist="$PWD/apt/sources.list" -o Dir::Etc::sourceparts="$PWD/apt/parts"
    -o Dir::Etc::preferencesparts="$PWD/apt/parts"
    -o APT::Sandbox::User=root -o APT::Install-Recommends=false)
"${apt[@]}" update
"${apt[@]}" install --yes --download-only --target-release trixie-backports \
    qemu-system-x86=1:11.1.3+ds-1~bpo13+1 >/dev/null
for package in apt/archives/*.deb; do dpkg-deb --fsys-tarfile "$package" | tar -x --keep-directory-symlink -C root; done

cat >peer.py <<'PYTHON'
"""A vfio-user server that knows as much as QEMU asks before it stops, or asks for region 0 again."""
import os
import socket
import struct
import subprocess
import sys

HEADER, INFO = struct.Struct("<HHIII"), struct.Struct("<IIIIQQ")
VERSION, GET_INFO, GET_REGION_INFO, GET_IRQ_INFO = 1, 4, 5, 7
READ, WRITE, MMAP, CAPS = 1, 2, 4, 8
NEEDED = INFO.size + 32  # a sparse area: its header and one range


def exact(peer, size):
    data = b""
    while len(data) < size:
        more = peer.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def answer(command, payload, offset, asked):
    if command == VERSION:
        return struct.pack("<HH", 0, 0) + b'{"capabilities":{}}\0'
    if command == GET_INFO:
        return struct.pack("<IIII", 16, 3, 9, 5)
    if command == GET_IRQ_INFO:
        return struct.pack("<IIII", 16, 0, struct.unpack_from("<I", payload, 8)[0], 0)
    if command == GET_REGION_INFO:
        argsz, _, index = struct.unpack_from("<III", payload)
        if index:
            return INFO.pack(INFO.size, READ | WRITE if index == 7 else 0, index, 0, 256 if index == 7 else 0, 0)
        asked.append(argsz)
        return INFO.pack(NEEDED, READ | WRITE | MMAP | CAPS, 0, offset, 0x4000, 0)
    return b""


def run(offset, qemu):
    path, asked = f"{offset}.sock", []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    listener.settimeout(60)
    device = '{"driver":"vfio-user-pci","socket":{"type":"unix","path":"%s"}}' % path
    machine = ["-machine", "q35,accel=tcg,memory-backend=m", "-m", "64", "-object", "memory-backend-memfd,id=m,size=64M,share=on"]
    command = [*qemu, "-nodefaults", "-display", "none", "-S", *machine, "-device", device]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    peer, _ = listener.accept()
    try:
        while len(asked) < 2:
            number, kind, size, flags, _ = HEADER.unpack(exact(peer, HEADER.size))
            payload = exact(peer, size - HEADER.size)
            if flags & 0x10:
                continue
            reply = answer(kind, payload, offset, asked)
            peer.sendall(HEADER.pack(number, kind, HEADER.size + len(reply), 1, 0) + reply)
    except EOFError:
        pass
    peer.close()
    process.kill()
    said = process.communicate()[1]
    return asked, said[said.rfind("failed to"):].strip() if "failed to" in said and len(asked) < 2 else ""


root = os.path.abspath("root")
libraries = f"{root}/usr/lib/x86_64-linux-gnu"
loader = [f"{libraries}/ld-linux-x86-64.so.2", "--library-path", libraries, f"{root}/usr/bin/qemu-system-x86_64"]
qemu = [*loader, "-L", f"{root}/usr/share/qemu", "-L", f"{root}/usr/share/seabios"]
print(subprocess.run([*loader, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0])
for offset in (0, 32):
    asked, said = run(offset, qemu)
    print(f"offset {offset}: " + ", ".join(f"asked for {size} bytes" for size in asked) + (f"; QEMU says: {said}" if said else ""))
    assert asked == ([32] if offset == 0 else [32, 64]), asked
    assert bool(said) == (offset == 0)
    if said:
        assert said == "failed to get region 0 info: Invalid argument", said
PYTHON
python3 peer.py
