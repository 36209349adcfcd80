# memcached with four threads under clients that set, get, append and delete.
# needs: memcached python3
memcached -u "$(id -un)" -s "$PWD/socket" -t 4 -m 200 -v 2>>served &
server=$!
python3 "$HERE/memcached.py" "$PWD/socket"
kill -INT $server
wait $server || true
