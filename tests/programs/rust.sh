# A multi-threaded Rust program, compiled here (the linker runs on slabwright too) and run.
# needs: rustc gcc
rustc --edition 2021 -C opt-level=2 -C debuginfo=0 "$HERE/threads.rs" -o threads 2>>rustc.log
./threads 2>>served
