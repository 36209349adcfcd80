# Python, regular expressions over a large text.
# needs: python3
case $1 in
prepare)
    cat >work.py <<'END'
import re

lines, seed = [], 7
for n in range(120000):
    seed = (seed * 1103515245 + 12345) & 0x7FFFFFFF
    lines.append("2024-%02d-%02d host%d app[%d]: user=%x took %dms /path/%d/x" % (
        seed % 12 + 1, seed % 28 + 1, seed % 50, seed % 9999, seed, seed % 5000, seed % 300))
text = "\n".join(lines)
found = re.findall(r"(\d+)-(\d+)-(\d+) (host\d+) \w+\[(\d+)\]: user=([0-9a-f]+) took (\d+)ms (\S+)", text)
words = re.split(r"[\s\[\]:=/-]+", text)
text = re.sub(r"user=([0-9a-f]+)", lambda m: "user=" + m.group(1).upper() * 2, text)
print(len(found), len(words), len(text))
END
    ;;
run)
    export PYTHONHASHSEED=0
    $MEASURE python3 work.py
    ;;
esac
