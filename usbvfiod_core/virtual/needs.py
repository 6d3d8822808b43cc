"""What virtual devices need of the system beside the files that the user names."""

from __future__ import annotations

from typing import Final

from .. import RegisterNeeds

TUN: Final = "/dev/net/tun"
MACHINE_ID: Final = "/etc/machine-id"

# include/uapi/asm-generic/ioctls.h: making a pseudo-terminal, and setting it, in the older and the newer way
_TERMINAL: Final = (
    *(0x80045430, 0x40045431, 0x5441),  # TIOCGPTN, TIOCSPTLCK, TIOCGPTPEER
    *(0x5401, 0x5402, 0x5403, 0x5404, 0x540B),  # TCGETS, TCSETS, TCSETSW, TCSETSF, TCFLSH
    *(0x802C542A, 0x402C542B, 0x402C542C, 0x402C542D),  # TCGETS2, TCSETS2, TCSETSW2, TCSETSF2
)
# linux/if_tun.h and linux/sockios.h: TUNSETIFF, TUNGETIFF, SIOCGIFFLAGS, SIOCSIFMTU
_NETWORK: Final = (0x400454CA, 0x800454D2, 0x8913, 0x8922)


def register_virtual_needs(register: RegisterNeeds) -> None:
    """For the hook. A tap interface's node is a file that its option stands for (`VirtualBackend.opens`)."""
    register(
        ioctls=(*_TERMINAL, *_NETWORK),
        sockets=("netlink",),
        read=(MACHINE_ID,),
        write=("/dev/ptmx", "/dev/pts"),
        capabilities=("net_admin", "dac_override"),
    )
