# snmalloc, as the release build of its CMakeLists.txt makes `snmallocshim`.
# package: snmalloc-sys
# needs: g++
source=$SOURCE/upstream/src
g++ -shared -o "$OUT" -O3 -std=c++20 -DNDEBUG -DSNMALLOC_USE_CXX11_THREAD_ATEXIT_DIRECT -DSNMALLOC_USE_WAIT_ON_ADDRESS=1 \
    -DSNMALLOC_PTHREAD_ATFORK_WORKS -DSNMALLOC_PLATFORM_HAS_GETENTROPY -DSNMALLOC_HAS_LINUX_RANDOM_H -DSNMALLOC_HAS_LINUX_FUTEX_H \
    -DSNMALLOC_NO_REALLOCARRAY -DSNMALLOC_NO_REALLOCARR -DSNMALLOC_CHECK_LOADS=false -DSNMALLOC_PAGEID=false \
    '-DSNMALLOC_EXPORT=__attribute__((visibility("default")))' \
    -mcx16 -mprfchw -fPIC -fno-rtti -fvisibility=hidden -fomit-frame-pointer -ffunction-sections -ftls-model=initial-exec \
    -static-libstdc++ -I "$source" "$source/snmalloc/override/malloc.cc" "$source/snmalloc/override/new.cc" -pthread -latomic
