//! Plots in SVG: for each group the time and the peak resident size of every allocator relative to slabwright's, and
//! lines for what grows: cost per operation with the number of live blocks or of threads, and the resident size over
//! time.

use std::fmt::Write as _;

use super::Cost;
use super::table::{PEAK, Row, TIME, groups};

const COLOURS: &[&str] = &["#4e79a7", "#f28e2b", "#76b7b2", "#59a14f", "#edc948", "#b07aa1", "#9c755f", "#bab0ac"];
const OWN_COLOUR: &str = "#d62728";

/// Slabwright, the last one, has a colour of its own.
fn colour(at: usize, names: &[&str]) -> &'static str {
    if at + 1 == names.len() { OWN_COLOUR } else { COLOURS[at % COLOURS.len()] }
}

/// What of a cost is shown.
type Of = fn(&Cost) -> f64;

/// Names of files and their text.
pub fn plots(rows: &[Row], names: &[&str]) -> Vec<(String, String)> {
    let mut plots = Vec::new();
    for group in groups(rows) {
        let rows: Vec<&Row> = rows.iter().filter(|row| row.group == group).collect();
        plots.push((group.to_owned(), bars(group, &rows, names)));
    }
    // Threads by CPU time: on two CPUs two threads take half as long as one without costing less.
    let costs: [(&str, &str, &str, Of); 2] = [
        ("live-", "live blocks", "ns per operation", |cost| cost.time),
        ("threads-", "threads", "ns of CPU time per operation", |cost| cost.cpu),
    ];
    for (prefix, what, y, of) in costs {
        let series = series(rows, names, prefix, of);
        if series.iter().any(|line| line.points.len() > 1) {
            let axes = Axes { x: what, y, logarithmic: true };
            plots.push((format!("{prefix}cost"), lines(&format!("Cost by {what}"), &axes, &series)));
        }
    }
    for row in rows {
        let series = over_time(row, names);
        if series.iter().any(|line| line.points.len() > 1) {
            let axes = Axes { x: "step", y: "resident MiB", logarithmic: false };
            plots.push((
                format!("{}-resident", row.name),
                lines(&format!("{}: resident size", row.name), &axes, &series),
            ));
        }
    }
    plots
}

struct Svg {
    text: String,
    width: f64,
    height: f64,
}

impl Svg {
    fn new(title: &str, width: f64, height: f64) -> Svg {
        let mut svg = Svg { text: String::new(), width, height };
        svg.label(width / 2.0, 20.0, "middle", &format!("<tspan font-size=\"15\">{title}</tspan>"));
        svg
    }

    fn label(&mut self, x: f64, y: f64, anchor: &str, text: &str) {
        writeln!(self.text, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>").unwrap();
    }

    fn rectangle(&mut self, x: f64, y: f64, width: f64, height: f64, colour: &str) {
        let place = format!("x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"");
        writeln!(self.text, "<rect {place} fill=\"{colour}\"/>").unwrap();
    }

    fn line(&mut self, points: &[(f64, f64)], colour: &str, width: f64) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let style = format!("fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"");
        writeln!(self.text, "<polyline points=\"{}\" {style}/>", points.join(" ")).unwrap();
    }

    fn legend(&mut self, y: f64, names: &[&str]) {
        for (at, name) in names.iter().enumerate() {
            let x = 20.0 + at as f64 * (self.width - 40.0) / names.len() as f64;
            self.rectangle(x, y - 9.0, 10.0, 10.0, colour(at, names));
            self.label(x + 14.0, y, "start", name);
        }
    }

    fn finish(self) -> String {
        let Svg { text, width, height } = self;
        let size = format!("width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\"");
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" {size} font-family=\"sans-serif\" font-size=\"11\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{text}</svg>\n"
        )
    }
}

/// Most and least that a bar shows, as a power of two around slabwright's.
const REACH: f64 = 3.0;

/// Bars to the right cost more than slabwright, bars to the left less, logarithmically.
fn bars(group: &str, rows: &[&Row], names: &[&str]) -> String {
    let peers = names.len() - 1;
    let (bar, left, panel, gap) = (7.0, 175.0, 360.0, 60.0);
    let block = peers as f64 * bar + 10.0;
    let height = 90.0 + rows.len() as f64 * block;
    let mut svg = Svg::new(
        &format!("{group}: relative to slabwright = 1, less is better"),
        left + 2.0 * panel + gap + 40.0,
        height,
    );
    svg.legend(42.0, names);
    for (panel_at, figure) in [&TIME, &PEAK].into_iter().enumerate() {
        let from = left + panel_at as f64 * (panel + gap);
        let place = |ratio: f64| from + panel * (ratio.log2().clamp(-REACH, REACH) + REACH) / (2.0 * REACH);
        svg.label(from + panel / 2.0, 62.0, "middle", figure.name);
        for power in -(REACH as i32)..=REACH as i32 {
            let ratio = f64::from(power).exp2();
            let shade = if power == 0 { OWN_COLOUR } else { "#dddddd" };
            svg.line(&[(place(ratio), 78.0), (place(ratio), height - 8.0)], shade, 1.0);
            svg.label(place(ratio), 75.0, "middle", &format!("{ratio}"));
        }
        for (row_at, row) in rows.iter().enumerate() {
            let top = 84.0 + row_at as f64 * block;
            if panel_at == 0 {
                svg.label(left - 28.0, top + block / 2.0, "end", &row.name);
            }
            let cells = row.medians(figure.of);
            let Some(own) = cells.last().copied().flatten().filter(|own| own.value > 0.0) else { continue };
            for (at, cell) in cells[..peers].iter().enumerate() {
                let Some(cell) = cell else { continue };
                let ratio = cell.value / own.value;
                let (one, end, y) = (place(1.0), place(ratio), top + at as f64 * bar);
                svg.rectangle(one.min(end), y, (end - one).abs().max(1.0), bar - 1.0, colour(at, names));
                // What reaches further says how far.
                if ratio.log2().abs() > REACH {
                    let anchor = if ratio > 1.0 { "start" } else { "end" };
                    let text = format!("<tspan font-size=\"8\">{ratio:.*}</tspan>", if ratio > 1.0 { 0 } else { 3 });
                    svg.label(end + if ratio > 1.0 { 2.0 } else { -2.0 }, y + bar - 1.0, anchor, &text);
                }
            }
        }
    }
    svg.finish()
}

/// A line of a plot.
struct Series<'a> {
    name: &'a str,
    points: Vec<(f64, f64)>,
}

struct Axes<'a> {
    x: &'a str,
    y: &'a str,
    /// Both.
    logarithmic: bool,
}

/// What workloads `PREFIX10`, `PREFIX10k`, … cost per operation, in ns.
fn series<'a>(rows: &[Row], names: &[&'a str], prefix: &str, of: Of) -> Vec<Series<'a>> {
    let mut all: Vec<Series> = names.iter().map(|name| Series { name, points: Vec::new() }).collect();
    for row in rows {
        let Some(x) = row.name.strip_prefix(prefix).and_then(number) else { continue };
        let cells = row.medians(|cost| of(cost) * 1e9 / cost.operations);
        for (line, cell) in all.iter_mut().zip(cells) {
            line.points.extend(cell.filter(|cell| cell.value.is_finite()).map(|cell| (x, cell.value)));
        }
    }
    all
}

/// `10`, `10k`, `10m`.
fn number(text: &str) -> Option<f64> {
    let (digits, factor) = match text.strip_suffix('k') {
        Some(digits) => (digits, 1e3),
        None => text.strip_suffix('m').map_or((text, 1.0), |digits| (digits, 1e6)),
    };
    digits.parse::<f64>().ok().map(|value| value * factor)
}

/// The medians of each sample of the resident size.
fn over_time<'a>(row: &Row, names: &[&'a str]) -> Vec<Series<'a>> {
    let steps = row.cells.iter().flatten().flatten().map(|cost| cost.resident.len()).min().unwrap_or(0);
    let mut all: Vec<Series> = names.iter().map(|name| Series { name, points: Vec::new() }).collect();
    for step in 0..steps {
        for (line, cell) in all.iter_mut().zip(row.medians(|cost| cost.resident[step] / 1024.0)) {
            line.points.extend(cell.map(|cell| (step as f64, cell.value)));
        }
    }
    all
}

fn lines(title: &str, axes: &Axes, series: &[Series]) -> String {
    let names: Vec<&str> = series.iter().map(|line| line.name).collect();
    let (left, top, width, height) = (60.0, 60.0, 760.0, 340.0);
    let mut svg = Svg::new(title, left + width + 30.0, top + height + 50.0);
    svg.legend(42.0, &names);
    let scale = |value: f64| if axes.logarithmic { value.max(f64::MIN_POSITIVE).log10() } else { value };
    let points = || series.iter().flat_map(|line| &line.points);
    let bounds = |values: Vec<f64>, floor: f64| {
        let low = values.iter().copied().fold(floor, f64::min);
        (low, values.iter().copied().fold(low + f64::MIN_POSITIVE, f64::max))
    };
    // A linear scale begins at nothing.
    let floor = if axes.logarithmic { f64::INFINITY } else { 0.0 };
    let (x_low, x_high) = bounds(points().map(|point| scale(point.0)).collect(), floor);
    let (y_low, y_high) = bounds(points().map(|point| scale(point.1)).collect(), floor);
    let x = |value: f64| left + width * (scale(value) - x_low) / (x_high - x_low).max(1e-9);
    let y = |value: f64| top + height * (1.0 - (scale(value) - y_low) / (y_high - y_low).max(1e-9));
    let mut ticks: Vec<f64> = points().map(|point| point.0).collect();
    ticks.sort_by(f64::total_cmp);
    ticks.dedup();
    for tick in ticks {
        svg.label(x(tick), top + height + 16.0, "middle", &format!("{tick}"));
    }
    for step in 0..=5 {
        let scaled = y_low + (y_high - y_low) * f64::from(step) / 5.0;
        let value = if axes.logarithmic { 10f64.powf(scaled) } else { scaled };
        svg.line(&[(left, y(value)), (left + width, y(value))], "#dddddd", 1.0);
        svg.label(left - 6.0, y(value) + 4.0, "end", &format!("{value:.0}"));
    }
    svg.label(left + width / 2.0, top + height + 36.0, "middle", axes.x);
    svg.label(8.0, top - 6.0, "start", axes.y);
    for (at, line) in series.iter().enumerate() {
        let points: Vec<(f64, f64)> = line.points.iter().map(|point| (x(point.0), y(point.1))).collect();
        svg.line(&points, colour(at, &names), if at + 1 == names.len() { 3.0 } else { 1.5 });
    }
    svg.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, times: &[f64]) -> Row {
        let cost =
            |time: &f64| Cost { time: *time, operations: 10.0, peak: 1.0, resident: vec![1.0, 2.0], ..Cost::default() };
        let cells = times.iter().map(|time| Ok(vec![cost(time)])).collect();
        Row { group: "group".to_owned(), name: name.to_owned(), cells }
    }

    #[test]
    fn a_plot_for_each_group_and_each_series() {
        let rows = [row("live-10k", &[1.0, 2.0]), row("live-1m", &[4.0, 2.0])];
        let plots = plots(&rows, &["peer", "slabwright"]);
        let names: Vec<&str> = plots.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["group", "live-cost", "live-10k-resident", "live-1m-resident"]);
        for (_, text) in &plots {
            assert!(
                text.starts_with("<svg ")
                    && text.ends_with("</svg>\n")
                    && !text.contains("NaN")
                    && !text.contains("inf")
            );
        }
    }

    #[test]
    fn a_bar_is_as_long_as_the_ratio() {
        let text = bars("group", &[&row("double", &[2.0, 1.0])], &["peer", "slabwright"]);
        // One doubling of six that the panel of 360 shows.
        assert!(text.contains("width=\"60.0\""), "{text}");
    }

    #[test]
    fn a_bar_that_is_cut_off_says_how_long_it_was() {
        let text = bars("group", &[&row("much", &[20.0, 1.0]), &row("little", &[0.05, 1.0])], &["peer", "slabwright"]);
        assert!(text.contains(">20</tspan>") && text.contains(">0.050</tspan>"), "{text}");
    }

    #[test]
    fn the_numbers_in_names() {
        assert_eq!((number("8"), number("10k"), number("2m"), number("x")), (Some(8.0), Some(1e4), Some(2e6), None));
    }
}
