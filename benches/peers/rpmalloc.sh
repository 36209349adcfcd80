# rpmalloc 1.4, the version that there is a package of, with the options of its own `rpmallocwrap`.
# package: rpmalloc-sys
# needs: gcc
source=$SOURCE/rpmalloc/rpmalloc
gcc -shared -o "$OUT" -O3 -std=c11 -D_GNU_SOURCE -DNDEBUG -DENABLE_PRELOAD=1 -DENABLE_OVERRIDE=1 -w \
    -fPIC -fomit-frame-pointer -ftls-model=initial-exec -fno-builtin-malloc "$source/rpmalloc.c" -pthread -ldl
