//! What the kernel says of the test's own mappings.

/// What it says of the mapping at `at` under `name`.
pub fn mapping(at: usize, name: &str) -> String {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    for line in maps.lines() {
        if let Some(said) = line.strip_prefix(name) {
            if inside {
                return said.trim().to_string();
            }
        } else if let Some((start, end)) = line.split(' ').next().and_then(|range| range.split_once('-')) {
            let number = |text| usize::from_str_radix(text, 16).unwrap();
            inside = (number(start)..number(end)).contains(&at);
        }
    }
    panic!("nothing is mapped there");
}

/// Whether the mapping at `at` has `flag` among its `VmFlags`.
pub fn has_flag(at: usize, flag: &str) -> bool {
    mapping(at, "VmFlags:").split_whitespace().any(|f| f == flag)
}
