"""The server confines itself: Landlock for files and connections, seccomp for system calls, and what a process may give
up. Linux only, by ctypes; nothing here imports anything of usbvfiod but its errors."""
