"""The xHCI host controller (xHCI 1.2 specification), without sockets, threads or an event loop of its own.

Guest memory, an `interrupt(vector)` callable and a `Loop` for timers go in; register accesses and device
completions drive it. Section numbers in this package are those of the xHCI specification unless said otherwise.
"""
