// Every standard container, string, stream and smart pointer, filled, changed and emptied by several threads, which
// hand objects to each other. Prints sums that are the same in every run.
#include <algorithm>
#include <any>
#include <array>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <forward_list>
#include <functional>
#include <future>
#include <iostream>
#include <list>
#include <map>
#include <memory>
#include <memory_resource>
#include <mutex>
#include <new>
#include <optional>
#include <queue>
#include <random>
#include <regex>
#include <set>
#include <sstream>
#include <stack>
#include <stdexcept>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <valarray>
#include <variant>
#include <vector>

using std::size_t;
using std::string;
using std::uint64_t;

static uint64_t mix(uint64_t sum, uint64_t value) { return (sum ^ value) * 0x9e3779b97f4a7c15ull + (sum >> 29); }
static uint64_t mix(uint64_t sum, const string &text)
{
    for (unsigned char c : text) sum = mix(sum, c);
    return sum;
}

static string word(std::mt19937_64 &source)
{
    string text;
    for (size_t i = source() % 60; i > 0; i--) text += char('a' + source() % 26);
    return text;
}

struct alignas(64) Line {
    uint64_t words[8];
    static std::atomic<int> wrong;
    Line() : words{} { if (reinterpret_cast<uintptr_t>(this) % 64) wrong++; }
};
std::atomic<int> Line::wrong;

struct alignas(4096) Page {
    char bytes[4096];
};

struct Shape {
    virtual ~Shape() = default;
    virtual uint64_t area() const = 0;
};
struct Square : Shape {
    uint64_t side;
    explicit Square(uint64_t s) : side(s) {}
    uint64_t area() const override { return side * side; }
};
struct Polygon : Shape {
    std::vector<std::pair<uint64_t, uint64_t>> corners;
    explicit Polygon(uint64_t n) { for (uint64_t i = 0; i < n; i++) corners.emplace_back(i, n - i); }
    uint64_t area() const override { uint64_t s = 0; for (auto &c : corners) s += c.first * c.second; return s; }
};

static uint64_t sequences(std::mt19937_64 &source)
{
    std::vector<string> vector;
    std::deque<string> deque;
    std::list<string> list;
    std::forward_list<string> forward;
    for (int i = 0; i < 3000; i++) {
        string text = word(source);
        vector.push_back(text);
        if (i % 2) deque.push_back(text); else deque.push_front(text);
        list.insert(i % 3 ? list.begin() : list.end(), text);
        forward.push_front(text);
    }
    std::sort(vector.begin(), vector.end());
    list.sort();
    forward.reverse();
    vector.erase(vector.begin() + 100, vector.begin() + 1500);
    vector.insert(vector.begin(), 700, "again and again and again and again");
    vector.shrink_to_fit();
    deque.erase(deque.begin() + 10, deque.begin() + 2000);
    list.remove_if([](const string &text) { return text.size() % 2 == 0; });
    uint64_t sum = 1;
    for (auto &t : vector) sum = mix(sum, t);
    for (auto &t : deque) sum = mix(sum, t);
    for (auto &t : list) sum = mix(sum, t);
    for (auto &t : forward) sum = mix(sum, t);
    std::vector<bool> bits;
    for (int i = 0; i < 100000; i++) bits.push_back(source() % 3 == 0);
    sum = mix(sum, std::count(bits.begin(), bits.end(), true));
    std::valarray<double> values(1.5, 20000);
    values += std::sqrt(values);
    return mix(sum, uint64_t(values.sum()));
}

static uint64_t associative(std::mt19937_64 &source)
{
    std::map<string, std::vector<int>> map;
    std::multimap<int, string> multimap;
    std::set<string> set;
    std::multiset<int> multiset;
    std::unordered_map<string, std::unique_ptr<Shape>> hashed;
    std::unordered_multimap<int, string> hashed_multi;
    std::unordered_set<string> hashed_set;
    for (int i = 0; i < 4000; i++) {
        string text = word(source);
        map[text.substr(0, 2)].push_back(i);
        multimap.emplace(int(source() % 100), text);
        set.insert(text);
        multiset.insert(int(source() % 50));
        if (i % 2) hashed[text] = std::make_unique<Square>(i); else hashed[text] = std::make_unique<Polygon>(i % 40);
        hashed_multi.emplace(i % 7, text);
        hashed_set.insert(text);
        if (i % 5 == 0) { set.erase(set.begin()); hashed.erase(text); }
    }
    hashed.rehash(20011);
    map.erase(map.begin(), std::next(map.begin(), long(map.size() / 2)));
    auto node = set.extract(set.begin());
    node.value() += " renamed and so long that it does not fit into the string itself";
    set.insert(std::move(node));
    uint64_t sum = 2, total = 0;
    for (auto &[key, value] : map) sum = mix(mix(sum, key), value.size());
    for (auto &[key, value] : multimap) sum = mix(mix(sum, uint64_t(key)), value);
    for (auto &text : set) sum = mix(sum, text);
    for (int value : multiset) sum = mix(sum, uint64_t(value));
    for (auto &[key, shape] : hashed) total += shape->area() + key.size();
    for (auto &[key, text] : hashed_multi) total += uint64_t(key) * text.size();
    return mix(mix(sum, total), hashed_set.size());
}

static uint64_t others(std::mt19937_64 &source)
{
    uint64_t sum = 3;
    std::priority_queue<uint64_t> heap;
    std::stack<string> stack;
    for (int i = 0; i < 2000; i++) { heap.push(source() % 10000); stack.push(word(source)); }
    while (heap.size() > 10) { sum = mix(sum, heap.top()); heap.pop(); }
    while (!stack.empty()) { sum = mix(sum, stack.top()); stack.pop(); }
    std::ostringstream out;
    for (int i = 0; i < 3000; i++) out << i << ' ' << i / 7.0 << '\n';
    std::istringstream in(out.str());
    double value, all = 0;
    while (in >> value) all += value;
    sum = mix(sum, uint64_t(all));
    std::vector<std::variant<int, string, std::vector<int>>> variants;
    for (int i = 0; i < 500; i++) {
        if (i % 3 == 0) variants.emplace_back(i);
        else if (i % 3 == 1) variants.emplace_back(word(source));
        else variants.emplace_back(std::vector<int>(size_t(i), i));
    }
    for (auto &v : variants) sum = mix(sum, v.index());
    std::any any = string(300, 'x');
    sum = mix(sum, std::any_cast<string &>(any));
    std::optional<std::vector<Line>> lines(std::in_place, 100);
    lines->resize(1000);
    sum = mix(sum, lines->size());
    std::vector<std::unique_ptr<Page>> pages;
    for (int i = 0; i < 50; i++) {
        pages.push_back(std::make_unique<Page>());
        if (reinterpret_cast<uintptr_t>(pages.back().get()) % 4096) Line::wrong++;
    }
    std::function<uint64_t(uint64_t)> chain = [](uint64_t x) { return x; };
    for (int i = 0; i < 50; i++) chain = [chain, i, text = word(source)](uint64_t x) { return mix(chain(x), text) + uint64_t(i); };
    sum = mix(sum, chain(5));
    std::pmr::monotonic_buffer_resource arena;
    std::pmr::vector<std::pmr::string> inside(&arena);
    for (int i = 0; i < 500; i++) inside.emplace_back("a string of the arena that is long enough to be stored there");
    sum = mix(sum, inside.size());
    std::regex pattern("([a-z]+)-([0-9]+)");
    string replaced = std::regex_replace(string("abc-123 def-456 ghi-789"), pattern, "$2/$1");
    sum = mix(sum, replaced);
    for (int i = 0; i < 200; i++) {
        try {
            throw std::runtime_error("an error with a text that does not fit into the string itself " + std::to_string(i));
        } catch (const std::exception &error) {
            sum = mix(sum, string(error.what()));
        }
    }
    try {
        std::vector<char> huge(size_t(1) << 62);
        sum = mix(sum, huge.size());
    } catch (const std::bad_alloc &) {
        sum = mix(sum, 77);
    }
    char *nothrow = new (std::nothrow) char[size_t(1) << 62];
    sum = mix(sum, nothrow == nullptr);
    delete[] nothrow;
    return sum;
}

// Shared strings go from producers to consumers, which free what others allocated.
static uint64_t handed(int seed)
{
    std::queue<std::shared_ptr<string>> queue;
    std::mutex mutex;
    std::condition_variable there;
    bool done = false;
    std::atomic<uint64_t> total{0};
    std::vector<std::thread> consumers, producers;
    for (int i = 0; i < 3; i++)
        consumers.emplace_back([&] {
            for (;;) {
                std::unique_lock lock(mutex);
                there.wait(lock, [&] { return done || !queue.empty(); });
                if (queue.empty()) return;
                auto text = std::move(queue.front());
                queue.pop();
                lock.unlock();
                total += mix(9, *text);
            }
        });
    for (int i = 0; i < 3; i++)
        producers.emplace_back([&, i] {
            std::mt19937_64 source(unsigned(seed * 10 + i));
            for (int n = 0; n < 8000; n++) {
                auto text = std::make_shared<string>(word(source) + word(source));
                std::lock_guard lock(mutex);
                queue.push(std::move(text));
                there.notify_one();
            }
        });
    for (auto &thread : producers) thread.join();
    { std::lock_guard lock(mutex); done = true; }
    there.notify_all();
    for (auto &thread : consumers) thread.join();
    return total;
}

int main()
{
    std::vector<std::future<uint64_t>> results;
    for (unsigned i = 0; i < 8; i++)
        results.push_back(std::async(std::launch::async, [i] {
            std::mt19937_64 source(i);
            uint64_t sum = 0;
            for (int round = 0; round < 5; round++)
                sum = mix(mix(mix(sum, sequences(source)), associative(source)), others(source));
            return sum;
        }));
    for (auto &result : results) std::cout << result.get() << '\n';
    for (int seed = 0; seed < 3; seed++) std::cout << handed(seed) << '\n';
    std::cout << "misaligned " << Line::wrong << std::endl;
    return 0;
}
