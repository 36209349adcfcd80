# Google's tcmalloc with pages of 8 KiB, its default, and what it needs of Abseil. It is per CPU only where restartable sequences
# are left to it.
# package: libtcmalloc-sys
# needs: g++ ar
# env: GLIBC_TUNABLES=glibc.pthread.rseq=0
source=$SOURCE/c_src
(
    find "$source/tcmalloc/tcmalloc" -name '*.cc' -o -name '*.S' | grep -v -e mock_ -e want_ -e aarch64 -e x86_64.S -e profile_
    cd "$source/abseil-cpp/absl"
    find "$PWD"/base "$PWD"/container "$PWD"/crc "$PWD"/debugging "$PWD"/hash "$PWD"/numeric "$PWD"/profiling "$PWD"/status \
        "$PWD"/strings "$PWD"/synchronization "$PWD"/time "$PWD"/types -name '*.cc' | grep -v -e _matchers
) >sources
export source
xargs -P "$JOBS" -I{} sh -euc 'g++ -c -O2 -std=c++17 -DNDEBUG -DTCMALLOC_INTERNAL_8K_PAGES -w -fPIC -ftls-model=initial-exec \
    -fno-builtin-malloc -I "$source/tcmalloc" -I "$source/abseil-cpp" "$1" -o "$(echo "$1" | tr / _).o"' - {} <sources
ar rc libabsl.a *abseil-cpp_absl*.o
g++ -shared -o "$OUT" *tcmalloc_tcmalloc_*.o libabsl.a -pthread
