// Pointers in 32 bits: a tree whose nodes lie below 4 GiB needs half the memory for its links.
/* rows: B6 C7 */
//> a node is 16 bytes
//> 100000 nodes, in order: yes
//> all below 4 GiB: yes
#define SLW_KERNEL_NAMES
#include <slabwright.h>

#include <stdint.h>
#include <stdio.h>

typedef uint32_t link_t; // an address below 4 GiB

struct node {
    link_t left, right;
    uint64_t key;
};

static struct kmem_cache *nodes;
static uintptr_t highest;

static struct node *at(link_t link) {
    return (struct node *)(uintptr_t)link;
}

static void insert(link_t *root, uint64_t key) {
    while (*root)
        root = key < at(*root)->key ? &at(*root)->left : &at(*root)->right;
    struct node *node = kmem_cache_zalloc(nodes, GFP_KERNEL);
    if (!node)
        return;
    node->key = key;
    *root = (link_t)(uintptr_t)node;
    highest = (uintptr_t)node > highest ? (uintptr_t)node : highest;
}

static uint64_t last;
static int in_order = 1, count;

static void walk(link_t link) {
    if (!link)
        return;
    walk(at(link)->left);
    in_order &= count == 0 || at(link)->key >= last;
    last = at(link)->key;
    count++;
    walk(at(link)->right);
}

int main(void) {
    nodes = kmem_cache_create("node32", sizeof(struct node), 0, SLAB_CACHE_DMA32, NULL);
    link_t root = 0;
    uint64_t random = 1;
    for (int n = 0; n < 100000; n++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        insert(&root, random >> 11);
    }
    walk(root);
    printf("a node is %zu bytes\n%d nodes, in order: %s\n", sizeof(struct node), count, in_order ? "yes" : "no");
    printf("all below 4 GiB: %s\n", highest < UINT64_C(1) << 32 ? "yes" : "no");
    return 0;
}
