<?php
$lists = [];
for ($i = 0; $i < 100000; $i++)
    $lists['k' . $i * 7919 % 30011][] = str_repeat(chr(65 + $i % 26), $i % 60);
ksort($lists);
echo count($lists), ' ', md5(serialize($lists)), "\n";
echo count(json_decode(json_encode($lists), true)), "\n";

$text = str_repeat('the quick brown fox ', 20000);
echo preg_match_all('/(\w)(\w+)/', $text, $matches), ' ', strlen(implode('', $matches[2])), "\n";
echo strlen(gzuncompress(gzcompress($text))), ' ', iconv_strlen($text . 'ü', 'UTF-8'), "\n";

class Node { public $left; public $right; public $parent; }
function tree($depth, $parent = null) {
    $node = new Node;
    $node->parent = $parent;
    if ($depth) {
        $node->left = tree($depth - 1, $node);
        $node->right = tree($depth - 1, $node);
    }
    return $node;
}
function size($node) { return $node ? 1 + size($node->left) + size($node->right) : 0; }
// Cycles, which the collector finds.
for ($i = 0; $i < 5; $i++)
    echo size(tree(12)), "\n";
echo gc_collect_cycles() > 0 ? "collected\n" : "nothing to collect\n";

$document = new SplDoublyLinkedList;
for ($i = 0; $i < 50000; $i++)
    $document->push(new DateTime("2020-01-01 +$i minutes"));
echo $document->top()->format('c'), "\n";

for ($i = 0; $i < 4; $i++) {
    $child = pcntl_fork();
    if (!$child)
        exit(strlen(serialize(array_reverse($lists))) % 100);
    pcntl_waitpid($child, $status);
    echo pcntl_wexitstatus($status), "\n";
}
