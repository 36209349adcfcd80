//! The options: a table of names, units, ranges and defaults, and the reading of their values. What reads the
//! environment is the machine; what is done with an option is the layer that it concerns.

use core::fmt::{self, Write};

use crate::types::Line;

/// Settings of an instance, fixed at its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Milliseconds after which memory that nobody wanted goes back to the system, at least half as many
    /// ([`crate::zone::Demand`]).
    pub decay_ms: u32,
    /// Bytes of free memory that stay backed in any case, in each of the page and the vmalloc layer.
    pub retain_bytes: u64,
    /// Most bytes the instance may use; 0 for what the machine allows.
    pub limit_bytes: u64,
    /// Whether defects end the program after their report.
    pub abort: bool,
    /// Whether huge pages are used where memory is filled, or likely to be.
    pub huge_pages: bool,
    /// Whether the whole heap is checked at exit.
    pub verify: bool,
    /// Whether statistics are printed at exit.
    pub stats: bool,
    /// Whether restartable sequences may be used.
    pub rseq: bool,
    /// Memory nodes to pretend to have; 0 for those of the system.
    pub fake_nodes: u32,
    /// Bytes kept populated for atomic requests, once there are such.
    pub reserve_bytes: u64,
}

impl Options {
    /// All zeroes, before any are known.
    pub const UNSET: Options = Options {
        decay_ms: 0,
        retain_bytes: 0,
        limit_bytes: 0,
        abort: false,
        huge_pages: false,
        verify: false,
        stats: false,
        rseq: false,
        fake_nodes: 0,
        reserve_bytes: 0,
    };

    /// The defaults.
    pub const DEFAULT: Options = Options {
        decay_ms: 1000,
        retain_bytes: 2 << 20,
        limit_bytes: 0,
        abort: true,
        huge_pages: true,
        verify: false,
        stats: false,
        rseq: true,
        fake_nodes: 0,
        reserve_bytes: 128 << 10,
    };
}

/// [`Options::DEFAULT`] as a static: each use of the constant is a copy, and a named one lies with what every program
/// reads.
pub(crate) static DEFAULTS: Options = Options::DEFAULT;

impl Default for Options {
    fn default() -> Options {
        DEFAULTS
    }
}

/// What all names of options begin with in an environment.
pub const PREFIX: &str = "SLABWRIGHT_";

/// The variable that asks for the list of options.
const HELP: &str = "HELP";

/// How a value is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `0`/`1`, also no/yes, off/on, false/true.
    Flag,
    /// A decimal number, or hexadecimal after `0x`.
    Number,
    /// A number of bytes; K, M, G, T behind it multiply by powers of 1024.
    Bytes,
}

/// One option.
pub struct OptionInfo {
    /// Its name without [`PREFIX`].
    pub name: &'static str,
    /// How its value is written.
    pub kind: Kind,
    /// Unit of the value; empty for a flag.
    pub unit: &'static str,
    /// Smallest value.
    pub min: u64,
    /// Largest value.
    pub max: u64,
    /// What it does, in one line.
    pub help: &'static str,
    get: fn(&Options) -> u64,
    set: fn(&mut Options, u64),
}

impl OptionInfo {
    /// The option's value in `options`; a flag is 0 or 1.
    pub fn value(&self, options: &Options) -> u64 {
        (self.get)(options)
    }
}

macro_rules! option {
    ($name:literal, flag $field:ident, $help:literal) => {
        OptionInfo {
            name: $name,
            kind: Kind::Flag,
            unit: "",
            min: 0,
            max: 1,
            help: $help,
            get: |o| o.$field as u64,
            set: |o, v| o.$field = v != 0,
        }
    };
    ($name:literal, $kind:ident $field:ident: $type:ty, $unit:literal, $max:expr, $help:literal) => {
        OptionInfo {
            name: $name,
            kind: Kind::$kind,
            unit: $unit,
            min: 0,
            max: $max as u64,
            help: $help,
            get: |o| o.$field as u64,
            set: |o, v| o.$field = v as $type,
        }
    };
}

/// All options.
pub static TABLE: &[OptionInfo] = &[
    option!("STATS", flag stats, "print statistics at exit"),
    option!("VERIFY", flag verify, "check the whole heap at exit; a violation ends the program with an abort"),
    option!("ABORT", flag abort, "end the program after the report of a double free or the like"),
    option!("LIMIT", Bytes limit_bytes: u64, "bytes", u64::MAX, "most memory the heap may use; 0 is no limit but the system's"),
    option!("RETAIN", Bytes retain_bytes: u64, "bytes", u64::MAX, "free memory that stays in any case"),
    option!("DECAY", Number decay_ms: u32, "ms", u32::MAX, "after how long free memory that nobody wanted goes back"),
    option!("HUGE_PAGES", flag huge_pages, "use huge pages where memory is filled, or likely to be"),
    option!("RSEQ", flag rseq, "use restartable sequences where the system has them"),
    option!("FAKE_NODES", Number fake_nodes: u32, "nodes", 4, "memory nodes to pretend to have, for tests; 0: those of the system"),
    option!("RESERVE", Bytes reserve_bytes: u64, "bytes", 1u64 << 32, "kept populated for GFP_ATOMIC once it is used"),
];

/// Further variables, whose value is text, by name and what they are for. Who needs them reads them.
pub static TEXTS: &[(&str, &str)] = &[("PROC", "directory to keep the reports in, as files in DIR/PID")];

/// Why a setting was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OptionError {
    /// There is no such option.
    Unknown,
    /// The value is not of the option's kind.
    Malformed,
    /// The value is beyond the option's range.
    OutOfRange,
}

/// Sets the option `name` (without [`PREFIX`]) to what `value` says.
///
/// # Errors
/// As [`OptionError`] says; `options` is unchanged then.
pub fn apply(options: &mut Options, name: &[u8], value: &[u8]) -> Result<(), OptionError> {
    let info = find(name).ok_or(OptionError::Unknown)?;
    let value = parse(info.kind, value)?;
    if value < info.min || value > info.max {
        return Err(OptionError::OutOfRange);
    }
    (info.set)(options, value);
    Ok(())
}

fn find(name: &[u8]) -> Option<&'static OptionInfo> {
    TABLE.iter().find(|info| info.name.as_bytes() == name)
}

fn parse(kind: Kind, text: &[u8]) -> Result<u64, OptionError> {
    match kind {
        Kind::Flag => flag(text).map(u64::from).ok_or(OptionError::Malformed),
        Kind::Number => number(text),
        Kind::Bytes => {
            let shift = match text.last().map(u8::to_ascii_uppercase) {
                Some(b'K') => 10,
                Some(b'M') => 20,
                Some(b'G') => 30,
                Some(b'T') => 40,
                _ => return number(text),
            };
            let count = number(&text[..text.len() - 1])?;
            count.checked_mul(1 << shift).ok_or(OptionError::OutOfRange)
        }
    }
}

fn flag(text: &[u8]) -> Option<bool> {
    let is = |words: &[&str]| words.iter().any(|w| text.eq_ignore_ascii_case(w.as_bytes()));
    if is(&["1", "yes", "on", "true"]) {
        Some(true)
    } else if is(&["0", "no", "off", "false"]) {
        Some(false)
    } else {
        None
    }
}

fn number(text: &[u8]) -> Result<u64, OptionError> {
    let (digits, radix) = match text {
        [b'0', b'x' | b'X', rest @ ..] => (rest, 16),
        _ => (text, 10),
    };
    if digits.is_empty() {
        return Err(OptionError::Malformed);
    }
    let mut value = 0u64;
    for &digit in digits {
        let digit = (digit as char).to_digit(radix).ok_or(OptionError::Malformed)?;
        value =
            value.checked_mul(radix as u64).and_then(|v| v.checked_add(digit as u64)).ok_or(OptionError::OutOfRange)?;
    }
    Ok(value)
}

/// Reads the options out of an environment, given as names and values. Names that do not begin with [`PREFIX`] are
/// passed over. `line` gets one line for each variable that is unknown or has a value that does not fit (the default
/// then stays), and the list of all options where `SLABWRIGHT_HELP` asks for it. Of a name given twice the first
/// counts, as in `getenv`.
pub fn from_environment<'a>(
    variables: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    line: &mut dyn FnMut(&str),
) -> Options {
    let mut options = DEFAULTS;
    let mut help = false;
    let mut seen = 0u64;
    const { assert!(TABLE.len() < 64) }
    for (full, value) in variables {
        let Some(name) = full.strip_prefix(PREFIX.as_bytes()) else { continue };
        if name == HELP.as_bytes() {
            help = flag(value).unwrap_or(true);
            continue;
        }
        if TEXTS.iter().any(|text| text.0.as_bytes() == name) {
            continue;
        }
        if let Some(index) = TABLE.iter().position(|info| info.name.as_bytes() == name) {
            if seen & 1 << index != 0 {
                continue;
            }
            seen |= 1 << index;
        }
        if let Err(error) = apply(&mut options, name, value) {
            warn(name, value, error, line);
        }
    }
    if help {
        list(&options, line);
    }
    options
}

fn warn(name: &[u8], value: &[u8], error: OptionError, line: &mut dyn FnMut(&str)) {
    let mut text = Line::new();
    let name = Printable(name);
    let value = Printable(value);
    let _ = match (error, find(name.0)) {
        (OptionError::Malformed, Some(info)) => {
            let wanted = match info.kind {
                Kind::Flag => "0 or 1",
                Kind::Number => "a number",
                Kind::Bytes => "a number, K, M, G or T may follow",
            };
            write!(text, "slabwright: {PREFIX}{name}={value} ignored: {wanted} is expected")
        }
        (OptionError::OutOfRange, Some(info)) => {
            write!(text, "slabwright: {PREFIX}{name}={value} ignored: not within {} to {}", info.min, info.max)
        }
        _ => write!(text, "slabwright: {PREFIX}{name} ignored: there is no such option ({PREFIX}{HELP}=1 lists them)"),
    };
    line(text.as_str());
}

/// Gives `line` the table with the values in `options`, a line for each option.
pub fn list(options: &Options, line: &mut dyn FnMut(&str)) {
    let mut text = Line::new();
    let _ = write!(text, "slabwright {}: options, their values and [defaults]", env!("CARGO_PKG_VERSION"));
    line(text.as_str());
    for info in TABLE {
        let mut text = Line::new();
        let value = info.value(options);
        let default = info.value(&DEFAULTS);
        let _ = write!(text, "{PREFIX}{}={value} [{default}]", info.name);
        if !info.unit.is_empty() {
            let _ = write!(text, " {}", info.unit);
        }
        while text.as_str().len() < 40 && text.write_char(' ').is_ok() {}
        let _ = write!(text, " {}", info.help);
        line(text.as_str());
    }
    for (name, help) in TEXTS {
        let mut text = Line::new();
        let _ = write!(text, "{PREFIX}{name}=DIR");
        while text.as_str().len() < 40 && text.write_char(' ').is_ok() {}
        let _ = write!(text, " {help}");
        line(text.as_str());
    }
}

/// Foreign bytes in a message: at most 40, no control characters.
#[derive(Clone, Copy)]
struct Printable<'a>(&'a [u8]);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &byte in self.0.iter().take(40) {
            f.write_char(if byte == b' ' || byte.is_ascii_graphic() { byte as char } else { '?' })?;
        }
        if self.0.len() > 40 { f.write_str("...") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::{String, ToString};
    use std::vec::Vec;

    fn read(variables: &[(&str, &str)]) -> (Options, Vec<String>) {
        let mut lines = Vec::new();
        let variables = variables.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes()));
        let options = from_environment(variables, &mut |line| lines.push(line.to_string()));
        (options, lines)
    }

    #[test]
    fn every_option_is_set_by_its_own_name_and_only_it_changes() {
        for info in TABLE {
            let other = if info.value(&Options::DEFAULT) == 1 { 0 } else { 1 };
            let mut options = Options::DEFAULT;
            apply(&mut options, info.name.as_bytes(), other.to_string().as_bytes()).unwrap();
            for each in TABLE {
                let expected = if each.name == info.name { other } else { each.value(&Options::DEFAULT) };
                assert_eq!(each.value(&options), expected, "{} after {}", each.name, info.name);
            }
        }
        let mut names: Vec<_> = TABLE.iter().map(|info| info.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), TABLE.len());
    }

    #[test]
    fn largest_values_fit_their_fields() {
        for info in TABLE {
            for value in [info.min, info.max] {
                let mut options = Options::DEFAULT;
                apply(&mut options, info.name.as_bytes(), value.to_string().as_bytes()).unwrap();
                assert_eq!(info.value(&options), value, "{}", info.name);
            }
            if let Some(beyond) = info.max.checked_add(1) {
                let mut options = Options::DEFAULT;
                assert!(apply(&mut options, info.name.as_bytes(), beyond.to_string().as_bytes()).is_err());
                assert_eq!(options, Options::DEFAULT);
            }
        }
    }

    #[test]
    fn values() {
        assert_eq!(parse(Kind::Bytes, b"64m"), Ok(64 << 20));
        assert_eq!(parse(Kind::Bytes, b"0x10K"), Ok(16 << 10));
        assert_eq!(parse(Kind::Bytes, b"3T"), Ok(3 << 40));
        assert_eq!(parse(Kind::Bytes, b"7"), Ok(7));
        assert_eq!(parse(Kind::Bytes, b"18446744073709551615"), Ok(u64::MAX));
        assert_eq!(parse(Kind::Bytes, b"18446744073709551616"), Err(OptionError::OutOfRange));
        assert_eq!(parse(Kind::Bytes, b"17179869184G"), Err(OptionError::OutOfRange));
        for bad in ["", "K", "1KK", " 1", "1 ", "-1", "+1", "0x", "x", "1.5", "1e3", "10B"] {
            assert_eq!(parse(Kind::Bytes, bad.as_bytes()), Err(OptionError::Malformed), "{bad:?}");
            assert_eq!(parse(Kind::Number, bad.as_bytes()), Err(OptionError::Malformed), "{bad:?}");
        }
        assert_eq!(parse(Kind::Number, b"1K"), Err(OptionError::Malformed));
        assert_eq!(parse(Kind::Flag, b"YES"), Ok(1));
        assert_eq!(parse(Kind::Flag, b"off"), Ok(0));
        for bad in ["", "2", "00", "y", "true "] {
            assert_eq!(parse(Kind::Flag, bad.as_bytes()), Err(OptionError::Malformed), "{bad:?}");
        }
    }

    #[test]
    fn a_bad_value_is_one_line_and_the_default() {
        let (options, lines) = read(&[("SLABWRIGHT_DECAY", "soon"), ("PATH", "/bin"), ("SLABWRIGHT_STATS", "1")]);
        assert_eq!(options, Options { stats: true, ..Options::DEFAULT });
        assert_eq!(lines, ["slabwright: SLABWRIGHT_DECAY=soon ignored: a number is expected"]);
        let (options, lines) = read(&[("SLABWRIGHT_DECAY", "4294967296")]);
        assert_eq!(options, Options::DEFAULT);
        assert_eq!(lines, ["slabwright: SLABWRIGHT_DECAY=4294967296 ignored: not within 0 to 4294967295"]);
    }

    #[test]
    fn an_unknown_name_is_one_line() {
        let (options, lines) = read(&[("SLABWRIGHT_COLOUR", "red"), ("SLABWRIGHT_", ""), ("SLABWRIGH", "x")]);
        assert_eq!(options, Options::DEFAULT);
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("slabwright: SLABWRIGHT_COLOUR ignored"), "{}", lines[0]);
    }

    #[test]
    fn foreign_text_stays_one_short_line() {
        let (_, lines) = read(&[("SLABWRIGHT_LIMIT", &"\n\x1b\u{e9}".repeat(1000)), (&"SLABWRIGHT_".repeat(99), "1")]);
        assert_eq!(lines.len(), 2);
        for line in lines {
            assert!(line.len() <= 200 && line.bytes().all(|b| b == b' ' || b.is_ascii_graphic()), "{line}");
        }
    }

    #[test]
    fn the_first_of_two_counts() {
        let (options, lines) = read(&[("SLABWRIGHT_DECAY", "5"), ("SLABWRIGHT_DECAY", "6")]);
        assert_eq!((options.decay_ms, lines.len()), (5, 0));
    }

    #[test]
    fn help_lists_every_option_with_its_value_uncut() {
        let (options, lines) = read(&[("SLABWRIGHT_HELP", "1"), ("SLABWRIGHT_LIMIT", "1M")]);
        assert_eq!(options.limit_bytes, 1 << 20);
        assert_eq!(lines.len(), TABLE.len() + TEXTS.len() + 1);
        assert!(lines.last().unwrap().starts_with("SLABWRIGHT_PROC=DIR"));
        for (info, line) in TABLE.iter().zip(&lines[1..]) {
            assert!(line.starts_with(&std::format!("SLABWRIGHT_{}={} [", info.name, info.value(&options))), "{line}");
            assert!(line.ends_with(info.help), "{line}");
        }
        assert!(read(&[("SLABWRIGHT_HELP", "0")]).1.is_empty());
    }
}
