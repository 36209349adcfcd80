# Hashes, arrays and strings that grow.
# needs: perl
case $1 in
prepare)
    cat >work.pl <<'END'
my ($seed, %count, %by) = (1);
for my $i (1 .. 500000) {
    $seed = ($seed * 1103515245 + 12345) & 0x7fffffff;
    my $key = "key" . $seed % 70000;
    $count{$key}++;
    push @{$by{$seed % 3000}}, [$i, "value $seed"];
    @{$by{$seed % 3000}} = () if @{$by{$seed % 3000}} > 150;
    delete $count{"key" . ($seed >> 8) % 70000} if $i % 3 == 0;
}
my $text = join ",", map { "$_:$count{$_}" } sort keys %count;
$text =~ s/(\d+):(\d)/$2$1;/g for 1 .. 2;
print length $text, "\n";
END
    ;;
run)
    export PERL_HASH_SEED=0
    $MEASURE perl work.pl
    ;;
esac
