//! Collections in threads that hand their objects to each other. Prints sums that are the same in every run.

use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % limit
    }
    fn word(&mut self) -> String {
        (0..self.below(50)).map(|_| char::from(b'a' + self.below(26) as u8)).collect()
    }
}

fn mix(sum: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(sum, |sum, &b| (sum ^ u64::from(b)).wrapping_mul(0x100000001b3))
}

#[repr(align(256))]
struct Wide([u8; 256]);

fn work(seed: u64) -> u64 {
    let mut random = Random(seed);
    let mut sum = 14695981039346656037;
    let mut map: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let mut hashed: HashMap<String, Box<[u8]>> = HashMap::new();
    let mut deque = VecDeque::new();
    let mut heap = BinaryHeap::new();
    for i in 0..20_000 {
        let word = random.word();
        map.entry(word.chars().take(2).collect()).or_default().push(i);
        hashed.insert(word.clone(), vec![i as u8; random.below(3_000) as usize].into_boxed_slice());
        if i % 3 == 0 {
            if let Some(old) = deque.pop_front() {
                hashed.remove(&old);
            }
        }
        heap.push(random.below(1 << 20));
        deque.push_back(word);
    }
    map.retain(|key, _| key.len() != 1);
    for (key, values) in &map {
        sum = mix(sum, key.as_bytes()) ^ values.iter().sum::<u64>();
    }
    let total: usize = hashed.values().map(|v| v.len()).sum();
    while let Some(top) = heap.pop() {
        sum = sum.rotate_left(3) ^ top;
    }
    let wide: Vec<Box<Wide>> = (0..300).map(|i| Box::new(Wide([i as u8; 256]))).collect();
    assert!(wide.iter().all(|w| (&raw const **w).addr() % 256 == 0));
    let mut grown = Vec::new();
    for i in 0..3_000_000u64 {
        grown.push(i);
        if i % 1_000_000 == 0 {
            grown.shrink_to_fit();
        }
    }
    sum ^ total as u64 ^ wide[7].0[9] as u64 ^ grown.iter().sum::<u64>()
}

fn main() {
    let threads: Vec<_> = (0..8).map(|seed| thread::spawn(move || work(seed))).collect();
    for thread in threads {
        println!("{}", thread.join().unwrap());
    }
    let (send, receive) = mpsc::channel::<Vec<String>>();
    let receive = Arc::new(Mutex::new(receive));
    let consumers: Vec<_> = (0..3)
        .map(|_| {
            let receive = Arc::clone(&receive);
            thread::spawn(move || {
                let mut sum = 0u64;
                loop {
                    let Ok(batch) = receive.lock().unwrap().recv() else { return sum };
                    sum = batch.iter().fold(sum, |sum, text| sum.wrapping_add(mix(1, text.as_bytes())));
                }
            })
        })
        .collect();
    let producers: Vec<_> = (0..3)
        .map(|seed| {
            let send = send.clone();
            thread::spawn(move || {
                let mut random = Random(seed + 100);
                for _ in 0..400 {
                    send.send((0..100).map(|_| random.word()).collect()).unwrap();
                }
            })
        })
        .collect();
    drop(send);
    producers.into_iter().for_each(|thread| thread.join().unwrap());
    println!("{}", consumers.into_iter().fold(0u64, |sum, thread| sum.wrapping_add(thread.join().unwrap())));
    for round in 0..2_000 {
        let kept = thread::spawn(move || vec![round as u8; 10_000]).join().unwrap();
        assert!(kept.iter().all(|&b| b == round as u8));
    }
    println!("end");
}
