//! The options and their defaults, as data. Reading them from an environment is the global instance's work.

/// Settings of an instance, fixed at its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Milliseconds a free pageblock or vmalloc range stays backed before it goes back to the system.
    pub decay_ms: u32,
    /// Most bytes the instance may use; 0 for what the machine allows.
    pub limit_bytes: u64,
    /// Whether defects end the program after their report.
    pub abort: bool,
    /// Whether pageblocks beyond the first megabytes are advised to be huge pages.
    pub huge_pages: bool,
    /// Whether the whole heap is checked at exit.
    pub verify: bool,
    /// Whether statistics are printed at exit.
    pub stats: bool,
    /// Whether restartable sequences may be used.
    pub rseq: bool,
}

impl Options {
    /// The defaults.
    pub const DEFAULT: Options = Options {
        decay_ms: 10_000,
        limit_bytes: 0,
        abort: true,
        huge_pages: true,
        verify: false,
        stats: false,
        rseq: true,
    };
}

impl Default for Options {
    fn default() -> Options {
        Options::DEFAULT
    }
}
