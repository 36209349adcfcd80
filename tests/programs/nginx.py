"""Clients of an nginx at a socket; prints a checksum of all bodies."""

import gzip
import socket
import sys
import threading
import time
import zlib


def fetch(path, name, compressed):
    for _ in range(100):
        try:
            link = socket.socket(socket.AF_UNIX)
            link.connect(path)
            break
        except OSError:
            link.close()
            time.sleep(0.1)
    accept = "Accept-Encoding: gzip\r\n" if compressed else ""
    link.sendall(f"GET {name} HTTP/1.1\r\nHost: h\r\n{accept}Connection: close\r\n\r\n".encode())
    with link, link.makefile("rb") as stream:
        reply = stream.read()
    head, body = reply.split(b"\r\n\r\n", 1)
    head = head.decode().lower()
    if "transfer-encoding: chunked" in head:
        whole, rest = b"", body
        while True:
            size, rest = rest.split(b"\r\n", 1)
            if int(size, 16) == 0:
                break
            whole, rest = whole + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        body = whole
    if "content-encoding: gzip" in head:
        body = gzip.decompress(body)
    return head.split("\r\n")[0], body


def work(path, index, results):
    sum, heads = 0, set()
    for step in range(150):
        number = 1 + (step * 7 + index) % 40
        name = ["/%d.txt", "/direct/%d.txt"][step % 2] % number
        head, body = fetch(path, name, step % 3 == 0)
        heads.add(head)
        sum = zlib.crc32(body, sum)
    results[index] = (sum, sorted(heads))


results = [None] * 6
threads = [threading.Thread(target=work, args=(sys.argv[1], index, results)) for index in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(results)
