# A search engine in Rust on the system's allocator, which is what is preloaded.
# needs: cargo
# prepare: always
case $1 in
prepare)
    cd "$ROOT"
    cargo build --quiet --profile bench --package slabwright-bench-programs --bin search
    cp "$TARGET/release/search" "$OLDPWD"
    ;;
run) $MEASURE ./search ;;
esac
