//! The table of variables in `README.md` is the one in the code.

use slabwright::config::{Options, PREFIX, TABLE};

#[test]
fn the_readme_lists_every_option_with_its_default() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let rows = readme.lines().filter_map(|line| line.strip_prefix(&format!("| `{PREFIX}")));
    let listed: Vec<(&str, &str)> = rows
        .map(|row| {
            let mut cells = row.split('|').map(str::trim);
            (cells.next().unwrap().trim_end_matches('`'), cells.next().unwrap())
        })
        .collect();
    let defaults = Options::default();
    let there: Vec<(&str, String)> =
        TABLE.iter().map(|option| (option.name, option.value(&defaults).to_string())).collect();
    let there: Vec<(&str, &str)> = there.iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert_eq!(listed, there);
}
