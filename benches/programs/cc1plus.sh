# The C++ compiler proper on a large preprocessed file.
# needs: g++
case $1 in
prepare)
    {
        for header in algorithm deque functional iostream list map memory regex set sstream string unordered_map vector; do
            echo "#include <$header>"
        done
        i=0
        while [ $i -lt 8 ]; do
            cat <<END
struct Item$i { int id; std::string name; std::vector<double> values; bool operator<(const Item$i &o) const { return id < o.id; } };
std::map<int, std::vector<Item$i>> table$i;
double work$i(const std::vector<std::string> &words)
{
    std::unordered_map<std::string, Item$i> items;
    std::set<Item$i> sorted;
    for (auto &word : words)
        items[word].values.push_back(word.size() * $i);
    for (auto &[key, item] : items)
        sorted.insert(item), table$i[item.id].push_back(item);
    double sum = 0;
    std::for_each(sorted.begin(), sorted.end(), [&](auto &item) { for (double v : item.values) sum += v; });
    return sum;
}
END
            i=$((i + 1))
        done
    } >input.cc
    g++ -E -std=c++17 input.cc -o input.ii
    ;;
run)
    $MEASURE "$(g++ -print-prog-name=cc1plus)" -quiet -O1 -std=c++17 -fpreprocessed input.ii -o output.s
    cksum <output.s
    ;;
esac
