# A server with values of several sizes, most of which are then deleted or replaced by smaller ones. Its clients run on the C library.
# needs: redis-server redis-benchmark redis-cli
case $1 in
prepare) ;;
run)
    socket=$PWD/socket
    rm -f "$socket" clients
    $MEASURE redis-server --port 0 --unixsocket "$socket" --save "" --appendonly no --activedefrag no >log &
    tries=0
    until redis-cli -s "$socket" ping >ping 2>&1 && [ "$(cat ping)" = PONG ]; do
        tries=$((tries + 1))
        [ $tries -lt 200 ]
        sleep 0.05
    done
    client() { redis-benchmark -s "$socket" -P 32 -c 8 -q "$@" >>clients; }
    client -n 200000 -r 100000 -d 600 -t set
    client -n 200000 -r 100000 SET small:__rand_int__ value
    client -n 200000 -r 20000 LPUSH list:__rand_int__ some-element-of-a-list
    client -n 200000 -r 20000 HSET hash:__rand_int__ field:__rand_int__ text
    client -n 300000 -r 100000 DEL key:__rand_int__
    client -n 200000 -r 100000 -d 100 -t set
    redis-cli -s "$socket" shutdown nosave
    wait $!
    ;;
esac
