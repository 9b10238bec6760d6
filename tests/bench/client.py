"""A client that logs in by SCRAM-SHA-256 and can do one thing at a time: for idle clients, and for sockets that are
handed on to a faster load generator once they are logged in."""

import base64
import functools
import hashlib
import hmac
import os
import socket
import struct

from servers import PASSWORD


@functools.cache
def salted(salt, iterations):
    """PBKDF2 once per verifier, not once per client."""
    return hashlib.pbkdf2_hmac("sha256", PASSWORD.encode(), salt, iterations)


def digest(key, text):
    return hmac.digest(key, text, "sha256")


def message(kind, body):
    return kind + struct.pack("!I", len(body) + 4) + body


class Client:
    """A logged-in session on `system`."""

    def __init__(self, system, tenant, database=None):
        self.socket = socket.create_connection(("127.0.0.1", system.port), 30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        fields = ["user", system.login(tenant), "database", database or system.database, ""]
        body = struct.pack("!I", 196608) + b"\0".join(f.encode() for f in fields) + b"\0"
        self.socket.sendall(struct.pack("!I", len(body) + 4) + body)
        self._authenticate()
        self.until_ready()

    def read(self):
        """The next message. An error of the server is ours."""
        while len(self.buffer) < 5 or len(self.buffer) < 1 + struct.unpack("!I", self.buffer[1:5])[0]:
            data = self.socket.recv(65536)
            if not data:
                raise RuntimeError("the server closed the connection")
            self.buffer += data
        end = 1 + struct.unpack("!I", self.buffer[1:5])[0]
        kind, body, self.buffer = self.buffer[:1], self.buffer[5:end], self.buffer[end:]
        if kind == b"E":
            raise RuntimeError(body.replace(b"\0", b" ").decode(errors="replace"))
        return kind, body

    def until_ready(self):
        while self.read()[0] != b"Z":
            pass

    def query(self, sql):
        self.socket.sendall(message(b"Q", sql.encode() + b"\0"))
        self.until_ready()

    def _authentication(self):
        kind, body = self.read()
        if kind != b"R":
            raise RuntimeError(f"unexpected message {kind!r} in a login")
        return struct.unpack("!I", body[:4])[0], body[4:]

    def _authenticate(self):
        method, body = self._authentication()
        if method == 0:
            return
        if method != 10 or b"SCRAM-SHA-256\0" not in body:
            raise RuntimeError(f"authentication method {method} is not SCRAM-SHA-256")
        nonce = base64.b64encode(os.urandom(18))
        bare = b"n=,r=" + nonce
        first = b"n,," + bare
        self.socket.sendall(message(b"p", b"SCRAM-SHA-256\0" + struct.pack("!I", len(first)) + first))
        _, challenge = self._authentication()
        parts = dict(part.split(b"=", 1) for part in challenge.split(b","))
        key = salted(base64.b64decode(parts[b"s"]), int(parts[b"i"]))
        client_key = digest(key, b"Client Key")
        last = b"c=biws,r=" + parts[b"r"]
        signature = digest(hashlib.sha256(client_key).digest(), b",".join([bare, challenge, last]))
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        self.socket.sendall(message(b"p", last + b",p=" + base64.b64encode(proof)))
        for expected in (12, 0):
            method, _ = self._authentication()
            if method != expected:
                raise RuntimeError("SCRAM ended in an unexpected way")

    def close(self):
        self.socket.close()
