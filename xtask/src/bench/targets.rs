//! What slabwright is to reach against the others, in one table, and what the rows of a run say to each of them.

use std::fmt::Write as _;

use super::reasons::Reasons;
use super::table::{Figure, LAST, Median, PEAK, Ratio, Row, TIME, geometric_mean, ratio, ratio_to};
use super::{Cost, OWN};

/// What is asked of some rows.
struct Target {
    what: &'static str,
    rows: Rows,
    check: Check,
    /// The most that is well.
    limit: f64,
    unit: &'static str,
}

enum Rows {
    All,
    Group(&'static str),
    Named(&'static [&'static str]),
}

enum Check {
    /// The ratio to the best peer, in each row. Where no more is asked than not to be behind, the spread is allowed
    /// for.
    Best(&'static Figure),
    /// The ratio to the best of the others where a peer that can do better than they is left out.
    BestBut(&'static Figure, &'static str),
    /// The geometric mean of the ratios to the best peer.
    Mean(&'static Figure),
    /// What there is more of than with a peer.
    Beyond(fn(&Cost) -> f64, &'static str),
    /// A figure of slabwright's own, and the one of all rows that it is about.
    Own(&'static Figure, fn(&Cost) -> f64),
    /// What an operation costs where it costs most, relative to what it costs in the first row and what the peer adds
    /// to that whose cost grows least: as much of it is the machine's caches.
    Flat(fn(&Cost) -> f64),
    /// Instructions of a pair.
    Instructions,
}

use Check::*;

const fn target(what: &'static str, rows: Rows, check: Check, limit: f64) -> Target {
    Target { what, rows, check, limit, unit: "" }
}

const TARGETS: &[Target] = &[
    target("no row slower than the best peer", Rows::All, Best(&TIME), 1.0),
    target("time, geometric mean", Rows::All, Mean(&TIME), 0.85),
    target("real programs not slower than any peer", Rows::Group("programs"), Best(&TIME), 1.0),
    target("random live sets", Rows::Named(&["random-10k", "random-100k", "random-1m"]), Best(&TIME), 0.8),
    target(
        "producer and consumer, asymmetric free",
        Rows::Named(&["producer-consumer", "asymmetric", "free-and-exit"]),
        Best(&TIME),
        0.6,
    ),
    target("8 threads", Rows::Named(&["threads-8"]), Best(&TIME), 0.8),
    target("a pair", Rows::Named(&["pair-64", "pair-1k", "pair-mixed"]), Best(&TIME), 1.0),
    Target {
        unit: " instructions",
        ..target("a pair of 64 bytes through C's interface", Rows::Named(&["pair-64"]), Instructions, 38.0)
    },
    target("huge blocks in changing sizes, touched", Rows::Named(&["huge-touched", "huge-changing"]), Best(&TIME), 0.9),
    target("growth to 1 GiB, touched", Rows::Named(&["grow-doubling", "grow-stepwise"]), Best(&TIME), 0.7),
    target(
        "the same, to the best of those that copy",
        Rows::Named(&["grow-doubling", "grow-stepwise"]),
        BestBut(&TIME, "glibc"),
        0.2,
    ),
    target("huge blocks of calloc, untouched", Rows::Named(&["calloc-huge"]), Best(&TIME), 1.0),
    target("page-sized blocks", Rows::Named(&["pages", "pages-touched", "pages-same"]), Best(&TIME), 1.0),
    target("thread churn", Rows::Named(&["thread-churn", "server"]), Best(&TIME), 0.9),
    target("no row with a higher peak than the best peer", Rows::All, Best(&PEAK), 1.0),
    target("peak, geometric mean", Rows::All, Mean(&PEAK), 0.9),
    target(
        "after a peak and ten idle seconds, to 1.1 of what lives and 4 MiB",
        Rows::Named(&["idle"]),
        Own(&LAST, |cost| cost.last / (1.1 * cost.live + 4096.0)),
        1.0,
    ),
    Target {
        unit: " KiB",
        ..target("a tiny program, beyond glibc's", Rows::Named(&["start"]), Beyond(|cost| cost.peak, "glibc"), 256.0)
    },
    target("start of a program", Rows::Named(&["start"]), Best(&TIME), 1.0),
    target(
        "cost flat from 10 000 to 10 million blocks, but for the caches",
        Rows::Named(&["live-10k", "live-100k", "live-1m", "live-10m"]),
        Flat(|cost| cost.time / cost.operations),
        1.0,
    ),
    target(
        "CPU time flat from 1 to 64 threads, but for the caches",
        Rows::Named(&["threads-1", "threads-2", "threads-4", "threads-8", "threads-16", "threads-32", "threads-64"]),
        Flat(|cost| cost.cpu / cost.operations),
        1.0,
    ),
    target(
        "an inlined Rust pair, to a cache of the thread",
        Rows::Named(&["rust-pair"]),
        Own(&TIME, |cost| cost.time / cost.bound),
        1.2,
    ),
];

/// What a row, or several together, came to.
struct Measured {
    value: f64,
    /// How much more than the limit may be chance, relative to it.
    tolerance: f64,
    row: String,
    peer: String,
}

impl Check {
    /// The name of what is compared, as reasons are kept by it.
    fn figure(&self) -> &'static str {
        match self {
            Best(figure) | BestBut(figure, _) | Mean(figure) => figure.name,
            Own(figure, _) => figure.name,
            Beyond(..) => PEAK.name,
            Flat(_) => TIME.name,
            Instructions => "instructions",
        }
    }
}

impl Target {
    fn names(&self, row: &Row) -> bool {
        match self.rows {
            Rows::All => true,
            Rows::Group(group) => row.group == group,
            Rows::Named(names) => names.contains(&row.name.as_str()),
        }
    }

    /// Whether all its rows are among `rows`; those that it does not name are the caller's to know.
    fn is_whole(&self, rows: &[&Row]) -> bool {
        match self.rows {
            Rows::Named(names) => names.len() == rows.len(),
            _ => true,
        }
    }

    /// What there is to compare with the limit, for one or for all of its rows; a row in which slabwright failed is
    /// beyond any.
    fn measure(&self, rows: &[&Row], names: &[&str], instructions: Option<u64>) -> Vec<Measured> {
        let own = |row: &Row, value: Option<f64>| {
            Some(Measured { value: value?, tolerance: 0.0, row: row.name.clone(), peer: String::new() })
        };
        let compared = |row: &Row, found: Option<Ratio>| {
            let Ratio { ratio: value, peer, .. } = *found.as_ref()?;
            let tolerance = if self.limit == 1.0 { found?.spread() } else { 0.0 };
            Some(Measured { value, tolerance, row: row.name.clone(), peer: peer.to_owned() })
        };
        let each = |row: &Row, found: Option<Measured>| match row.cells.last() {
            Some(Err(_)) => own(row, Some(f64::INFINITY)),
            _ => found,
        };
        let median = |row: &Row, of: fn(&Cost) -> f64, name: &str| {
            let at = names.iter().position(|other| *other == name)?;
            row.medians(of)[at].map(|median| median.value)
        };
        let rows = rows.iter().copied();
        match self.check {
            Best(figure) => rows.filter_map(|row| each(row, compared(row, ratio(row, figure, names)))).collect(),
            BestBut(figure, but) => {
                let found = |row| ratio_to(row, figure.of, names, |name| name != but);
                rows.filter_map(|row| each(row, compared(row, found(row)))).collect()
            }
            Mean(figure) => {
                let ratios: Vec<f64> = rows.filter_map(|row| Some(ratio(row, figure, names)?.ratio)).collect();
                let row = format!("{} rows", ratios.len());
                let mean = geometric_mean(&ratios);
                mean.map(|value| Measured { value, tolerance: 0.0, row, peer: String::new() }).into_iter().collect()
            }
            Beyond(of, peer) => {
                let beyond = |row: &Row| Some(median(row, of, OWN)? - median(row, of, peer)?);
                rows.filter_map(|row| each(row, own(row, beyond(row)))).collect()
            }
            Own(_, of) => rows.filter_map(|row| each(row, own(row, median(row, of, OWN)))).collect(),
            Flat(of) => flat(&rows.collect::<Vec<_>>(), of, names).into_iter().collect(),
            Instructions => rows.filter_map(|row| own(row, instructions.map(|count| count as f64))).collect(),
        }
    }
}

/// `Check::Flat`.
fn flat(rows: &[&Row], of: fn(&Cost) -> f64, names: &[&str]) -> Option<Measured> {
    let cells: Vec<Vec<Option<Median>>> = rows.iter().map(|row| row.medians(of)).collect();
    let (first, rest) = cells.split_first()?;
    // The row where it costs most, its cost there, and the cost in the first.
    let growth = |at: usize| {
        let costs = rest.iter().enumerate().map(|(row, cells)| Some((row + 1, cells[at]?)));
        let costs: Vec<(usize, Median)> = costs.collect::<Option<_>>()?;
        let (row, most) = costs.into_iter().max_by(|a, b| a.1.value.total_cmp(&b.1.value))?;
        Some((row, most, first[at]?))
    };
    let own = names.len().checked_sub(1)?;
    let (row, most, least) = growth(own)?;
    let peers = (0..own).filter_map(|at| growth(at).map(|(_, most, least)| (at, (most.value - least.value).max(0.0))));
    let (peer, added) = peers.min_by(|a, b| a.1.total_cmp(&b.1))?;
    let value = most.value / (least.value + added);
    let tolerance = most.spread + least.spread;
    Some(Measured { value, tolerance, row: rows[row].name.clone(), peer: names[peer].to_owned() })
}

/// What became of a target.
pub struct Verdict {
    what: &'static str,
    limit: String,
    measured: String,
    met: bool,
    /// Of the row that is farthest from it.
    worst: String,
    /// Why, where it is one row's.
    reason: String,
}

/// The targets of which `rows` say something. `instructions` are those of a pair.
pub fn verdicts(rows: &[Row], names: &[&str], instructions: Option<u64>, reasons: &Reasons) -> Vec<Verdict> {
    let verdict = |target: &Target| {
        let rows: Vec<&Row> = rows.iter().filter(|row| target.names(row)).collect();
        let measured = target.measure(&rows, names, instructions);
        let is_beyond = |one: &&Measured| one.value > target.limit * (1.0 + one.tolerance);
        let beyond = measured.iter().filter(is_beyond).count();
        let farthest = |one: &&Measured| (is_beyond(one), one.value);
        let worst =
            measured.iter().max_by(|a, b| farthest(a).partial_cmp(&farthest(b)).expect("no NaN is measured"))?;
        let digits = if target.unit.is_empty() { 2 } else { 0 };
        let mut text = format!("{:.digits$}{}", worst.value, target.unit);
        if worst.value.is_infinite() {
            text = "failed".to_owned();
        }
        if measured.len() > 1 {
            write!(text, ", {beyond} of {} rows beyond", measured.len()).unwrap();
        }
        if !target.is_whole(&rows) {
            text += ", not all rows were run";
        }
        let place = if worst.peer.is_empty() { String::new() } else { format!(" ({})", worst.peer) };
        Some(Verdict {
            what: target.what,
            limit: format!("{:.digits$}{}", target.limit, target.unit),
            measured: text,
            met: beyond == 0,
            worst: format!("{}{place}", worst.row),
            reason: match target.check {
                Mean(_) => String::new(),
                _ if beyond == 0 => String::new(),
                _ => reasons.of(&worst.row, target.check.figure()).to_owned(),
            },
        })
    };
    TARGETS.iter().filter_map(verdict).collect()
}

/// As a table in Markdown, those that are not met first.
pub fn report(verdicts: &[Verdict]) -> String {
    if verdicts.is_empty() {
        return String::new();
    }
    let met = verdicts.iter().filter(|verdict| verdict.met).count();
    let mut text = format!("\n### Targets: {met} of {} met\n\n", verdicts.len());
    text += "Ratios are to the best peer. For several rows it is the one farthest from the target that is shown.\n\n";
    text += "| target | at most | measured | row (peer) | | reason |\n|---|--:|--:|---|---|---|\n";
    let (met, short): (Vec<&Verdict>, Vec<&Verdict>) = verdicts.iter().partition(|verdict| verdict.met);
    for Verdict { what, limit, measured, met, worst, reason } in short.into_iter().chain(met) {
        let verdict = if *met { "met" } else { "**falls short**" };
        writeln!(text, "| {what} | {limit} | {measured} | {worst} | {verdict} | {reason} |").unwrap();
    }
    text
}

/// As comma-separated values.
pub fn csv(verdicts: &[Verdict]) -> String {
    let mut text = "target,at_most,measured,row,verdict,reason\n".to_owned();
    for Verdict { what, limit, measured, met, worst, reason } in verdicts {
        let verdict = if *met { "met" } else { "falls short" };
        let fields = [what, limit.as_str(), measured, worst, verdict, reason].map(quoted);
        writeln!(text, "{}", fields.join(",")).unwrap();
    }
    text
}

fn quoted(field: &str) -> String {
    if field.contains([',', '"']) { format!("\"{}\"", field.replace('"', "\"\"")) } else { field.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::super::table::Fault;
    use super::*;

    const NAMES: [&str; 3] = ["glibc", "mimalloc3", "slabwright"];

    /// Time, CPU time and peak are `figures`, and of a row with a name of a row of the bench.
    fn row(name: &str, figures: [f64; 3]) -> Row {
        let cost = |figure: f64| Cost { time: figure, cpu: figure, peak: figure, operations: 1.0, ..Cost::default() };
        let cells = figures.iter().map(|figure| Ok(vec![cost(*figure)])).collect();
        Row { group: "g".to_owned(), name: name.to_owned(), cells }
    }

    fn find(rows: &[Row], what: &str) -> Option<(bool, String)> {
        let found = verdicts(rows, &NAMES, Some(38), &Reasons::default());
        found.into_iter().find(|verdict| verdict.what == what).map(|verdict| (verdict.met, verdict.measured))
    }

    #[test]
    fn the_worst_row_decides() {
        let rows = [row("random-10k", [2.0, 1.0, 0.5]), row("random-100k", [2.0, 1.0, 0.9])];
        assert_eq!(
            find(&rows, "random live sets"),
            Some((false, "0.90, 1 of 2 rows beyond, not all rows were run".to_owned()))
        );
        assert!(find(&rows[..1], "random live sets").unwrap().0);
        assert!(find(&rows, "no row slower than the best peer").unwrap().0);
        assert_eq!(find(&rows, "8 threads"), None);
    }

    #[test]
    fn a_row_that_failed_is_no_row_that_is_met() {
        let mut row = row("threads-8", [2.0, 1.0, 0.5]);
        row.cells[2] = Err(Fault::Failed("crashed".to_owned()));
        assert_eq!(find(&[row], "8 threads"), Some((false, "failed".to_owned())));
    }

    #[test]
    fn those_that_copy_are_a_target_of_their_own() {
        let rows = [row("grow-doubling", [1.0, 4.0, 0.8]), row("grow-stepwise", [1.0, 5.0, 0.6])];
        assert!(!find(&rows, "growth to 1 GiB, touched").unwrap().0);
        assert!(find(&rows, "the same, to the best of those that copy").unwrap().0);
    }

    #[test]
    fn spread_counts_where_it_is_asked_not_to_be_behind() {
        let noisy = |from: f64| Ok((0..5).map(|at| Cost { time: from + f64::from(at), ..Cost::default() }).collect());
        let noisy = |name: &str| Row {
            group: "g".to_owned(),
            name: name.to_owned(),
            cells: vec![noisy(10.0), noisy(10.0), noisy(10.5)],
        };
        assert!(find(&[noisy("start")], "start of a program").unwrap().0);
        assert!(!find(&[noisy("threads-8")], "8 threads").unwrap().0);
    }

    #[test]
    fn figures_of_its_own() {
        let start = |beyond| row("start", [1000.0, 900.0, 1000.0 + beyond]);
        assert_eq!(find(&[start(256.0)], "a tiny program, beyond glibc's"), Some((true, "256 KiB".to_owned())));
        assert!(!find(&[start(257.0)], "a tiny program, beyond glibc's").unwrap().0);
        let idle = |last| {
            let mut row = row("idle", [1.0; 3]);
            row.cells.iter_mut().flatten().flatten().for_each(|cost| (cost.live, cost.last) = (10240.0, last));
            find(&[row], "after a peak and ten idle seconds, to 1.1 of what lives and 4 MiB").unwrap().0
        };
        assert!(idle(15360.0) && !idle(15361.0));
        let pair = |count| verdicts(&[row("pair-64", [1.0; 3])], &NAMES, count, &Reasons::default());
        let is_met =
            |count| pair(Some(count)).iter().any(|verdict| verdict.measured.ends_with(" instructions") && verdict.met);
        assert!(is_met(38) && !is_met(39));
        assert_eq!(pair(Some(38)).len(), pair(None).len() + 1);
    }

    #[test]
    fn what_caches_add_is_what_they_add_to_the_best_peer() {
        // The first adds 50, the second 40.
        let rows = |own: f64| [row("live-10k", [10.0, 5.0, 6.0]), row("live-10m", [60.0, 45.0, own])];
        let what = "cost flat from 10 000 to 10 million blocks, but for the caches";
        assert!(find(&rows(46.0), what).unwrap().0);
        assert!(!find(&rows(47.0), what).unwrap().0);
    }

    #[test]
    fn what_is_not_met_comes_first_and_fields_with_commas_are_quoted() {
        let reasons = Reasons::read("threads-8\ttime\tone, two\n").unwrap();
        let rows = [row("threads-8", [1.0, 1.0, 2.0])];
        let verdicts = verdicts(&rows, &NAMES, None, &reasons);
        let text = report(&verdicts);
        assert!(text.find("| 8 threads |").unwrap() < text.find("| no row with a higher").unwrap_or(usize::MAX));
        assert!(text.contains("| **falls short** | one, two |"));
        assert!(csv(&verdicts).contains("\n8 threads,0.80,2.00,threads-8 (glibc),falls short,\"one, two\"\n"));
    }

    #[test]
    fn every_row_that_a_target_names_is_there() {
        for target in TARGETS {
            if let Rows::Named(names) = target.rows {
                names.iter().for_each(|name| assert!(super::super::reasons::is_row(name), "{name}"));
            }
        }
    }
}
