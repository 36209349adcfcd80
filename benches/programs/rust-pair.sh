# Pairs in a Rust program, on slabwright inlined where its turn is; the others are preloaded.
# needs: cargo
# prepare: always
# group: small
case $1 in
prepare) sh "$ROOT/benches/rust/build.sh" pair ;;
run)
    if [ "$ALLOCATOR" = slabwright ]; then
        ./on-slabwright >"$RESULT"
    else
        env $VARIABLE LD_PRELOAD="$PRELOAD" ./on-system >"$RESULT"
    fi
    ;;
esac
