#include <stdio.h>

unsigned run(unsigned x);

int main(void)
{
    unsigned x = 1;
    for (int i = 0; i < 20; i++)
        x = run(x);
    printf("%u\n", x);
    return 0;
}
