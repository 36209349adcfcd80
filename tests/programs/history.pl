# Writes a stream for `git fast-import`: COMMITS commits that change FILES files.
use strict;
use warnings;
my ($commits, $files) = @ARGV;
my $state = 99;
sub rnd { $state = ($state * 1103515245 + 12345) & 0x7fffffff; return int($state / 65536) % $_[0]; }
my %text;
my $mark = 0;
for my $n (1 .. $commits) {
    my @changed = map { "file-" . rnd($files) . ".txt" } 1 .. 1 + rnd(3);
    my %blob;
    for my $name (@changed) {
        my $lines = $text{$name} ||= [ map { "line $_ of $name" } 1 .. 50 + rnd(400) ];
        splice @$lines, rnd(scalar @$lines), rnd(4), map { "line " . rnd(1000) . " of commit $n" } 1 .. rnd(8);
        push @$lines, "end $n";
        my $data = join("\n", @$lines) . "\n";
        $blob{$name} = ++$mark;
        print "blob\nmark :$mark\ndata ", length($data), "\n$data\n";
    }
    my $date = 1400000000 + $n * 3600;
    my $message = "commit $n\n";
    print "commit refs/heads/main\ncommitter c <c\@example.org> $date +0000\ndata ", length($message), "\n$message";
    print "M 100644 :$blob{$_} $_\n" for sort keys %blob;
    print "\n";
}
