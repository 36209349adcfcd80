# The same search engine, but with slabwright as its `#[global_allocator]` where slabwright's turn is; the others are preloaded.
# needs: cargo
# prepare: always
case $1 in
prepare)
    cd "$ROOT"
    cargo build --quiet --profile bench --package slabwright-bench-programs --bin search
    cp "$TARGET/release/search" "$OLDPWD/on-system"
    cargo build --quiet --profile bench --package slabwright-bench-programs --bin search --features slabwright
    cp "$TARGET/release/search" "$OLDPWD/on-slabwright"
    ;;
run)
    if [ "$ALLOCATOR" = slabwright ]; then
        export PRELOAD=
        $MEASURE ./on-slabwright
    else
        $MEASURE ./on-system
    fi
    ;;
esac
