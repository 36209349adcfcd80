# node: large heaps, buffers outside them, compression, crypto, worker threads that exchange memory.
# needs: node
node "$HERE/node.js" 2>>served
