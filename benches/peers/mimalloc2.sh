# mimalloc 2, as the release build of its CMakeLists.txt makes its shared library.
# package: libmimalloc-sys
# needs: gcc
source=$SOURCE/c_src/mimalloc/v2
gcc -shared -o "$OUT" -O3 -std=gnu11 -DNDEBUG -DMI_BUILD_RELEASE -DMI_MALLOC_OVERRIDE -DMI_SHARED_LIB -DMI_SHARED_LIB_EXPORT \
    -fPIC -fvisibility=hidden -ftls-model=initial-exec -fno-builtin-malloc -I "$source/include" "$source/src/static.c" -pthread
