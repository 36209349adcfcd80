/*
 * The workloads in C++ of `cargo xtask bench`; what a run of this program prints is told in harness.h.
 */
#include "harness.h"
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

static std::string text(Random &random, size_t low, size_t high)
{
    return std::string(between(&random, low, high), char('a' + below(&random, 26)));
}

/* Maps from strings to strings: put in, looked up, changed, taken out. */
static void string_map()
{
    Random random = {20};
    std::unordered_map<std::string, std::string> hashed;
    std::map<std::string, std::string> sorted;
    for (int step = 0; step < 600000; step++) {
        std::string key = "customer/" + std::to_string(below(&random, 200000));
        switch (below(&random, 4)) {
        case 0:
            hashed.erase(key);
            sorted.erase(key);
            break;
        case 1:
            if (auto found = hashed.find(key); found != hashed.end())
                found->second += text(random, 1, 20);
            break;
        default:
            sorted[key] = hashed[key] = text(random, 5, 100);
        }
    }
}

/* A graph whose nodes own their edges: built, walked, changed, torn down. */
static void graph()
{
    struct Node {
        std::vector<size_t> edges;
        std::string label;
        size_t distance = 0;
    };
    enum { NODES = 150000 };
    for (int round = 0; round < 3; round++) {
        Random random = {21};
        std::vector<std::unique_ptr<Node>> nodes;
        for (size_t i = 0; i < NODES; i++) {
            nodes.push_back(std::make_unique<Node>());
            nodes[i]->label = "node " + text(random, 1, 30);
            for (size_t edges = below(&random, 12); edges > 0; edges--)
                nodes[i]->edges.push_back(below(&random, NODES));
        }
        std::deque<size_t> queue = {0};
        nodes[0]->distance = 1;
        while (!queue.empty()) {
            Node &node = *nodes[queue.front()];
            queue.pop_front();
            for (size_t edge : node.edges)
                if (nodes[edge]->distance == 0) {
                    nodes[edge]->distance = node.distance + 1;
                    queue.push_back(edge);
                }
        }
        for (size_t i = 0; i < NODES; i += 2)
            nodes[below(&random, NODES)] = std::make_unique<Node>();
    }
}

/* Documents like a parser makes them: a tree of values with names, copied and changed as a whole. */
struct Value {
    std::string name;
    std::vector<std::shared_ptr<Value>> items;
    std::map<std::string, std::string> attributes;
};

static std::shared_ptr<Value> grow(Random &random, int depth)
{
    auto value = std::make_shared<Value>();
    value->name = text(random, 3, 40);
    for (size_t i = below(&random, 4); i > 0; i--)
        value->attributes[text(random, 1, 12)] = text(random, 1, 60);
    for (size_t i = depth ? between(&random, 2, 6) : 0; i > 0; i--)
        value->items.push_back(grow(random, depth - 1));
    return value;
}

static std::shared_ptr<Value> copy(const Value &value)
{
    auto twin = std::make_shared<Value>(value);
    for (auto &item : twin->items)
        item = copy(*item);
    return twin;
}

static void documents()
{
    Random random = {22};
    std::list<std::shared_ptr<Value>> open;
    for (int step = 0; step < 100; step++) {
        open.push_back(step % 3 == 2 ? copy(*open.back()) : grow(random, 6));
        if (open.size() > 8)
            open.erase(std::next(open.begin(), below(&random, 8)));
    }
}

static const Workload WORKLOADS[] = {
    {"string-map", "containers", string_map},
    {"graph", "containers", graph},
    {"documents", "containers", documents},
};

int main(int argc, char **argv) { return run_workload(argc, argv, WORKLOADS, sizeof WORKLOADS / sizeof *WORKLOADS); }
