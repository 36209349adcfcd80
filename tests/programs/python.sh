# Python: threads, processes by fork and by spawn, big containers, text, JSON, C extensions.
# needs: python3
python3 "$HERE/python.py" 2>>served
