# The same search engine, but with slabwright as its `#[global_allocator]` where slabwright's turn is; the others are preloaded.
# needs: cargo
# prepare: always
case $1 in
prepare) sh "$ROOT/benches/rust/build.sh" search ;;
run)
    if [ "$ALLOCATOR" = slabwright ]; then
        export PRELOAD=
        $MEASURE ./on-slabwright
    else
        $MEASURE ./on-system
    fi
    ;;
esac
