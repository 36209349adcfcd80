# A large database in memory: filled, indexed, joined, changed, half of it deleted.
# needs: sqlite3
case $1 in
prepare)
    cat >work.sql <<'END'
PRAGMA cache_size = -1000000;
CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, owner INTEGER, amount REAL, note BLOB);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 80000)
INSERT INTO item SELECT i, 'item ' || hex(i * 7919 % 65536), i * 31 % 5000, i * 0.25, zeroblob(i * 13 % 200) FROM n;
CREATE INDEX by_owner ON item(owner);
CREATE INDEX by_name ON item(name, amount);
CREATE TABLE total AS SELECT owner, sum(amount) AS amount, group_concat(name) AS names FROM item GROUP BY owner;
SELECT count(*) FROM item JOIN total USING (owner) WHERE item.amount > total.amount / 100;
UPDATE item SET name = name || '/' || owner WHERE id % 3 = 0;
DELETE FROM item WHERE id % 2 = 0;
VACUUM;
SELECT count(DISTINCT name) FROM item;
END
    ;;
run)
    $MEASURE sqlite3 :memory: '.read work.sql'
    ;;
esac
