# Objects live in node's own heap; buffers, compiled code and the engine's structures come from malloc.
# needs: node
case $1 in
prepare)
    cat >work.js <<'END'
const zlib = require('zlib');
let seed = 1;
const random = n => (seed = (seed * 1103515245 + 12345) & 0x7fffffff) % n;
const records = new Map();
for (let i = 0; i < 150000; i++)
    records.set('r' + random(60000), { i, name: 'name ' + random(1e6), tags: Array.from({ length: random(6) }, (_, k) => 't' + k) });
const text = JSON.stringify([...records.values()]);
const parsed = JSON.parse(text);
const kept = [];
for (let i = 0; i < 3000; i++) {
    kept[random(300)] = Buffer.alloc(1000 + random(60000), i & 255);
    if (i % 10 === 0)
        zlib.deflateSync(Buffer.from(text.slice(random(text.length / 2), random(20000) + text.length / 2).slice(0, 40000)));
}
console.log(parsed.length, kept.length);
END
    ;;
run)
    $MEASURE node work.js
    ;;
esac
