# All objects of a history packed anew, deltas computed by two threads.
# needs: git perl
case $1 in
prepare)
    git init --quiet --bare repository
    perl -e '
        my $seed = 3;
        sub random { $seed = ($seed * 1103515245 + 12345) & 0x7fffffff; $seed % $_[0] }
        my @files = map { join("", map { "line $_ of some text " . random(1000) . "\n" } 1 .. 60) } 1 .. 150;
        for my $commit (1 .. 400) {
            print "commit refs/heads/main\nmark :$commit\ncommitter A U Thor <a\@example.org> ", 1600000000 + $commit, " +0000\ndata 2\nx\n";
            for (1 .. 12) {
                my $file = random(150);
                my @lines = split /^/, $files[$file];
                $lines[random(scalar @lines)] = "changed in $commit: " . random(100000) . "\n";
                $files[$file] = join "", @lines;
                print "M 644 inline d", $file % 10, "/f$file\ndata ", length $files[$file], "\n", $files[$file], "\n";
            }
        }' | git -C repository fast-import --quiet
    ;;
run)
    export GIT_CONFIG_NOSYSTEM=1 HOME="$PWD"
    $MEASURE git -C repository -c pack.threads=2 repack -a -d -f -q --depth=50 --window=60
    git -C repository rev-list --objects --all | git -C repository cat-file --batch-check | cksum
    ;;
esac
