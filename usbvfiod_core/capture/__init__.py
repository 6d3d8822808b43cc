"""Recordings of what devices and drivers say to each other, in the formats of Wireshark and of Linux's usbmon."""
