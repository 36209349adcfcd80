# Pairs in a Rust program, on slabwright inlined where its turn is; the others are preloaded.
# needs: cargo
# prepare: always
# group: small
case $1 in
prepare)
    cd "$ROOT"
    cargo build --quiet --profile bench --package slabwright-bench-programs --bin pair
    cp "$TARGET/release/pair" "$OLDPWD/on-system"
    cargo build --quiet --profile bench --package slabwright-bench-programs --bin pair --features slabwright
    cp "$TARGET/release/pair" "$OLDPWD/on-slabwright"
    ;;
run)
    if [ "$ALLOCATOR" = slabwright ]; then
        ./on-slabwright >"$RESULT"
    else
        env $VARIABLE LD_PRELOAD="$PRELOAD" ./on-system >"$RESULT"
    fi
    ;;
esac
