use strict;
use warnings;
use Digest::SHA qw(sha1_hex);
use Storable qw(dclone freeze thaw);

$| = 1;
my $state = 12345;
sub rnd { $state = ($state * 1103515245 + 12345) & 0x7fffffff; return $state % $_[0]; }
sub word { join "", map { chr(97 + rnd(20)) } 1 .. 1 + rnd(30) }

# A dictionary of lists, then half of it gone, then filled with longer ones.
my %table;
for my $i (1 .. 150_000) { push @{ $table{ word() } }, $i, "value $i" }
print "keys ", scalar(keys %table), "\n";
my @gone = grep { length($_) % 2 } keys %table;
delete @table{@gone};
for my $i (1 .. 40_000) { $table{ word() . word() } = { n => $i, text => "x" x (rnd(300)) } }
print "digest ", sha1_hex(join ",", map { "$_=" . (ref $table{$_}) } sort keys %table), "\n";

# Strings that grow by one, and by doubling.
my $text = "";
$text .= word() . " " for 1 .. 200_000;
print "length ", length($text), " ", sha1_hex($text), "\n";
my $count = () = $text =~ /([aeiou])[^aeiou ]+\1/g;
print "matches $count\n";
(my $changed = $text) =~ s/(\w+) (\w+)/$2-$1/g;
print "changed ", sha1_hex($changed), "\n";
my $double = "ab";
$double .= $double while length($double) < 100_000_000;
print "double ", length($double), "\n";
undef $double;

# Deep copies and sorting.
my $deep = [ map { { id => $_, list => [ 1 .. $_ % 50 ], name => word() } } 1 .. 20_000 ];
my $copy = thaw(freeze(dclone($deep)));
my $sorted = join ",", map { $_->{name} } sort { $a->{name} cmp $b->{name} || $a->{id} <=> $b->{id} } @$copy;
print "sorted ", sha1_hex($sorted), "\n";

# Children that work on a copy of the heap.
for my $n (1 .. 8) {
    pipe(my $in, my $out) or die;
    my $pid = fork() // die;
    if (!$pid) {
        $_->{list} = [ map { $_ * $n } @{ $_->{list} } ] for @$deep;
        my $sum = 0;
        for (@$deep) { $sum += $_ for @{ $_->{list} } }
        print $out "$sum\n";
        close $out;
        exit 0;
    }
    close $out;
    print "child $n ", scalar(<$in>);
    waitpid $pid, 0;
    print "status $?\n";
}
my $sum = 0;
for (@$deep) { $sum += $_ for @{ $_->{list} } }
print "parent $sum\n";
