# Python: threads, processes by fork and by spawn, big containers, text, JSON, C extensions.
# needs: python3
python3 "$HERE/python.py" 2>>served
# Python keeps small objects in pools of its own, unless it is told not to.
PYTHONMALLOC=malloc python3 "$HERE/python.py" 2>>served
