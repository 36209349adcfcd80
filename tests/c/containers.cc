// The standard containers, strings, streams, exceptions and threads together.
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "check.h"

static std::string text(unsigned long number) {
    std::ostringstream out;
    out << "number " << number << std::string(number % 97, '.');
    return out.str();
}

static unsigned long work(unsigned seed) {
    uint64_t state = seed * 2654435761u + 1;
    std::map<unsigned long, std::string> map;
    std::unordered_map<std::string, unsigned long> back;
    std::deque<std::shared_ptr<std::vector<unsigned>>> queue;
    std::list<std::set<unsigned>> sets;
    unsigned long sum = 0;
    for (int i = 0; i < 8000; i++) {
        unsigned long number = next_random(&state) % 4000;
        map[number] = text(number);
        back[map[number]] = number;
        queue.push_back(std::make_shared<std::vector<unsigned>>(number % 300, (unsigned)number));
        if (queue.size() > 100)
            queue.pop_front();
        if (i % 100 == 0)
            sets.emplace_back();
        sets.back().insert((unsigned)number);
        if (sets.size() > 20)
            sets.pop_front();
        try {
            if (number % 13 == 0)
                throw std::runtime_error(text(number));
        } catch (const std::runtime_error &error) {
            sum += strlen(error.what());
        }
    }
    for (auto &[number, name] : map) {
        CHECK(back.at(name) == number);
        sum += number;
    }
    for (auto &vector : queue)
        for (unsigned value : *vector)
            CHECK(value % 300 == vector->size());
    return sum;
}

int main() {
    unsigned long expected[4], found[4];
    for (unsigned i = 0; i < 4; i++)
        expected[i] = work(i);
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < 4; i++)
        threads.emplace_back([i, &found] { found[i] = work(i); });
    for (auto &thread : threads)
        thread.join();
    for (unsigned i = 0; i < 4; i++)
        CHECK(expected[i] == found[i]);
    return 0;
}
