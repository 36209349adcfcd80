# Python, JSON written and read, with Python's own layer over malloc.
# needs: python3
case $1 in
prepare)
    cat >work.py <<'END'
import json

records = [
    {"id": n, "name": "user %d" % n, "tags": ["t%d" % (n * k % 101) for k in range(n % 9)],
     "address": {"street": "s" * (n % 40), "zip": n * 7919 % 100000}, "score": n * 1.25}
    for n in range(25000)
]
for round in range(4):
    text = json.dumps(records)
    records = json.loads(text)
    records[round]["name"] = text[:100000]
print(len(text))
END
    ;;
run)
    export PYTHONHASHSEED=0
    $MEASURE python3 work.py
    ;;
esac
