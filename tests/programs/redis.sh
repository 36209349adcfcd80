# redis-server under redis-benchmark: large values, deletions, expiry, snapshots by fork, scripts.
# needs: redis-server redis-benchmark
socket=$PWD/socket
# A server that is asked for its own malloc's name would differ; the work does not.
redis-server --port 0 --unixsocket "$socket" --save '' --appendonly no --daemonize no --dir "$PWD" \
    --maxmemory 300mb --maxmemory-policy allkeys-lru --activedefrag no >server.log 2>>served &
server=$!
ask() { redis-cli -s "$socket" "$@"; }
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do ask ping 2>/dev/null | grep -q PONG && break; sleep 0.2; done
ask ping
redis-benchmark -s "$socket" -q -n 60000 -c 20 -P 8 -r 20000 -d 700 -t set,get,incr,lpush,rpush,lpop,sadd,hset,spop,zadd,mset \
    >benchmark.log 2>>served
redis-benchmark -s "$socket" -q -n 3000 -c 10 -r 500 -d 60000 -t set,get >>benchmark.log 2>>served
ask flushall
ask eval "for i = 1, 30000 do redis.call('set', 'key:' .. i, string.rep('x', i % 2000)) end return redis.call('dbsize')" 0
ask eval "for i = 1, 30000, 3 do redis.call('del', 'key:' .. i) end return redis.call('dbsize')" 0
ask eval "for i = 1, 20000 do redis.call('hset', 'hash:' .. i % 100, 'field' .. i, i) redis.call('zadd', 'sorted', i * 7 % 1000, 'm' .. i) end
    return redis.call('zcard', 'sorted')" 0
ask save
ask bgsave
while ask info persistence | grep -q rdb_bgsave_in_progress:1; do sleep 0.1; done
ask info persistence | tr -d '\r' | grep rdb_last_bgsave_status
digest=$(ask debug digest 2>/dev/null || true)
ask debug reload >/dev/null 2>&1 || true
test "$digest" = "$(ask debug digest 2>/dev/null || true)" && echo same after reload
ask dbsize
ask zrange sorted 0 5 withscores
ask memory doctor >/dev/null
ask shutdown nosave || true
wait $server
echo "server ended with $?"
