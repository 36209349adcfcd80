# Perl: hashes, strings, regular expressions, sorting, forks.
# needs: perl
perl "$HERE/perl.pl" 2>>served
