# Writes a C file of N functions that call one another, with loops, switches, structures and tables.
use strict;
use warnings;
my $n = $ARGV[0];
print "#include <stddef.h>\n#include <stdlib.h>\n#include <string.h>\n";
print "struct node { struct node *next; unsigned key; double weight; char name[24]; };\n";
for my $i (0 .. $n - 1) {
    my $table = join ", ", map { ($i * 31 + $_ * 17) % 251 } 0 .. 63;
    my $cases = join "\n", map { "        case $_: x = x * ${\($_ * 2 + 3)}u + table_$i\[(x >> $_) & 63]; break;" } 0 .. 15;
    my $call = $i ? "x ^= function_${\int($i / 2)}(x, depth - 1)" : "x ^= 0x9e3779b9u";
    print <<"END";
static const unsigned char table_$i\[64] = { $table };
unsigned function_$i(unsigned x, int depth)
{
    struct node *list = NULL;
    double sum = 0;
    if (depth <= 0) return x + $i;
    for (int k = 0; k < 12; k++) {
        switch ((x + k) & 15) {
$cases
        }
        struct node *node = malloc(sizeof *node);
        memset(node->name, (int)(x & 127), sizeof node->name);
        node->key = x ^ table_$i\[k];
        node->weight = x / 3.0 + k;
        node->next = list;
        list = node;
    }
    while (list) {
        struct node *next = list->next;
        sum += list->weight * list->name[list->key % sizeof list->name];
        x = (x << 5 | x >> 27) ^ list->key;
        free(list);
        list = next;
    }
    $call;
    return x + (unsigned)(long long)sum;
}
END
}
print "unsigned run(unsigned x)\n{\n";
print "    x = function_$_(x, 4);\n" for 0 .. $n - 1;
print "    return x;\n}\n";
