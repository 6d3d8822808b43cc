"""What is known of particular drives: quirks by vendor and product, as letters (see `quirks`).

Each line is a fact met by people who use the drive, as collected by the maintainers of Linux; the comment says what it
is about. A device that is not here may be given its letters by option or in the configuration.
"""

from __future__ import annotations

TABLE: dict[tuple[int, int], str] = {
    (0x0984, 0x0301): "u",  # Apricorn adapter: over UAS it answers with rubbish now and then
    (0x0BC2, 0x2312): "t",  # Seagate Expansion: ATA PASS-THROUGH over UAS hangs it
    (0x0BC2, 0x3312): "t",  # Seagate Expansion: the same
    (0x0BC2, 0x331A): "j",  # Seagate Expansion: REPORT LUNS hangs it
    (0x0BC2, 0x3320): "t",  # Seagate Expansion
    (0x0BC2, 0xA003): "t",  # Seagate Backup Plus
    (0x0BC2, 0xA013): "t",  # Seagate Backup Plus
    (0x0BC2, 0xA0A4): "t",  # Seagate Backup Plus
    (0x0BC2, 0xAB20): "t",  # Seagate Backup Plus
    (0x0BC2, 0xAB21): "t",  # Seagate Backup Plus
    (0x0BC2, 0xAB2A): "t",  # Seagate Backup Plus Fast
    (0x13FD, 0x3940): "tr",  # Initio INIC-3069: ATA PASS-THROUGH hangs it, and its residues are wrong
    (0x152D, 0x0539): "f",  # JMicron JMS539: REPORT SUPPORTED OPERATION CODES hangs it
    (0x152D, 0x0567): "f",  # JMicron JMS567
    (0x2109, 0x0711): "t",  # VIA VL711
    (0x357D, 0x7788): "f",  # JMicron JMS566
    (0x4971, 0x1012): "u",  # Hitachi external disk: UAS does not work
    (0x4971, 0x8017): "f",  # SimpleTech external disk
}
