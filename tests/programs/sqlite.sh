# sqlite3: a large database in memory, one in a file with indices, updates, deletions and vacuum.
# needs: sqlite3
sqlite3 :memory: <"$HERE/sqlite.sql" 2>>served
sqlite3 file.db "pragma journal_mode=wal" 2>>served
sqlite3 file.db <"$HERE/sqlite.sql" 2>>served
sqlite3 file.db "vacuum; pragma integrity_check; select count(*), sum(length(body)) from item" 2>>served
sqlite3 file.db .dump 2>>served | sha1sum
