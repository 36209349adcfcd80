# jemalloc, configured and made as its INSTALL.md says; operator new and delete are in it.
# package: tikv-jemalloc-sys
# needs: gcc g++ make
cp -R "$SOURCE/jemalloc" source
cp "$SOURCE/configure/configure" source
cd source
sh ./configure --with-version="${VERSION#*+}" --enable-doc=no --disable-static >configure.out
make -s -j "$JOBS" build_lib_shared >make.out
cp lib/libjemalloc.so.2 "$OUT"
