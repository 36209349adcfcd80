//! Tables in Markdown: what falls short, ratios to the best peer, and the figures behind them.

use std::fmt::{self, Write as _};
use std::time::Duration;

use super::Cost;
use super::reasons::Reasons;

/// A workload and what it cost under each allocator, slabwright last; or why there is nothing to say.
pub struct Row {
    pub group: String,
    pub name: String,
    pub cells: Vec<Result<Vec<Cost>, Fault>>,
}

/// Why an allocator has no figure in a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    Failed(String),
    /// It was ended after that time. It is not among those that the best is chosen from, as what it would have taken is
    /// not known.
    TooLong(Duration),
}

impl<E: fmt::Display> From<E> for Fault {
    fn from(error: E) -> Fault {
        Fault::Failed(error.to_string())
    }
}

impl Fault {
    /// For a table.
    fn short(&self) -> String {
        match self {
            Fault::Failed(_) => "failed".to_owned(),
            Fault::TooLong(limit) => format!("> {:.0} s", limit.as_secs_f64()),
        }
    }

    fn whole(&self) -> String {
        match self {
            Fault::Failed(why) => format!("failed: {why}"),
            Fault::TooLong(_) => format!("was ended: {}", self.short()),
        }
    }
}

/// What is compared.
pub struct Figure {
    pub name: &'static str,
    unit: &'static str,
    pub of: fn(&Cost) -> f64,
    /// Beginnings of the names of those whose best counts; all where empty.
    rivals: &'static [&'static str],
}

/// Those that memory is compared with: the ones that keep free memory within bounds by themselves, as programs that run
/// long need it.
const FRUGAL: &[&str] = &["mimalloc", "jemalloc", "tcmalloc"];

pub const TIME: Figure = Figure { name: "time", unit: "ms", of: |cost| cost.time * 1e3, rivals: &[] };
const CPU: Figure = Figure { name: "CPU time", unit: "ms", of: |cost| cost.cpu * 1e3, rivals: &[] };
pub const PEAK: Figure = Figure { name: "peak resident", unit: "MiB", of: |cost| cost.peak / 1024.0, rivals: FRUGAL };
pub const LAST: Figure =
    Figure { name: "resident at the end", unit: "MiB", of: |cost| cost.last / 1024.0, rivals: FRUGAL };
const FIGURES: &[Figure] = &[TIME, CPU, PEAK, LAST];

/// The value in the middle, and half the distance between the quartiles relative to it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Median {
    pub value: f64,
    pub spread: f64,
}

pub fn median(values: &[f64]) -> Median {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |part: f64| {
        let place = part * (sorted.len() - 1) as f64;
        let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
        low + (high - low) * place.fract()
    };
    let value = at(0.5);
    Median { value, spread: if value > 0.0 { (at(0.75) - at(0.25)) / 2.0 / value } else { 0.0 } }
}

impl Row {
    pub fn medians(&self, of: impl Fn(&Cost) -> f64) -> Vec<Option<Median>> {
        let cell = |costs: &Vec<Cost>| median(&costs.iter().map(&of).collect::<Vec<_>>());
        self.cells.iter().map(|costs| costs.as_ref().ok().filter(|costs| !costs.is_empty()).map(cell)).collect()
    }
}

/// Slabwright beside the best of the others.
pub struct Ratio<'a> {
    pub ratio: f64,
    own: Median,
    best: Median,
    pub peer: &'a str,
}

impl Ratio<'_> {
    /// What the ratio may be beyond 1 by chance.
    pub fn spread(&self) -> f64 {
        self.own.spread + self.best.spread
    }

    fn falls_short(&self) -> bool {
        self.ratio > 1.0 + self.spread()
    }
}

/// To the best of those that count for the figure.
pub fn ratio<'a>(row: &Row, figure: &Figure, names: &[&'a str]) -> Option<Ratio<'a>> {
    let is_rival = |name: &str| figure.rivals.is_empty() || figure.rivals.iter().any(|rival| name.starts_with(rival));
    // Where none of those runs, there are only the others to compare with.
    ratio_to(row, figure.of, names, is_rival).or_else(|| ratio_to(row, figure.of, names, |_| true))
}

/// To the best of the peers that `is_rival` names.
pub fn ratio_to<'a>(
    row: &Row,
    of: impl Fn(&Cost) -> f64,
    names: &[&'a str],
    is_rival: impl Fn(&str) -> bool,
) -> Option<Ratio<'a>> {
    let cells = row.medians(of);
    let (own, others) = cells.split_last()?;
    let own = (*own)?;
    let rivals = names.iter().zip(others).filter(|(name, _)| is_rival(name));
    let known = rivals.filter_map(|(name, cell)| Some((*name, (*cell)?)));
    let (peer, best) = known.min_by(|a, b| a.1.value.total_cmp(&b.1.value))?;
    let ratio = own.value / best.value;
    (ratio.is_finite() && ratio > 0.0).then_some(Ratio { ratio, own, best, peer })
}

pub fn geometric_mean(ratios: &[f64]) -> Option<f64> {
    (!ratios.is_empty()).then(|| (ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len() as f64).exp())
}

/// A row in one line, for who waits.
pub fn line(row: &Row, names: &[&str]) -> String {
    let shown = |figure: &Figure| {
        ratio(row, figure, names).map_or("-".to_owned(), |found| format!("{:.2} of {}", found.ratio, found.peer))
    };
    let mut text = format!("{:<24} time {:<22} peak {:<22}", row.name, shown(&TIME), shown(&PEAK));
    for (name, cell) in names.iter().zip(&row.cells) {
        if let Err(fault) = cell {
            write!(text, "\n    {name} {}", fault.whole()).unwrap();
        }
    }
    text
}

pub fn report(rows: &[Row], names: &[&str], reasons: &Reasons) -> String {
    let mut text = shortfalls(rows, names, reasons) + &ratios(rows, names);
    let all: Vec<&Row> = rows.iter().collect();
    for Figure { name, unit, of, .. } in FIGURES {
        text += &details(&format!("{name} ({unit})"), &all, of, names);
    }
    let holding: Vec<&Row> =
        rows.iter().filter(|row| row.cells.iter().flatten().flatten().any(|cost| cost.live > 0.0)).collect();
    if !holding.is_empty() {
        let beyond = |cost: &Cost| (cost.last - cost.live) / 1024.0;
        text += &details("resident at the end beyond what the program holds (MiB)", &holding, beyond, names);
    }
    text
}

/// The rows in which slabwright failed or a peer is ahead, the worst first.
fn shortfalls(rows: &[Row], names: &[&str], reasons: &Reasons) -> String {
    let mut text = "\n### Where slabwright falls short of the best peer by more than the spread\n\n".to_owned();
    for row in rows {
        if let Some(Err(fault)) = row.cells.last() {
            writeln!(text, "**{}** {}\n", row.name, fault.whole()).unwrap();
        }
    }
    let found = FIGURES
        .iter()
        .flat_map(|figure| rows.iter().filter_map(move |row| Some((row, figure, ratio(row, figure, names)?))));
    let mut behind: Vec<_> = found.filter(|(.., ratio)| ratio.falls_short()).collect();
    behind.sort_by(|a, b| b.2.ratio.total_cmp(&a.2.ratio));
    if behind.is_empty() {
        return text + "In no row that ran.\n";
    }
    text += "| workload | figure | slabwright | best peer | ratio | reason |\n|---|---|--:|--:|--:|---|\n";
    for (row, Figure { name, unit, .. }, Ratio { ratio, own, best, peer }) in behind {
        let (own, best, reason) = (shown(own, unit), shown(best, unit), reasons.of(&row.name, name));
        writeln!(text, "| {} | {name} | {own} | {best} ({peer}) | **{ratio:.2}** | {reason} |", row.name).unwrap();
    }
    text
}

fn shown(median: Median, unit: &str) -> String {
    let digits = if median.value < 10.0 { 2 } else { 1 };
    format!("{:.digits$} {unit} ±{:.0} %", median.value, median.spread * 100.0)
}

/// The ratios to the best peer, by workload and figure, and their geometric means.
fn ratios(rows: &[Row], names: &[&str]) -> String {
    let titles: Vec<&str> = FIGURES.iter().map(|figure| figure.name).collect();
    let mut text = format!(
        "\n### Ratios to the best peer\n\nBelow 1 slabwright is ahead. Memory is compared with {}.\n\n| workload | {} |\n|---|{}\n",
        FRUGAL.join(", "),
        titles.join(" | "),
        "--:|".repeat(FIGURES.len())
    );
    let mut mean = |label: &str, rows: &[&Row]| {
        let cell = |figure| {
            let ratios: Vec<f64> = rows.iter().filter_map(|row| Some(ratio(row, figure, names)?.ratio)).collect();
            geometric_mean(&ratios).map_or("-".to_owned(), |mean| format!("**{mean:.2}**"))
        };
        writeln!(text, "| **{label}** | {} |", FIGURES.iter().map(cell).collect::<Vec<_>>().join(" | ")).unwrap();
    };
    mean("geometric mean", &rows.iter().collect::<Vec<_>>());
    for group in groups(rows) {
        mean(&format!("geometric mean: {group}"), &rows.iter().filter(|row| row.group == group).collect::<Vec<_>>());
    }
    for row in rows {
        let cell = |figure| match ratio(row, figure, names) {
            Some(Ratio { ratio, peer, .. }) => format!("{ratio:.2} {peer}"),
            None => "-".to_owned(),
        };
        writeln!(text, "| {} | {} |", row.name, FIGURES.iter().map(cell).collect::<Vec<_>>().join(" | ")).unwrap();
    }
    text
}

/// The groups in the order they come.
pub fn groups(rows: &[Row]) -> Vec<&str> {
    let mut groups = Vec::new();
    for row in rows {
        if !groups.contains(&row.group.as_str()) {
            groups.push(&row.group);
        }
    }
    groups
}

/// One figure under every allocator.
fn details(title: &str, rows: &[&Row], of: impl Fn(&Cost) -> f64, names: &[&str]) -> String {
    let mut text = format!("\n### {title}\n\n| workload | {} |\n", names.join(" | "));
    writeln!(text, "|---|{}", "--:|".repeat(names.len())).unwrap();
    for row in rows {
        let cells = row.medians(&of).into_iter().zip(&row.cells).map(|(cell, found)| match (cell, found) {
            (Some(Median { value, spread }), _) => {
                format!("{value:.digits$} ±{:.0} %", spread * 100.0, digits = if value < 10.0 { 2 } else { 1 })
            }
            (None, Err(fault)) => fault.short(),
            (None, Ok(_)) => "-".to_owned(),
        });
        writeln!(text, "| {} | {} |", row.name, cells.collect::<Vec<_>>().join(" | ")).unwrap();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, group: &str, times: &[Option<f64>]) -> Row {
        let cell = |time: &Option<f64>| match time {
            Some(time) => Ok(vec![Cost { time: *time, cpu: *time, peak: *time, last: *time, ..Cost::default() }]),
            None => Err(Fault::Failed("crashed".to_owned())),
        };
        Row { group: group.to_owned(), name: name.to_owned(), cells: times.iter().map(cell).collect() }
    }

    #[test]
    fn medians_and_spread() {
        assert_eq!(median(&[3.0, 1.0, 2.0]).value, 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]).value, 2.5);
        assert_eq!(median(&[5.0]), Median { value: 5.0, spread: 0.0 });
        assert_eq!(median(&[1.0, 2.0, 3.0, 4.0, 5.0]), Median { value: 3.0, spread: 1.0 / 3.0 });
    }

    #[test]
    fn ratio_is_to_the_best_of_the_others() {
        let names = ["a", "b", "c", "slabwright"];
        let found = ratio(&row("w", "g", &[Some(4.0), None, Some(2.0), Some(3.0)]), &TIME, &names).unwrap();
        assert_eq!((found.ratio, found.peer), (1.5, "c"));
        assert!(ratio(&row("w", "g", &[Some(4.0), None, None, None]), &TIME, &names).is_none());
        assert!(ratio(&row("w", "g", &[None, None, None, Some(1.0)]), &TIME, &names).is_none());
    }

    #[test]
    fn memory_is_compared_with_the_frugal_where_one_runs() {
        let row = row("w", "g", &[Some(1.0), Some(4.0), Some(2.0)]);
        assert_eq!(ratio(&row, &PEAK, &["glibc", "mimalloc3", "slabwright"]).unwrap().ratio, 0.5);
        assert_eq!(ratio(&row, &PEAK, &["glibc", "other", "slabwright"]).unwrap().ratio, 2.0);
        assert_eq!(ratio(&row, &TIME, &["glibc", "mimalloc3", "slabwright"]).unwrap().ratio, 2.0);
    }

    #[test]
    fn each_group_is_named_once() {
        let rows = ["a", "b", "a"].map(|group| row("w", group, &[Some(1.0), Some(1.0)]));
        assert_eq!(groups(&rows), ["a", "b"]);
    }

    #[test]
    fn what_a_program_holds_is_not_counted_as_left_over() {
        let none = Reasons::default();
        let mut row = row("idle", "g", &[Some(1024.0), Some(3072.0)]);
        assert!(!report(std::slice::from_ref(&row), &["peer", "slabwright"], &none).contains("beyond"));
        row.cells.iter_mut().flatten().flatten().for_each(|cost| cost.live = 1024.0);
        assert!(report(&[row], &["peer", "slabwright"], &none).ends_with("| idle | 0.00 ±0 % | 2.00 ±0 % |\n"));
    }

    #[test]
    fn what_falls_short_comes_first_and_noise_does_not() {
        let names = ["peer", "slabwright"];
        let rows = [row("bad", "g", &[Some(1.0), Some(2.0)]), row("worse", "g", &[Some(1.0), Some(3.0)])];
        let reasons = Reasons::read("bad\ttime\tsuch and such\n").unwrap();
        let text = report(&rows, &names, &reasons);
        assert!(text.contains("| **2.00** | such and such |") && text.contains("| **3.00** | not found yet |"));
        assert!(text.find("| worse | time").unwrap() < text.find("| bad | time").unwrap());
        assert!(text.contains("| **geometric mean** | **2.45** |"));
        let noisy = |from: f64| (0..5).map(|at| Cost { time: from + f64::from(at), ..Cost::default() }).collect();
        let cells = vec![Ok(noisy(10.0)), Ok(noisy(11.0))];
        let text = report(&[Row { group: "g".to_owned(), name: "noise".to_owned(), cells }], &names, &reasons);
        assert!(text.contains("In no row that ran."));
        let failed = row("broken", "g", &[Some(1.0), None]);
        assert!(report(&[failed], &names, &reasons).contains("**broken** failed: crashed"));
    }

    #[test]
    fn what_took_too_long_says_how_long_and_is_no_peer_to_compare_with() {
        let mut row = row("hangs", "g", &[Some(3.0), None, Some(1.0)]);
        row.cells[1] = Err(Fault::TooLong(Duration::from_secs(12)));
        let names = ["a", "b", "slabwright"];
        assert_eq!(ratio(&row, &TIME, &names).unwrap().peer, "a");
        assert!(line(&row, &names).ends_with("\n    b was ended: > 12 s"));
        assert!(report(&[row], &names, &Reasons::default()).contains("| hangs | 3000.0 ±0 % | > 12 s | 1000.0 ±0 % |"));
    }
}
