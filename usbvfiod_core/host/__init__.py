"""What backends of real devices have in common: the host's sysfs, its hotplug events, and a device's life."""
