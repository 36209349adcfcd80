# nginx with two workers under parallel clients: files, compression, a proxy in front of itself, reload under load.
# needs: nginx python3
mkdir -p www logs
perl -e 'for my $i (1 .. 40) { open my $f, ">", "www/$i.txt"; print $f "line $_ of file $i\n" for 1 .. $i * $i * 10 }'
sed "s|@DIR@|$PWD|g" "$HERE/nginx.conf" >nginx.conf
nginx -p "$PWD" -e "$PWD/logs/error.log" -c "$PWD/nginx.conf" 2>>served &
server=$!
python3 "$HERE/nginx.py" "$PWD/front.socket" &
clients=$!
sleep 0.7
kill -HUP $server
wait $clients
kill -QUIT $server
wait $server
echo "server ended with $?"
# The server makes its log its error output.
cat logs/error.log >>served
