# Python, objects of the language: classes, dictionaries, lists, strings. Every object comes from malloc.
# needs: python3
case $1 in
prepare)
    cat >work.py <<'END'
class Account:
    def __init__(self, number, owner):
        self.number, self.owner, self.entries = number, owner, []

accounts = {n: Account(n, "owner %d" % (n % 997)) for n in range(40000)}
seed = 1
for step in range(300000):
    seed = (seed * 1103515245 + 12345) & 0x7FFFFFFF
    account = accounts[seed % 40000]
    account.entries.append((step, seed % 1000, "entry " + str(seed)))
    if len(account.entries) > 10:
        account.entries = account.entries[5:]
by_owner = {}
for account in accounts.values():
    by_owner.setdefault(account.owner, []).extend(str(e[1]) for e in account.entries)
print(sum(len("-".join(sorted(v))) for v in by_owner.values()))
END
    ;;
run)
    export PYTHONMALLOC=malloc PYTHONHASHSEED=0
    $MEASURE python3 work.py
    ;;
esac
