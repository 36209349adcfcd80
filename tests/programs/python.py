"""Work of many kinds, in threads and processes; everything it prints is the same in every run."""

import collections
import concurrent.futures
import ctypes
import decimal
import gc
import hashlib
import json
import multiprocessing
import os
import random
import re
import sqlite3
import threading
import zlib


def digest(value):
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def tree(depth):
    return (tree(depth - 1), tree(depth - 1)) if depth else None


def count(node):
    return 1 + count(node[0]) + count(node[1]) if node else 1


def words(seed, number):
    source = random.Random(seed)
    return ["".join(source.choices("abcdefghij", k=source.randint(1, 40))) for _ in range(number)]


def work(seed):
    """Strings, dictionaries, lists that grow, JSON, regular expressions, compression."""
    text = words(seed, 20_000)
    table = collections.Counter(word[:3] for word in text)
    joined = " ".join(text)
    vowels = len(re.findall(r"[aei]+", joined))
    packed = zlib.compress(joined.encode(), 6)
    assert zlib.decompress(packed).decode() == joined
    data = json.loads(json.dumps({word: [i, word[::-1], {"n": i / 7}] for i, word in enumerate(text)}))
    del text[::2]
    text.extend(words(seed + 1, 3_000))
    text.sort()
    return digest((sorted(table.items()), vowels, len(packed), len(data), text[:100], data.get(text[0])))


def churn(results, index):
    source, kept = random.Random(index), {}
    for step in range(60_000):
        key = source.randrange(500)
        if key in kept and source.random() < 0.5:
            block = kept.pop(key)
            assert block[0] == block[-1] == key % 256
        else:
            kept[key] = bytearray([key % 256]) * source.choice([16, 100, 600, 5_000, 70_000])
    results[index] = (len(kept), sum(map(len, kept.values())))


def child(connection):
    connection.send((work(7), count(tree(14))))
    connection.close()


def main():
    print("work", [work(seed) for seed in range(3)])
    print("tree", count(tree(18)))
    results = [None] * 8
    threads = [threading.Thread(target=churn, args=(results, index)) for index in range(8)]
    for thread in threads:
        thread.start()
    # Forks while the threads are in the middle of it.
    for _ in range(10):
        pid = os.fork()
        if pid == 0:
            ok = work(3) == work(3) and len(bytearray(10_000_000)) == 10_000_000
            os._exit(0 if ok else 1)
        print("forked", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    for thread in threads:
        thread.join()
    print("threads", results)
    for method in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        ours, theirs = context.Pipe()
        process = context.Process(target=child, args=(theirs,))
        process.start()
        print(method, ours.recv())
        process.join()
        print(method, process.exitcode)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        print("pool", pool.map(work, range(10, 18)))
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        print("executor", list(pool.map(work, range(20, 28))))
    base = sqlite3.connect(":memory:")
    base.execute("create table t (a integer primary key, b text, c blob)")
    base.executemany("insert into t values (?, ?, ?)", ((i, f"row {i}", b"x" * (i % 3_000)) for i in range(20_000)))
    base.execute("create index i on t (b)")
    print("sqlite", base.execute("select count(*), sum(length(c)), max(b) from t where b like '%7%'").fetchone())
    decimal.getcontext().prec = 2_000
    print("decimal", digest(decimal.Decimal(2).sqrt()), digest(hex(3**200_000)))
    # The C interface, called directly: contents survive moves.
    c = ctypes.CDLL(None)
    c.malloc.restype = c.realloc.restype = c.calloc.restype = ctypes.c_void_p
    c.realloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    c.free.argtypes = [ctypes.c_void_p]
    block, size = c.malloc(100), 100
    ctypes.memset(block, 0x5A, size)
    while size < 300_000_000:
        larger = size * 3
        block = c.realloc(block, larger)
        assert block % 16 == 0 and ctypes.string_at(block, 64) == ctypes.string_at(block + size - 64, 64) == b"Z" * 64
        ctypes.memset(block + size, 0x5A, larger - size)
        size = larger
    c.free(block)
    print("realloc", size)
    zeroed = c.calloc(5_000, 1_000)
    print("calloc", ctypes.string_at(zeroed, 5_000_000).count(0))
    c.free(zeroed)
    gc.collect()
    print("end")


if __name__ == "__main__":
    main()
