"use strict";
const { Worker, isMainThread, parentPort, workerData } = require("worker_threads");
const crypto = require("crypto");
const zlib = require("zlib");

function source(seed) {
    let state = seed >>> 0 || 1;
    return (limit) => {
        state ^= state << 13; state >>>= 0;
        state ^= state >>> 17;
        state ^= state << 5; state >>>= 0;
        return state % limit;
    };
}

function work(seed) {
    const random = source(seed + 1);
    const hash = crypto.createHash("sha256");
    const map = new Map();
    for (let i = 0; i < 60000; i++) {
        const key = "key" + random(20000);
        if (random(3) === 0) map.delete(key);
        else map.set(key, { i, text: "v".repeat(random(60)), list: [i, i * 2, i * 3] });
    }
    hash.update(JSON.stringify([...map.entries()].sort((a, b) => (a[0] < b[0] ? -1 : 1))));
    const kept = [];
    for (let i = 0; i < 1500; i++) {
        const buffer = Buffer.alloc(1 + random(100000), i & 255);
        if (kept.length > 100) kept.splice(random(100), 1);
        kept.push(buffer);
        if (i % 50 === 0) hash.update(buffer);
    }
    const text = Buffer.concat(kept.slice(0, 60));
    const packed = zlib.gzipSync(text, { level: 5 });
    if (!zlib.gunzipSync(packed).equals(text)) throw new Error("compression");
    hash.update(zlib.brotliCompressSync(text.subarray(0, 200000), { params: { [zlib.constants.BROTLI_PARAM_QUALITY]: 5 } }));
    hash.update(crypto.pbkdf2Sync("password", "salt", 20000, 64, "sha512"));
    return hash.digest("hex").slice(0, 24);
}

if (isMainThread) {
    (async () => {
        console.log("main", work(0));
        for (let round = 0; round < 2; round++) {
            const workers = [0, 1, 2, 3].map((n) => new Promise((resolve, reject) => {
                const array = new Float64Array(200000).fill(n + 0.5);
                const worker = new Worker(__filename, { workerData: { n, array }, transferList: [array.buffer] });
                worker.on("message", resolve);
                worker.on("error", reject);
            }));
            console.log("workers", JSON.stringify(await Promise.all(workers)));
        }
        const jobs = [];
        for (let i = 0; i < 40; i++)
            jobs.push(new Promise((resolve, reject) =>
                zlib.deflate(Buffer.alloc(300000, "chunk " + i), (error, data) => (error ? reject(error) : resolve(data.length)))));
        console.log("pool", (await Promise.all(jobs)).join());
        const big = [];
        for (let i = 0; i < 600000; i++) big.push({ a: i, b: "s" + i, c: [i] });
        console.log("heap", big.reduce((sum, o) => (sum + o.a + o.b.length + o.c[0]) % 1000003, 0));
    })();
} else {
    const { n, array } = workerData;
    parentPort.postMessage([n, array.length, array[77], work(n)]);
}
