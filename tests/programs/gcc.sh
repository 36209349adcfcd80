# gcc: C that a script wrote, optimised, whole-program too; assembler, archiver and linker with it. The results run.
# needs: gcc perl
perl "$HERE/source.pl" 100 >generated.c
gcc -O2 -g -fdebug-prefix-map="$PWD"=. -Wall -c generated.c -o out/generated.o 2>>served
gcc -O2 -flto=2 -fno-ident generated.c "$HERE/main.c" -o program 2>>served
./program 2>>served
gcc -O1 -c "$HERE/main.c" -o main.o 2>>served
ar rcsD out/lib.a main.o out/generated.o 2>>served
gcc main.o out/generated.o -o program2 2>>served
./program2 2>>served
objdump -d out/generated.o 2>>served | sha1sum
