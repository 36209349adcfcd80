# g++ compiling a program that uses every standard container in threads, then that program.
# needs: g++
g++ -std=c++17 -O2 -Wall -fno-ident -c "$HERE/containers.cc" -o out/containers.o 2>compiler.log
g++ -pthread out/containers.o -o containers 2>>compiler.log
./containers 2>>served
