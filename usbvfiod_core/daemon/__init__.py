"""The process: its loop, its configuration, the devices it keeps plugged in, and the server that ties the parts."""
