"""The core of usbvfiod: a vfio-user server with an xHCI controller whose devices come from plugins."""
