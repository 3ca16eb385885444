"""Loaded by every Python process that a test starts: no address but this machine's own can be reached."""

import socket

LOCAL = ("127.", "::1", "localhost", "0.0.0.0")


def refuse_outside(connect):
    """A `connect` that goes to this machine alone."""

    def guarded(self, address):
        host = address[0] if isinstance(address, tuple) else "localhost"  # a path is a socket of this machine
        if host and not str(host).startswith(LOCAL):
            raise OSError(f"the tests run without a network, and something asked for {host}")
        return connect(self, address)

    return guarded


if not getattr(socket.socket, "guarded_by_tests", False):
    socket.socket.connect = refuse_outside(socket.socket.connect)
    socket.socket.connect_ex = refuse_outside(socket.socket.connect_ex)
    socket.socket.guarded_by_tests = True
