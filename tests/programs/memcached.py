"""Clients of a memcached at a socket: each has its own keys, so that what they read is known."""

import random
import socket
import sys
import threading
import time
import zlib


class Client:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        for _ in range(100):
            try:
                self.socket.connect(path)
                break
            except OSError:
                time.sleep(0.1)
        self.stream = self.socket.makefile("rwb")

    def ask(self, line, data=None):
        self.stream.write(line.encode() + b"\r\n" + (data + b"\r\n" if data is not None else b""))
        self.stream.flush()
        return self.stream.readline().strip().decode()

    def get(self, key):
        head = self.ask(f"get {key}").split()
        if head == ["END"]:
            return None
        data = self.stream.read(int(head[3]) + 2)[:-2]
        self.stream.readline()
        return data


def work(path, index, results):
    client, source, model, sum = Client(path), random.Random(index), {}, 0
    for step in range(6_000):
        key = f"c{index}-{source.randrange(300)}"
        what = source.random()
        if what < 0.4:
            model[key] = bytes([step % 256]) * source.choice([10, 200, 3_000, 50_000])
            assert client.ask(f"set {key} 0 0 {len(model[key])}", model[key]) == "STORED"
        elif what < 0.5 and key in model and len(model[key]) < 100_000:
            model[key] += b"more"
            assert client.ask(f"append {key} 0 0 4", b"more") == "STORED"
        elif what < 0.6:
            assert client.ask(f"delete {key}") == ("DELETED" if model.pop(key, None) else "NOT_FOUND")
        else:
            value = client.get(key)
            assert value == model.get(key)
            sum = zlib.crc32(value or b"", sum)
    results[index] = sum


results = [None] * 8
threads = [threading.Thread(target=work, args=(sys.argv[1], index, results)) for index in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(results)
