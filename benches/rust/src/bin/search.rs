//! A search engine in small, as a workload: documents are made up, split into words, put into an inverted index by two
//! threads, whose parts are merged, and queried. Everything is the same in every run.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, DefaultHasher};

#[cfg(feature = "slabwright")]
#[global_allocator]
static ALLOCATOR: slabwright::Slabwright = slabwright::Slabwright;

/// Where a word stands: documents, each with its places in it.
type Postings = BTreeMap<u32, Vec<u32>>;
type Index = HashMap<String, Postings, BuildHasherDefault<DefaultHasher>>;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((u128::from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)) * u128::from(limit)) >> 64) as u64
    }

    /// A word, few of them often.
    fn word(&mut self) -> String {
        let rank = self.below(1000) * self.below(1000) / 50;
        let endings = ["", "s", "ed", "ing", "er", "ation"];
        format!("w{rank:x}{}", endings[self.below(6) as usize])
    }
}

fn document(number: u32) -> String {
    let mut random = Random(u64::from(number) + 1);
    let words: Vec<String> = (0..40 + random.below(160)).map(|_| random.word()).collect();
    words.join(" ")
}

fn index(documents: &[(u32, String)]) -> Index {
    let mut index = Index::default();
    for (number, text) in documents {
        for (place, word) in text.split(' ').enumerate() {
            let stem = word.trim_end_matches('s').to_owned();
            index.entry(stem).or_default().entry(*number).or_default().push(place as u32);
        }
    }
    index
}

fn query(index: &Index, words: &[String]) -> Vec<(u32, usize)> {
    let postings: Vec<&Postings> = words.iter().filter_map(|word| index.get(word)).collect();
    let Some((first, rest)) = postings.split_first() else { return Vec::new() };
    let all = first.iter().filter(|(number, _)| rest.iter().all(|other| other.contains_key(number)));
    let mut found: Vec<(u32, usize)> = all
        .map(|(number, places)| (*number, places.len() + rest.iter().map(|other| other[number].len()).sum::<usize>()))
        .collect();
    found.sort_by_key(|(number, score)| (std::cmp::Reverse(*score), *number));
    found.truncate(20);
    found
}

fn main() {
    let documents: Vec<(u32, String)> = (0..6000).map(|number| (number, document(number))).collect();
    let parts: Vec<Index> = std::thread::scope(|scope| {
        let halves: Vec<_> = documents.chunks(3000).map(|half| scope.spawn(|| index(half))).collect();
        halves.into_iter().map(|half| half.join().expect("an index")).collect()
    });
    let mut whole = Index::default();
    for part in parts {
        for (word, postings) in part {
            whole.entry(word).or_default().extend(postings);
        }
    }
    let mut random = Random(99);
    let answers: Vec<String> = (0..20000)
        .map(|_| {
            let words: Vec<String> = (0..1 + random.below(3)).map(|_| random.word()).collect();
            format!("{}: {:?}", words.join("+"), query(&whole, &words))
        })
        .collect();
    println!("{} words, {} bytes of answers", whole.len(), answers.iter().map(String::len).sum::<usize>());
}
