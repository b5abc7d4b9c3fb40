//! What people see while they wait, and how numbers look.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use comfy_table::{ColumnConstraint, Width};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::settings::Global;
use crate::progress::{Progress, ProgressView};

/// How often a terminal is redrawn, and how often a log gets a line.
const REDRAW: Duration = Duration::from_millis(100);
const LOG_LINE: Duration = Duration::from_secs(60);
const LOG_LOOK: Duration = Duration::from_secs(1);
/// Nothing is shown of what takes no longer than this.
const PATIENCE: Duration = Duration::from_secs(1);

/// Shows an operation's progress until dropped.
pub struct Screen {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Screen {
    /// Starts showing, unless the settings say not to.
    pub fn start(global: &Global, progress: Progress) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        if global.quiet || global.no_progress || (global.json && !std::io::stderr().is_terminal()) {
            return Self { stop, thread: None };
        }
        let terminal = std::io::stderr().is_terminal();
        let thread = {
            let stop = stop.clone();
            std::thread::spawn(move || if terminal { draw(&progress, &stop) } else { log(&progress, &stop) })
        };
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

fn draw(progress: &Progress, stop: &AtomicBool) {
    let started = Instant::now();
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = |template: &str| ProgressStyle::with_template(template).expect("the template is one of those below");
    let mut pace = Pace::start();
    while !stop.load(Relaxed) {
        if started.elapsed() > PATIENCE {
            let view = progress.view();
            if pace.begins_anew(&view) {
                bar.reset_eta();
            }
            bar.set_message(view.doing.clone());
            if view.bytes_total > 0 {
                bar.set_style(style(
                    "{elapsed_precise} [{bar:16}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} eta {eta} \
                     {wide_msg}",
                ));
                bar.set_length(view.bytes_total.max(view.bytes));
                bar.set_position(view.bytes);
            } else if view.bytes > 0 {
                bar.set_style(style("{elapsed_precise} {spinner} {decimal_bytes} {decimal_bytes_per_sec} {wide_msg}"));
                bar.set_position(view.bytes);
            } else if view.items_total > 0 {
                bar.set_style(style("{elapsed_precise} [{bar:16}] {pos}/{len} eta {eta} {wide_msg}"));
                bar.set_length(view.items_total.max(view.items));
                bar.set_position(view.items);
            } else {
                bar.set_style(style("{elapsed_precise} {spinner} {wide_msg}"));
            }
            bar.tick();
        }
        std::thread::park_timeout(REDRAW);
    }
    bar.finish_and_clear();
}

fn log(progress: &Progress, stop: &AtomicBool) {
    let mut last = Instant::now();
    let mut pace = Pace::start();
    while !stop.load(Relaxed) {
        // Looked at more often than written, so that the beginning of a phase is not missed by much.
        std::thread::park_timeout(LOG_LOOK);
        let view = progress.view();
        pace.begins_anew(&view);
        if last.elapsed() >= LOG_LINE {
            last = Instant::now();
            eprintln!("vault: {}", log_line(&view, pace.since.elapsed()));
        }
    }
}

/// When the work that the counters count began.
struct Pace {
    since: Instant,
    bytes: u64,
    items: u64,
}

impl Pace {
    fn start() -> Self {
        Self { since: Instant::now(), bytes: 0, items: 0 }
    }

    /// Counters that go back belong to the next phase.
    fn begins_anew(&mut self, view: &ProgressView) -> bool {
        let anew = view.bytes < self.bytes || view.items < self.items;
        (self.bytes, self.items) = (view.bytes, view.items);
        if anew {
            self.since = Instant::now();
        }
        anew
    }
}

/// A line for a log: what is going on, how far it is, how fast, and how long it will take.
fn log_line(view: &ProgressView, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64().max(0.001);
    let (done, total, rate) = if view.bytes > 0 || view.bytes_total > 0 {
        let rate = (view.bytes as f64 / seconds) as u64;
        let total = (view.bytes_total > 0).then(|| format!(" of {}", size(view.bytes_total)));
        (size(view.bytes), total, format!(", {}/s", size(rate)))
    } else {
        let total = (view.items_total > 0).then(|| format!(" of {}", count(view.items_total)));
        (count(view.items), total, String::new())
    };
    let (at, end) = if view.bytes_total > 0 { (view.bytes, view.bytes_total) } else { (view.items, view.items_total) };
    let left = match at {
        0 => String::new(),
        _ if end <= at => String::new(),
        _ => format!(", {} left", clock(seconds * (end - at) as f64 / at as f64)),
    };
    format!("{}: {done}{}{rate}{left}", view.doing, total.unwrap_or_default())
}

/// `1:02:03`, or `2:03` for less than an hour.
fn clock(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

/// Bytes for people: `93.8 MB`.
pub fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().si().to_string()
}

/// Large numbers with thin spaces left out and commas in: `3,000,000`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A table as all commands show it: no frame, two spaces between columns.
pub fn table(header: &[&str]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_content_arrangement(comfy_table::ContentArrangement::Disabled);
    table.set_header(header.iter().map(|cell| cell.to_uppercase()));
    table
}

/// `1 item`, `3,000 items`.
pub fn many(number: u64, thing: &str) -> String {
    format!("{} {thing}{}", count(number), if number == 1 { "" } else { "s" })
}

/// Columns whose words may break, where a terminal is too narrow for a table, and how wide they stay.
const BREAKABLE: [(&str, usize); 8] = [
    ("TIME", 10),
    ("NAME", 8),
    ("HOST", 6),
    ("TAGS", 6),
    ("LABEL", 12),
    ("TABLE", 16),
    ("WHY", 12),
    ("ALONE, STORED", 8),
];

/// A table as it is printed: without the spaces at the ends of its lines, and no wider than the terminal, if it goes there.
pub fn lines_of(table: &comfy_table::Table) -> String {
    let terminal = std::io::stdout().is_terminal().then(|| table.width()).flatten();
    fitted(table, terminal.map(usize::from))
}

fn fitted(table: &comfy_table::Table, columns: Option<usize>) -> String {
    let text = trimmed(&table.to_string());
    let fits = |text: &str| columns.is_none_or(|columns| text.lines().all(|line| line.chars().count() <= columns));
    if fits(&text) {
        return text;
    }
    let mut narrow = table.clone();
    for (at, column) in narrow.column_iter_mut().enumerate() {
        let cells = || table.header().into_iter().chain(table.row_iter()).filter_map(|row| row.cell_iter().nth(at));
        let name = cells().next().map(comfy_table::Cell::content).unwrap_or_default();
        let longest = cells().map(|cell| cell.content().chars().count()).max().unwrap_or(0);
        column.set_constraint(match BREAKABLE.iter().find(|(breakable, _)| *breakable == name) {
            // With the spaces around it.
            Some((_, least)) => ColumnConstraint::LowerBoundary(Width::Fixed(longest.min(*least) as u16 + 2)),
            None => ColumnConstraint::ContentWidth,
        });
    }
    narrow.set_content_arrangement(comfy_table::ContentArrangement::Dynamic);
    // The first space of each line is taken off, and the last.
    narrow.set_width(u16::try_from(columns.unwrap_or(0) + 2).unwrap_or(u16::MAX));
    let broken = trimmed(&narrow.to_string());
    // Where there is no way, the terminal breaks the lines.
    if fits(&broken) { broken } else { text }
}

fn trimmed(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end()).collect();
    lines.join("\n")
}

/// A time for people, in this host's time zone.
pub fn local_time(time: jiff::Timestamp) -> String {
    time.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_no_wider_than_the_terminal_and_breaks_names_only() {
        let mut wide = table(&["id", "time", "name", "size"]);
        let name = "db.example.com:5432/orders, customers and invoices";
        wide.add_row(["60e08b95a412", "2026-11-21 20:24:15", name, "300.0 MB"]);
        let whole = fitted(&wide, None);
        assert!(whole.lines().nth(1).is_some_and(|line| line.contains(name)), "{whole}");
        assert_eq!(fitted(&wide, Some(120)), whole);
        for columns in [60, 70] {
            let narrow = fitted(&wide, Some(columns));
            assert!(narrow.lines().all(|line| line.chars().count() <= columns), "{narrow}");
            assert!(narrow.contains("60e08b95a412") && narrow.contains("300.0 MB"), "{narrow}");
        }
        assert!(fitted(&wide, Some(70)).contains("2026-11-21 20:24:15"), "the name breaks first");
        assert_eq!(fitted(&wide, Some(30)), whole, "there is no way");
    }

    #[test]
    fn one_thing_is_one_thing() {
        assert_eq!(
            (many(1, "item"), many(0, "item"), many(3000, "item")),
            ("1 item".into(), "0 items".into(), "3,000 items".into())
        );
    }

    #[test]
    fn a_line_of_the_log_says_how_far_how_fast_and_how_long() {
        let view = |bytes, bytes_total, items, items_total| ProgressView {
            bytes,
            bytes_total,
            items,
            items_total,
            doing: "public.orders".to_owned(),
        };
        let minute = Duration::from_secs(60);
        let line = |view| log_line(&view, minute);
        assert_eq!(
            line(view(3_000_000_000, 9_000_000_000, 0, 0)),
            "public.orders: 3.0 GB of 9.0 GB, 50.0 MB/s, 2:00 left"
        );
        assert_eq!(line(view(3_000_000_000, 0, 0, 0)), "public.orders: 3.0 GB, 50.0 MB/s");
        assert_eq!(line(view(0, 0, 10, 2000)), "public.orders: 10 of 2,000, 3:19:00 left");
        assert_eq!(line(view(0, 0, 0, 0)), "public.orders: 0");
    }
}
