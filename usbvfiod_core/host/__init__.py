"""What every backend for real devices shares: finding them in the host, and what lies between endpoint 0 and a device.

Plugins import from here; the core itself needs none of it.
"""
